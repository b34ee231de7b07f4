package seglog

import "time"

// Stats returns what was counted since Open, and what is so now.
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

// reserved is how many bytes are set aside for appends to come. l.mu is held.
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

// sizes is the sum of the first n segments of a view, which are sealed and keep their size.
type sizes struct {
	mu  mutex
	of  *view
	n   int
	sum int64
}

// bytes is the size of all segments of v. What it added up once it does not look at again until the view changes: thousands
// of segments lie in as many cache lines.
func (l *Log) bytes(v *view) int64 {
	c := &l.sized
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of != v {
		c.of, c.n, c.sum = v, 0, 0
	}
	sum, sealed := c.sum, true
	for _, s := range v.segs[c.n:] {
		sealed = sealed && !s.written() // before its size
		size, err := l.size(s)
		if err != nil {
			size, sealed = 0, false // of a file that can't be looked at, for now
		}
		sum += size
		if sealed {
			c.n, c.sum = c.n+1, sum
		}
	}
	return sum
}
