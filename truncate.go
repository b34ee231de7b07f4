package seglog

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime/debug"

	"github.com/seglog/seglog/internal/vfs"
)

// TruncateTo makes offset the end of the log. It removes the records at offset and above, and later appends get their offsets
// again. If offset lies inside a batch, a new batch with the records below offset takes its place, compressed with the same codec
// if a compressor is registered (RegisterCompressor). Everything below offset is flushed first, and the cut is durable when
// TruncateTo returns. If the process is killed in the middle, the next Open finishes the cut. Batches appended later get a
// greater leader epoch than those that were removed (BatchInfo.LeaderEpoch), so that a power cut can't mix the two.
//
// The cost is three to five flushes and the removal of the later segments' files, whatever the size of the segment that is cut.
// A section with bytes above offset keeps them until it is closed; if such a section is open, or a hard link or another process
// has the file, the part below offset is copied. Iterators past offset end with an *OffsetError; those at or below it go on.
//
// Errors: an *OffsetError for an offset outside [Start, End]; ErrInvalid for an offset in a gap and more than 2^31 above the
// base offset of its segment, and if a registered compressor fails or loses bytes; a *CorruptError, ErrCodec or ErrInflated if the batch that holds offset can't be read; the
// operating system's for a failed read or a shortage, such as a full disk; ErrClosed; ErrReadOnly. After each of these nothing
// has changed. Other failures latch the log (ErrFailed), and the next Open finishes the cut if it had begun to change files; on a full
// btrfs, where every change takes space, that may be so for a shortage.
func (l *Log) TruncateTo(offset int64) error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.o.Flush != FlushSync { // so that appends wait only for the rest of the flush
		if err := l.flushTo(l.moment()); err != nil {
			return err
		}
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if offset < l.start.Load() || offset > l.end.Load() {
		return &OffsetError{Offset: offset, Offsets: l.offsets()}
	}
	if offset == l.end.Load() {
		return nil
	}
	return l.cut(offset, false)
}

// Reset removes all records and lets the next one get offset, which may lie below Start or above End. A follower that starts
// over from a snapshot calls it. Reset is like TruncateTo with respect to durability and readers. Errors: ErrInvalid for a
// negative offset; ErrTooLarge for one so great that no append could follow; a shortage and any other failure as for TruncateTo.
func (l *Log) Reset(offset int64) error {
	if offset < 0 {
		return invalid("Reset to offset %d", offset)
	}
	if err := usedUp(offset, 1); err != nil {
		return err
	}
	if err := l.writable(); err != nil { // before the lock: Close holds it while it calls OnSeal, which may call Reset
		return err
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	return l.cut(offset, true)
}

// cut carries out TruncateTo or, with reset, Reset. l.changing and l.mu are held.
//
// It first makes everything ready that could fail for a shortage, then makes the intent durable, and only then changes files:
// it removes the later segments and cuts the file of the segment that holds the last record to be kept, that at offset-1. After a
// crash that file may have its old size, with zeros and then old records after the cut (ext4 and XFS do that), so the intent
// stays until the file is flushed.
func (l *Log) cut(offset int64, reset bool) error {
	w := &l.writer
	err := l.wake()
	if err == nil {
		err = l.checkDirectory()
	}
	if err != nil {
		return fmt.Errorf("seglog: cut at offset %d: %w", offset, err)
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	var plan cutPlan
	if reset {
		// No flush, since the unflushed records are dropped. The new segment is made now, because later a shortage would latch
		// the log.
		if err = l.removeUndeleted(); err == nil && w.next == nil {
			w.next, err = newTail(&l.env, rollName)
		}
	} else {
		if err = l.flushOnce(math.MaxInt64); err != nil { // appends that wait for a flush get the error, too
			l.failUnlessShortage(err)
			return cmp.Or(l.failed(), fmt.Errorf("seglog: cut at offset %d: %w", offset, err))
		}
		if plan, err = l.planCut(offset); err == nil {
			err = l.hold(&plan)
		}
	}
	if err == nil {
		err = l.state.putRest(plan.rest)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("seglog: cut at offset %d: %w", offset, err), l.giveUp(&plan))
	}
	err = l.state.commit(func(s *state) {
		s.cut, s.reset = offset, reset
		s.cutBase, s.cutPos, s.cutLen = plan.base, plan.pos, int64(len(plan.rest))
		s.cuts++
		s.lastCut = offset
		if reset {
			s.lastCut = -1
		}
		s.epoch = int64(w.epoch) // the epoch of the removed batches; later ones get a higher one (state.raiseFence)
	})
	if err != nil && isShortage(err) && inDoubt(err) == nil {
		return errors.Join(fmt.Errorf("seglog: cut at offset %d: %w", offset, err), l.giveUp(&plan))
	}
	if err == nil && reset {
		var undone bool
		if undone, err = l.nameEarly(offset); undone {
			return fmt.Errorf("seglog: cut at offset %d: %w", offset, err)
		}
	}
	if err == nil {
		l.beginCut()
		if reset {
			err = l.carryOutReset(offset)
		} else {
			err = l.carryOut(offset, &plan)
		}
		l.endCut(offset, reset)
		l.readers.wake()
		l.durableWaiters.wake()
	} else {
		err = errors.Join(err, l.giveUp(&plan))
	}
	if err != nil {
		l.fail(fmt.Errorf("seglog: cut at offset %d: %w", offset, err))
		return l.failed()
	}
	l.stats.truncations.Add(1)
	l.o.Logger.Info("seglog: cut", "dir", l.dir, "offset", offset, "reset", reset)
	return nil
}

// nameEarly gives the segment with which the log begins after a Reset its name while nothing is removed yet, since a name may take space
// that a full disk does not have. The intent is then taken back, which undone says; as logs in other processes may have seen it, it
// counts as a cut at the end. A segment that has that name already must be removed first, so the name has to wait.
func (l *Log) nameEarly(offset int64) (undone bool, err error) {
	for _, s := range l.view.Load().segs {
		if s.base == offset {
			return false, nil
		}
	}
	if err = l.writer.next.activate(offset); err == nil || !isShortage(err) {
		return false, err
	}
	undo := l.state.commit(func(s *state) { s.cut, s.reset, s.lastCut = -1, false, l.end.Load() })
	return undo == nil, errors.Join(err, undo)
}

// planCut finds the position at which the segment of the last record to be kept, that at offset-1, is to be cut, and makes the
// indexes for the part below.
func (l *Log) planCut(offset int64) (p cutPlan, err error) {
	// If no record is kept, cut the segment that the log starts in, since those before it are about to be deleted.
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(max(offset-1, l.start.Load()))]
	if offset-s.base > math.MaxInt32 { // too many for the marks of s; but the next segment can be left empty if it begins at offset
		if s = segs[(&view{segs}).find(offset)]; s.base != offset {
			return p, invalid("TruncateTo offset %d: it lies in a gap, more than 2^31 offsets above segment %d", offset, s.base)
		}
	}
	h, err := s.pin(&l.env)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, h.unref()) }()
	limit := s.stored.load()
	p.base, p.pos = s.base, limit.pos()
	var win window
	f, ok, err := s.locateWhole(&l.env, h, &win, offset, limit)
	if err != nil {
		return p, err
	}
	if ok {
		p.pos = f.pos
		if f.base < offset {
			p.whole = f
			if p.rest, err = restOf(h, f, offset, l.o.MaxInflatedBytes); err != nil {
				return p, err
			}
		}
	}
	if p.x, err = l.indexesBelow(s, h, p.pos, limit); err != nil {
		return p, err
	}
	if p.rest != nil {
		p.x.add(p.pos, uint32(p.rest.last()-s.base), p.rest.maxTimestamp())
	}
	if p.first, err = firstTime(h.f, p.pos, p.rest); err != nil {
		return p, err
	}
	// Opened now, before the intent is noted, because there may be no descriptor left.
	p.f, err = l.acquire(l.path(p.base, logSuffix), vfs.OpenWrite)
	return p, err
}

// hold keeps readers and the preparer away from the segment that will be cut. If it finds that a reader, a socket or a snapshot
// may still use the file, it makes the copy that will replace the file now, while a shortage can still be reported without harm.
// Readers in other processes are found only by cutFile.
func (l *Log) hold(p *cutPlan) error {
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(p.base)]
	if t := l.writer.tail; t.seg == s {
		t.bulk.Store(true) // stops the preparer from writing zeros, so that it releases the lock soon
	}
	l.preparing.Lock()
	s.mu.Lock()
	held := &heldSegment{s: s, h: s.h.Swap(nil)}
	held.alone = held.h == nil || held.h.seize()
	p.held = held
	if held.alone && !s.lent.Load() && mayCutInPlace(p.f.OSFile()) {
		t, end := l.writer.tail, s.stored.load().pos()
		if t.seg == s && held.h != nil && held.h.m != nil && end-p.size() <= maxZeroedCut {
			p.end, p.reserved = end, t.reserved.Load()
		}
		return nil
	}
	var err error
	held.copy, err = l.copyBelow(p.f, p)
	return err
}

// giveUp undoes hold and closes the files of the plan.
func (l *Log) giveUp(p *cutPlan) (err error) {
	if held := p.held; held != nil {
		if held.h != nil {
			if held.alone {
				held.h.unseize()
			}
			held.s.h.Store(held.h)
		}
		if held.copy != nil {
			err = errors.Join(held.copy.Close(), l.fs.Remove(filepath.Join(l.dir, cutName)))
		}
		l.letGo(p)
	}
	if p.f != nil {
		err = errors.Join(err, p.f.Close())
	}
	return err
}

// restOf reads and checks the batch at f, and returns a batch of its records below offset. inflated is
// Options.MaxInflatedBytes.
func restOf(h *handle, f found, offset, inflated int64) (rest batch, err error) {
	whole := make(batch, f.size)
	if _, err := h.f.ReadAt(whole, f.pos); err != nil {
		return nil, fmt.Errorf("seglog: read %s at position %d: %w", h.path, f.pos, err)
	}
	why := parseHeader(whole)
	if why == "" {
		why = whole.checkCRC()
	}
	if why != "" {
		return nil, &CorruptError{Path: h.path, Pos: f.pos, Offset: f.base, Reason: why}
	}
	if rest, err = cutBatch(whole, offset, inflated); err != nil {
		return nil, wrapBatchError(err, h.path, f.pos, offset)
	}
	return rest, nil
}

// indexesBelow makes the indexes for the part of a segment below pos. It takes over the entries for batches below pos, and adds what is
// missing for the batches between the last of these and pos.
func (l *Log) indexesBelow(s *segment, h *handle, pos int64, limit mark) (x *indexBuilder, err error) {
	x = newIndexBuilder(l.o.IndexBytes)
	from := hint{rel: -1}
	if err := h.readIndexes(func(have *indexes) { from = x.copyBelow(have, pos) }); err != nil {
		return nil, err
	}
	var w window
	w.reset(h, limit.pos())
	_, _, err = s.walkGuarded(&l.env, h, &w, from, limit, func(f found) bool {
		if f.pos >= pos {
			return true
		}
		p, e := w.at(f.pos, headerLen)
		if e == nil {
			x.add(f.pos, uint32(f.last-s.base), batch(p).maxTimestamp())
		}
		return e != nil
	})
	if err == errIndex { // an entry does not fit the log: build all of them from the batches
		x, _, err = s.buildIndexesBelow(&l.env, h, pos)
	}
	return x, err
}

// walkGuarded is walk with faults in mappings turned into errors.
func (s *segment) walkGuarded(e *env, h *handle, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	return s.walk(e, w, from, limit, stop)
}
