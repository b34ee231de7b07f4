package seglog_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// A batch whose CRC is right and whose records can't be decoded, as a faulty writer makes it, must be an error that says where to
// go on, at its first offset as well as inside, wherever it lies.
func TestBatchThatCannotBeDecoded(t *testing.T) {
	batch := func(base int64, bad bool) []byte {
		body := append(rawRecord(0, 0, []byte("one")), rawRecord(1, 0, []byte("two"))...)
		attributes := int16(0)
		if bad && base%4 == 0 {
			body[0] += 2 // the length of the first record
		} else if bad {
			attributes, body = 1, []byte("this is not gzip")
		}
		return rawBatch{base: base, attributes: attributes, lastDelta: 1, count: 2, baseTime: 1, maxTime: 1, body: body}.bytes()
	}
	for _, gaps := range []bool{false, true} {
		for _, first := range []int64{0, 200} {
			for at := range int64(3) {
				for kind := range int64(2) {
					dir := t.TempDir()
					l, err := seglog.Open(dir, &seglog.Options{SegmentBytes: 64 << 10})
					require.NoError(t, err)
					base := first + 2*kind
					var stream bytes.Buffer
					for k := range int64(3) {
						stream.Write(batch(base+2*k, k == at))
					}
					end := base + 6
					if gaps {
						end = base + 100
						stream.Write(batch(end-2, false))
					}
					_, err = l.TransferFrom(&stream, -1)
					require.NoError(t, err)
					require.Equal(t, end, l.Offsets().End)
					bad := base + 2*at
					readOnly, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
					require.NoError(t, err)
					for _, l := range []*seglog.Log{l, readOnly} {
						for offset := base; offset < base+6; offset++ {
							_, err := l.Read(offset)
							if offset/2 != bad/2 {
								require.NoError(t, err, offset)
								continue
							}
							var corrupt *seglog.CorruptError
							require.ErrorAs(t, err, &corrupt)
							require.Equal(t, bad, corrupt.Offset)
						}
						var got []int64
						for next := base; next < l.Offsets().End; {
							for r, err := range l.Records(next) {
								var corrupt *seglog.CorruptError
								if errors.As(err, &corrupt) {
									require.Greater(t, corrupt.NextOffset, next)
									next = corrupt.NextOffset
									break
								}
								require.NoError(t, err)
								got, next = append(got, r.Offset), r.Offset+1
							}
						}
						want := []int64{}
						for offset := base; offset < base+6; offset++ {
							if offset/2 != bad/2 {
								want = append(want, offset)
							}
						}
						if gaps {
							want = append(want, end-2, end-1)
						}
						require.Equal(t, want, got)
						ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
						for _, err := range l.Follow(ctx, bad) {
							require.ErrorIs(t, err, seglog.ErrCorrupt)
						}
						require.NoError(t, ctx.Err())
						cancel()
					}
					require.NoError(t, readOnly.Close())
					require.NoError(t, l.Close())
				}
			}
		}
	}
}
