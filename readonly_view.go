package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
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
