package seglog

import (
	"runtime"
	"sync"
)

// limiter bounds how many goroutines of the process, over all its logs, are in calls that block a thread: Go starts a thread
// for each goroutine that waits in a system call, and ends the process at 10,000 threads.
type limiter struct {
	most int
	mu   mutex
	free *sync.Cond // made by the first goroutine that waits
	n    int        // number of goroutines inside
}

// enter waits until fewer than most are inside.
func (l *limiter) enter() {
	l.mu.Lock()
	for l.n >= l.most {
		if l.free == nil {
			l.free = sync.NewCond(&l.mu)
		}
		l.free.Wait()
	}
	l.n++
	l.mu.Unlock()
}

// leave lets another goroutine in.
func (l *limiter) leave() {
	l.mu.Lock()
	l.n--
	if l.free != nil {
		l.free.Signal()
	}
	l.mu.Unlock()
}

var (
	// flushCalls limits the flushes of files and directories. A disk works on a few dozen at a time at most; the others would
	// wait in the kernel instead of here.
	flushCalls = limiter{most: 256}
	// backgroundWork limits the work of preparers and keepers, which also use the processor.
	backgroundWork = limiter{most: max(8, 2*runtime.NumCPU())}
)
