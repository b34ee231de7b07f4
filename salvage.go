package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/seglog/seglog/internal/vfs"
)

// salvage walks the batches of one .log file, and goes on behind damage: Verify reports what it finds, Repair keeps the good
// batches. A scanner stops at the first bad byte; with salvage one flipped bit costs one batch.
type salvage struct {
	e    *env
	f    vfs.File
	path string
	base int64 // base offset, by the file's name
	size int64 // of the file
	from int64 // all offsets in the file are at least from
	end  int64 // and less than end; -1 if that is not known
	// endPos is the position where the batches end at offset end; 0: that is not known.
	endPos  int64
	flushed batchEnd // see resync.flushed
	gaps    bool     // offsets may be missing
	// leftOut, if not nil, is state.endOffset of the segment: the batch at pos may be any from the offset that it returns on.
	leftOut func(base, pos, next int64) int64

	epochs *epochs // of the batches before

	// batch is called with each good batch and its position. It may return why the batch is bad all the same.
	batch func(b batch, pos int64) (why string, err error)
	// damage is called with what lies between good batches. If it returns false, the walk ends.
	damage func(damage) (bool, error)

	// What run found: good batches up to offset next, and only zeros from position zeros on.
	next  int64
	zeros int64

	last    int64  // end of the last byte that is not zero; -1: not known yet
	offsets []byte // the offset index, if there is one
	indexed bool   // there is one
	budget  int64  // see resync.budget
	doubts  int64  // and resync.doubts
	jumped  bool   // the walk ended at a good batch before which offsets are missing
}

// damage is a range of a .log file that holds no good batch, or a place where offsets are missing.
type damage struct {
	pos, end     int64 // bytes; pos == end where only offsets are missing
	offset, next int64 // the offsets [offset, next) are lost; next is -1 if no good batch follows in this file
	cause        error // a *CorruptError, or the error of a read

	good  int64  // for Repair: how many good batches go too
	saved string // for Repair: the file that keeps the bytes
}

func (d damage) reason() string {
	var corrupt *CorruptError
	if errors.As(d.cause, &corrupt) {
		return corrupt.Reason
	}
	return d.cause.Error()
}

// run walks the file. It returns the error of a callback or of the context, if one ended the walk.
func (v *salvage) run() error {
	v.next, v.zeros, v.last, v.budget, v.doubts = v.from, v.size, -1, resyncBudget*v.size, resyncBudget*v.size
	var s scanner
	src := &fileRange{v.f, 0, v.size}
	s.init(src, v.path, 0, v.next, v.end)
	s.gaps = true // walk reports missing offsets as damage, and goes on
	for pos := int64(0); ; {
		if !s.skipTo(pos, v.next) {
			src.pos = pos
			s.restart(pos, v.next)
		}
		v.jumped = false
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
		if d.pos == d.end && found < 0 {
			return nil // only reserved blocks follow
		}
		if goOn, err := v.damage(d); err != nil || !goOn || found < 0 {
			return err
		}
		pos, v.next = found, next
	}
}

// assess finds out how far the damage at pos reaches, and the position and base offset of the next good batch; found is -1 if
// there is none.
func (v *salvage) assess(pos int64, why error) (d damage, found, next int64, err error) {
	d = damage{pos: pos, end: v.size, offset: v.next, next: -1, cause: why}
	found = -1
	if errors.Is(why, ErrCorrupt) {
		if v.last < 0 {
			if v.last, err = lastByte(v.f, pos, v.size); err == nil {
				var why string
				v.offsets, why, err = readIndex(v.e, v.base, indexSuffix)
				v.indexed = why == ""
			}
		}
		end := max(v.last, pos)
		if err == nil && end > pos {
			r := resync{f: v.f, base: v.base, next: v.next, end: v.end, size: v.size, zeros: v.last,
				dense: !v.gaps, jump: v.jumped, endPos: max(v.last, v.endPos), flushed: v.flushed, tail: true, budget: v.budget, doubts: v.doubts}
			limit := int64(-1)
			if v.indexed && v.endPos == v.size {
				limit = v.endPos
			} else if v.flushed.pos > pos && v.flushed.pos <= v.size {
				limit = v.flushed.pos
			}
			found, next, err = r.goesOn(pos, v.offsets, limit)
			v.budget, v.doubts, v.flushed = r.budget, r.doubts, r.flushed
		}
		switch {
		case isEnded(err):
			return d, -1, 0, err
		case err != nil:
			d.cause, found = err, -1 // the bytes that can't be read now may be good
		case found >= 0:
			d.end, d.next = found, next
		default:
			d.end, v.zeros = end, end // reserved blocks follow
		}
	}
	return d, found, next, nil
}

// isEnded reports whether err is that of a context.
func isEnded(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// errStop: a callback ended the walk.
var errStop = errors.New("seglog: stop")

// salvageError is an error of a callback or of the context, as opposed to one of the file.
type salvageError struct{ error }

func (e *salvageError) Unwrap() error { return e.error }

// walk passes the scanner's batches to the callbacks. It returns nil at the end of the file, otherwise why it ended earlier.
func (v *salvage) walk(s *scanner) error {
	for {
		if v.leftOut != nil {
			v.next = v.leftOut(v.base, s.pos, v.next)
			s.next = v.next
		}
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
		if why := v.epochs.refuses(b, v.next); why != "" {
			s.pos, s.r = pos, s.r-int(b.size())
			return &CorruptError{Path: v.path, Pos: pos, Offset: v.next, Reason: why}
		}
		if v.jumped = b.base() > v.next && !v.gaps; v.jumped {
			s.pos, s.r = pos, s.r-int(b.size())
			return &CorruptError{Path: v.path, Pos: pos, Offset: v.next, Reason: b.follows(v.next, false)}
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

// epochs finds batches whose leader epoch was changed by a flipped bit; the CRC does not cover it. The epoch then differs in
// one bit from those of the batches before and after, which are equal. A replica refuses the batches after one whose epoch was raised.
// An epoch that goes back in any other way is not damage: a broker that takes over a directory counts epochs of its own.
//
// Behind the fence that a cut left (see state.fenceOffset) every epoch is at least that of the fence. There a batch with an
// older one came back from the disk, or one of its bits was flipped: of the epoch or, in a log with gaps, of the base offset.
type epochs struct {
	st           *state // of the log; nil if nothing is promised
	before, last epochAt
}

// epochAt is the leader epoch of the batch at position pos of the segment at base.
type epochAt struct {
	base, pos, offset int64
	epoch             int32 // -1: none
}

func newEpochs(st *state) epochs { return epochs{st, epochAt{epoch: -1}, epochAt{epoch: -1}} }

// stale reports whether a batch lies behind the fence under an older epoch. While a cut is under way, the fence is that of the
// cut before, and what lies behind the new one is removed.
func (e *epochs) stale(at epochAt) bool {
	return e.st != nil && e.st.cut < 0 && e.st.stale(at.offset, at.epoch)
}

// flipped returns the leader epoch that a stale batch had before one bit of it was flipped, or -1 if it can't tell. It does not
// guess above the recovery point, where the batch may be one that a cut removed.
func (e *epochs) flipped(at epochAt) int32 {
	fence := int32(e.st.fenceEpoch)
	for _, right := range [...]int32{e.last.epoch, fence} {
		if bits := right ^ at.epoch; right >= fence && bits&(bits-1) == 0 && at.offset < e.st.recoveryPoint {
			return right
		}
	}
	return -1
}

// refuses returns why batch b, before which the batches end at next, is not one of the log, or "". A batch behind a gap has a
// flipped offset rather than a flipped epoch.
func (e *epochs) refuses(b batch, next int64) string {
	at := epochAt{offset: b.base(), epoch: b.epoch()}
	if !e.stale(at) || at.offset == next && e.flipped(at) >= 0 {
		return ""
	}
	return e.st.staleReason(b)
}

// add takes the next batch into account. If its epoch, or that of the batch before it, is found to be changed, add returns that
// batch, the right epoch, and true.
func (e *epochs) add(b batch, base, pos int64) (wrong epochAt, right int32, ok bool) {
	at := epochAt{base, pos, b.base(), b.epoch()}
	if e.stale(at) {
		wrong, right, ok = at, e.flipped(at), true
		at.epoch = right
	} else if flipped := e.last.epoch ^ at.epoch; e.before.epoch == at.epoch && at.epoch >= 0 && flipped != 0 && flipped&(flipped-1) == 0 {
		wrong, right, ok = e.last, at.epoch, true
		e.last.epoch = right
	}
	e.before, e.last = e.last, at
	return wrong, right, ok
}

// recordCheck decodes the records of batches, to see whether they are as the header says.
type recordCheck struct {
	d recordReader
	// Of the batch checked last:
	records          int64
	minTime, maxTime int64
	undecoded        bool // no decompressor is registered for its codec, or it inflates to more than the limit
}

// check returns what is wrong with the records of a batch whose CRC is right, or "".
func (c *recordCheck) check(b batch) string {
	c.records, c.undecoded, c.d.checkOnly = b.count(), false, true
	c.minTime, c.maxTime = b.baseTimestamp(), b.maxTimestamp()
	if c.minTime < 0 || c.minTime > c.maxTime { // there is none, or it is a delete horizon
		c.minTime = c.maxTime
	}
	if err := c.d.reset(b); err != nil {
		return c.problem(err)
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
		return c.problem(err)
	}
	return ""
}

// problem returns what err says is wrong with the records, or "" if the records may be good and only this process can't decode
// them.
func (c *recordCheck) problem(err error) string {
	if c.undecoded = errors.Is(err, ErrCodec) || errors.Is(err, ErrInflated); c.undecoded {
		return ""
	}
	return err.Error()
}
