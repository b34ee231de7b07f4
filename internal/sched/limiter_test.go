package sched

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// A Limiter must not let in more goroutines than it allows.
func TestLimiter(t *testing.T) {
	l := Limiter{Most: 2}
	l.Enter()
	l.Enter()
	inside := make(chan struct{})
	go func() {
		l.Enter()
		close(inside)
	}()
	waits := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.free != nil
	}
	for !waits() {
		select {
		case <-inside:
			require.Fail(t, "a third goroutine is inside")
		default:
			runtime.Gosched()
		}
	}
	l.Leave()
	<-inside
	l.Leave()
	l.Leave()
	require.Zero(t, l.n)
}
