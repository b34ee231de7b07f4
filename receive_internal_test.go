package seglog

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// blockedReader blocks until its deadline is set.
type blockedReader struct{ interrupted chan struct{} }

func (r blockedReader) Read([]byte) (int, error) {
	<-r.interrupted
	return 0, io.EOF
}

func (r blockedReader) SetReadDeadline(time.Time) error {
	close(r.interrupted)
	return nil
}

// A transfer that registers just after Close has looked for transfers must not wait forever.
func TestTransferFromAsTheLogIsClosed(t *testing.T) {
	l, err := Open(t.TempDir(), nil)
	require.NoError(t, err)
	l.transfers.mu.Lock()
	done := make(chan error)
	go func() {
		_, err := l.TransferFrom(blockedReader{make(chan struct{})}, -1)
		done <- err
	}()
	buf := make([]byte, 1<<20)
	for !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "(*transfers).add") {
		runtime.Gosched()
	}
	l.closed.Store(true) // as Close does before it interrupts transfers; there is none to interrupt yet
	l.transfers.mu.Unlock()
	select {
	case err := <-done:
		require.ErrorIs(t, err, ErrClosed)
	case <-time.After(time.Minute):
		require.Fail(t, "TransferFrom waits for a peer although the log is closed")
	}
	require.NoError(t, l.Close())
}

// The leader epoch of the last batch, which TransferFrom remembers, must be forgotten with the batch: a log that is cut and then
// as long as before has another one.
func TestTransferFromEpochAfterACut(t *testing.T) {
	of := func(base int64, epoch int32) io.Reader {
		b := batch(encoded([]Record{{Time: time.UnixMilli(1)}}, base))
		b.setEpoch(epoch)
		return bytes.NewReader(b)
	}
	for name, cut := range map[string]func(l *Log) error{
		"TruncateTo": func(l *Log) error { return l.TruncateTo(1) },
		"Reset":      func(l *Log) error { return l.Reset(1) },
	} {
		l, err := Open(t.TempDir(), &Options{Flush: FlushNone})
		require.NoError(t, err)
		for i := range int64(3) {
			_, err := l.TransferFrom(of(i, 5), -1)
			require.NoError(t, err)
		}
		require.NoError(t, cut(l))
		for l.Offsets().End < 3 {
			_, err := l.Append(Record{})
			require.NoError(t, err)
		}
		_, err = l.TransferFrom(of(3, 5), -1)
		require.ErrorIs(t, err, ErrNotJoined, name)
		_, err = l.TransferFrom(of(3, 6), -1)
		require.NoError(t, err, name)
		require.NoError(t, l.Close())
	}
}
