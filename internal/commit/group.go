// Package commit is group commit: while one flush runs, the callers that come gather, and the next flush serves them all.
package commit

import (
	"math"
	"sync"
)

// Group runs one flush at a time and lets callers share it.
//
// A caller that finds no flush running does one itself, so a lone caller pays for one flush and no change of goroutine.
// If others gathered meanwhile, it starts a goroutine that goes on flushing until nobody waits: the device is kept busy,
// and no caller flushes for others for ever.
//
// The right to flush is owned, by a caller of To, by that goroutine, or by a caller of Lock. Whoever owns it hands it to
// the next caller of Lock first, so that a busy group cannot starve one.
type Group struct {
	flush func() error // makes durable all that was stored when it is called; only the owner calls it
	after func()       // called by the owner after each successful flush, whose callers go on already
	end   func() int64 // the end of what is stored

	// Started and Woken, if not nil, are called by a goroutine that the group started and by a caller that it woke: tests
	// that decide who runs stop it there.
	Started, Woken func()

	mu sync.Mutex
	// Guarded by mu:
	owned   bool
	round   uint   // number of the flush that runs or comes next
	covers  int64  // the flush that runs makes everything below durable
	waiting [2]int // callers that wait for this round and for the next one, by parity
	lockers int    // callers of Lock that wait
	passed  bool   // the ownership was handed to one of them, who has not woken yet

	// served[round%2] is signalled at the end of a round. Its Wait releases mu but does not re-acquire it on wake-up;
	// otherwise hundreds of woken goroutines would queue for a mutex that none of them needs.
	served [2]*sync.Cond
	turn   *sync.Cond // signalled when the ownership is handed to a caller of Lock
}

// releaseOnly is the Locker of Group.served.
type releaseOnly struct{ mu *sync.Mutex }

func (r releaseOnly) Lock()   {}
func (r releaseOnly) Unlock() { r.mu.Unlock() }

// New returns a group that flushes by flush, and calls after between two flushes. end returns the end of what is stored, which a flush that starts then makes
// durable; it is called with the group's mutex held and must not block.
func New(flush func() error, after func(), end func() int64) *Group {
	g := &Group{flush: flush, after: after, end: end}
	for i := range g.served {
		g.served[i] = sync.NewCond(releaseOnly{&g.mu})
	}
	g.turn = sync.NewCond(&g.mu)
	return g
}

// To returns once reached does, which is asked before each flush: that everything below target is durable, that nothing
// needs to be any more, or an error, which To returns. A caller whose own flush fails returns its error, unless reached has
// a better one; those that waited for it flush themselves.
func (g *Group) To(target int64, reached func() (bool, error)) error {
	for {
		if ok, err := reached(); ok || err != nil {
			return err
		}
		g.mu.Lock()
		if !g.owned {
			g.owned, g.covers = true, g.end()
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
		g.served[round%2].Wait()
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

// runRound does one flush for the callers that wait, and returns its error. The caller owns the group, and owns it still if
// more is true, which says that others wait already.
func (g *Group) runRound() (more bool, err error) {
	err = g.flush()
	g.mu.Lock()
	round := g.round % 2
	g.waiting[round] = 0
	g.round++
	g.covers = math.MaxInt64 // the next flush has not begun, so it serves whoever comes now
	if err != nil {
		g.waiting[g.round%2] = 0
	}
	g.mu.Unlock()
	g.served[round].Broadcast()
	if err != nil {
		g.served[1-round].Broadcast() // so that they ask again what there is to wait for
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
	case more:
		g.covers = g.end()
	default:
		g.owned = false
	}
	return more, err
}

// pass hands the ownership to a caller of Lock. g.mu is held.
func (g *Group) pass() {
	g.covers = math.MinInt64 // whoever comes now is not served by what the locker does
	g.passed = true
	g.turn.Signal()
}

// Lock waits until no flush runs and keeps others from starting, until Unlock.
func (g *Group) Lock() {
	g.mu.Lock()
	if !g.owned {
		g.owned, g.covers = true, math.MinInt64
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

// Wait returns once no flush runs that began before.
func (g *Group) Wait() {
	g.Lock()
	defer g.Unlock()
}

// Unlock lets flushes run again. Callers of To that came meanwhile look anew whether they need one.
func (g *Group) Unlock() {
	g.mu.Lock()
	g.waiting = [2]int{}
	g.round++
	if g.lockers > 0 {
		g.pass()
	} else {
		g.owned = false
	}
	g.mu.Unlock()
	g.served[0].Broadcast()
	g.served[1].Broadcast()
}
