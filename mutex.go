package seglog

import (
	"runtime"
	"sync"
	"time"
)

// schedule decides, in the simulation, which of the engine's goroutines goes on. It is nil outside of the package's own
// tests, so that production pays one comparison where the engine takes a lock or is woken.
//
// A goroutine of the simulation stops at each call of the system, at each lock and at each of the points below, until
// the schedule lets it go on. Two rules keep that true for new code: a lock that may be held across a call of the system
// is a mutex, not a sync.Mutex, and a goroutine that is started or woken says so by started or yield before it touches
// what others touch.
var schedule scheduler

type scheduler interface {
	// lock takes m for the calling goroutine. It returns false if the caller does not take part in the simulation.
	lock(m *mutex) bool
	// started is the first call of a goroutine, named after what it does.
	started(name string)
	// yield is a point where others may go first; spins tells one that waits for others without blocking.
	yield(where string, spins bool)
}

// mutex is a sync.Mutex that the simulation can see.
type mutex struct{ sync.Mutex }

func (m *mutex) Lock() {
	if schedule != nil && schedule.lock(m) {
		return
	}
	m.Mutex.Lock()
}

// started begins each goroutine of the engine.
func started(name string) {
	if schedule != nil {
		schedule.started(name)
	}
}

// yield stands where a goroutine goes on that others have woken, and between two steps without a lock or a call of the
// system between them whose order with the steps of others matters.
func yield(where string) {
	if schedule != nil {
		schedule.yield(where, false)
	}
}

// spin stands in a loop that waits for what another goroutine is about to do.
func spin(where string, pause time.Duration) {
	if schedule != nil {
		schedule.yield(where, true)
	}
	if pause == 0 {
		runtime.Gosched()
	} else {
		time.Sleep(pause)
	}
}
