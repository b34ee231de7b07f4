package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// salvage goes through one .log file batch by batch, and past what is damaged: Verify tells what it finds, Repair keeps
// it. Unlike a scanner it does not stop at the first bad byte, so that one flipped bit costs one batch.
type salvage struct {
	f    file
	path string
	base int64 // in the file's name
	size int64 // of the file
	from int64 // no offset below it belongs here
	end  int64 // nor one from here on; -1 if that is open
	gaps bool  // offsets may be left out

	// batch is given each good batch and where it starts. It may say what is wrong with it all the same.
	batch func(b batch, pos int64) (why string, err error)
	// damage is given what lies between good batches; false ends the walk.
	damage func(damage) (bool, error)

	// What run found: good batches up to offset next, and nothing but zeros from position zeros on.
	next  int64
	zeros int64

	last   int64 // end of what is not zero; -1: not known
	budget int64 // of resync
}

// damage is a range of a .log file that holds no good batch, or a place where offsets are missing.
type damage struct {
	pos, end     int64 // bytes; pos == end where only offsets are missing
	offset, next int64 // [offset, next) can't be had; next is -1 if no good batch follows in this file
	cause        error // *CorruptError, or the error of a read

	good  int64  // Repair: good batches among them
	saved string // and where it keeps them
}

func (d damage) reason() string {
	var corrupt *CorruptError
	if errors.As(d.cause, &corrupt) {
		return corrupt.Reason
	}
	return d.cause.Error()
}

func (v *salvage) run() error {
	v.next, v.zeros, v.last, v.budget = v.from, v.size, -1, resyncBudget*v.size
	var s scanner
	src := &fileRange{v.f, 0, v.size}
	s.init(src, v.path, 0, v.next, v.end)
	s.gaps = true // missing offsets are told of here, and do not end the walk
	for pos := int64(0); ; {
		if !s.skipTo(pos, v.next) {
			src.pos = pos
			s.restart(pos, v.next)
		}
		why := v.walk(&s)
		if why == nil || why == errStop {
			return nil
		}
		pos = s.pos
		var failed *salvageError
		if errors.As(why, &failed) {
			return failed.error
		}
		d, found, next, err := v.assess(pos, why)
		if err != nil {
			return err
		}
		if d.pos == d.end {
			return nil // blocks that were reserved
		}
		if goOn, err := v.damage(d); err != nil || !goOn || found < 0 {
			return err
		}
		pos, v.next = found, next
	}
}

// assess finds out how far the damage at pos reaches, and where the next good batch begins; -1 if there is none.
func (v *salvage) assess(pos int64, why error) (d damage, found, next int64, err error) {
	d = damage{pos: pos, end: v.size, offset: v.next, next: -1, cause: why}
	found = -1
	if errors.Is(why, ErrCorrupt) {
		if v.last < 0 {
			v.last, err = lastByte(v.f, pos, v.size)
		}
		end := max(v.last, pos)
		if err == nil && end > pos {
			r := resync{f: v.f, base: v.base, next: v.next, end: v.end, size: v.size, zeros: v.last, bound: -1, budget: v.budget}
			found, next, err = r.find(pos)
			v.budget = r.budget
		}
		switch {
		case isEnded(err):
			return d, -1, 0, err
		case err != nil:
			d.cause, found = err, -1 // what can't be read now may be good
		case found >= 0:
			d.end, d.next = found, next
		default:
			d.end, v.zeros = end, end // behind it are blocks that were reserved
		}
	}
	return d, found, next, nil
}

// isEnded: by the context.
func isEnded(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

var errStop = errors.New("seglog: stop")

// salvageError is an error of the callbacks or of the context, in contrast to one of the file.
type salvageError struct{ error }

func (e *salvageError) Unwrap() error { return e.error }

// walk returns nil at the end of the file, and else why it does not go on.
func (v *salvage) walk(s *scanner) error {
	for {
		b, err := s.scan()
		if err == io.EOF {
			return nil
		}
		if isEnded(err) {
			return &salvageError{err}
		}
		if err != nil {
			return err
		}
		pos := s.pos - b.size()
		if b.last()-v.base > math.MaxInt32 {
			s.pos, s.r = pos, s.r-int(b.size())
			return &CorruptError{Path: v.path, Pos: pos, Offset: v.next, Reason: fmt.Sprintf("offset %d in a segment with base %d", b.last(), v.base)}
		}
		if next := v.next; b.base() > next && !v.gaps {
			if why, err := v.raised(b.base(), next, s.pos); err != nil || why != "" {
				if err != nil {
					return err
				}
				s.pos, s.r = pos, s.r-int(b.size())
				return &CorruptError{Path: v.path, Pos: pos, Offset: next, Reason: why}
			}
			goOn, err := v.damage(damage{pos: pos, end: pos, offset: v.next, next: b.base(),
				cause: &CorruptError{Path: v.path, Pos: pos, Offset: v.next, Reason: fmt.Sprintf("offsets are missing: batch has %d to %d", b.base(), b.last())}})
			if err != nil {
				return &salvageError{err}
			}
			if !goOn {
				return errStop
			}
		}
		why, err := v.batch(b, pos)
		if err != nil {
			return &salvageError{err}
		}
		v.next = b.last() + 1
		if why == "" {
			continue
		}
		goOn, err := v.damage(damage{pos: pos, end: s.pos, offset: b.base(), next: v.next,
			cause: &CorruptError{Path: v.path, Pos: pos, Offset: b.base(), Reason: why}})
		if err != nil {
			return &salvageError{err}
		}
		if !goOn {
			return errStop
		}
	}
}

// raised says why the base offset of a batch, behind which end is, is taken for damaged rather than for the end of a gap,
// or "". No CRC covers it. One that a flipped bit raised collides with the batch behind it, which the scanner sees; the last
// batch has none.
func (v *salvage) raised(base, next, end int64) (string, error) {
	if flipped := base ^ next; flipped&(flipped-1) != 0 {
		return "", nil
	}
	var h [headerLen]byte
	n, err := readUpTo(v.f, h[:], end, v.size)
	if err != nil || n == headerLen && !isZero(h[:]) {
		return "", err
	}
	return fmt.Sprintf("its offset %d differs in one bit from the one that comes next", base), nil
}

// epochs looks for a batch whose leader epoch, which no CRC covers, a flipped bit has changed: it differs in one bit from that of
// the batches before and behind, which have the same. Followers refuse what comes behind a raised one. An epoch that goes
// back otherwise is no sign of damage: a broker that takes over the directory counts its own.
type epochs struct{ before, last epochAt }

// epochAt is the epoch of a batch, which lies at pos of the segment at base.
type epochAt struct {
	base, pos, offset int64
	epoch             int32 // -1: none
}

func newEpochs() epochs { return epochs{epochAt{epoch: -1}, epochAt{epoch: -1}} }

// add returns the batch before b if its epoch was changed, and the epoch that it must have had.
func (e *epochs) add(b batch, base, pos int64) (wrong epochAt, right int32, ok bool) {
	at := epochAt{base, pos, b.base(), b.epoch()}
	if flipped := e.last.epoch ^ at.epoch; e.before.epoch == at.epoch && at.epoch >= 0 && flipped != 0 && flipped&(flipped-1) == 0 {
		wrong, right, ok = e.last, at.epoch, true
		e.last.epoch = right
	}
	e.before, e.last = e.last, at
	return wrong, right, ok
}

// recordCheck decodes batches to see whether their records are what the batch says.
type recordCheck struct {
	d recordReader
	// Of the batch checked last:
	records          int64
	minTime, maxTime int64
	undecoded        bool // no decompressor is registered for its codec, or it inflates to more than the limit
}

// check says what is wrong with the records of a good batch, or "".
func (c *recordCheck) check(b batch) string {
	c.records, c.undecoded, c.d.checkOnly = b.count(), false, true
	c.minTime, c.maxTime = b.baseTimestamp(), b.maxTimestamp()
	if c.minTime < 0 || c.minTime > c.maxTime { // none, or a delete horizon
		c.minTime = c.maxTime
	}
	if err := c.d.reset(b); err != nil {
		return c.unless(err)
	}
	var r Record
	low := int64(math.MaxInt64)
	for c.d.next(&r) {
		low = min(low, c.d.millis)
	}
	if low != math.MaxInt64 {
		c.minTime = low
	}
	if err := c.d.err(); err != nil {
		return c.unless(err)
	}
	return ""
}

// unless says what is wrong by an error about the inside of a batch, unless only this process can't look there.
func (c *recordCheck) unless(err error) string {
	if c.undecoded = errors.Is(err, ErrCodec) || errors.Is(err, ErrInflated); c.undecoded {
		return ""
	}
	return err.Error()
}
