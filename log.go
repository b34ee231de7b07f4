package seglog

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/sched"
)

// Log is an append-only log of records in a directory. All methods are safe for any number of goroutines.
type Log struct {
	env
	bounds
	state    *stateFile
	counters counters
	sized    sizes
	wall     wallClock

	view    atomic.Pointer[view]
	failure atomic.Pointer[failedError]
	closed  atomic.Bool

	// The locks are taken in this order: closing, hooks.asking, changing, mu, flushes, preparing; segment.mu, tail.grow,
	// gather.mu; stateFile.mu; openBudget.resting; openSegments.mu, openBudget.mu. The others are leaves, held for a moment: waiters.mu,
	// transfers.mu, cutLog.mu, gather.zeros, wallClock.mu, Limiter.mu, readCache.mu, Worker.mu, and sizes.mu, which Stats holds while it
	// looks at files. A reader of a log that is written in this process takes segment.mu and openSegments.mu to open a segment,
	// and no lock of Log.

	// changing is held while segments are taken away: by a cut, a deletion, Close.
	changing sched.Mutex
	// mu is held to append, to roll, and to change the list of segments.
	mu       sched.Mutex
	writer   writer    // guarded by mu
	readOnly *readOnly // of a log opened with ReadOnly; otherwise nil
	// flushes is group commit. A cut locks it, which keeps all flushes away.
	flushes *commit.Group
	flusher flusher // guarded by the ownership of flushes
	// preparing is held by the preparer while it works on the active segment, and by a cut, which waits for that.
	preparing sched.Mutex

	names      atomic.Int64 // counts segments that got their names
	dirty      atomic.Bool  // FlushAsync: something was appended since the last flush started
	stateDirty atomic.Bool  // the state file has changes that are not flushed
	restSoon   atomic.Bool  // other logs need the descriptors of this one

	readers        waiters // for the high watermark
	durableWaiters waiters // for the recovery point
	transfers      transfers
	hooks          hooks
	undeleted      []int64 // bases of deleted segments whose files could not be removed; guarded by changing
	producers      []int64 // directory.producers, as Open found them; guarded by changing

	keeper, preparer, retention *sched.Worker
	background                  *sched.Limiter // is entered to work on segments in the background

	done     chan struct{} // closed by Close
	closing  sched.Mutex
	isClosed bool // guarded by closing, as is closeErr
	closeErr error
}

// view is an immutable list of the segments of a log, oldest first; the last is the active one. Views share an array: a
// roll writes behind the end of every view that there is.
type view struct{ segs []*segment }

// find returns the index of the segment that holds offset, or -1 if offset lies before the first segment.
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

// bases returns the base offsets of the segments.
func (v *view) bases() []int64 {
	bases := make([]int64, len(v.segs))
	for i, s := range v.segs {
		bases[i] = s.base
	}
	return bases
}

// release gives back descriptors, mappings and, last of all, the lock. It also serves a log whose Open failed half-way.
func (l *Log) release() error {
	var errs []error
	if v := l.view.Load(); v != nil {
		for _, s := range v.segs {
			errs = append(errs, s.retire())
		}
	}
	l.opened.closeAll()
	l.opened.budget.writesNoMore(&l.env)
	if l.state != nil {
		errs = append(errs, l.state.end())
	}
	if l.readOnly != nil && l.readOnly.state != nil {
		errs = append(errs, l.readOnly.state.Close())
	}
	if l.dirH != nil {
		errs = append(errs, l.dirH.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// Close flushes what was appended, under every policy, writes the indexes and the clean mark, and releases everything.
// Calls that wait, read or transfer end with ErrClosed; a connection that a transfer was writing to is left with an
// expired deadline. Sections keep their bytes until they are closed. Close waits for running hooks, so a hook must not
// call it. Close is idempotent: each call returns the error of the first. For a log that has failed, that is ErrFailed.
func (l *Log) Close() error {
	l.closing.Lock()
	defer l.closing.Unlock()
	if l.isClosed {
		return l.closeErr
	}
	l.isClosed, l.closeErr = true, errHookPanicked
	func() {
		defer func() { l.closeErr = errors.Join(l.closeErr, l.release()) }() // also if a hook panics and the caller recovers
		l.closeErr = l.shut()
	}()
	return l.closeErr
}

// shut ends all work and leaves the directory as that of a closed log.
func (l *Log) shut() error {
	l.mu.Lock()
	l.closed.Store(true)
	l.writer.sealed.Broadcast()
	l.mu.Unlock()
	l.readers.wake()
	l.durableWaiters.wake()
	l.transfers.interrupt()
	close(l.done)
	for _, w := range []*sched.Worker{l.keeper, l.preparer, l.retention, l.hooks.work} {
		w.Close()
		sched.Yield("background ended")
	}
	l.hooks.asking.Lock()
	l.hooks.asking.Unlock() //lint:ignore SA2001 waits for a MayDelete that a call of Retain asked
	if l.readOnly != nil {
		return nil
	}
	finished := l.finish()
	l.flushes.Lock()
	l.flusher.ended = true // finish has flushed what appends wait for, or they get the error
	l.flushes.Unlock()
	return finished
}

// errHookPanicked is the error of a second Close after a hook has panicked in the first. The next Open recovers.
var errHookPanicked = fmt.Errorf("%w: a hook panicked in Close", ErrFailed)

// finish leaves the directory as a clean shutdown of Kafka would, and notes that in the state file.
func (l *Log) finish() error {
	l.changing.Lock()
	defer l.changing.Unlock()
	discarded := l.discardNext()
	if err := l.sealAll(); err != nil {
		return errors.Join(err, discarded)
	}
	l.hooks.tellAll(l, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.writer
	if l.untouched() {
		if err := l.state.flush(); err != nil { // OnSeal may have been called
			return fmt.Errorf("seglog: close: %w", err)
		}
		return nil
	}
	m := w.tail.seg.stored.load()
	err := l.state.commit(func(s *state) {
		s.clean = true
		s.end, s.endPos = l.end.Load(), m.pos()
		s.epoch = int64(w.epoch)
		s.recoveryPoint = s.end
		s.set(l.view.Load().bases(), w.tail.seg.base, m)
	})
	if err != nil {
		err = fmt.Errorf("seglog: close: %w", err)
	}
	return errors.Join(err, discarded)
}

// discardNext removes the segment that was made ready for the next roll. If that fails, the next Open removes it.
func (l *Log) discardNext() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.writer.next
	if next == nil {
		return nil
	}
	l.writer.next = nil
	if err := next.discard(); err != nil {
		return fmt.Errorf("seglog: close: %w", err)
	}
	return nil
}

// sealAll flushes what was appended and seals all segments, the active one included. l.changing is held.
func (l *Log) sealAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.writer
	if err := l.failed(); err != nil {
		return err
	}
	if l.untouched() {
		return nil
	}
	if w.tail.h == nil {
		if err := l.wakeTail(w.tail); err != nil {
			return err
		}
	}
	if err := l.flushTo(l.lastMoment()); err != nil {
		return err
	}
	for _, t := range w.sealing {
		if t.seg.is(phaseGone) {
			continue
		}
		if err := t.seal(); err != nil {
			l.failUnlessShortage(inDoubt(err))
			return fmt.Errorf("seglog: close segment %d: %w", t.seg.base, err)
		}
		t.seg.enter(phaseSealed)
	}
	if err := w.tail.leave(); err != nil {
		return fmt.Errorf("seglog: close segment %d: %w", w.tail.seg.base, err)
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if names := l.names.Load(); names != l.flusher.namesSynced { // the state file is about to count them
		if err := l.syncDir(); err != nil {
			return fmt.Errorf("seglog: close: flush directory: %w", err)
		}
		l.flusher.namesSynced = names
	}
	return nil
}

// Offsets returns the bounds of the log, all of one moment.
func (l *Log) Offsets() Offsets {
	l.hooks.start()
	l.refreshIfStale()
	return l.offsets()
}

func (l *Log) offsets() Offsets {
	for {
		cuts := l.cuts.Load()
		o := Offsets{Start: l.start.Load(), RecoveryPoint: l.durable.Load()}
		o.HighWatermark = l.highWatermark()
		o.End = l.end.Load()
		// Except in a cut the bounds only grow, so those that have not moved by now all held when the end was read.
		if cuts%2 == 0 && l.start.Load() == o.Start && l.durable.Load() == o.RecoveryPoint && l.cuts.Load() == cuts {
			if l.o.Flush != FlushSync {
				o.HighWatermark = o.End
			}
			o.RecoveryPoint = max(o.RecoveryPoint, o.Start)
			o.HighWatermark = max(o.HighWatermark, o.RecoveryPoint)
			o.End = max(o.End, o.HighWatermark) // an append stores its batch before it raises end, and a flush may come between
			return o
		}
		l.settledCuts() // a cut may be changing them
	}
}

// cutBelow returns an *OffsetError if the log was cut below next since *cuts was read. It brings *cuts up to date.
func (l *Log) cutBelow(cuts *int64, next int64) error {
	if l.cuts.Load() == *cuts {
		return nil
	}
	now := l.settledCuts()
	lowest := l.lowestCut(*cuts)
	*cuts = now
	if next > lowest {
		return &OffsetError{Offset: next, Offsets: l.Offsets()}
	}
	return nil
}

func (l *Log) highWatermark() int64 {
	if l.o.Flush == FlushSync {
		return l.durable.Load()
	}
	return l.end.Load()
}

// fail latches the log: after a failed write or flush nothing more is appended. The failure is noted for the next Open,
// which must not trust the page cache for the bytes in doubt.
func (l *Log) fail(err error) {
	if !l.failure.CompareAndSwap(nil, &failedError{cause: err}) {
		return
	}
	l.stats.errors.Add(1)
	noted := l.state.noteFailed()
	l.o.Logger.Error("seglog: log failed, it takes no more appends", "dir", l.dir, "offset", l.end.Load(), "err", errors.Join(err, noted))
	l.readers.wake()
	l.durableWaiters.wake()
	l.writer.sealed.Broadcast()
}

// failUnlessShortage latches the log, unless err is a shortage, which passes. A shortage that a flush or a write-back
// reports latches the log too, since it leaves stored bytes in doubt.
func (l *Log) failUnlessShortage(err error) {
	if err != nil && (!isShortage(err) || inDoubt(err) != nil) {
		l.fail(err)
	}
}

func (l *Log) failed() error {
	if err := l.failure.Load(); err != nil {
		return err
	}
	return nil
}

// writable returns the reason why the log takes no appends, or nil.
func (l *Log) writable() error {
	if l.closed.Load() {
		return ErrClosed
	}
	if l.readOnly != nil {
		return ErrReadOnly
	}
	return l.failed()
}

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
		Descriptors:    descriptors.Load(), Mappings: mappingsHeld(),
		SentZeroCopy: c.sentZeroCopy.Load(), SentCopied: c.sentCopied.Load(), Received: c.received.Load(),
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
