package seglog

import "time"

// Stats returns what was counted since Open, and what is so now.
func (l *Log) Stats() Stats {
	c := &l.counters
	l.refreshIfStale()
	segs := l.view.Load().segs
	var bytes int64
	for _, s := range segs {
		size, _ := l.size(s) // of a file that can't be looked at: as 0
		bytes += size
	}
	l.mu.Lock()
	appended := l.writer.appended
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
		Segments: len(segs), OpenSegments: l.opened.count(), Bytes: bytes, PinnedBytes: c.pinned.Load(),
		SentZeroCopy: c.sentZeroCopy.Load(), SentCopied: c.sentCopied.Load(), Received: c.received.Load(),
		Errors: c.errors.Load(),
	}
}
