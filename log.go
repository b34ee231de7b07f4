package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Log is an append-only log of records in a directory. All methods are safe for any number of goroutines.
//
// Locks, in the order they are taken:
//
//	Log.mu        the writer: tail, next, sealing, and every change of the list of segments
//	flusher.busy  owned rather than locked: flushing, rewrites, namesSynced
//	flusher.mu    who flushes, who waits
//	naming        renaming the unnamed segment
//	segment.mu    opening a segment, (re)building its indexes
//	openSegments.mu, stateFile.mu, waiters.mu, transfers.mu: leaves
//
// Readers take none of them on their way: they load view, pin a segment, and stop at its marks.
type Log struct {
	env
	lock     io.Closer
	state    *stateFile
	counters counters

	view atomic.Pointer[view]
	// Start, recovery point and end. Each only grows, but for TruncateTo and Reset, during which cuts is odd.
	start, durable, end atomic.Int64
	cuts                atomic.Int64
	failure             atomic.Pointer[failedError]
	closed              atomic.Bool

	mu        mutex
	tail      *tail
	next      *tail   // made ready for the next roll; nil if not yet
	sealing   []*tail // rolled, to be sealed by the keeper, oldest first
	prepareAt int64   // position in tail from which on the preparer has something to do
	appended  struct{ batches, records, bytes int64 }
	clock     coarseClock
	epoch     int32 // leader epoch of the last batch, which later ones get: epochs never go back in a Kafka log

	flush       flusher
	rewrites    []rewrite    // owned with flush.busy
	namesSynced int64        // names at the last directory sync; owned with flush.busy
	names       atomic.Int64 // counts segment files put under their names
	naming      mutex
	unnamed     atomic.Pointer[tail] // the active segment, if its file is still seglog.next
	dirty       atomic.Bool          // FlushAsync: something was appended since the last flush started
	stateDirty  atomic.Bool          // the state file has changes that are not flushed

	readers        waiters // for the high watermark
	durableWaiters waiters // for the recovery point
	transfers      transfers
	cutLog         cutLog
	follow         readOnly // of a log opened with ReadOnly
	openedAt       time.Time

	keeper, preparer signal
	done             chan struct{}
	background       sync.WaitGroup // keeper and preparer
	flushing         sync.WaitGroup // the flush goroutine
	closing          mutex
	isClosed         bool // guarded by closing
	closeErr         error
}

// view is the segments of a log, oldest first; the last is the active one. It never changes: later views share its
// array, of which only what lies behind all of them is written.
type view struct{ segs []*segment }

// find is the index of the segment that holds offset, or -1 for one before the first.
func (v *view) find(offset int64) int {
	lo, hi := 0, len(v.segs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if v.segs[mid].base <= offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// signal asks a background goroutine to look for work; more than one request is one.
type signal chan struct{}

func (s signal) kick() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Open opens the log in dir, which it makes if need be. A nil opts is the zero Options: a durable log that keeps all.
//
// Only one Log at a time may write a directory: a second one gets ErrLocked at once. What an earlier writer left when
// it was killed, or lost its power, is put in order first (docs/recovery.md): a torn tail is cut and reported to
// Options.Logger, while damage to what was durable is a *CorruptError and changes nothing.
func Open(dir string, opts *Options) (*Log, error) { return openFS(osFS{}, dir, opts) }

func openFS(fsys fileSystem, dir string, opts *Options) (*Log, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("seglog: open %s: %w", dir, err)
	}
	l := &Log{openedAt: time.Now(), done: make(chan struct{}), keeper: make(signal, 1), preparer: make(signal, 1)}
	l.fs, l.dir, l.o, l.cachedEnd = fsys, dir, o, cachedEnd()
	l.env.stats = &l.counters
	l.flush.init()
	if err := l.open(); err != nil {
		if e := l.release(); e != nil {
			err = errors.Join(err, e)
		}
		return nil, err
	}
	return l, nil
}

// Append stores records as one batch, whole or not at all, and returns the offset of the first. When it returns, the
// batch is as durable as Options.Flush promises; it may be called from many goroutines at once, which then share
// flushes. Offsets and, where Time is zero, times are set by the log.
//
// Errors: ErrTooLarge, ErrInvalid (nothing was stored); the operating system's, such as a full disk (nothing was
// stored, and later appends work once the cause is gone); ErrFailed (see there); ErrClosed, ErrReadOnly.
func (l *Log) Append(records ...Record) (base int64, err error) {
	if len(records) == 0 {
		return 0, invalid("Append of no records")
	}
	now := int64(0)
	for i := range records {
		if records[i].Time.IsZero() {
			now = l.clock.millis()
			break
		}
	}
	size, maxTime, err := encodedSize(records, now)
	if err != nil {
		return 0, err
	}
	if size > int64(l.o.MaxBatchBytes) {
		return 0, fmt.Errorf("%w: batch of %d bytes, Options.MaxBatchBytes is %d", ErrTooLarge, size, l.o.MaxBatchBytes)
	}
	l.mu.Lock()
	base = l.end.Load()
	dst, err := l.begin(base, size, largeBatch, int64(len(records)), maxTime)
	if err == nil {
		err = l.commit(dst, l.tail.encode(dst, base, l.epoch, records, now), int64(len(records)))
	}
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return base, l.acknowledge(base + int64(len(records)))
}

// AppendBatch stores one batch that is encoded already, as a Kafka producer sends it: compressed or not, with its own
// attributes and times. It is checked (form, CRC and, if not compressed, records), given offsets and the log's leader
// epoch, as a Kafka leader does, and else stored as it is; the caller's bytes are not changed. The returned base is the offset of its first record. A malformed batch is
// ErrInvalid; else as Append.
func (l *Log) AppendBatch(b []byte) (base int64, err error) {
	if len(b) < headerLen {
		return 0, invalid("batch of %d bytes", len(b))
	}
	if len(b) > l.o.MaxBatchBytes {
		return 0, fmt.Errorf("%w: batch of %d bytes, Options.MaxBatchBytes is %d", ErrTooLarge, len(b), l.o.MaxBatchBytes)
	}
	in := batch(b)
	why := parseHeader(b)
	switch {
	case why != "":
	case in.size() != int64(len(b)):
		why = fmt.Sprintf("its length field says %d bytes, there are %d", in.size(), len(b))
	case in.codec() > CodecZstd:
		why = in.codec().String() + " is not known"
	default:
		if why = in.checkCRC(); why == "" {
			why = in.checkRecords()
		}
	}
	if why != "" {
		return 0, invalid("batch: %s", why)
	}
	l.mu.Lock()
	base, err = l.place(in, l.end.Load(), l.epoch)
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return base, l.acknowledge(base + in.lastDelta() + 1)
}

// place stores a checked batch at base with that leader epoch. l.mu is held.
func (l *Log) place(b batch, base int64, epoch int32) (int64, error) {
	dst, err := l.begin(base, int64(len(b)), largePlaced, b.lastDelta()+1, b.maxTimestamp())
	if err != nil {
		return 0, err
	}
	return base, l.commit(dst, l.tail.place(dst, b, base, epoch), b.count())
}

// begin returns room for a batch of size bytes, to be written from large on, and count offsets from base on, rolling if
// need be. l.mu is held.
func (l *Log) begin(base, size, large, count, maxTime int64) (dst []byte, err error) {
	if err := l.writable(); err != nil {
		return nil, err
	}
	if base > math.MaxInt64-math.MaxInt32-count {
		return nil, fmt.Errorf("%w: offset %d is the last one there is", ErrTooLarge, base)
	}
	t := l.tail
	at := t.seg.stored.load()
	if l.mustRoll(t, at, size, base+count-1, maxTime) {
		if err := l.roll(base); err != nil {
			return nil, fmt.Errorf("seglog: roll at offset %d: %w", base, err)
		}
		t, at = l.tail, 0
	}
	if at.pos()+size > l.prepareAt {
		l.prepareAt = math.MaxInt64
		l.preparer.kick()
	}
	if dst, err = t.begin(size, large); err != nil {
		err = t.h.named(err)
		if !isDiskFull(err) {
			l.fail(err)
		}
		return nil, fmt.Errorf("seglog: append at offset %d, position %d: %w", base, at.pos(), err)
	}
	return dst, nil
}

// mustRoll is Kafka's LogSegment.shouldRoll.
func (l *Log) mustRoll(t *tail, at mark, size, last, maxTime int64) bool {
	if at.pos() == 0 {
		return last-t.seg.base > math.MaxInt32
	}
	return at.pos()+size > l.o.SegmentBytes ||
		l.o.SegmentAge > 0 && t.firstTime >= 0 && maxTime-t.firstTime > l.o.SegmentAge.Milliseconds() ||
		last-t.seg.base > math.MaxInt32 || t.x.full()
}

// commit publishes the batch in dst, unless encoding it failed. l.mu is held.
func (l *Log) commit(dst batch, encodeErr error, count int64) error {
	err := encodeErr
	if err == nil {
		err = l.tail.commit(dst)
	}
	if encodeErr != nil {
		l.tail.abandon()
	}
	if err != nil {
		err = l.tail.h.named(err)
		if !isDiskFull(err) {
			l.fail(err)
		}
		l.stats.errors.Add(1)
		return fmt.Errorf("seglog: append at offset %d, position %d: %w", l.end.Load(), l.tail.seg.stored.load().pos(), err)
	}
	l.appended.batches++
	l.appended.records += count
	l.appended.bytes += int64(len(dst))
	m := l.tail.seg.stored.load()
	l.end.Store(l.tail.seg.base + m.rel())
	return nil
}

// acknowledge waits for what the flush policy promises of everything below end.
func (l *Log) acknowledge(end int64) error {
	switch l.o.Flush {
	case FlushSync:
		return l.flushTo(end)
	case FlushAsync:
		l.readers.wake()
		if !l.dirty.Load() && !l.dirty.Swap(true) {
			l.keeper.kick() // starts the interval
		}
		switch unflushed := l.unflushed(); {
		case unflushed >= 2*l.o.FlushBytes:
			return l.flushTo(end)
		case unflushed >= l.o.FlushBytes:
			l.keeper.kick()
		}
	default:
		l.readers.wake()
	}
	return nil
}

// roll makes a new active segment that starts at base; the keeper seals the old one. l.mu is held. Nothing has changed
// if it fails.
func (l *Log) roll(base int64) error {
	if err := l.nameLast(); err != nil { // the one before, should it still have none
		return err
	}
	path := l.path(base, logSuffix)
	next, ready := l.next, l.next != nil
	if !ready {
		var err error
		if next, err = newTail(&l.env, path, base, nil); err != nil {
			return err
		}
		l.names.Add(1)
	}
	next.seg.base, next.h.path = base, path
	if ready {
		l.unnamed.Store(next)
		if l.o.Flush == FlushSync { // the append waits for a flush, which waits for the name
			if err := l.nameLast(); err != nil {
				l.unnamed.Store(nil)
				return err
			}
		}
	}
	old := l.tail
	l.tail, l.next = next, nil
	l.planPreparation()
	l.view.Store(&view{append(l.view.Load().segs, l.tail.seg)})
	l.sealing = append(l.sealing, old)
	l.stats.rolls.Add(1)
	l.o.Logger.Debug("seglog: rolled", "dir", l.dir, "segment", base, "bytes", old.seg.stored.load().pos())
	l.keeper.kick()
	return nil
}

// Sync returns once everything appended so far is on stable storage. Errors: ErrFailed, ErrClosed, ErrReadOnly; a full
// disk where the name of a new segment needs a block, after which it may be called again.
func (l *Log) Sync() error {
	if err := l.writable(); err != nil {
		return err
	}
	return l.flushTo(l.end.Load())
}

// WaitDurable returns once the record at offset is on stable storage, starting a flush if none is due, which makes any
// policy a durable one for the records that need it. It waits for a record that is not appended yet. Errors: those of
// ctx and of Sync.
func (l *Log) WaitDurable(ctx context.Context, offset int64) error {
	for {
		err := l.durableWaiters.wait(ctx, func() (bool, error) {
			if err := l.writable(); err != nil {
				return false, err
			}
			return l.durable.Load() > offset || l.end.Load() > offset, nil
		})
		if err != nil || l.durable.Load() > offset {
			return err
		}
		if err := l.flushTo(offset + 1); err != nil {
			return err
		}
	}
}

// Offsets returns the bounds of the log, of one moment.
func (l *Log) Offsets() Offsets {
	for {
		cuts := l.cuts.Load()
		// In this order, and each only growing, they are in order whatever happens between the loads.
		o := Offsets{Start: l.start.Load(), RecoveryPoint: l.durable.Load()}
		o.HighWatermark = l.highWatermark()
		o.End = l.end.Load()
		if cuts%2 == 0 && l.cuts.Load() == cuts {
			o.RecoveryPoint = max(o.RecoveryPoint, o.Start)
			o.HighWatermark = max(o.HighWatermark, o.RecoveryPoint)
			o.End = max(o.End, o.HighWatermark) // a flush may be faster than the append it serves
			return o
		}
		spin("cut", 10*time.Microsecond) // which changes them now
	}
}

func (l *Log) highWatermark() int64 {
	if l.o.Flush == FlushSync && !l.o.ReadOnly {
		return l.durable.Load()
	}
	return l.end.Load()
}

// fail latches the log: the first failed write or flush is the last.
func (l *Log) fail(err error) {
	if !l.failure.CompareAndSwap(nil, &failedError{cause: err}) {
		return
	}
	l.stats.errors.Add(1)
	l.o.Logger.Error("seglog: failed, takes no more appends", "dir", l.dir, "offset", l.end.Load(), "err", err)
	l.readers.wake()
	l.durableWaiters.wake()
}

func (l *Log) failed() error {
	if err := l.failure.Load(); err != nil {
		return err
	}
	return nil
}

// writable says why the log takes no appends, or nil.
func (l *Log) writable() error {
	if l.closed.Load() {
		return ErrClosed
	}
	if l.o.ReadOnly {
		return ErrReadOnly
	}
	return l.failed()
}
