package seglog

import (
	"log/slog"
	"math"
	"time"
)

// FlushPolicy determines when appended records become durable, and when they can be read.
type FlushPolicy int

const (
	// FlushSync makes Append return once its batch is on stable storage; no reader sees the batch earlier. Concurrent
	// appends share a flush.
	FlushSync FlushPolicy = iota
	// FlushAsync makes Append return once its batch is in the page cache, where it survives the death of the process but not
	// a power cut. The batch is flushed within FlushInterval and FlushBytes. Append waits while the disk can't keep up.
	FlushAsync
	// FlushNone leaves it to the operating system when to write, which is Kafka's default. Append returns as under FlushAsync.
	// Sync, WaitDurable, Close and the seal of a segment, in the background after a roll, still flush.
	FlushNone
)

func (p FlushPolicy) String() string {
	switch p {
	case FlushSync:
		return "sync"
	case FlushAsync:
		return "async"
	case FlushNone:
		return "none"
	}
	return "unknown"
}

// Options configures a log. The zero value gives a log that is durable, kept forever, and silent.
type Options struct {
	// Flush determines when appends become durable. Default: FlushSync.
	Flush FlushPolicy
	// FlushInterval is the longest time that a record stays unflushed under FlushAsync. Default: 1s. Under another policy it is
	// an error to set FlushInterval or FlushBytes, because they would have no effect.
	FlushInterval time.Duration
	// FlushBytes is the number of unflushed bytes at which a flush starts under FlushAsync. Appends wait at twice as many.
	// Default: 8 MiB.
	FlushBytes int64

	// SegmentBytes is the size at which a segment is rolled. Larger segments mean fewer files, smaller ones finer
	// retention. Default: 128 MiB; at most 2 GiB - 1, at least 4 KiB.
	SegmentBytes int64
	// SegmentAge rolls a segment when a record is appended whose time is later by more than SegmentAge than that of the first
	// batch; without appends no segment is rolled for its age. Default: 0, never; at least 1ms, the precision of a record's time.
	SegmentAge time.Duration
	// IndexBytes is the number of bytes of log for each index entry. A smaller value makes Read faster and the indexes larger.
	// Default: 4096.
	IndexBytes int
	// MaxBatchBytes is the largest encoded size of a batch; appending a larger one returns ErrTooLarge. Default: 16 MiB, or
	// SegmentBytes if that is less.
	MaxBatchBytes int

	// MaxInflatedBytes is the largest size that a compressed batch may inflate to when its records are read or checked; a batch
	// that inflates to more gives ErrInflated. A read of a compressed batch takes at most four times as much memory.
	// Default: 256 MiB.
	MaxInflatedBytes int64

	// RetentionBytes is the size of the log above which the oldest segments are deleted. Default: 0, keep all.
	//
	// Only whole segments are deleted, so a log without appends may be larger by up to one segment. Segments are sealed before
	// they are deleted, and up to eight more may wait for their seal while appends are faster than the disk. Blocks reserved
	// ahead take additional space on the disk: up to 32 MiB, and no more than a segment, for each of the active segment and
	// the segment prepared to follow it.
	RetentionBytes int64
	// RetentionAge is the age of a segment's newest record above which the segment is deleted. Default: 0, keep all; at least
	// 1ms.
	RetentionAge time.Duration
	// MayDelete, if not nil, is called before retention deletes a segment. If it returns false, that segment and those after it
	// are kept until retention runs again. Calls do not overlap. They come from a goroutine of the log, or from that of a call
	// of Retain, and must not call methods of the log that write. Nothing but retention and Close waits for a slow call.
	MayDelete func(SegmentInfo) bool
	// OnSeal, if not nil, is called for each segment that will not change any more because it is sealed: flushed and trimmed,
	// with its indexes written. It is called in the order of the segments, at least once for each: for segments that were
	// sealed without a call when the process ended, it is called after the next Open. The calls come from a goroutine of the
	// log, and the last ones from Close, when the log's methods already return ErrClosed. Until then a call may use all methods but
	// Close. A panic ends the process, as in any goroutine; after runtime.Goexit, OnSeal is called again for the same segment.
	// A TruncateTo or Reset may take a sealed segment back, also while OnSeal runs; it is called again once the segment is sealed
	// again. DeleteBefore may remove the segment meanwhile.
	OnSeal func(SegmentInfo)

	// CheckEveryRead makes each Read check the CRC of the whole batch. Default: false, so that a check of a batch of many
	// records holds for a minute (see Log.Read).
	CheckEveryRead bool

	// MaxOpenSegments is the number of sealed segments of the log that are kept open, each with a descriptor and up to three
	// mappings. A random read in a segment that is not open takes about 15 us longer. Default: 4096, or a quarter of the
	// process's limit on open files if that is less.
	//
	// The segments of all logs of a process, including those that are written, have at most half of the files open that the
	// process may open (RLIMIT_NOFILE, looked up whenever a log is opened). Beyond that, sealed segments of any log are
	// closed, least recently used first. Mappings take up to a quarter of those that the system allows a process
	// (vm.max_map_count); further segments are read and written through their descriptors.
	MaxOpenSegments int

	// ReadOnly opens the log without a lock and without any write, even while another process writes it, whose appends, rolls,
	// deletions and truncations become visible within 20 ms. If the writer's policy is FlushSync, the log ends at the last
	// offset that the writer has noted as durable. While a TruncateTo is under way, or was interrupted and no Open has finished it,
	// the log ends before the batch that it divides, although the records up to the cut stay: Read and Snapshot return ErrBusy for
	// these, and all other readers end there. Default: false.
	ReadOnly bool
	// Logger receives messages for the operator of the log. Its handler must not call the log's methods, and must not append
	// to the log in another way either: it may be called while the log holds its locks, and appends wait for it.
	// Default: nil, silent.
	Logger *slog.Logger
}

// SegmentInfo describes a segment to the hooks in Options.
type SegmentInfo struct {
	Path    string    // the .log file; its indexes lie beside it
	Base    int64     // base offset: that of its first record, or lower if a compaction took that record
	Next    int64     // base offset of the next segment or, for the active one, the high watermark, or Base if that is higher
	Bytes   int64     // size of the .log file
	MaxTime time.Time // greatest record time; zero if no record has one
	Sealed  bool      // it will not change any more: it is flushed and trimmed, and its indexes are written
}

const (
	minSegmentBytes = 4096

	defaultSegmentBytes    = 128 << 20
	defaultMaxBatchBytes   = 16 << 20
	defaultIndexBytes      = 4096
	defaultFlushBytes      = 8 << 20
	defaultFlushInterval   = time.Second
	defaultMaxOpenSegments = 4096

	// defaultMaxInflated is also the limit of Decode, Verify and Repair. Kafka's producers stay below 1 MiB by default.
	defaultMaxInflated = 256 << 20
)

// withDefaults returns a copy with every default filled in, or an error for options that are out of range or contradict each
// other.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	switch {
	case c.Flush < FlushSync || c.Flush > FlushNone:
		return c, invalid("Options.Flush is %d", c.Flush)
	case c.FlushInterval < 0 || c.FlushBytes < 0:
		return c, invalid("Options.FlushInterval %v, FlushBytes %d: negative", c.FlushInterval, c.FlushBytes)
	case c.Flush != FlushAsync && (c.FlushInterval != 0 || c.FlushBytes != 0):
		return c, invalid("Options.FlushInterval and FlushBytes go with FlushAsync, not with Flush = %v", c.Flush)
	case c.SegmentBytes > maxSegmentBytes:
		return c, invalid("Options.SegmentBytes is %d: more than 2 GiB - 1 = %d", c.SegmentBytes, int64(maxSegmentBytes))
	case c.SegmentBytes != 0 && c.SegmentBytes < minSegmentBytes:
		return c, invalid("Options.SegmentBytes is %d: less than %d", c.SegmentBytes, minSegmentBytes)
	case c.SegmentAge > 0 && c.SegmentAge < time.Millisecond || c.RetentionAge > 0 && c.RetentionAge < time.Millisecond:
		return c, invalid("Options.SegmentAge %v, RetentionAge %v: less than 1ms, the precision of a record's time", c.SegmentAge, c.RetentionAge)
	case c.SegmentAge < 0 || c.RetentionAge < 0 || c.RetentionBytes < 0:
		return c, invalid("Options.SegmentAge %v, RetentionAge %v, RetentionBytes %d: negative", c.SegmentAge, c.RetentionAge, c.RetentionBytes)
	case c.MaxInflatedBytes < 0:
		return c, invalid("Options.MaxInflatedBytes is %d: negative", c.MaxInflatedBytes)
	case c.IndexBytes < 0 || c.MaxBatchBytes < 0 || c.MaxOpenSegments < 0:
		return c, invalid("Options.IndexBytes %d, MaxBatchBytes %d, MaxOpenSegments %d: negative", c.IndexBytes, c.MaxBatchBytes, c.MaxOpenSegments)
	case c.MaxBatchBytes != 0 && c.MaxBatchBytes < headerLen:
		return c, invalid("Options.MaxBatchBytes is %d: less than a batch header, %d", c.MaxBatchBytes, headerLen)
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = defaultSegmentBytes
	}
	if int64(c.MaxBatchBytes) > c.SegmentBytes {
		return c, invalid("Options.MaxBatchBytes %d is more than SegmentBytes %d", c.MaxBatchBytes, c.SegmentBytes)
	}
	if c.MaxBatchBytes == 0 {
		c.MaxBatchBytes = int(min(defaultMaxBatchBytes, c.SegmentBytes))
	}
	if c.MaxInflatedBytes == 0 {
		c.MaxInflatedBytes = defaultMaxInflated
	}
	if c.IndexBytes == 0 {
		c.IndexBytes = defaultIndexBytes
	}
	if c.FlushBytes == 0 {
		c.FlushBytes = defaultFlushBytes
	}
	c.FlushBytes = min(c.FlushBytes, math.MaxInt64/2) // appends wait at twice as many
	if c.FlushInterval == 0 {
		c.FlushInterval = defaultFlushInterval
	}
	if c.MaxOpenSegments == 0 {
		c.MaxOpenSegments = min(defaultMaxOpenSegments, max(16, openFileLimit()/4))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
