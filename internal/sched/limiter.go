package sched

import "sync"

// Limiter bounds how many goroutines of the process, over all its logs, are in calls that block a thread: Go starts a thread
// for each goroutine that waits in a system call, and ends the process at 10,000 threads.
type Limiter struct {
	Most int // how many may be inside
	mu   Mutex
	free *sync.Cond // made by the first goroutine that waits
	n    int        // number of goroutines inside
}

// Enter waits until fewer than Most are inside.
func (l *Limiter) Enter() {
	l.mu.Lock()
	for l.n >= l.Most {
		if l.free == nil {
			l.free = sync.NewCond(&l.mu)
		}
		l.free.Wait()
	}
	l.n++
	l.mu.Unlock()
}

// Leave lets another goroutine in.
func (l *Limiter) Leave() {
	l.mu.Lock()
	l.n--
	if l.free != nil {
		l.free.Signal()
	}
	l.mu.Unlock()
}
