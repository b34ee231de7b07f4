package seglog

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
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
	v.next, v.zeros = v.from, v.size
	var s scanner
	for pos := int64(0); ; {
		s.init(&fileRange{v.f, pos, v.size}, v.path, pos, v.next, v.end)
		s.gaps = true // missing offsets are told of here, and do not end the walk
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
		end, err := lastByte(v.f, pos, v.size)
		if err == nil && end > pos {
			found, next, err = v.resync(pos)
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
			s.pos = pos
			return &CorruptError{Path: v.path, Pos: pos, Offset: v.next, Reason: fmt.Sprintf("offset %d in a segment with base %d", b.last(), v.base)}
		}
		if b.base() > v.next && !v.gaps {
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

// resync finds the next good batch behind the bad bytes at pos, and its base offset; -1 if there is none.
func (v *salvage) resync(pos int64) (found, next int64, err error) {
	// Most damage leaves the length field alone: then the next batch begins where it says.
	var h [headerLen]byte
	n, err := v.f.ReadAt(h[:], pos)
	if err != nil && err != io.EOF {
		return -1, 0, err
	}
	if n == headerLen {
		end := pos + batch(h[:]).size()
		if end > pos+headerLen && end <= v.size {
			if zeros, err := onlyZeros(v.f, end, v.size); err != nil || zeros {
				return -1, 0, err
			}
			if ok, err := v.fits(end, h[:]); ok || err != nil {
				return end, batch(h[:]).base(), err
			}
		}
	}
	buf := make([]byte, scanChunk+headerLen)
	for at := pos + 1; at+headerLen <= v.size; at += scanChunk {
		n, err := v.f.ReadAt(buf[:min(int64(len(buf)), v.size-at)], at)
		if err != nil && err != io.EOF {
			return -1, 0, err
		}
		for i := 0; i < scanChunk && i+headerLen <= n; i++ {
			if buf[i+atMagic] != magicV2 {
				continue
			}
			base := batch(buf[i:]).base()
			if base < v.next || base-v.base > math.MaxInt32 || v.end >= 0 && base >= v.end {
				continue
			}
			ok, err := v.fits(at+int64(i), h[:])
			if ok && err == nil {
				// The value of a record may hold a batch: what follows must be one too, or nothing.
				ok, err = v.followed(at+int64(i)+batch(h[:]).size(), batch(h[:]).last())
			}
			if ok || err != nil {
				return at + int64(i), base, err
			}
		}
	}
	return -1, 0, nil
}

// lastByte is the end of what is not zero in [pos, end) of f.
func lastByte(f file, pos, end int64) (int64, error) {
	buf := make([]byte, min(end-pos, scanChunk))
	for end > pos {
		p := buf[:min(int64(len(buf)), end-pos)]
		n, err := f.ReadAt(p, end-int64(len(p)))
		if err != nil && err != io.EOF {
			return 0, err
		}
		clear(p[n:]) // trimmed by a writer meanwhile
		for i := len(p); i > 0; i-- {
			if p[i-1] != 0 {
				return end - int64(len(p)-i), nil
			}
		}
		end -= int64(len(p))
	}
	return pos, nil
}

// fits reports whether a good batch that may stand there starts at pos. Its header is left in h.
func (v *salvage) fits(pos int64, h []byte) (bool, error) {
	if v.size-pos < headerLen {
		return false, nil
	}
	if _, err := v.f.ReadAt(h[:headerLen], pos); err != nil && err != io.EOF {
		return false, err
	}
	b := batch(h)
	if parseHeader(h) != "" || b.base() < v.next || v.end >= 0 && b.last() >= v.end ||
		b.last()-v.base > math.MaxInt32 || b.size() > v.size-pos {
		return false, nil
	}
	crc := uint32(0)
	buf := make([]byte, min(b.size(), scanChunk))
	for at, end := pos+atAttributes, pos+b.size(); at < end; {
		p := buf[:min(int64(len(buf)), end-at)]
		n, err := v.f.ReadAt(p, at)
		if err != nil && err != io.EOF {
			return false, err
		}
		if n < len(p) {
			return false, nil // trimmed by a writer meanwhile
		}
		crc = crc32.Update(crc, castagnoli, p)
		at += int64(n)
	}
	return crc == b.crc(), nil
}

func (v *salvage) followed(pos, last int64) (bool, error) {
	if v.size-pos < headerLen {
		return v.size == pos, nil
	}
	var h [headerLen]byte
	if _, err := v.f.ReadAt(h[:], pos); err != nil && err != io.EOF {
		return false, err
	}
	return isZero(h[:]) || parseHeader(h[:]) == "" && batch(h[:]).base() > last, nil
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
