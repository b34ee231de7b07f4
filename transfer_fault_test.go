package seglog_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

func isRange(err error) bool { return errors.Is(err, seglog.ErrOutOfRange) }

// bigLog returns a log with more bytes than sockets buffer, its directory and its batches.
func bigLog(t testing.TB) (l *seglog.Log, dir string, all []stored) {
	t.Helper()
	dir = t.TempDir()
	l = open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 16 << 20})
	for i := range 40 {
		_, err := l.Append(seglog.Record{Value: bytes.Repeat([]byte{byte(i)}, 1<<20)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync()) // which names each segment
	return l, dir, storedBatches(t, dir)
}

// stalledWays returns connections for each way of sending; nobody reads from their other ends.
func stalledWays(t *testing.T) map[string]func() (here, there net.Conn) {
	return map[string]func() (here, there net.Conn){
		"sendfile": func() (net.Conn, net.Conn) { return connected(t, "tcp") },
		"copy": func() (net.Conn, net.Conn) {
			here, there := connected(t, "tcp")
			return &countingConn{TCPConn: here.(*net.TCPConn)}, there
		},
	}
}

// drained checks that exactly the counted bytes arrive, and that they are right.
func drained(t *testing.T, here, there net.Conn, all []stored, written int64) {
	t.Helper()
	require.NoError(t, here.Close())
	got, err := io.ReadAll(there)
	require.NoError(t, err)
	require.EqualValues(t, len(got), written)
	want, _ := expected(all, 0, math.MaxInt64, false)
	require.True(t, bytes.Equal(want[:written], got))
}

// A write deadline must end a transfer to a stalled peer, with the number of bytes sent.
func TestTransferDeadline(t *testing.T) {
	l, dir, all := bigLog(t)
	for name, way := range stalledWays(t) {
		t.Run(name, func(t *testing.T) {
			here, there := way()
			require.NoError(t, here.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
			start := time.Now()
			written, err := l.TransferTo(0, math.MaxInt64, here)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.Less(t, time.Since(start), 5*time.Second)
			require.Positive(t, written)
			drained(t, here, there, all, written)
		})
	}
	t.Run("a section continues where it stopped", func(t *testing.T) {
		here, there := connected(t, "tcp")
		s, err := l.Section(0, math.MaxInt64)
		require.NoError(t, err)
		require.NoError(t, here.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		first, err := s.WriteTo(here)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, here.SetWriteDeadline(time.Time{}))
		got := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(there)
			got <- b
		}()
		second, err := s.WriteTo(here)
		require.NoError(t, err)
		require.Equal(t, s.Len(), first+second)
		require.NoError(t, here.Close())
		want, _ := expected(all, 0, math.MaxInt64, true)
		require.True(t, bytes.Equal(want, <-got))
		require.NoError(t, s.Close())
	})
	requirePinsGone(t, l, dir)
}

// requirePinsGone deletes all records and checks that no descriptors of deleted segments are left.
func requirePinsGone(t *testing.T, l *seglog.Log, dir string) {
	t.Helper()
	require.NoError(t, l.DeleteBefore(l.Offsets().End))
	eventually(t, "the segments are released", func() bool {
		fds, mappings := held(t, dir)
		return fds <= 5 && mappings <= 2 // lock, state, active and next segment, and a segment that is not sealed yet
	})
	require.NoError(t, l.Close())
	requireReleased(t, dir)
}

// A connection that the peer resets or this side closes must end a transfer with an error, and release the segments.
func TestTransferReset(t *testing.T) {
	l, dir, _ := bigLog(t)
	for name, way := range stalledWays(t) {
		t.Run(name, func(t *testing.T) {
			here, there := way()
			time.AfterFunc(30*time.Millisecond, func() {
				_ = there.(*net.TCPConn).SetLinger(0)
				there.Close()
			})
			written, err := l.TransferTo(0, math.MaxInt64, here)
			require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "%v", err)
			require.Positive(t, written)
		})
	}
	t.Run("closed on this side", func(t *testing.T) {
		here, _ := connected(t, "tcp")
		time.AfterFunc(30*time.Millisecond, func() { here.Close() })
		_, err := l.TransferTo(0, math.MaxInt64, here)
		require.ErrorIs(t, err, net.ErrClosed)
	})
	requirePinsGone(t, l, dir)
}

// Close must end a transfer to a peer that reads nothing.
func TestTransferClose(t *testing.T) {
	for name, way := range stalledWays(t) {
		t.Run(name, func(t *testing.T) {
			l, dir, all := bigLog(t)
			here, there := way()
			type result struct {
				written int64
				err     error
			}
			done := make(chan result)
			go func() {
				written, err := l.TransferTo(0, math.MaxInt64, here)
				done <- result{written, err}
			}()
			time.Sleep(50 * time.Millisecond)
			require.NoError(t, l.Close())
			select {
			case r := <-done:
				require.ErrorIs(t, r.err, seglog.ErrClosed)
				require.Positive(t, r.written)
				drained(t, here, there, all, r.written)
			case <-time.After(10 * time.Second):
				require.FailNow(t, "Close does not end the transfer")
			}
			requireReleased(t, dir)
			_, err := l.TransferTo(0, 1, here)
			require.ErrorIs(t, err, seglog.ErrClosed)
			_, err = l.Section(0, 1)
			require.ErrorIs(t, err, seglog.ErrClosed)
		})
	}
}

// If another program truncates a segment, a transfer of it must end with an error, not wait forever.
func TestTransferOfCutFile(t *testing.T) {
	for name, way := range stalledWays(t) {
		t.Run(name, func(t *testing.T) {
			l, _, all := bigLog(t)
			here, there := way()
			go io.Copy(io.Discard, there)
			s, err := l.Section(0, math.MaxInt64)
			require.NoError(t, err)
			defer s.Close()
			eventually(t, "the segment is sealed", func() bool { return l.Stats().Seals > 0 }) // otherwise the file may grow again
			require.NoError(t, os.Truncate(all[0].segment, 3<<20))
			sent, err := s.WriteTo(here)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.EqualValues(t, 3<<20, sent)
		})
	}
}

// A header and a small section are sent from the mapping by a single write, which must also fail if another program has
// truncated the file.
func TestTransferOfCutFileWithHeader(t *testing.T) {
	l, _, all := bigLog(t)
	small, err := l.Append(seglog.Record{Value: []byte("small")})
	require.NoError(t, err)
	here, there := connected(t, "tcp")
	go io.Copy(io.Discard, there)
	s, err := l.Section(small, 1)
	require.NoError(t, err)
	defer s.Close()
	s.SetHeader([]byte("header"))
	require.NoError(t, os.Truncate(all[len(all)-1].segment, 0))
	sent, err := s.WriteTo(here)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.LessOrEqual(t, sent, int64(len("header")))
}

// Two thousand idle followers must cost no descriptors or mappings, and little memory besides their goroutines.
func TestIdleFollowers(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
	appendN(t, l, 0, 100)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fds, mappings := held(t, dir)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const followers = 2000
	done := make(chan error, followers)
	started := make(chan bool, followers)
	for i := range followers {
		go func() {
			from := int64(100)
			if i%2 == 0 {
				from = 99 // reads one record first, and must keep nothing of it
			}
			for r, err := range l.Follow(ctx, from) {
				if err != nil {
					done <- err
					return
				}
				if r.Offset == 100 {
					break
				}
				started <- true
			}
			done <- nil
		}()
	}
	for range followers / 2 {
		<-started
	}
	eventually(t, "all wait", func() bool { return inEngine() >= followers })
	each := int64(heap()-before) / followers
	nowFds, nowMappings := held(t, dir)
	require.Equal(t, [2]int{fds, mappings}, [2]int{nowFds, nowMappings})
	if !race.On {
		require.Less(t, each, int64(2<<10), "bytes of heap per follower")
	}
	appendN(t, l, 100, 1)
	for range followers {
		require.NoError(t, <-done)
	}
	require.NoError(t, l.Close())
	requireReleased(t, dir)
}
