package seglog

import (
	"sync/atomic"
	"time"
)

// Stats holds figures for an operator. Counters start from 0 at Open and only grow; the other figures are of the moment.
type Stats struct {
	Offsets Offsets

	Appends, AppendedRecords, AppendedBytes int64 // batches, records, encoded bytes
	Reads                                   int64 // calls of Read that found a record

	Flushes        int64         // of segment files
	FlushTime      time.Duration // of all flushes together
	FlushMax       time.Duration // of the longest flush
	FlushedBytes   int64
	UnflushedBytes int64

	Rolls, Seals, IndexRebuilds int64
	DeletedSegments             int64
	Truncations                 int64

	Segments     int
	OpenSegments int   // with a descriptor and a mapping
	Bytes        int64 // of all .log files
	// ReservedBytes are set aside for appends: behind the end of the segments that are not sealed, and in the next segment.
	// Bytes, ReservedBytes, PinnedBytes and the size of the index files add up to the space that the log takes on the disk.
	ReservedBytes int64
	PinnedBytes   int64 // of deleted and cut segments, which take space until the readers and sections that hold them let go
	// ReadCacheBytes is the memory in which Read keeps what it learned about large batches, of all logs of the process (see
	// SetReadCacheBytes).
	ReadCacheBytes int64

	// Descriptors and Mappings are held by all logs of the process together. A log at rest, to which nothing was appended for two
	// seconds, has two descriptors; one at work has four or five, a mapping or two, and those of its open segments.
	Descriptors, Mappings int64

	SentZeroCopy, SentCopied int64 // bytes that left by sendfile, and by a copy through the process
	Received                 int64 // bytes stored by TransferFrom

	Errors int64 // failed operations, including background work and appends that the log could not store
}

// counters are the counters of Stats, except those of appends, which the writer keeps under Log.mu.
type counters struct {
	reads                    atomic.Int64
	sentZeroCopy, sentCopied atomic.Int64
	received                 atomic.Int64

	_ [64]byte // keeps the counters of readers and those of background work on cache lines of their own

	flushes, flushNanos, flushMax, flushedBytes atomic.Int64
	rolls, seals, indexRebuilds                 atomic.Int64
	deletedSegments, truncations                atomic.Int64
	pinned                                      atomic.Int64
	errors                                      atomic.Int64
}

func (c *counters) flushed(took time.Duration) {
	c.flushes.Add(1)
	c.flushNanos.Add(int64(took))
	for {
		old := c.flushMax.Load()
		if int64(took) <= old || c.flushMax.CompareAndSwap(old, int64(took)) {
			return
		}
	}
}
