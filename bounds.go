package seglog

import (
	"sync/atomic"
	"time"
)

// bounds is what readers go by: where the log starts, how far it is durable, where it ends, and how often it was cut.
//
// Each of the three offsets only grows, but for a cut (TruncateTo, Reset), during which cuts is odd. A reader that sees
// the same even value of cuts before and after has read bounds of one history. Who may move them: start and end the owner
// of Log.mu, durable the owner of Log.flushes, all three a cut, which owns both.
type bounds struct {
	start, durable, end atomic.Int64
	cuts                atomic.Int64
	cutLog              cutLog
}

// moment is the end of the log together with the number of cuts it belongs to. A flush that waits for the end of a moment
// has nothing to wait for once the log was cut: the cut flushed everything below it first. Both are read under Log.mu, or
// cuts before end: the other way round, a cut between the two loads would leave an end that is never reached.
type moment struct{ cuts, end int64 }

// moment is the present one, for a caller that does not hold Log.mu.
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

// beginCut makes readers wait for endCut before they believe what they read.
func (b *bounds) beginCut() { b.cuts.Add(1) }

// endCut publishes a cut at offset, or a Reset.
func (b *bounds) endCut(offset int64, reset bool) {
	b.cutLog.add(offset, reset)
	b.cuts.Add(1)
}

// settledCuts is cuts at a moment when no cut runs.
func (b *bounds) settledCuts() int64 {
	for {
		if n := b.cuts.Load(); n%2 == 0 {
			return n
		}
		spin("cut", 100*time.Microsecond) // which takes as long as a few flushes
	}
}

// lowestCut is the lowest offset cut at since cuts had that value; -1 if it is not known any more.
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

// cutLog remembers where the log was cut lately, for iterators that come to it later.
type cutLog struct {
	mu      mutex
	dropped int64   // cuts that are not remembered any more
	last    []int64 // the offsets of those that are; -1 for a reset
}

// maxCuts: an iterator that slept over more of them ends, as after a reset.
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
