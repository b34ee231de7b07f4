// Package commit implements group commit: callers that arrive while a flush runs are all served by the next flush.
package commit

import (
	"math"
	"runtime"
	"sync"
)

// Group runs one flush at a time and lets callers share it.
//
// A caller that finds no flush running runs one itself, so a single caller pays for one flush and for no switch of
// goroutines. If others have arrived meanwhile, it starts a goroutine that flushes until nobody waits: the device is kept
// busy, and no caller flushes for others for ever.
//
// The right to flush is owned: by a caller of To, by that goroutine, or by a caller of Lock. The owner hands it to a waiting
// caller of Lock before anybody else, so that a busy group cannot starve one.
type Group struct {
	flush func() error // makes everything durable that is stored when it is called; only the owner calls it
	after func()       // called by the owner after each successful flush, when the callers of that flush have been woken
	end   func() int64 // returns the end of the stored data

	// Started and Woken, if not nil, are called by each goroutine that the group starts, and by each caller that it has
	// woken. Tests that decide which goroutine runs stop them there.
	Started, Woken func()

	// These belong to the owner:
	shared int // number of flushes to come before which the owner lets others run first
	served int // number of callers that have waited for the last flush

	mu sync.Mutex
	// Guarded by mu:
	owned   bool
	round   uint   // number of the flush that is running, or of the next one
	covers  int64  // the flush that is running makes everything below durable
	waiting [2]int // number of callers that wait for a round, by the parity of its number: this round and the next one
	lockers int    // number of callers of Lock that wait
	passed  bool   // the ownership was handed to one of them, which has not woken up yet

	// ended[round%2] is signalled at the end of a round. After its Wait returns, mu is not held: otherwise hundreds of woken
	// goroutines would queue for a mutex that none of them needs.
	ended [2]*sync.Cond
	turn  *sync.Cond // signalled when ownership is handed to a caller of Lock
}

// Where callers share flushes, the owner lets the goroutines that are ready run before it begins the next flush, and takes theirs
// along. It would leave them behind otherwise: the runtime does not take the processor from a goroutine in a short system call, so
// the callers that the last flush has woken are not run while the next one runs, if the other processors are busy, and a single caller
// can flush again and again for itself alone until its time slice of 10 ms is over. A caller that is alone does not wait for the rest of
// the program in this way.
const (
	// staysShared is the number of flushes for which callers are taken to share them after some did.
	staysShared = 100
	// From manyServed callers on, storing their data takes about as long as flushing it. It is better then if some store while
	// the data of others is flushed.
	manyServed = 64
)

// releaseOnly is the Locker of Group.ended: see there.
type releaseOnly struct{ mu *sync.Mutex }

func (r releaseOnly) Lock()   {}
func (r releaseOnly) Unlock() { r.mu.Unlock() }

// New returns a group that flushes by calling flush, and calls after when a flush has succeeded. end returns the end of the
// stored data, up to which a flush that begins at that moment makes it durable; it is called with the group's mutex held
// and must not block.
func New(flush func() error, after func(), end func() int64) *Group {
	g := &Group{flush: flush, after: after, end: end}
	for i := range g.ended {
		g.ended[i] = sync.NewCond(releaseOnly{&g.mu})
	}
	g.turn = sync.NewCond(&g.mu)
	return g
}

// To waits, and flushes if necessary, until reached returns true or an error, which To returns. reached is called before
// each flush; it should return true once everything below target is durable, or does not have to be any more. A caller
// whose own flush fails returns the error of reached, or else that of the flush. Those that waited for it flush themselves.
func (g *Group) To(target int64, reached func() (bool, error)) error {
	for {
		if ok, err := reached(); ok || err != nil {
			return err
		}
		g.mu.Lock()
		if !g.owned {
			g.owned, g.covers = true, math.MaxInt64
			g.mu.Unlock()
			more, err := g.runRound()
			if more {
				go g.run()
			}
			if err == nil {
				continue
			}
			if ok, reason := reached(); ok || reason != nil {
				return reason
			}
			return err
		}
		round := g.round
		if target > g.covers {
			round++
		}
		g.waiting[round%2]++
		g.ended[round%2].Wait()
		if g.Woken != nil {
			g.Woken()
		}
	}
}

// run flushes until nobody waits. It owns the group.
func (g *Group) run() {
	if g.Started != nil {
		g.Started()
	}
	for more := true; more; {
		more, _ = g.runRound() // whoever waits for a flush that fails learns why from its own
	}
}

// runRound runs one flush, and returns its error. The caller owns the group. If more is true, others wait for another flush,
// and the caller still owns the group.
func (g *Group) runRound() (more bool, err error) {
	if g.shared > 0 && g.served < manyServed {
		runtime.Gosched()
	}
	g.mu.Lock()
	g.covers = g.end()
	g.mu.Unlock()
	err = g.flush()
	g.mu.Lock()
	round := g.round % 2
	g.count(g.waiting[round])
	g.waiting[round] = 0
	g.round++
	g.covers = math.MaxInt64 // until the next flush begins, it covers whoever comes
	if err != nil {
		g.waiting[g.round%2] = 0
	}
	g.mu.Unlock()
	g.ended[round].Broadcast()
	if err != nil {
		g.ended[1-round].Broadcast() // callers that wait for the next round have to see the error, too
	} else {
		g.after()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	more = g.waiting[g.round%2] > 0
	switch {
	case g.lockers > 0:
		g.pass()
		return false, err
	case !more:
		g.owned = false
	}
	return more, err
}

// count notes that n callers have waited for the round that ends. The caller owns the group.
func (g *Group) count(n int) {
	g.served = n
	if n > 0 {
		g.shared = staysShared
	} else if g.shared > 0 {
		g.shared--
	}
}

// pass hands ownership to a caller of Lock. g.mu is held.
func (g *Group) pass() {
	g.covers = math.MinInt64 // the owner of the lock flushes for nobody
	g.passed = true
	g.turn.Signal()
}

// Lock waits until no flush is running, and keeps flushes from starting until Unlock.
func (g *Group) Lock() {
	g.mu.Lock()
	if g.take() {
		g.mu.Unlock()
		return
	}
	g.lockers++
	for !g.passed {
		g.turn.Wait()
	}
	g.passed = false
	g.lockers--
	g.mu.Unlock()
	if g.Woken != nil {
		g.Woken()
	}
}

// TryLock is Lock, but returns false at once if somebody owns the group.
func (g *Group) TryLock() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.take()
}

// take makes the caller the owner if nobody is. g.mu is held.
func (g *Group) take() bool {
	if g.owned {
		return false
	}
	g.owned, g.covers = true, math.MinInt64
	return true
}

// Wait returns once every flush that began before the call has ended.
func (g *Group) Wait() {
	g.Lock()
	defer g.Unlock()
}

// Unlock lets flushes run again. Callers of To that have arrived meanwhile check again whether they need one.
func (g *Group) Unlock() {
	g.mu.Lock()
	g.count(g.waiting[0] + g.waiting[1])
	g.waiting = [2]int{}
	g.round++
	if g.lockers > 0 {
		g.pass()
	} else {
		g.owned = false
	}
	g.mu.Unlock()
	g.ended[0].Broadcast()
	g.ended[1].Broadcast()
}
