package seglog

import (
	"errors"
	"fmt"
	"io"
)

// trust takes the last segment of a log that was closed without a scan. It checks the indexes, and rebuilds them if
// necessary.
func (c *segmentScan) trust() error {
	l := c.r.l
	c.pos, c.offset = c.size, c.r.st.end
	c.from = markAt(c.offset-c.base, c.pos)
	s := newSealed(c.base, c.offset)
	s.stored.store(c.from)
	var err error
	if c.x, err = s.resumeIndexes(&l.env, c.f, c.path); err != nil {
		return err
	}
	c.firstTime, err = firstTime(c.f, c.pos, nil)
	return err
}

// scan checks the batches from the point on where recovery starts to check. Of those before it, which were flushed, it
// reads the headers only.
func (c *segmentScan) scan() error {
	st := &c.r.st
	c.x = newIndexBuilder(c.r.l.o.IndexBytes)
	c.offset, c.firstTime = c.base, noTimestamp
	if c.r.promised && c.base == st.scanBase && st.scanPos > 0 {
		if err := c.walkFlushed(); err != nil {
			return err
		}
	}
	c.from = markAt(c.offset-c.base, c.pos)
	var s scanner
	s.init(&fileRange{c.f, c.pos, min(c.size, maxSegmentBytes)}, c.path, c.pos, c.offset, c.next)
	s.gaps = c.r.l.gaps.Load()
	s.end = c.next
	for {
		if c.r.promised && c.last && c.pos == st.endPos { // the offsets up to there may be left out
			c.offset = st.endOffset(c.base, c.pos, c.offset)
			s.next = c.offset
		}
		pos, next := s.pos, s.next
		b, err := s.scan()
		if err == nil && b.last()-c.base > 1<<31-1 {
			err = &CorruptError{Path: c.path, Pos: pos, Offset: next, Reason: fmt.Sprintf("offset %d in a segment with base %d", b.last(), c.base)}
		}
		if err == nil && c.r.promised && st.stale(b.base(), b.epoch()) {
			err = &CorruptError{Path: c.path, Pos: pos, Offset: next, Reason: st.staleReason(b)}
		}
		if err == nil {
			c.gap = c.gap || b.base() > next
			c.add(b, pos)
			continue
		}
		if err == io.EOF {
			c.ends = endsWhole
			return nil
		}
		if !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrOldFormat) {
			return err
		}
		c.why = err
		c.zeroes, err = onlyZeros(c.f, c.pos, c.size)
		if err != nil || c.zeroes {
			return err
		}
		c.ends = endsBad
		if !c.r.promised && c.last {
			return c.lookBehind()
		}
		return nil
	}
}

// lookBehind looks for good batches behind the bad bytes of a last segment of which nothing is promised. A process that is
// killed tears the batch that it wrote last, so no good batch follows; one that does may have been acknowledged. A power
// cut can leave good batches behind a torn one too, but never in a directory without a state file: the state file of a
// log is durable before its first append.
func (c *segmentScan) lookBehind() error {
	size := min(c.size, maxSegmentBytes)
	r := resync{f: c.f, base: c.base, next: c.offset, end: -1, size: size, bound: -1,
		dense: !c.r.l.gaps.Load(), tail: true, budget: resyncBudget * size}
	var err error
	if r.zeros, err = lastByte(c.f, c.pos, size); err != nil {
		return fmt.Errorf("seglog: read %s: %w", c.path, err)
	}
	found, next, err := r.find(c.pos)
	if err != nil {
		return fmt.Errorf("seglog: read %s: %w", c.path, err)
	}
	var bad *CorruptError
	if c.behind = found >= 0; c.behind && errors.As(c.why, &bad) {
		bad.refuse(found, next)
	}
	return nil
}

// add moves the end of the good batches behind b, which begins at pos.
func (c *segmentScan) add(b batch, pos int64) {
	if pos == 0 {
		c.firstTime = b.maxTimestamp()
	}
	c.r.epoch = max(c.r.epoch, b.epoch())
	c.x.add(pos, uint32(b.last()-c.base), b.maxTimestamp())
	c.pos, c.offset = pos+b.size(), b.last()+1
}

// walkFlushed walks the headers up to the point where recovery starts to check. All of it was flushed, so only headers are
// read here; damaged records are reported when they are read. A damaged header is an error.
func (c *segmentScan) walkFlushed() error {
	st := &c.r.st
	s := newSealed(c.base, st.scanOffset)
	limit := markAt(st.scanOffset-c.base, st.scanPos)
	if c.size < st.scanPos {
		return &CorruptError{Path: c.path, Pos: c.size, Offset: c.base, Reason: fmt.Sprintf("file has %d bytes, %d were durable", c.size, st.scanPos)}
	}
	h := newHandle(c.f, c.path, nil)
	c.x.unsure = true
	var w window
	w.buf = make([]byte, scanChunk)
	w.reset(h, limit.pos())
	_, _, err := s.walk(&c.r.l.env, &w, hint{rel: -1}, limit, func(f found) bool {
		p, err := w.at(f.pos, headerLen)
		if err == nil {
			c.add(p, f.pos)
		}
		return err != nil
	})
	if err == nil && !st.endsAtMark(c.base, c.pos, c.offset) {
		err = &CorruptError{Path: c.path, Pos: c.pos, Offset: c.offset, Reason: fmt.Sprintf("batches end here, not at position %d, offset %d as noted", st.scanPos, st.scanOffset)}
	}
	c.offset = st.scanOffset
	return err
}

// forgive lets a segment wholly below the start pass, however its scan ended. Nobody reads it any more, and it goes once it
// is sealed: damage in it is no reason to refuse the log. Neither Verify nor Repair looks at it.
func (c *segmentScan) forgive(err error) error {
	switch {
	case err != nil && !errors.Is(err, ErrCorrupt):
		return err
	case err != nil:
	case c.offset < c.next && (c.ends == endsBad || !c.r.l.gaps.Load()): // else all batches are there, and only reserved blocks follow
		err = c.damage()
	}
	if err != nil {
		c.r.l.o.Logger.Warn("seglog: damage below the start", "dir", c.r.l.dir, "segment", c.base, "pos", c.pos, "start", c.r.st.start, "err", err)
	}
	c.offset = c.next
	return nil
}

// damage returns the error for a segment that holds less than was promised.
func (c *segmentScan) damage() error {
	if c.why != nil && c.ends == endsBad {
		return c.why
	}
	reason := fmt.Sprintf("segment ends at offset %d, the recovery point is %d", c.offset, c.r.st.recoveryPoint)
	if c.next >= 0 {
		reason = fmt.Sprintf("segment ends at offset %d, the next one is %s and the recovery point %d", c.offset, fileName(c.next, logSuffix), c.r.st.recoveryPoint)
	}
	return &CorruptError{Path: c.path, Pos: c.pos, Offset: c.offset, Reason: reason}
}
