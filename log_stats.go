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
