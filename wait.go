package seglog

import (
	"context"
	"sync"
	"sync/atomic"
)

// waiters lets goroutines wait for a bound of the log to move. While none waits, a wake costs one load.
type waiters struct {
	n  atomic.Int64
	mu sync.Mutex
	ch chan struct{} // closed by wake; guarded by mu
}

// wait returns once reached returns true or an error, or with the error of ctx if that ends first. reached is called again
// after each wake; it must read what is stored before wake is called.
func (w *waiters) wait(ctx context.Context, reached func() (bool, error)) error {
	if ok, err := reached(); ok || err != nil {
		return err
	}
	w.n.Add(1)
	defer w.n.Add(-1)
	for {
		w.mu.Lock()
		if w.ch == nil {
			w.ch = make(chan struct{})
		}
		ch := w.ch
		w.mu.Unlock()
		if ok, err := reached(); ok || err != nil {
			return err
		}
		select {
		case <-ch:
			yield("woken")
		case <-ctx.Done():
			yield("context done")
			if ok, err := reached(); ok || err != nil {
				return err // both hold, and this reason is the better one
			}
			return ctx.Err()
		}
	}
}

// wake makes all goroutines in wait look again.
func (w *waiters) wake() {
	if w.n.Load() == 0 {
		return
	}
	w.mu.Lock()
	if w.ch != nil {
		close(w.ch)
		w.ch = nil
	}
	w.mu.Unlock()
}
