package seglog_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// The last batch of a segment says that it ends earlier than it does, within the bytes that its CRC covers. What it held at its
// end is damaged: neither missing, in a log that may leave out offsets, nor somewhere at the start of the file.
func TestLastBatchThatSeemsToEndEarlier(t *testing.T) {
	for name, gaps := range map[string]bool{"with gaps": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096})
			defer l.Close()
			if gaps {
				_, err := l.TransferFrom(bytes.NewReader(append(plainBatch(0, "first"), plainBatch(5, "behind a gap")...)), -1)
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

// What a reader remembers of a batch whose header was damaged for a moment does not outlast the damage.
func TestHeaderThatIsWholeAgain(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{IndexBytes: 1 << 20}) // batches are found by the headers of those before them
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
			_, _ = l.Read(b.Base) // by the last check
			flipBit(t, f, b.Pos, bit)
			seglog.SetReadCacheBytes(16 << 20) // as after a minute
			_, err = l.Read(b.Base + 1)
			require.NoError(t, err, "bit %d", bit)
		}
		require.NoError(t, f.Close())
	}
}
