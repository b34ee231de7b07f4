// Package sched provides the mutexes, background workers and limiters of the engine. In the engine's own tests a scheduler takes
// control at each of them and decides which goroutine runs next.
package sched

import (
	"runtime"
	"sync"
	"time"
)

// Simulation decides in the tests' simulation which of the engine's goroutines runs. It is nil outside of the engine's own
// tests, so production code pays one comparison where it takes a lock or is woken. It must not change while a log is open.
//
// In the simulation a goroutine stops at each system call, at each lock and at each of the points below, until the scheduler
// lets it go on. Two rules keep that true for new code: a lock that may be held across a system call is a Mutex, not a
// sync.Mutex; and a goroutine that is started or woken calls Started or Yield before it touches anything shared.
var Simulation Scheduler

// Scheduler is a simulation of the scheduling of goroutines.
type Scheduler interface {
	// Lock locks m for the calling goroutine. It returns false if the caller does not take part in the simulation.
	Lock(m *Mutex) bool
	// Started is the first call of a goroutine with that name.
	Started(name string)
	// Unique returns name with something added that tells its goroutines from those of other logs.
	Unique(name string) string
	// Yield lets others go first. spins means that the caller waits for others without blocking.
	Yield(where string, spins bool)
}

// Mutex is a sync.Mutex that the simulation can see.
type Mutex struct{ sync.Mutex }

func (m *Mutex) Lock() {
	if Simulation != nil && Simulation.Lock(m) {
		return
	}
	m.Mutex.Lock()
}

// Started is called first by each goroutine of the engine.
func Started(name string) {
	if Simulation != nil {
		Simulation.Started(name)
	}
}

// Unique returns the name for goroutines that a timer may start: those of several logs may start at the same time.
func Unique(name string) string {
	if Simulation != nil {
		return Simulation.Unique(name)
	}
	return name
}

// Yield is called where a goroutine goes on after others have woken it, and between two steps that have no lock and no
// system call between them, if other goroutines' steps in between matter.
func Yield(where string) {
	if Simulation != nil {
		Simulation.Yield(where, false)
	}
}

// Spin is called in a loop that waits for another goroutine without blocking.
func Spin(where string, pause time.Duration) {
	if Simulation != nil {
		Simulation.Yield(where, true)
	}
	if pause == 0 {
		runtime.Gosched()
	} else {
		time.Sleep(pause)
	}
}
