package seglog_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// If damage in the last batch of a segment makes it seem to end at a lower offset, reads of the offsets that it covered must
// report the batch as damaged. They must not report the offsets as missing, even in a log with gaps, nor damage at the start
// of the file.
func TestLastBatchThatSeemsToEndEarlier(t *testing.T) {
	for name, gaps := range map[string]bool{"with gaps": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096})
			defer l.Close()
			if gaps {
				_, err := l.TransferFrom(bytes.NewReader(append(plainBatch(0, "first"), plainBatch(5, "after a gap")...)), -1)
				require.NoError(t, err)
			}
			for l.Stats().Segments < 3 {
				_, err := l.Append(seglog.Record{Value: []byte("a")}, seglog.Record{Value: []byte("b")}, seglog.Record{Value: bytes.Repeat([]byte("c"), 300)})
				require.NoError(t, err)
			}
			last := map[string]seglog.BatchInfo{}
			for b, err := range l.Batches(seglog.Oldest) {
				require.NoError(t, err)
				last[b.Path] = b
			}
			require.Len(t, last, 3)
			for _, b := range last {
				f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
				require.NoError(t, err)
				flipBit(t, f, b.Pos+26, 1) // the last byte of lastOffsetDelta: 2 becomes 0
				for offset := b.Base; offset < b.Next; offset++ {
					_, err = l.Read(offset)
					require.ErrorIs(t, err, seglog.ErrCorrupt, "offset %d of %d to %d", offset, b.Base, b.Next)
					var damage *seglog.CorruptError
					require.True(t, errors.As(err, &damage))
					require.Equal(t, b.Path, damage.Path)
					require.Equal(t, b.Pos, damage.Pos, "offset %d: %v", offset, err)
				}
				flipBit(t, f, b.Pos+26, 1)
				require.NoError(t, f.Close())
			}
		})
	}
}

// If the header of a batch is damaged for a moment, the read cache must not keep the damaged header after that.
func TestHeaderThatIsWholeAgain(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{IndexBytes: 1 << 20}) // so that a batch is found by the headers of the batches before it
	defer l.Close()
	defer seglog.SetReadCacheBytes(16 << 20)
	for range 4 {
		var records []seglog.Record
		for range 40 {
			records = append(records, seglog.Record{Value: make([]byte, 200)})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	for b, err := range l.Batches(40) {
		require.NoError(t, err)
		if b.Next == l.Offsets().End {
			break
		}
		f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
		require.NoError(t, err)
		for bit := range 12 * 8 {
			for _, offset := range []int64{b.Base, b.Base + 1, b.Next} {
				_, err = l.Read(offset)
				require.NoError(t, err)
			}
			flipBit(t, f, b.Pos, bit)
			_, _ = l.Read(b.Base) // trusts the last check, so it may succeed
			flipBit(t, f, b.Pos, bit)
			seglog.SetReadCacheBytes(16 << 20) // empties the cache, as if a minute had passed
			_, err = l.Read(b.Base + 1)
			require.NoError(t, err, "bit %d", bit)
		}
		require.NoError(t, f.Close())
	}
}
