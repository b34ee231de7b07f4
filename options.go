package seglog

import (
	"log/slog"
	"math"
	"time"
)

// FlushPolicy says when appended records are made durable, and with it when a record may be read.
type FlushPolicy int

const (
	// FlushSync: Append returns once its batch is on stable storage, and no reader sees it earlier. Concurrent
	// appends share a flush.
	FlushSync FlushPolicy = iota
	// FlushAsync: Append returns once its batch is in the page cache, where it survives the death of the process. It
	// is flushed within FlushInterval and FlushBytes. While the disk can't keep up, Append waits.
	FlushAsync
	// FlushNone: the operating system decides when to write (Kafka's default). Sync, roll and Close still flush.
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

// Options says how a log is kept. The zero value is a good log: durable, kept forever, silent.
type Options struct {
	// Flush is when appends become durable. Default: FlushSync.
	Flush FlushPolicy
	// FlushInterval is, under FlushAsync, how long a record stays unflushed at most. Default: 1s. With another policy it is an
	// error to set it or FlushBytes, so that nobody counts on what does not happen.
	FlushInterval time.Duration
	// FlushBytes is, under FlushAsync, how many bytes may be appended before a flush starts. Appends wait when twice as
	// many are not flushed yet. Default: 8 MiB.
	FlushBytes int64

	// SegmentBytes is the size at which a segment is rolled. Larger ones mean fewer files, smaller ones finer
	// retention. Default: 128 MiB; at most 2 GiB - 1, at least 4 KiB.
	SegmentBytes int64
	// SegmentAge rolls a segment when a record is appended whose time is that much later than its first one's; a log that
	// nobody appends to rolls nothing. Default: 0, never; at least 1ms, the precision of a record's time.
	SegmentAge time.Duration
	// IndexBytes is how many bytes of log share one index entry. Smaller makes Read faster and the indexes larger.
	// Default: 4096.
	IndexBytes int
	// MaxBatchBytes bounds the encoded size of a batch; a larger one is ErrTooLarge. Default: 16 MiB, or SegmentBytes
	// where that is less.
	MaxBatchBytes int

	// MaxInflatedBytes bounds what a compressed batch may inflate to when its records are read or checked; more is
	// ErrInflated. A read of a compressed batch takes at most four times as much memory. Default: 256 MiB.
	MaxInflatedBytes int64

	// RetentionBytes is the size of the log above which the oldest segments are deleted. Default: 0, keep all.
	//
	// Whole segments go, so the log is larger by up to one segment at rest. Segments are sealed before they go, and up to
	// eight more may wait for that while appends are faster than the disk. On the disk, the blocks that are reserved ahead
	// come on top: up to 32 MiB, and no more than a segment, in each of the active segment and the one made ready to
	// follow it.
	RetentionBytes int64
	// RetentionAge is the age of a segment's newest record above which it is deleted. Default: 0, keep all; at least 1ms.
	RetentionAge time.Duration
	// MayDelete, if not nil, is asked before retention deletes a segment; false keeps it, and those after it, until
	// retention runs again. It is called from the log's own goroutine and must not call the log's methods that write.
	MayDelete func(SegmentInfo) bool
	// OnSeal, if not nil, is told of each segment that will not change any more: flushed, trimmed, its indexes
	// written. It is called in order, at least once for each segment of the directory: what was sealed and not told of when
	// the process ended is told of after the next Open. It is called from a goroutine of the log, and for the last ones by
	// Close, when the log's methods return ErrClosed already.
	OnSeal func(SegmentInfo)

	// CheckEveryRead makes Read check the CRC of the whole batch each time. Default: false, and of a batch of many records a
	// check is good for a minute (see Log.Read).
	CheckEveryRead bool

	// MaxOpenSegments bounds the sealed segments of the log that are kept open at once, each with a descriptor and up to
	// three mappings. A random read of one that is not costs some 15 us more. Default: 4096, or a quarter
	// of the process's limit on open files where that is less.
	//
	// All logs of a process together, with the segments that they write, keep at most half as many files open as the process
	// may have (RLIMIT_NOFILE when a log is opened): beyond that, sealed segments are closed, least recently used first,
	// whichever log they belong to.
	// Mappings are bounded by a quarter of what the system lets a process have (vm.max_map_count); segments beyond are
	// read and written through their descriptors.
	MaxOpenSegments int

	// ReadOnly opens without lock and without a single write, also beside a writer in another process, whose appends,
	// rolls, deletions and truncations become visible. Default: false.
	ReadOnly bool
	// Logger gets what an operator wants to know. Its handler must not call the log's methods, nor append to the log: it may
	// be called while the log holds its locks, and appends wait for it. Default: nil, silent.
	Logger *slog.Logger
}

// SegmentInfo names a segment to the hooks in Options.
type SegmentInfo struct {
	Path    string    // the .log file; its indexes lie beside it
	Base    int64     // offset of its first record
	Next    int64     // offset after its last record
	Bytes   int64     // size of the .log file
	MaxTime time.Time // greatest record time; zero if no record has one
	Sealed  bool      // it will not change any more: flushed, trimmed, its indexes written
}

const (
	// maxSegmentBytes: positions in index entries are int32 (Kafka, OffsetIndex).
	maxSegmentBytes = math.MaxInt32
	minSegmentBytes = 4096

	defaultSegmentBytes    = 128 << 20
	defaultMaxBatchBytes   = 16 << 20
	defaultIndexBytes      = 4096
	defaultFlushBytes      = 8 << 20
	defaultFlushInterval   = time.Second
	defaultMaxOpenSegments = 4096
)

// withDefaults returns a copy with every default filled in, or an error for options that contradict each other.
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
