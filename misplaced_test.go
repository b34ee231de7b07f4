package seglog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
)

// misplacing is a closed log without gaps of which bytes are moved to a wrong place.
type misplacing struct {
	dir   string
	index int
	whole []byte
	at    []BatchInfo
	zeros int // reserved blocks behind the batches
}

func misplacedValue(offset int64) []byte {
	return bytes.Repeat([]byte{byte('a' + offset%26)}, 1+int(offset*37%150))
}

func newMisplacing(t *testing.T, batches, per, index int) *misplacing {
	m := &misplacing{dir: t.TempDir(), index: index}
	l, err := Open(m.dir, &Options{Flush: FlushNone, IndexBytes: index})
	require.NoError(t, err)
	for i := range batches {
		var records []Record
		for k := range per {
			records = append(records, Record{Time: time.UnixMilli(1), Value: misplacedValue(int64(i*per + k))})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		m.at = append(m.at, b)
	}
	require.NoError(t, l.Close())
	m.whole, err = os.ReadFile(filepath.Join(m.dir, fileName(0, logSuffix)))
	require.NoError(t, err)
	return m
}

// inHeader reports whether pos lies between the base offset of a batch and what its CRC covers.
func (m *misplacing) inHeader(pos int) bool {
	return slices.ContainsFunc(m.at, func(b BatchInfo) bool { return int64(pos) > b.Pos && int64(pos) < b.Pos+atAttributes })
}

// What must be found of a log that is spoilt.
type foundBatches int

const (
	inPlace  foundBatches = iota // the batches that are where they were
	anywhere                     // all that there are
	some                         // readers, Verify and Repair agree
)

// check spoils the log and checks that readers, Verify and Repair all find the same batches, those that must be found, and no wrong
// one. The log must keep its end.
func (m *misplacing) check(t *testing.T, what string, must foundBatches, spoil func(b []byte) []byte) {
	t.Helper()
	b := spoil(bytes.Clone(m.whole))
	dir := copyFiles(t, m.dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, logSuffix)), append(bytes.Clone(b), make([]byte, m.zeros)...), 0o644))
	var want []int64
	for _, at := range m.at {
		was, there := m.whole[at.Pos:at.Pos+at.Bytes], false
		if must == anywhere {
			there = bytes.Contains(b, was)
		} else {
			there = bytes.HasPrefix(b[at.Pos:], was)
		}
		if there {
			for offset := at.Base; offset < at.Next; offset++ {
				want = append(want, offset)
			}
		}
	}
	end := m.at[len(m.at)-1].Next
	if int64(len(want)) == end {
		return
	}
	l, err := Open(dir, &Options{Flush: FlushNone, IndexBytes: m.index, ReadOnly: true})
	require.NoError(t, err)
	read, _ := readPast(t, what, l)
	require.NoError(t, l.Close())
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.False(t, report.OK(), what)
	repair, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.Equal(t, report.Records, repair.Records, what)
	require.Equal(t, end, repair.End, what)
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.Equal(t, end, l.Offsets().End, what)
	var kept []int64
	for r, err := range l.Records(Oldest) {
		require.NoError(t, err, what)
		require.Equal(t, misplacedValue(r.Offset), r.Value, "%s: offset %d", what, r.Offset)
		kept = append(kept, r.Offset)
	}
	require.NoError(t, l.Close())
	require.Equal(t, int64(len(kept)), repair.Records, what)
	require.Empty(t, missing(read, kept), what)
	if must != inPlace { // Repair may keep a copy that is elsewhere, of a batch that is lost at its place
		require.Empty(t, missing(kept, read), what)
	}
	if must != some {
		require.Empty(t, missing(want, kept), what)
		require.Empty(t, missing(want, read), what)
	}
	report, err = Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK(), "%s: %v", what, report.Problems)
}

// checkRuns is check where batches have come to a place from several others, two or three from each.
func (m *misplacing) checkRuns(t *testing.T, what string, place int, from []int) {
	t.Helper()
	m.check(t, fmt.Sprintf("%s: at %d batches from %d", what, place, from), inPlace, func(b []byte) []byte {
		at := m.at[place].Pos
		for _, x := range from {
			at += int64(copy(b[at:], m.whole[m.at[x].Pos:m.at[x+2+x%2].Pos]))
		}
		return b
	})
}

func missing(want, got []int64) []int64 {
	return slices.DeleteFunc(slices.Clone(want), func(x int64) bool { return slices.Contains(got, x) })
}

// A write to a wrong place puts batches of the log where others belong. In a log without gaps it costs the batches that it covers,
// and none behind them: for readers, Verify and Repair alike.
func TestMisplacedBatches(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	rng := rand.New(rand.NewPCG(8, 1))
	for _, per := range []int{1, 4} {
		for _, index := range []int{500, defaultIndexBytes} {
			m := newMisplacing(t, 60, per, index)
			what := fmt.Sprintf("%d records in a batch, an index entry for %d bytes", per, index)
			m.checkRuns(t, what, 26, []int{37, 55})
			m.checkRuns(t, what, 24, []int{36, 49})
			for range 8 * max(1, *tortureStates) {
				size := 512 << rng.IntN(4)
				from, to := rng.IntN(len(m.whole)/512)*512, rng.IntN(len(m.whole)/512)*512
				// Where a block begins or ends in two headers, a batch gets another one's records, and no checksum tells.
				if !(m.inHeader(from) && m.inHeader(to) || m.inHeader(from+size) && m.inHeader(to+size)) {
					m.check(t, fmt.Sprintf("%s: block of %d from %d to %d", what, size, from, to), inPlace, func(b []byte) []byte {
						copy(b[to:], m.whole[from:min(len(b), from+size, from+len(b)-to)])
						return b
					})
					m.check(t, fmt.Sprintf("%s: blocks of %d at %d and %d change places", what, size, from, to), some, func(b []byte) []byte {
						n := min(size, len(b)-from, len(b)-to)
						copy(b[to:to+n], m.whole[from:])
						copy(b[from:from+n], m.whole[to:])
						return b
					})
				}
				runs := []int{rng.IntN(57), rng.IntN(57), rng.IntN(57)}
				m.checkRuns(t, what, 2+rng.IntN(40), runs[:2+rng.IntN(2)])
				x, y := m.at[rng.IntN(60)], m.at[rng.IntN(60)]
				m.check(t, fmt.Sprintf("%s: batch of %d at %d", what, x.Base, y.Base), inPlace, func(b []byte) []byte {
					copy(b[y.Pos:], m.whole[x.Pos:x.Pos+x.Bytes])
					return b
				})
				k := rng.IntN(59)
				m.check(t, fmt.Sprintf("%s: batches %d and %d change places", what, k, k+1), inPlace, func(b []byte) []byte {
					x, y := m.at[k], m.at[k+1]
					n := copy(b[x.Pos:], m.whole[y.Pos:y.Pos+y.Bytes])
					copy(b[x.Pos+int64(n):], m.whole[x.Pos:y.Pos])
					return b
				})
			}
		}
	}
}

// Where bytes were inserted into a segment or left out, the batches behind, the last one too, are not where they were: readers, Verify and
// Repair find them all the same.
func TestMovedBatches(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	rng := rand.New(rand.NewPCG(8, 2))
	for _, per := range []int{1, 4} {
		for _, index := range []int{500, defaultIndexBytes} {
			m := newMisplacing(t, 60, per, index)
			what := fmt.Sprintf("%d records in a batch, an index entry for %d bytes", per, index)
			last := int(m.at[59].Pos)
			for i := range 12 * max(1, *tortureStates) {
				from, n := rng.IntN(last), 1+rng.IntN(600)
				m.check(t, fmt.Sprintf("%s: %d bytes at %d inserted", what, n, from), anywhere, func(b []byte) []byte {
					return slices.Insert(b, from, bytes.Repeat([]byte{0xa5}, n)...)
				})
				to := min(last, from+n)
				m.check(t, fmt.Sprintf("%s: %d to %d left out", what, from, to), anywhere, func(b []byte) []byte { return slices.Delete(b, from, to) })
				x := 50 + rng.IntN(7)
				if i%2 == 0 {
					x = 56
				}
				y := x + 1 + i%3
				m.check(t, fmt.Sprintf("%s: batches %d to %d doubled", what, x, y), anywhere, func(b []byte) []byte {
					return slices.Insert(b, int(m.at[y].Pos), m.whole[m.at[x].Pos:m.at[y].Pos]...)
				})
				m.check(t, fmt.Sprintf("%s: batches %d to %d left out", what, x, y), anywhere, func(b []byte) []byte {
					return slices.Delete(b, int(m.at[x].Pos), int(m.at[y].Pos))
				})
			}
		}
	}
}

// kill makes the log one whose process was killed: the state file says that it was closed last behind n batches, of which there are indexes,
// and that it is flushed up to batch flushed.
func (m *misplacing) kill(t *testing.T, n, flushed int) {
	t.Helper()
	m.zeros = 4096
	end := func(n int) (pos, offset int64) {
		if n == 0 {
			return 0, 0
		}
		return m.at[n-1].Pos + m.at[n-1].Bytes, m.at[n-1].Next
	}
	changeState(t, m.dir, func(s *state) {
		s.clean = false
		s.endPos, s.end = end(n)
		s.scanPos, s.scanOffset = end(flushed)
		s.recoveryPoint = s.scanOffset
	})
	x := newIndexBuilder(m.index)
	for _, b := range m.at[:n] {
		x.add(b.Pos, uint32(b.Next-1), 1)
	}
	offsets, times := x.files()
	for suffix, b := range map[string][]byte{indexSuffix: offsets, timeSuffix: times} {
		path := filepath.Join(m.dir, fileName(0, suffix))
		require.NoError(t, os.Remove(path))
		if n > 0 {
			require.NoError(t, os.WriteFile(path, b, 0o644))
		}
	}
}

// In a log that was killed the state file tells up to which position it was flushed, and its index may end early. Where bytes were inserted
// before that position or left out, it is one in the middle of a batch, and leads nobody astray.
func TestMovedBatchesOfAKilledLog(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	rng := rand.New(rand.NewPCG(8, 3))
	for _, indexed := range []int{0, 20, 45} {
		for _, flushed := range []int{60, 50} {
			for _, per := range []int{1, 4} {
				m := newMisplacing(t, 60, per, 500)
				m.kill(t, indexed, flushed)
				what := fmt.Sprintf("%d records in a batch, %d indexed, %d flushed", per, indexed, flushed)
				last := int(m.at[flushed-1].Pos)
				for i := range 4 * max(1, *tortureStates) {
					from, n := rng.IntN(last), 1+rng.IntN(200)
					if i%4 == 0 {
						n = 1 + rng.IntN(8)
					}
					m.check(t, fmt.Sprintf("%s: %d bytes at %d inserted", what, n, from), anywhere, func(b []byte) []byte {
						return slices.Insert(b, from, bytes.Repeat([]byte{0xa5}, n)...)
					})
					to := min(last, from+n)
					m.check(t, fmt.Sprintf("%s: %d to %d left out", what, from, to), anywhere, func(b []byte) []byte { return slices.Delete(b, from, to) })
					x := rng.IntN(flushed - 4)
					y := x + 1 + i%3
					m.check(t, fmt.Sprintf("%s: batches %d to %d doubled", what, x, y), anywhere, func(b []byte) []byte {
						return slices.Insert(b, int(m.at[y].Pos), m.whole[m.at[x].Pos:m.at[y].Pos]...)
					})
					m.check(t, fmt.Sprintf("%s: batches %d to %d left out", what, x, y), anywhere, func(b []byte) []byte {
						return slices.Delete(b, int(m.at[x].Pos), int(m.at[y].Pos))
					})
				}
			}
		}
	}
}

// Where the first batch of a log has come to another place, a reader that goes on at NextOffset, as after any damage, comes to an end, and
// finds that batch.
func TestReadersOfAMovedFirstBatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, IndexBytes: 64})
	require.NoError(t, err)
	for i, n := range []int{20, 1, 1, 1, 1, 1, 1, 1, 1, 1, 20} {
		var records []Record
		for range n {
			records = append(records, Record{Value: bytes.Repeat([]byte{byte('a' + i)}, []int{30, 70, 120}[min(i, 1)+i/10])})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	path := filepath.Join(dir, fileName(0, logSuffix))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Less(t, batch(b).size(), int64(1024))
	for i := range 1024 {
		b[i], b[2048+i] = b[2048+i], b[i]
	}
	require.NoError(t, os.WriteFile(path, b, 0o644))
	for _, readOnly := range []bool{true, false} {
		l, err := Open(dir, &Options{Flush: FlushNone, ReadOnly: readOnly})
		require.NoError(t, err)
		got, _ := readPast(t, fmt.Sprintf("read-only %v", readOnly), l)
		if !readOnly {
			require.Contains(t, got, int64(0))
		}
		require.NotEmpty(t, got)
		require.NoError(t, l.Close())
	}
}
