package seglog_test

import (
	"context"
	"iter"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// In a build with -tags seglog_poison, a record that is kept without Clone must show, and reads must still be right.
func TestPoison(t *testing.T) {
	if race.On {
		t.Skip("the test runs in a process of its own, which the race detector does not watch")
	}
	if os.Getenv("SEGLOG_POISONED") == "" {
		c := exec.Command("go", "test", "-tags", "seglog_poison", "-count=1", "-run", "^TestPoison$", ".")
		c.Env = append(os.Environ(), "SEGLOG_POISONED=1")
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	l := open(t, t.TempDir(), nil)
	_, err := l.Append(seglog.Record{Key: []byte("k"), Value: []byte("first"), Headers: []seglog.Header{{Key: "h", Value: []byte("v")}}},
		seglog.Record{Value: []byte("second")})
	require.NoError(t, err)
	appendN(t, l, 2, 10)
	requireN(t, l, 2, 12)
	var kept, cloned []seglog.Record
	for r, err := range l.Records(0) {
		require.NoError(t, err)
		kept, cloned = append(kept, r), append(cloned, r.Clone())
	}
	require.Equal(t, "\xdb\xdb\xdb\xdb\xdb", string(kept[0].Value))
	require.Equal(t, "\xdb", string(kept[0].Key))
	require.Equal(t, "kept without Clone", kept[0].Headers[0].Key)
	require.Equal(t, "first", string(cloned[0].Value))
	require.Equal(t, "h", cloned[0].Headers[0].Key)
}

// Each step of RecordBatches and FollowBatches must yield the records of one Append, with all headers.
func TestRecordBatches(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096, Flush: seglog.FlushNone})
	var ends []int64
	for n := 1; n < 40; n++ {
		batch := make([]seglog.Record, 1+n%5)
		for i := range batch {
			batch[i] = seglog.Record{Value: value(n + i), Headers: []seglog.Header{{Key: "i", Value: value(i)}, {Key: "n", Value: value(n)}}}
		}
		base, err := l.Append(batch...)
		require.NoError(t, err)
		ends = append(ends, base+int64(len(batch)))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	require.NoError(t, l.Sync())
	for name, batches := range map[string]iter.Seq2[[]seglog.Record, error]{
		"RecordBatches": l.RecordBatches(3), "FollowBatches": l.FollowBatches(ctx, 3), "durable": l.Durable().FollowBatches(ctx, 3),
	} {
		next, k := int64(3), 1
		for batch, err := range batches {
			require.NoError(t, err, name)
			for i, r := range batch {
				require.Equal(t, next, r.Offset, name)
				require.Len(t, r.Headers, 2, name)
				if k > 1 {
					require.Equal(t, string(value(i)), string(r.Headers[0].Value), name)
				}
				next++
			}
			require.Equal(t, ends[k], next, name)
			if k++; k == len(ends) {
				break
			}
		}
		require.Equal(t, len(ends), k, name)
	}
	for _, err := range l.RecordBatches(-1) {
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
	}
}
