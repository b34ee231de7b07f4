package seglog

import (
	"runtime"
	"sync"
)

// limiter bounds how many goroutines of the process, over all its logs, do something that keeps a thread of the operating
// system busy: Go starts a thread for each goroutine that waits in a system call, and ends the process at 10,000.
type limiter struct {
	most int
	mu   mutex
	free *sync.Cond // made by the first who waits
	n    int        // those inside
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

func (l *limiter) leave() {
	l.mu.Lock()
	l.n--
	if l.free != nil {
		l.free.Signal()
	}
	l.mu.Unlock()
}

var (
	// flushCalls are those of files and directories, whoever makes them: a disk works on tens of flushes at a time at the
	// most; more only wait in the kernel rather than here.
	flushCalls = limiter{most: 256}
	// backgroundWork is that of preparers and keepers, which use the processor as well.
	backgroundWork = limiter{most: max(8, 2*runtime.NumCPU())}
)
