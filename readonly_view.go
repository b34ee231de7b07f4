package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// refreshLocked brings the view up to date with the directory, and starts over while the writer changes it. While a cut is
// under way, or was interrupted, the view ends before the batch that holds the cut's offset, since all before it will stay.
// l.mu is held.
func (ro *readOnly) refreshLocked(st state) error {
	for try := 0; ; try++ {
		err := ro.bringUpTo(st)
		if err == nil {
			err = ro.endsEarly(st)
		}
		after, stateErr := ro.readWriterState()
		if stateErr != nil {
			return stateErr
		}
		if st.sameSegments(&after) && (err == nil || try > 100) {
			if ro.l.view.Load() == nil {
				return err // of an Open that failed
			}
			ro.dropDeleted(after)
			ro.seen = after
			ro.setFresh()
			return err
		}
		if try > 1000 {
			return errors.Join(err, fmt.Errorf("%w: the writer changes %s faster than it can be read", ErrBusy, ro.l.dir))
		}
		st = after
		sched.Spin("writer", time.Millisecond)
	}
}

// bringUpTo extends the view to the state st. It makes a new view if there is none yet, if the writer has cut the log since, or if
// all segments of the view were deleted; readers of the old view wait meanwhile as for a cut.
func (ro *readOnly) bringUpTo(st state) error {
	l := ro.l
	v := l.view.Load()
	cut := v != nil && ro.seen.cutSince(&st)
	if v != nil && !cut && v.segs[len(v.segs)-1].base >= st.first {
		return ro.extendView(st)
	}
	if v != nil {
		lowest := int64(math.MaxInt64) // records were deleted and not cut
		if cut {
			lowest = st.lastCut
		}
		if cut && st.cuts-ro.seen.cuts > 1 {
			lowest = -1 // of several cuts only the last is known
		}
		l.beginCut()
		defer func() { l.endCut(lowest, lowest < 0) }()
	}
	err := ro.rebuildView(st)
	if err == nil {
		err = ro.extendView(st)
	}
	return err
}

// endsEarly returns a *CorruptError if the view lacks records at its end that the writer has noted as durable.
func (ro *readOnly) endsEarly(st state) error {
	l := ro.l
	end := l.end.Load()
	if !ro.promised || st.cut >= 0 || end >= st.recoveryPoint {
		return nil
	}
	segs := l.view.Load().segs
	last := segs[len(segs)-1]
	return &CorruptError{Path: l.path(last.base, logSuffix), Pos: last.stored.load().pos(), Offset: end, NextOffset: st.recoveryPoint,
		Reason: fmt.Sprintf("the log ends here, but was durable up to offset %d", st.recoveryPoint), cause: io.ErrUnexpectedEOF}
}

// rebuildView makes the view from a listing of the directory: at first, after a cut, and when all segments of the view were
// deleted.
func (ro *readOnly) rebuildView(st state) error {
	l := ro.l
	dir, err := l.list()
	if err != nil {
		return err
	}
	if ro.promised {
		dir.dropStale(&st)
	}
	l.gaps.Store(st.gaps || !ro.promised)
	if err := l.unfinished(dir); err != nil && !ro.promised {
		return err
	}
	for len(dir.bases) > 0 && dir.bases[0] < st.first {
		dir.bases = dir.bases[1:]
	}
	resetting := ro.promised && st.cut >= 0 && st.reset
	if resetting {
		dir.bases = []int64{st.cut} // all others are about to be removed
	}
	old := l.view.Load()
	if old == nil && ro.promised && st.cut < 0 && len(dir.bases) > 0 {
		if why := st.differs(dir.bases); why != "" {
			return &CorruptError{Path: l.path(dir.bases[0], logSuffix), Offset: dir.bases[0], Reason: "from here on: " + why}
		}
	}
	for ro.promised && len(dir.bases) > 1 && dir.bases[1] <= st.start {
		dir.bases = dir.bases[1:] // waits for its deletion: nobody reads it, and it may never be sealed
	}
	if len(dir.bases) == 0 {
		if ro.promised && st.segments > 0 && st.cut < 0 {
			return &CorruptError{Path: l.path(st.first, logSuffix), Offset: st.first, Reason: "segment is missing"}
		}
		dir.bases = []int64{max(0, st.start)}
	}
	n := len(dir.bases)
	if ro.promised {
		// Segments that are not sealed may end in zeros, so extendView goes through them batch by batch. It does the same
		// with the segment of a cut that is under way, which ends where the cut does.
		for n > 1 && (dir.bases[n-1] > st.scanBase || st.truncating() && dir.bases[n-1] > st.cutBase) {
			n--
		}
	}
	segs := make([]*segment, n)
	for i, base := range dir.bases[:n-1] {
		segs[i] = newSealed(base, dir.bases[i+1])
	}
	last, err := ro.followSegment(dir.bases[n-1])
	if err != nil {
		return err
	}
	segs[n-1] = last
	ro.seen.cuts, ro.seen.cut = st.cuts, st.cut
	ro.cutting.Store(0)
	if ro.promised && st.truncating() {
		ro.cutting.Store(st.cut)
	}
	if l.start.Store(segs[0].base); !resetting {
		l.start.Store(max(st.start, segs[0].base))
	}
	l.end.Store(last.base)
	l.durable.Store(last.base)
	l.view.Store(&view{segs})
	if old != nil {
		for _, s := range old.segs {
			_ = l.retire(s)
			s.deleted(l.stats)
		}
	}
	return nil
}

// followSegment opens the segment at base as the last one of the view, whose batches extendLast checks one by one. If its file
// does not exist, the segment counts as empty: the writer may not have named it yet.
func (ro *readOnly) followSegment(base int64) (*segment, error) {
	l := ro.l
	s := &segment{base: base}
	s.maxTime.Store(noTimestamp)
	f, path, err := l.openLog(base, vfs.OpenRead)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = noFile{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("seglog: open segment %d: %w", base, err)
	}
	h := newHandle(f, path, nil)
	ro.f, ro.x = f, newIndexBuilder(l.o.IndexBytes)
	h.x.Store(&ro.x.indexes)
	s.hold(&l.env, h)
	return s, nil
}

// extendView adds to the view what was appended to the last segment, and the segments that follow it.
func (ro *readOnly) extendView(st state) error {
	l := ro.l
	behind := int64(-1) // base offset of a segment that was there before the last one was looked at again
	for {
		if err := ro.extendLast(st); err != nil {
			return err
		}
		segs := l.view.Load().segs
		last, end := segs[len(segs)-1], l.end.Load()
		if ro.promised && st.truncating() && last.base >= st.cutBase {
			return nil
		}
		next := end
		if last.base == end || !ro.exists(next) {
			if _, none := ro.f.(noFile); none && ro.exists(last.base) {
				s, err := ro.followSegment(last.base)
				if err != nil {
					return err
				}
				l.view.Store(&view{append(segs[:len(segs)-1:len(segs)-1], s)})
				_ = l.retire(last)
				if _, none := ro.f.(noFile); none {
					return nil // it came and went
				}
				continue
			}
			if last.base == end || !l.gaps.Load() && st.scanBase <= last.base {
				return nil
			}
			// The segment may end in a gap.
			dir, err := l.list()
			if err != nil {
				return err
			}
			if next = dir.after(last.base); next < 0 || ro.promised && st.policy == FlushSync && st.recoveryPoint < next {
				return nil
			}
			if behind != next {
				behind = next // first take what was appended to the last one before next began
				continue
			}
		}
		behind = -1
		last.stored.store(markAt(next-last.base, last.stored.load().pos()))
		last.flushed.store(last.stored.load())
		s, err := ro.followSegment(next)
		if err != nil {
			return err
		}
		// The segment before it is like any sealed one from now on: it may be closed, and opened again.
		last.enter(phaseSealed)
		last.touched.Store(true)
		l.opened.add(last)
		l.end.Store(next)
		l.view.Store(&view{append(segs, s)})
	}
}

// endOffset is state.endOffset for a segment that need not be the last one. What the state file says of the end of the log holds for the
// last segment that there was then, and batches of others may end at the same position.
func (ro *readOnly) endOffset(st *state, base, pos, next int64) (int64, error) {
	to := st.endOffset(base, pos, next)
	if to == next {
		return next, nil
	}
	dir, err := ro.l.list()
	if following := dir.after(base); err != nil || following >= 0 && following <= st.end {
		return next, err
	}
	return to, nil
}

// exists reports whether there is a segment with that base offset.
func (ro *readOnly) exists(base int64) bool {
	l := ro.l
	if _, err := l.fs.Stat(l.path(base, logSuffix)); err == nil {
		return true
	}
	if at, _, ok, err := l.unnamedBase(); err == nil && ok && at == base {
		return true
	}
	_, err := l.fs.Stat(l.path(base, logSuffix)) // it may have got its name in between
	return err == nil
}

// after returns the base offset of the first segment behind base, or -1 if there is none.
func (d directory) after(base int64) int64 {
	for _, b := range d.bases {
		if b > base {
			return b
		}
	}
	return -1
}

// extendLast moves the mark of the last segment over the batches that are whole by now and that the writer's own readers may
// see. If the writer's policy is FlushSync, these are the batches below the recovery point.
func (ro *readOnly) extendLast(st state) error {
	l := ro.l
	segs := l.view.Load().segs
	s := segs[len(segs)-1]
	m := s.stored.load()
	size, err := ro.f.Size()
	if err != nil {
		return fmt.Errorf("seglog: read segment %d: %w", s.base, err)
	}
	if ro.promised && st.truncating() && s.base == st.cutBase {
		size = min(size, st.cutPos) // behind it the file changes
	}
	path := l.path(s.base, logSuffix)
	var c scanner
	src := &fileRange{ro.f, m.pos(), min(size, maxSegmentBytes)}
	c.init(src, path, m.pos(), s.base+m.rel(), -1)
	c.gaps = l.gaps.Load()
	flushed := st.flushedEnd(s.base)
	for {
		if ro.promised {
			if c.next, err = ro.endOffset(&st, s.base, c.pos, c.next); err != nil {
				return err
			}
		}
		if ro.promised && st.policy == FlushSync && c.next >= st.recoveryPoint {
			break
		}
		pos, next := c.pos, c.next
		b, err := c.scan()
		if errors.Is(err, ErrOldFormat) {
			return err
		}
		if err == nil && b.last()-s.base > math.MaxInt32 {
			err = &CorruptError{Path: path, Pos: pos, Offset: next, Reason: fmt.Sprintf("offset %d in a segment with base %d", b.last(), s.base)}
			if !ro.promised {
				return err
			}
		}
		if err != nil {
			if !ro.promised || !st.isSettled(s.base) || next >= st.recoveryPoint || !errors.Is(err, ErrCorrupt) || st.scanBase > s.base && st.cut < 0 || next > s.base && ro.exists(next) {
				break // the batch is not written yet, or not whole
			}
			if ended, e := ro.endsInGap(s, pos, min(size, maxSegmentBytes)); e != nil {
				return e
			} else if ended {
				break
			}
			// Durable records are damaged. Readers of these get the error; the view goes on behind them.
			ro.x.unsure = true
			s.takeTime(ro.x)
			found, base, e := ro.passDamage(&flushed, s.base, next, pos, min(size, maxSegmentBytes))
			if e != nil || found < 0 {
				return errors.Join(err, e)
			}
			src.pos = found // and read again: the writer may have written the batch at pos since
			c.restart(found, base)
			continue
		}
		ro.x.add(pos, uint32(b.last()-s.base), b.maxTimestamp())
		s.takeTime(ro.x)
		s.stored.store(markAt(b.last()+1-s.base, c.pos))
		s.flushed.store(s.stored.load())
		l.end.Store(b.last() + 1)
	}
	if c.next > l.end.Load() {
		if c.next-s.base > 1<<31 { // a segment can't, and no cut leaves one so
			return &CorruptError{Path: filepath.Join(l.dir, stateName), Offset: c.next, Reason: fmt.Sprintf("an end more than 2^31 above the last segment, %d", s.base)}
		}
		s.stored.store(markAt(c.next-s.base, c.pos))
		s.flushed.store(s.stored.load())
		l.end.Store(c.next)
	}
	l.durable.Store(max(l.start.Load(), min(st.recoveryPoint, l.end.Load())))
	return nil
}

// passDamage returns the position and base offset of the next good batch after damage at pos of the last segment, of which
// size bytes may hold batches; found is -1 if there is none. If it is known where the flushed batches of this segment end,
// the search is bounded by that position, or by an entry of its index before. Without a bound, two adjacent batches inside the value of a record would be taken for
// batches of the log.
func (ro *readOnly) passDamage(flushed *batchEnd, segment, next, pos, size int64) (found, base int64, err error) {
	r := resync{f: ro.f, base: segment, next: next, end: -1, size: size, flushed: *flushed,
		dense: !ro.l.gaps.Load(), jump: true, tail: true, budget: resyncBudget * size, doubts: resyncBudget * size}
	r.zeros, _ = lastByte(ro.f, pos, size)
	limit := int64(-1)
	var offsets []byte
	if flushed.pos > pos {
		if flushed.pos <= size {
			limit = flushed.pos
		}
		// Of a log that was closed there is an index, which the writer replaces before it ends: a nearer bound loses less.
		if index, why, err := readIndex(&ro.l.env, segment, indexSuffix); err == nil && why == "" {
			offsets = index
		}
	}
	found, base, err = r.goesOn(pos, offsets, limit)
	if flushed.moved = r.flushed.moved; found < 0 && limit >= 0 {
		return limit, flushed.offset, err
	}
	return found, base, err
}

// lookBehindView looks for good batches behind the end of the first view of a directory of which nothing is promised. They
// may have been acknowledged, so the log is refused, as it is by an Open that writes (lookBehind).
func (ro *readOnly) lookBehindView() error {
	l := ro.l
	segs := l.view.Load().segs
	s, f := segs[len(segs)-1], ro.f
	pos, next := s.stored.load().pos(), l.end.Load()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("seglog: read segment %d: %w", s.base, err)
	}
	path := l.path(s.base, logSuffix)
	size = min(size, maxSegmentBytes)
	last, err := lastByte(f, pos, size)
	if err == nil && last == pos {
		return nil
	}
	found := int64(-1)
	var base int64
	if err == nil {
		found, base, err = ro.passDamage(&batchEnd{}, s.base, next, pos, size)
	}
	if err != nil {
		return fmt.Errorf("seglog: read %s: %w", path, err)
	}
	if found < 0 {
		return nil
	}
	var c scanner
	c.init(&fileRange{f, pos, size}, path, pos, next, -1)
	c.gaps = true
	var bad *CorruptError
	if _, err := c.scan(); !errors.As(err, &bad) {
		return nil // a writer has finished the batch meanwhile
	}
	bad.refuse(found, base)
	return bad
}

// endsInGap reports whether the segment holds only the zeros of its reserved blocks from pos on, and another one follows.
func (ro *readOnly) endsInGap(s *segment, pos, size int64) (bool, error) {
	if !ro.l.gaps.Load() {
		return false, nil
	}
	if last, err := lastByte(ro.f, pos, size); err != nil || last > pos {
		return false, err
	}
	dir, err := ro.l.list()
	return err == nil && dir.after(s.base) >= 0, err
}

// dropDeleted takes over the writer's start, and drops the segments that it has deleted.
func (ro *readOnly) dropDeleted(st state) {
	l := ro.l
	l.start.Store(max(l.start.Load(), min(st.start, l.end.Load())))
	segs := l.view.Load().segs
	k := 0
	for k+1 < len(segs) && segs[k].base < st.first {
		k++
	}
	if k == 0 {
		return
	}
	l.view.Store(&view{segs[k:]})
	for _, s := range segs[:k] {
		_ = l.retire(s)
		s.deleted(l.stats)
	}
}

// noFile is the file of a segment that does not exist. It is empty, and nothing is read from it.
type noFile struct{ vfs.File }

func (noFile) Size() (int64, error) { return 0, nil }
func (noFile) Close() error         { return nil }
func (noFile) OSFile() *os.File     { return nil }
