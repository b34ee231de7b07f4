package seglog_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// Offsets must return bounds of a single moment: while one goroutine keeps ten or eleven records in the log, no other may see
// fewer or more.
func TestOffsetsAreOfOneMoment(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	one := seglog.Record{Value: []byte("v")}
	for range 10 {
		_, err := l.Append(one)
		require.NoError(t, err)
	}
	var done sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		done.Add(1)
		go func() {
			defer done.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if o := l.Offsets(); o.End-o.Start < 10 || o.End-o.Start > 11 || o.HighWatermark != o.End {
					t.Errorf("Offsets %+v, %d records", o, o.End-o.Start)
					return
				}
			}
		}()
	}
	until := time.Now().Add(300 * time.Millisecond)
	for offset := int64(1); time.Now().Before(until) && !t.Failed(); offset++ {
		_, err := l.Append(one)
		require.NoError(t, err)
		require.NoError(t, l.DeleteBefore(offset))
	}
	close(stop)
	done.Wait()
}

// AppendAt must store its records at the next offset, and nothing at any other.
func TestAppendAt(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	for _, offset := range []int64{0, 2, 4} {
		for _, wrong := range []int64{offset - 1, offset + 1} {
			err := l.AppendAt(wrong, seglog.Record{})
			if wrong < 0 {
				require.ErrorIs(t, err, seglog.ErrInvalid)
			} else {
				require.ErrorIs(t, err, seglog.ErrConflict)
			}
		}
		require.NoError(t, l.AppendAt(offset, seglog.Record{Value: value(int(offset))}, seglog.Record{Value: value(int(offset + 1))}))
	}
	requireN(t, l, 0, 6)
}

func TestAppendAtOfAClosedLog(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	require.ErrorIs(t, l.AppendAt(5, seglog.Record{}), seglog.ErrConflict)
	require.NoError(t, l.Close())
	err := l.AppendAt(5, seglog.Record{})
	require.ErrorIs(t, err, seglog.ErrClosed)
	require.NotErrorIs(t, err, seglog.ErrConflict)
}

// Wait must accept Oldest and Newest, as other reading methods do.
func TestWaitForNamedPositions(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	waited := func(from int64) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return l.Wait(ctx, from)
	}
	require.ErrorIs(t, waited(seglog.Oldest), context.DeadlineExceeded, "Oldest of an empty log")
	_, err := l.Append(seglog.Record{})
	require.NoError(t, err)
	require.NoError(t, waited(seglog.Oldest))
	require.ErrorIs(t, waited(seglog.Newest), context.DeadlineExceeded, "Newest after an existing record")
	got := make(chan error, 1)
	go func() { got <- l.Wait(t.Context(), seglog.Newest) }()
	for i := 0; ; i++ {
		_, err := l.Append(seglog.Record{})
		require.NoError(t, err)
		select {
		case err := <-got:
			require.NoError(t, err)
			return
		case <-time.After(time.Millisecond):
			require.Less(t, i, 10_000)
		}
	}
}
