package seglog_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// timedLog returns the directory of a closed log of batches with one record each, a second apart, in several segments.
func timedLog(t *testing.T, n int) (dir string, all []stored) {
	t.Helper()
	dir = t.TempDir()
	o, _ := recoverOptions()
	l := open(t, dir, o)
	for i := range n {
		_, err := l.Append(seglog.Record{Time: second(i), Value: value(i)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	all = storedBatches(t, dir)
	require.Len(t, all, n)
	return dir, all
}

func second(i int) time.Time {
	return time.UnixMilli(1_700_000_000_000).Add(time.Duration(i) * time.Second)
}

// OffsetForTime must fail only for times that may lie in damaged batches, wherever they are.
func TestOffsetForTimeBesideDamage(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	const n = 250
	sound, all := timedLog(t, n)
	segments := files(t, sound, "*.log")
	require.Greater(t, len(segments), 3)
	// position returns the position of batch i in its segment.
	position := func(i int) (pos int) {
		for _, b := range all[:i] {
			if b.segment == all[i].segment {
				pos += len(b.bytes)
			}
		}
		return pos
	}
	type spoilt struct {
		how         string
		first, last int // batches that can't be read
		do          func(dir string)
	}
	var damages []spoilt
	flipAt := func(i, at int) func(dir string) {
		return func(dir string) { spoil(t, dir+all[i].segment[len(sound):], flip(position(i)+at)) }
	}
	for _, i := range []int{0, 1, 20, 100, 101, n - 2} {
		for what, at := range map[string]int{"length": 10, "magic": 16, "crc": 19, "last offset": 25, "greatest time": 38, "records": 64} {
			damages = append(damages, spoilt{fmt.Sprintf("%s of batch %d", what, i), i, i, flipAt(i, at)})
		}
	}
	inSegment := func(k int) (first, last int) {
		first = -1
		for i, b := range all {
			if b.segment == segments[k] {
				if first < 0 {
					first = i
				}
				last = i
			}
		}
		return first, last
	}
	for _, k := range []int{0, 1} {
		first, last := inSegment(k)
		damages = append(damages,
			spoilt{fmt.Sprintf("segment %d removed", k), first, last, func(dir string) { require.NoError(t, os.Remove(dir+segments[k][len(sound):])) }},
			spoilt{fmt.Sprintf("segment %d emptied", k), first, last, func(dir string) { require.NoError(t, os.Truncate(dir+segments[k][len(sound):], 0)) }},
			spoilt{fmt.Sprintf("segment %d zeroed", k), first, last, func(dir string) {
				spoil(t, dir+segments[k][len(sound):], func(b []byte) []byte { return make([]byte, len(b)) })
			}})
		first++
		damages = append(damages, spoilt{fmt.Sprintf("segment %d cut short", k), first, last, func(dir string) {
			require.NoError(t, os.Truncate(dir+segments[k][len(sound):], int64(position(first))))
		}})
	}
	for _, withIndexes := range []bool{true, false} {
		for _, d := range damages {
			t.Run(fmt.Sprintf("%s, indexes %v", d.how, withIndexes), func(t *testing.T) {
				dir := copyDir(t, sound)
				if !withIndexes {
					for _, name := range append(files(t, dir, "*.index"), files(t, dir, "*.timeindex")...) {
						require.NoError(t, os.Remove(name))
					}
				}
				o, _ := recoverOptions()
				l := open(t, dir, o)
				d.do(dir) // after Open, which would notice a missing segment
				for i := range n {
					if i%16 > 0 && i < d.first-2 || i > d.last+3 && i%16 > 0 || i > d.first+2 && i < d.last-1 && i%8 > 0 {
						continue
					}
					for _, at := range []time.Time{second(i), second(i).Add(-time.Millisecond)} {
						got, err := l.OffsetForTime(at)
						if i < d.first || i > d.last+1 {
							require.NoError(t, err, "record %d", i)
							require.EqualValues(t, i, got)
							continue
						}
						// The times of damaged batches can't be found, and perhaps not that of the batch after them, which may not be the first
						// with that time.
						var c *seglog.CorruptError
						if err == nil && i == d.last+1 {
							require.EqualValues(t, i, got)
							continue
						}
						require.ErrorAs(t, err, &c, "record %d", i)
						require.EqualValues(t, d.last+1, c.NextOffset, "record %d", i)
					}
				}
				got, err := l.OffsetForTime(second(n))
				require.NoError(t, err)
				require.EqualValues(t, n, got)
				require.NoError(t, l.Close())
			})
		}
	}
}

// If a damaged batch claims the offsets of later batches, OffsetForTime must skip that batch alone.
func TestOffsetForTimePassesABatchThatClaimsMore(t *testing.T) {
	const n, spoilt = 20, 7
	for _, gap := range []int64{0, 5} {
		for last := int64(1); last < n+2; last++ {
			dir := t.TempDir()
			l := open(t, dir, nil)
			offsets := make([]int64, n)
			var stream bytes.Buffer
			for i := range int64(n) {
				if offsets[i] = i; i > spoilt+2 {
					offsets[i] += gap
				}
				b := plainBatch(offsets[i], "value")
				binary.BigEndian.PutUint64(b[27:], uint64(second(int(i)).UnixMilli()))
				binary.BigEndian.PutUint64(b[35:], uint64(second(int(i)).UnixMilli()))
				binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
				stream.Write(b)
			}
			_, err := l.TransferFrom(&stream, -1)
			require.NoError(t, err)
			require.NoError(t, l.Close())
			pos := 0
			for _, b := range storedBatches(t, dir)[:spoilt] {
				pos += len(b.bytes)
			}
			spoil(t, files(t, dir, "*.log")[0], func(b []byte) []byte {
				b[pos+26] = byte(last) // in lastOffsetDelta
				return b
			})
			l = open(t, dir, &seglog.Options{ReadOnly: true})
			for i := range n {
				got, err := l.OffsetForTime(second(i))
				if i < spoilt || i > spoilt+1 {
					require.NoError(t, err, "record %d", i)
					require.Equal(t, offsets[i], got)
					continue
				}
				var c *seglog.CorruptError
				require.ErrorAs(t, err, &c, "record %d", i)
				require.Equal(t, offsets[spoilt+1], c.NextOffset)
			}
			require.NoError(t, l.Close())
		}
	}
}

// What follows a damaged batch tells whether the record lies in it only if it has a time that is earlier, be it in the batch that holds
// the answer. The time of a control batch that is later, and a batch without times, tell nothing.
func TestOffsetForTimeGoesByTheTimesBehindDamage(t *testing.T) {
	at := func(i int) int64 { return second(i).UnixMilli() }
	// Three batches of four records, a second apart. The second one is damaged.
	records := func(base int64, from int) []byte {
		b := rawBatch{base: base, lastDelta: 3, count: 4, baseTime: at(from), maxTime: at(from + 3)}
		for i := range int64(4) {
			b.body = append(b.body, rawRecord(i, i*1000, []byte("value"))...)
		}
		return b.bytes()
	}
	single := func(attributes int16, base, ms int64) []byte {
		return rawBatch{base: base, attributes: attributes, count: 1, baseTime: ms, maxTime: ms, body: rawRecord(0, 0, []byte("value"))}.bytes()
	}
	const control = 0x20
	for what, between := range map[string][]byte{
		"nothing":              nil,
		"a late control batch": single(control, 8, at(15)),
		"one without a time":   single(0, 8, -1),
		"an early record":      single(0, 8, at(0)),
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, nil)
			behind := int64(8) // offset of the third batch
			if between != nil {
				behind++
			}
			stream := bytes.Join([][]byte{records(0, 0), records(4, 4), between, records(behind, 8)}, nil)
			_, err := l.TransferFrom(bytes.NewReader(stream), -1)
			require.NoError(t, err)
			require.NoError(t, l.Close())
			spoil(t, files(t, dir, "*.log")[0], flip(len(records(0, 0))+64))
			l = open(t, dir, nil)
			for i := range 12 {
				got, err := l.OffsetForTime(second(i))
				switch {
				case i < 4:
					require.NoError(t, err, "time %d", i)
					require.EqualValues(t, i, got)
				case i <= 8 && what != "an early record":
					var c *seglog.CorruptError
					require.ErrorAs(t, err, &c, "time %d", i)
					require.EqualValues(t, 8, c.NextOffset)
				default:
					require.NoError(t, err, "time %d", i)
					require.EqualValues(t, behind+max(0, int64(i)-8), got)
				}
			}
			require.NoError(t, l.Close())
		})
	}
}
