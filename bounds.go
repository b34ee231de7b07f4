package seglog

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// bounds holds the offsets that readers go by: where the log starts, up to where it is durable, and where it ends; and how
// often it was cut.
//
// The three offsets only grow, except in a cut (TruncateTo, Reset), during which cuts is odd. A reader that sees the same
// even value of cuts before and after has read bounds of one history. The owner of Log.mu moves start and end, the owner of
// Log.flushes moves durable; a cut owns both and moves all three.
type bounds struct {
	start, durable, end atomic.Int64
	cuts                atomic.Int64
	cutLog              cutLog
}

// moment is the end of the log, together with the value of cuts at the time. Whoever waits until everything below the end is
// durable has nothing to wait for once the log was cut, since a cut first flushes what it keeps. Without Log.mu, cuts is read
// before end: the other way round, a cut between the two loads would leave the end from before it, which may never be reached,
// with the count from after it.
type moment struct{ cuts, end int64 }

// moment returns the present moment, for a caller that does not hold Log.mu.
func (b *bounds) moment() moment {
	for {
		m := moment{cuts: b.settledCuts(), end: b.end.Load()}
		if b.cuts.Load() == m.cuts {
			return m
		}
	}
}

// raise moves a bound up to offset, never down.
func raise(v *atomic.Int64, offset int64) {
	for {
		old := v.Load()
		if offset <= old || v.CompareAndSwap(old, offset) {
			return
		}
	}
}

// beginCut makes readers wait for endCut before they trust what they have read.
func (b *bounds) beginCut() { b.cuts.Add(1) }

// endCut publishes a cut at offset, or a Reset.
func (b *bounds) endCut(offset int64, reset bool) {
	b.cutLog.add(offset, reset)
	b.cuts.Add(1)
}

// settledCuts returns cuts, after it has waited until no cut runs.
func (b *bounds) settledCuts() int64 {
	for {
		if n := b.cuts.Load(); n%2 == 0 {
			return n
		}
		sched.Spin("cut", 100*time.Microsecond) // a cut takes as long as a few flushes
	}
}

// lowestCut returns the lowest offset at which the log was cut since cuts had that value; -1 if it was reset, or if that is
// not remembered any more.
func (b *bounds) lowestCut(cuts int64) int64 {
	c := &b.cutLog
	c.mu.Lock()
	defer c.mu.Unlock()
	first := cuts/2 - c.dropped
	if first < 0 {
		return -1
	}
	lowest := b.end.Load()
	for _, offset := range c.last[min(first, int64(len(c.last))):] {
		lowest = min(lowest, offset)
	}
	return lowest
}

// cutLog remembers the offsets of the last cuts, for iterators that were idle meanwhile.
type cutLog struct {
	mu      sched.Mutex
	dropped int64   // number of cuts that are not remembered any more
	last    []int64 // the offsets of the others; -1 for a reset
}

// maxCuts bounds the remembered cuts. An iterator that was idle over more of them ends, as after a reset.
const maxCuts = 1024

func (c *cutLog) add(offset int64, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reset {
		offset = -1
	}
	if len(c.last) == maxCuts {
		c.dropped += maxCuts / 2
		c.last = append(c.last[:0:0], c.last[maxCuts/2:]...)
	}
	c.last = append(c.last, offset)
}

// mark is a point between two batches of a segment: offset relative to the segment's base, and position. Both fit 32
// bits, so one atomic store publishes the two together.
type mark uint64

// markAt limits rel to the offsets that a segment can hold; those beyond are a gap before the next segment.
func markAt(rel, pos int64) mark { return mark(uint64(min(rel, 1<<31))<<32 | uint64(pos)) }
func (m mark) rel() int64        { return int64(m >> 32) }
func (m mark) pos() int64        { return int64(m & 0xffffffff) }

type atomicMark struct{ v atomic.Uint64 }

func (a *atomicMark) load() mark   { return mark(a.v.Load()) }
func (a *atomicMark) store(m mark) { a.v.Store(uint64(m)) }

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
			sched.Yield("woken")
		case <-ctx.Done():
			sched.Yield("context done")
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
