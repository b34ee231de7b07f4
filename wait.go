package seglog

import (
	"context"
	"sync"
	"sync/atomic"
)

// waiters are goroutines that wait for an offset of the log to move. While there are none, a wake costs one load.
type waiters struct {
	n  atomic.Int64
	mu sync.Mutex
	ch chan struct{} // closed by wake; guarded by mu
}

// wait returns when reached says so, which is asked again after each wake; with the error of ctx when that ends first.
// reached must read what a waker stores before it calls wake.
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
				return err // of two reasons the better one
			}
			return ctx.Err()
		}
	}
}

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
