package seglog_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// kafkaIndexes returns both index files of each segment as Kafka writes them, by the rule in docs/format.md: a batch gets an
// entry if more than interval bytes were written since the last entry.
func kafkaIndexes(all []stored, interval int) map[string][2][]byte {
	be := binary.BigEndian
	indexes := map[string][2][]byte{}
	for i := 0; i < len(all); {
		segment, base := all[i].segment, all[i].base
		var offsets, times []byte
		pos, since := 0, 0
		greatest, greatestAt, entered := int64(-1), int64(0), int64(-1)
		for ; i < len(all) && all[i].segment == segment; i++ {
			b := all[i]
			if ms := int64(be.Uint64(b.bytes[35:])); ms > greatest {
				greatest, greatestAt = ms, b.last-base
			}
			if since > interval {
				offsets = be.AppendUint32(be.AppendUint32(offsets, uint32(b.last-base)), uint32(pos))
				if greatest > entered {
					times = be.AppendUint32(be.AppendUint64(times, uint64(greatest)), uint32(greatestAt))
					entered = greatest
				}
				since = 0
			}
			since += len(b.bytes)
			pos += len(b.bytes)
		}
		if greatest > entered {
			times = be.AppendUint32(be.AppendUint64(times, uint64(greatest)), uint32(greatestAt))
		}
		indexes[segment] = [2][]byte{offsets, times}
	}
	return indexes
}

// The index files must be those that Kafka would write, byte for byte, also across restarts.
func TestIndexesAreKafkas(t *testing.T) {
	for _, interval := range []int{1, 300, 4096} {
		for _, restarts := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(uint64(interval), 6))
			dir := t.TempDir()
			o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 32 << 10, IndexBytes: interval}
			l := open(t, dir, o)
			for i := range 600 {
				ms := 1700000000000 + int64(i-rng.IntN(40))
				n := 1 + rng.IntN(3)
				b := rawBatch{base: l.Offsets().End, count: n, lastDelta: n - 1, baseTime: ms, maxTime: ms}
				if i%7 == 0 {
					b.baseTime, b.maxTime = -1, -1 // such a batch never enters the time index
				}
				for k := range n {
					b.body = append(b.body, rawRecord(int64(k), 0, make([]byte, rng.IntN(300)))...)
				}
				whole := b.bytes()
				if i < 60 { // batches of which the interval is an exact multiple, to check that an entry takes more than the interval
					whole = sizedBatch(t, b.base, 100)
				}
				_, err := l.TransferFrom(bytes.NewReader(whole), -1)
				require.NoError(t, err)
				if restarts && i%50 == 49 {
					require.NoError(t, l.Close())
					l = open(t, dir, o)
				}
			}
			require.NoError(t, l.Close())
			want := kafkaIndexes(storedBatches(t, dir), interval)
			require.Greater(t, len(want), 3)
			for segment, files := range want {
				for k, suffix := range []string{".index", ".timeindex"} {
					got, err := os.ReadFile(strings.TrimSuffix(segment, ".log") + suffix)
					require.NoError(t, err)
					require.True(t, bytes.Equal(files[k], got), "%s%s, interval %d, restarts %v: %d and %d bytes", segment, suffix, interval, restarts, len(files[k]), len(got))
				}
			}
		}
	}
}
