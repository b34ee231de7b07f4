package seglog

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
)

// Where the batches of the last segment in the view of a read-only log end.

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
// size bytes may hold batches; found is -1 if there is none. If it is known where the flushed batches of this segment end, the
// search is bounded by that position, or by an entry of its index before. Without a bound, two adjacent batches inside the value
// of a record would be taken for batches of the log.
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
