package seglog

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func randomIndexes(rng *rand.Rand, n int) (offsets, times []byte, span, size int64) {
	rel, pos, ms := int64(0), int64(0), int64(1000)
	for range n {
		rel += 1 + rng.Int64N(5)
		pos += 1 + rng.Int64N(1000)
		ms += 1 + rng.Int64N(50)
		offsets = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(offsets, uint32(rel)), uint32(pos))
		times = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(times, uint64(ms)), uint32(rel))
	}
	return offsets, times, rel + 1, pos + 100
}

// Look-ups must find the same entry as a walk over all entries.
func TestIndexLookUps(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for n := range 40 {
		offsets, times, span, size := randomIndexes(rng, n)
		require.Empty(t, checkEntries(offsets, times, size, span))
		byOffset, byPos := hint{rel: -1}, hint{rel: -1}
		k := 0
		for rel := range span + 3 {
			for k < n {
				r, p := offsetEntry(offsets, k)
				if int64(r) > rel {
					break
				}
				byOffset = hint{rel: int64(r), pos: int64(p), entries: offsets, entry: k}
				k++
			}
			require.Equal(t, byOffset, seekOffset(offsets, uint32(rel)))
		}
		k = 0
		for pos := int64(0); pos < size+3; pos += 1 + rng.Int64N(9) {
			for k < n {
				r, p := offsetEntry(offsets, k)
				if int64(p) > pos {
					break
				}
				byPos = hint{rel: int64(r), pos: int64(p), entries: offsets, entry: k}
				k++
			}
			require.Equal(t, byPos, hintAt(offsets, seekPos(offsets, pos)))
		}
		for ms := int64(990); ms < 1000+int64(n)*52; ms++ {
			want, found := int64(0), false
			for i := range n {
				if at, _ := timeEntry(times, i); at <= ms {
					want, found = at, true
				}
			}
			got, _, ok := seekTime(times, ms)
			require.Equal(t, found, ok)
			require.Equal(t, want, got)
		}
	}
}

// checkEntries must notice entries that no segment can have, without reading the segment.
func TestImplausibleEntries(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	offsets, times, span, size := randomIndexes(rng, 20)
	swapped := func(b []byte, n int) []byte {
		c := append([]byte(nil), b...)
		copy(c[5*n:], b[6*n:7*n])
		copy(c[6*n:], b[5*n:6*n])
		return c
	}
	for name, bad := range map[string][2][]byte{
		"offset index not whole":  {offsets[:len(offsets)-1], times},
		"time index not whole":    {offsets, times[:len(times)-1]},
		"offsets out of order":    {swapped(offsets, offsetEntryLen), times},
		"times out of order":      {offsets, swapped(times, timeEntryLen)},
		"a repeated offset":       {append(append([]byte(nil), offsets...), offsets[len(offsets)-8:]...), times},
		"zeros after the offsets": {append(append([]byte(nil), offsets...), make([]byte, 8)...), times},
		"zeros after the times":   {offsets, append(append([]byte(nil), times...), make([]byte, 12)...)},
	} {
		require.NotEmpty(t, checkEntries(bad[0], bad[1], size, span), name)
	}
	require.NotEmpty(t, checkEntries(offsets, times, size-100, span), "a position past the end")
	require.NotEmpty(t, checkEntries(offsets, times, size, span-1), "an offset past the end")
	require.Empty(t, checkEntries(nil, nil, 0, 0))
}

// Readers of a table must see complete entries while another goroutine adds entries.
func TestTableGrowsBesideReaders(t *testing.T) {
	x := newTable(nil)
	done := make(chan bool)
	go func() {
		defer close(done)
		for i := range 20000 {
			var e [offsetEntryLen]byte
			binary.BigEndian.PutUint32(e[:], uint32(i))
			binary.BigEndian.PutUint32(e[4:], uint32(2*i))
			x.add(e[:])
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		b := x.bytes()
		for _, i := range []int{0, len(b)/offsetEntryLen - 1} {
			if i >= 0 && len(b) > 0 {
				rel, pos := offsetEntry(b, i)
				require.Equal(t, [2]uint32{uint32(i), uint32(2 * i)}, [2]uint32{rel, pos})
			}
		}
	}
	require.Len(t, x.bytes(), 20000*offsetEntryLen)
}

// The search starts at a guess. However unevenly the offsets grow, it must find the same entry as a linear search.
func TestSeekOffset(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 2000 {
		rels := make([]uint32, rng.IntN(40))
		for i := range rels {
			rels[i] = rng.Uint32() >> rng.IntN(32)
		}
		slices.Sort(rels)
		rels = slices.Compact(rels)
		var entries []byte
		for i, rel := range rels {
			entries = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(entries, rel), uint32(i+1))
		}
		for _, near := range append(rels, 0, math.MaxUint32, rng.Uint32()) {
			for _, rel := range []uint32{near - 1, near, near + 1} {
				want := -1
				for i, r := range rels {
					if r <= rel {
						want = i
					}
				}
				require.Equal(t, hintAt(entries, want), seekOffset(entries, rel), "of %v, at most %d", rels, rel)
			}
		}
	}
}

// Kafka before 4.0 made a single offset entry for an append of several batches, such as a follower's: the position of the
// first batch with the offset of the last. A time entry may name the record with the greatest time in place of the last record
// of the batch. Open must use such indexes unchanged.
func TestIndexesOfOlderKafka(t *testing.T) {
	dir := t.TempDir()
	const perAppend, appends = 7, 30
	var log, offsets, times []byte
	be := binary.BigEndian
	at := int64(0)
	millis := func(offset int64) int64 { return 1_700_000_000_000 + offset }
	for a := range appends {
		pos := len(log)
		for range perAppend {
			var records []Record
			for k := range int64(3) {
				records = append(records, Record{Time: time.UnixMilli(millis(at + k)), Value: fmt.Appendf(nil, "record %d of an old log", at+k)})
			}
			log = append(log, encoded(records, at)...)
			at += 3
		}
		if a > 0 {
			offsets = be.AppendUint32(be.AppendUint32(offsets, uint32(at-1)), uint32(pos))
			times = be.AppendUint32(be.AppendUint64(times, uint64(millis(at-1))), uint32(at-1))
		}
	}
	next := encoded([]Record{{Time: time.UnixMilli(millis(at)), Value: []byte("the next segment")}}, at)
	for name, content := range map[string][]byte{
		fileName(0, logSuffix): log, fileName(0, indexSuffix): offsets, fileName(0, timeSuffix): times,
		fileName(at, logSuffix): next, fileName(at, indexSuffix): nil, fileName(at, timeSuffix): nil,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	}
	for _, readOnly := range []bool{true, false} {
		var warned strings.Builder
		l, err := Open(dir, &Options{ReadOnly: readOnly, IndexBytes: 200, Logger: slog.New(slog.NewTextHandler(&warned, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		require.NoError(t, err)
		for offset := int64(0); offset < at; offset++ {
			r, err := l.Read(offset)
			require.NoError(t, err)
			require.Equal(t, offset, r.Offset)
			got, err := l.OffsetForTime(time.UnixMilli(millis(offset)))
			require.NoError(t, err)
			require.Equal(t, offset, got)
		}
		require.Zero(t, l.Stats().IndexRebuilds, warned.String())
		require.Empty(t, warned.String())
		require.NoError(t, l.Close())
	}
	got, err := os.ReadFile(filepath.Join(dir, fileName(0, indexSuffix)))
	require.NoError(t, err)
	require.Equal(t, offsets, got)
}
