package seglog

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime/debug"
)

// TruncateTo makes offset the end of the log: the records at and above it are gone, and their offsets are given out
// again. It is exact also inside a batch, whose first records are then stored anew, compressed as they were if a compressor
// is registered (RegisterCompressor). Everything below is flushed first, and when TruncateTo returns the cut is durable.
// Killed in the middle, the next Open finishes it.
//
// It costs three to five flushes and the files that are removed, however large the segment is. Sections that hold bytes
// from above keep them until they are closed; the segment is copied up to offset if one is open just then. Iterators that
// were past offset end with an *OffsetError, others go on below.
//
// Errors: an *OffsetError for an offset outside [Start, End]; ErrInvalid for one in a gap of more than 2^31 offsets; a
// *CorruptError or ErrCodec or ErrInflated for a batch around offset that can't be read, and a shortage of the operating
// system's, after which nothing has changed; a failure in the middle, which latches the log (ErrFailed), and Open finishes
// the cut.
func (l *Log) TruncateTo(offset int64) error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.o.Flush != FlushSync { // most of the flush, while appends go on
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

// Reset drops all records; the next one gets offset. It is what a follower does that starts over from a snapshot. As to
// durability, readers and errors it is like TruncateTo.
func (l *Log) Reset(offset int64) error {
	if offset < 0 {
		return invalid("Reset to offset %d", offset)
	}
	if err := l.writable(); err != nil { // before the lock, which Close holds while OnSeal, that may call this, is told
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

// cutPlan is what a TruncateTo leaves of the segment that holds its offset: the file up to pos, and rest behind it. It is
// made before anything changes, and noted in seglog.state, so that Open can finish by the same steps what was begun.
type cutPlan struct {
	f     file // of the segment, opened for writing; nil in recovery
	base  int64
	held  *heldSegment // nil in recovery
	pos   int64
	rest  batch         // what stays of the batch that holds the offset; nil if the cut lies between two batches
	whole found         // that batch, as long as the file is as it was; else empty
	done  bool          // the file begins with what is planned
	x     *indexBuilder // of what is left
	first int64         // timestamp of the first batch, as tail.firstTime
	// Of an active segment that loses little: its end, and up to where it has blocks. The bytes that go are overwritten by
	// zeros, and the blocks stay for the appends to come. Else both are 0, and the file is truncated.
	end, reserved int64
}

// maxZeroedCut is how many bytes a cut overwrites by zeros rather than giving the blocks back. To free the blocks that the
// preparer has laid ahead, up to 32 MiB, takes ext4 2 to 20 ms, and the next appends pay for new ones.
const maxZeroedCut = 1 << 20

func (p *cutPlan) size() int64 { return p.pos + int64(len(p.rest)) }

// cut is TruncateTo, or with reset Reset. l.changing and l.mu are held.
//
// First it makes sure that it can be done, then the intent is durable, and only then files change: those of later segments
// are removed, and the segment that is cut is truncated in place. After a crash the file may have its old size, a gap of
// zeros, and old records behind it (ext4 and XFS leave that), so the intent stays until the file is flushed.
func (l *Log) cut(offset int64, reset bool) error {
	w := &l.writer
	if err := l.checkDirectory(); err != nil {
		return fmt.Errorf("seglog: cut at offset %d: %w", offset, err)
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	var plan cutPlan
	var err error
	if reset {
		// What waits for its flush is dropped, so there is none. The file of the new segment is made before it is needed.
		if err = l.removeUndeleted(); err == nil && w.next == nil {
			w.next, err = newTail(&l.env, rollName, nil)
		}
	} else {
		if err = l.flushOnce(math.MaxInt64); err != nil { // appends that wait for it get the error
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
		s.epoch = int64(w.epoch) // of what the cut removes, for the fence
	})
	if err != nil && isShortage(err) && inDoubt(err) == nil {
		return errors.Join(fmt.Errorf("seglog: cut at offset %d: %w", offset, err), l.giveUp(&plan))
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

// planCut finds where the segment that holds offset is to be cut, and makes the indexes of what is left.
func (l *Log) planCut(offset int64) (p cutPlan, err error) {
	// The segment of the last record that is kept; if none is, the one that the log starts in: those before it are about to
	// be deleted.
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(max(offset-1, l.start.Load()))]
	if offset-s.base > math.MaxInt32 { // more than a segment can tell of, unless the next one is to be empty
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
	// Last, and before the intent is noted: there may be no descriptor left.
	p.f, err = l.acquire(l.path(p.base, logSuffix), openWrite)
	return p, err
}

// heldSegment is a segment that is about to be cut, and that nobody can open meanwhile.
type heldSegment struct {
	s     *segment
	h     *handle // nil: it is not open
	alone bool    // nobody else in this process has a reference to h, and nobody can get one
	copy  file    // of what is left, where somebody has; nil: the file is cut in place
}

// hold takes the segment to be cut away from readers and the preparer, and makes the copy that is needed if one of them
// does not let go, a snapshot shares the file, or the system can't tell: after the intent is noted, no shortage may stop the cut.
func (l *Log) hold(p *cutPlan) error {
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(p.base)]
	if t := l.writer.tail; t.seg == s {
		t.bulk.Store(true) // no more zeros: the preparer comes to its end soon
	}
	l.preparing.Lock()
	s.mu.Lock()
	held := &heldSegment{s: s, h: s.h.Swap(nil)}
	held.alone = held.h == nil || held.h.seize()
	p.held = held
	if held.alone && !s.lent.Load() && mayCutInPlace(p.f.osFile()) {
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

// letGo ends what hold began. Nobody opens the segment any more, which is gone.
func (l *Log) letGo(p *cutPlan) {
	if p.held != nil {
		p.held.s.mu.Unlock()
		l.preparing.Unlock()
		p.held = nil
	}
}

// giveUp puts everything back as it was before the plan.
func (l *Log) giveUp(p *cutPlan) (err error) {
	if held := p.held; held != nil {
		if held.h != nil {
			if held.alone {
				held.h.unseize()
			}
			held.s.h.Store(held.h)
		}
		if held.copy != nil {
			err = errors.Join(held.copy.Close(), l.fs.remove(filepath.Join(l.dir, cutName)))
		}
		l.letGo(p)
	}
	if p.f != nil {
		err = errors.Join(err, p.f.Close())
	}
	return err
}

// restOf is the batch at f without the records from offset on.
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

// firstTime is tail.firstTime of a segment of which size bytes, and rest behind them, are left.
func firstTime(f file, size int64, rest batch) (int64, error) {
	switch {
	case size > 0:
		var b [headerLen]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			return 0, err
		}
		return batch(b[:]).maxTimestamp(), nil
	case rest != nil:
		return rest.maxTimestamp(), nil
	}
	return noTimestamp, nil
}

// indexesBelow makes the indexes of a segment that ends at pos: the entries there are, up to the last one that points to a
// batch below, and what the batches behind that one add.
func (l *Log) indexesBelow(s *segment, h *handle, pos int64, limit mark) (x *indexBuilder, err error) {
	if !s.written() {
		// Its index files are checked when they are read, and rebuilt if need be.
		if err := h.readIndexes(func(*indexes) {}); err != nil {
			return nil, err
		}
	}
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
		if from.rel >= 0 && f.pos == from.pos {
			return false // has its entry
		}
		p, e := w.at(f.pos, headerLen)
		if e == nil {
			x.add(f.pos, uint32(f.last-s.base), batch(p).maxTimestamp())
		}
		return e != nil
	})
	if err == errIndex { // an entry that does not fit: without it
		x, _, err = s.buildIndexesBelow(&l.env, h, pos)
	}
	return x, err
}

func (s *segment) walkGuarded(e *env, h *handle, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	return s.walk(e, w, from, limit, stop)
}
