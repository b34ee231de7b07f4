package seglog

import (
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
