package seglog

import (
	"runtime"
	"sync"
	"time"
)

// schedule decides in the tests' simulation which of the engine's goroutines runs. It is nil outside of the package's own
// tests, so production code pays one comparison where it takes a lock or is woken.
//
// In the simulation a goroutine stops at each system call, at each lock and at each of the points below, until the schedule
// lets it go on. Two rules keep that true for new code: a lock that may be held across a system call is a mutex, not a
// sync.Mutex; and a goroutine that is started or woken calls started or yield before it touches anything shared.
var schedule scheduler

type scheduler interface {
	// lock locks m for the calling goroutine. It returns false if the caller does not take part in the simulation.
	lock(m *mutex) bool
	// started is the first call of a goroutine with that name.
	started(name string)
	// unique returns name with something added that tells its goroutines from those of other logs.
	unique(name string) string
	// yield lets others go first. spins means that the caller waits for others without blocking.
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

// started is called first by each goroutine of the engine.
func started(name string) {
	if schedule != nil {
		schedule.started(name)
	}
}

// unique returns the name for goroutines that a timer may start: those of several logs may start at the same time.
func unique(name string) string {
	if schedule != nil {
		return schedule.unique(name)
	}
	return name
}

// yield is called where a goroutine goes on after others have woken it, and between two steps that have no lock and no
// system call between them, if other goroutines' steps in between matter.
func yield(where string) {
	if schedule != nil {
		schedule.yield(where, false)
	}
}

// spin is called in a loop that waits for another goroutine without blocking.
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
