package seglog

import (
	"errors"
	"fmt"
	"path/filepath"
)

// act does to a segment what was decided, and makes it part of the log.
func (r *recovery) act(c *segmentScan) error {
	l := r.l
	if c.decision == 'E' {
		if err := r.cut(c); err != nil {
			return err
		}
		c.last = true
	}
	if !r.promised && !c.last {
		return r.adopt(c)
	}
	if path := l.path(c.base, logSuffix); c.path != path {
		if err := l.fs.rename(c.path, path); err != nil { // takeOver makes it durable
			return fmt.Errorf("seglog: name segment %d: %w", c.base, err)
		}
		c.path = path
	}
	if c.pos < c.size {
		// The zeros behind the last batch, or what was behind a cut. The active segment's blocks are reserved anew, so that
		// nothing in it was not checked.
		err := c.f.truncate(c.pos)
		if err == nil && !(c.last && c.zeroes) {
			err = c.f.flush()
		}
		if err != nil {
			return fmt.Errorf("seglog: trim segment %d: %w", c.base, err)
		}
	}
	t := sealedTail(&l.env, c)
	if c.last {
		var err error
		if t, err = openTail(&l.env, c.f, c.path, c.base, c.x, c.pos); err != nil {
			return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
		}
	}
	t.firstTime = c.firstTime
	t.seg.stored.store(markAt(c.offset-c.base, c.pos))
	t.seg.flushed.store(c.from)
	if r.promised && c.offset <= r.st.recoveryPoint {
		t.seg.flushed.store(t.seg.stored.load())
	}
	r.tails = append(r.tails, t)
	r.segs = append(r.segs, t.seg)
	if m := t.seg.flushed.load(); m.pos() < c.pos {
		l.rewrites = append(l.rewrites, rewrite{seg: t.seg, pos: m.pos(), end: c.pos})
	}
	return nil
}

// adopt makes a segment of a foreign directory a sealed one of the log: trimmed, flushed, and with its indexes, should
// one be missing.
func (r *recovery) adopt(c *segmentScan) error {
	l := r.l
	f, err := l.fs.open(c.path, openWrite)
	if err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
	}
	if c.pos < c.size {
		err = f.truncate(c.pos)
	}
	if err == nil {
		err = f.flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
	}
	for _, suffix := range []string{indexSuffix, timeSuffix} {
		if _, err := l.fs.stat(l.path(c.base, suffix)); err != nil {
			if err := writeIndexes(&l.env, c.base, c.x); err != nil {
				return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
			}
			l.stats.indexRebuilds.Add(1)
			break
		}
	}
	s := new(segment)
	s.initSealed(c.base, c.next)
	s.maxTime.Store(c.x.maxTime)
	m := markAt(s.stored.load().rel(), c.pos)
	s.stored.store(m)
	s.flushed.store(m)
	r.segs = append(r.segs, s)
	return nil
}

// sealedTail is for a segment that was rolled but not sealed: it has only that left to do.
func sealedTail(e *env, c *segmentScan) *tail {
	t := &tail{e: e, seg: &segment{base: c.base}, x: c.x}
	t.seg.maxTime.Store(c.x.maxTime)
	t.h = newHandle(c.f, c.path, nil)
	t.h.x.Store(&c.x.indexes)
	t.seg.h.Store(t.h)
	return t
}

// cut removes all segments behind this one, newest first, so that no later append can bring any of them back.
func (r *recovery) cut(c *segmentScan) error {
	l := r.l
	dropped, behind := int64(0), r.dir.bases[c.number+1:]
	for k := len(behind) - 1; k >= 0; k-- {
		if st, err := l.fs.stat(l.path(behind[k], logSuffix)); err == nil {
			dropped += st.size
		}
		if err := l.removeSegmentFiles(behind[k]); err != nil {
			return err
		}
		if behind[k] == r.dir.unnamed {
			if err := l.fs.remove(filepath.Join(l.dir, nextName)); err != nil {
				return fmt.Errorf("seglog: delete segment %d: %w", behind[k], err)
			}
		}
	}
	if len(behind) > 0 {
		if err := l.fs.syncDir(l.dir); err != nil {
			return err
		}
	}
	l.o.Logger.Warn("seglog: torn tail cut", "dir", l.dir, "segment", c.base, "offset", c.offset, "pos", c.pos,
		"bytes", c.size-c.pos+dropped, "segments", len(behind), "reason", c.why)
	return nil
}

// create makes the first segment of an empty log.
func (r *recovery) create(base int64) error {
	l := r.l
	if r.promised {
		base = r.st.start
	}
	t, err := newTail(&l.env, l.path(base, logSuffix), base, nil)
	if err != nil {
		return fmt.Errorf("seglog: create segment %d: %w", base, err)
	}
	r.tails, r.segs, r.last = []*tail{t}, []*segment{t.seg}, 'G'
	if !r.promised {
		l.gaps.Store(false)
	}
	if err := l.fs.syncDir(l.dir); err != nil {
		return err
	}
	return r.takeOver()
}

// takeOver makes what was found the log, and notes it in seglog.state: the clean mark goes before the first append.
func (r *recovery) takeOver() error {
	l := r.l
	n := len(r.tails)
	l.tail = r.tails[n-1]
	for _, t := range r.tails[:n-1] {
		if t.seg.h.Load() != nil {
			l.sealing = append(l.sealing, t)
		}
	}
	// The state file counts these names, so they are durable first: a predecessor may have been killed before it synced them.
	if err := l.fs.syncDir(l.dir); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if l.state == nil {
		var err error
		if l.state, err = openState(l.fs, filepath.Join(l.dir, stateName), r.st); err != nil {
			return fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
	}
	l.view.Store(&view{r.segs})
	first, end := r.segs[0].base, l.tail.seg.base+l.tail.seg.stored.load().rel()
	start := first
	if r.promised {
		start = max(start, r.st.start)
	}
	if start > end {
		return &CorruptError{Path: l.tail.h.path, Pos: l.tail.seg.stored.load().pos(), Offset: end, Reason: fmt.Sprintf("log ends before its start offset %d", start)}
	}
	scan := l.tail
	if len(l.sealing) > 0 {
		scan = l.sealing[0]
	}
	from := scan.seg.flushed.load()
	durable := max(start, scan.seg.base+from.rel())
	if r.promised {
		durable = max(durable, min(r.st.recoveryPoint, end))
	}
	l.epoch = max(int32(r.st.epoch), r.epoch)
	l.start.Store(start)
	l.durable.Store(durable)
	l.end.Store(end)
	var segments, sum int64
	for _, s := range r.segs {
		if s.base <= scan.seg.base {
			segments++
			sum += s.base
		}
	}
	err := l.state.commit(func(s *state) {
		*s = state{seq: s.seq, policy: l.o.Flush, gaps: l.gaps.Load(), start: start, first: first, recoveryPoint: durable,
			scanBase: scan.seg.base, scanPos: from.pos(), scanOffset: scan.seg.base + from.rel(),
			segments: segments, baseSum: sum, cut: -1, cuts: s.cuts, lastCut: s.lastCut, epoch: int64(l.epoch)}
	})
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	return l.fs.syncDir(l.dir)
}
