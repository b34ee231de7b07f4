package seglog

import "time"

// Stats returns counters that began with Open, and figures of the present moment.
func (l *Log) Stats() Stats {
	c := &l.counters
	l.refreshIfStale()
	v := l.view.Load()
	segs, bytes := v.segs, l.bytes(v)
	l.mu.Lock()
	appended, reserved := l.writer.appended, l.writer.reserved()
	l.mu.Unlock()
	return Stats{
		Offsets: l.offsets(),
		Appends: appended.batches, AppendedRecords: appended.records, AppendedBytes: appended.bytes,
		Reads:   c.reads.Load(),
		Flushes: c.flushes.Load(), FlushTime: time.Duration(c.flushNanos.Load()), FlushMax: time.Duration(c.flushMax.Load()),
		FlushedBytes:   c.flushedBytes.Load(),
		UnflushedBytes: l.unflushed(),
		Rolls:          c.rolls.Load(), Seals: c.seals.Load(), IndexRebuilds: c.indexRebuilds.Load(),
		DeletedSegments: c.deletedSegments.Load(), Truncations: c.truncations.Load(),
		Segments: len(segs), OpenSegments: l.opened.count(), Bytes: bytes, ReservedBytes: reserved, PinnedBytes: c.pinned.Load(),
		ReadCacheBytes: l.reads.bytes.Load(),
		SentZeroCopy:   c.sentZeroCopy.Load(), SentCopied: c.sentCopied.Load(), Received: c.received.Load(),
		Errors: c.errors.Load(),
	}
}

// reserved returns the number of bytes of blocks that are allocated behind the ends of the segments, for appends to come.
// Log.mu is held.
func (w *writer) reserved() (n int64) {
	add := func(t *tail) {
		if t != nil {
			n += max(0, t.reserved.Load()-t.seg.stored.load().pos())
		}
	}
	add(w.tail)
	add(w.next)
	for _, t := range w.sealing {
		add(t)
	}
	return n
}

// sizes holds the summed sizes of the first n segments of a view, which are sealed and no longer change size.
type sizes struct {
	mu  mutex
	of  *view
	n   int
	sum int64
}

// bytes returns the size of all segments of v. It keeps the sum of the sealed ones until the view changes, because looking at
// thousands of segments touches as many cache lines.
func (l *Log) bytes(v *view) int64 {
	c := &l.sized
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of != v {
		c.of, c.n, c.sum = v, 0, 0
	}
	sum, sealed := c.sum, true
	for _, s := range v.segs[c.n:] {
		sealed = sealed && !s.written() // asked before the size, which then no longer changes
		size, err := l.size(s)
		if err != nil {
			size, sealed = 0, false // the file can't be looked at; the next call tries again
		}
		sum += size
		if sealed {
			c.n, c.sum = c.n+1, sum
		}
	}
	return sum
}
