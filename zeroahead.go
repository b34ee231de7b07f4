package seglog

import (
	"errors"
)

// prepare gets ahead of the appends, in the background: it reserves blocks and writes zeros to them, by writes large
// enough for the page cache to use large folios. Appends then meet pages that are there, and under FlushSync a flush has
// data to write and nothing to journal. Without FlushSync the pages are mapped ahead too.
func (t *tail) prepare() error {
	if t.h.m == nil {
		return nil
	}
	pos := t.seg.stored.load().pos()
	want := min(pos+t.lead(pos), t.e.o.SegmentBytes)
	if t.bulk.Load() {
		return t.reserve(want)
	}
	if err := t.zeroAhead(want); err != nil {
		return err
	}
	if from := max(t.populated, pos); t.seg.gather == nil && from < want && !t.bulk.Load() {
		t.h.m.populate(from, want-from)
		t.populated = want
	}
	return nil
}

// lead is how far prepare gets ahead of an append at pos: as much again, within bounds.
func (t *tail) lead(pos int64) int64 { return min(max(pos, t.ahead, minReserve), maxReserve) }

// zeroAhead lays zeros up to want. Under FlushSync it flushes them, so that no append pays for the journal; that an append
// overtakes it does no harm.
func (t *tail) zeroAhead(want int64) (err error) {
	if t.seg.gather == nil {
		for more := true; more && err == nil; {
			_, more, err = t.zeroOne(t.h.f, want, zeroPiece)
		}
		return err
	}
	f, err := t.zeroFile()
	if isShortage(err) {
		return t.reserve(want) // blocks without zeros will do
	}
	if err != nil || f == nil {
		return err
	}
	if f != t.h.f {
		defer func() { err = errors.Join(err, f.Close()) }()
	}
	unflushed := int64(0)
	for more := true; more; {
		var n int64
		if n, more, err = t.zeroOne(f, want, syncPiece); err != nil {
			return err
		}
		unflushed += n
		if unflushed >= zeroStep || !more && unflushed > 0 {
			unflushed = 0
			if err := f.flush(); err != nil {
				return &writeBackError{err}
			}
		}
	}
	return nil
}

// zeroFile is what the zeros of a segment are written and flushed through; nil once it was rolled. The kernel reports a
// failed write-back once for each open file description, so the preparer has one of its own: through that of the flusher
// it would take an error away from the flush that has to acknowledge records.
func (t *tail) zeroFile() (file, error) {
	t.grow.Lock() // a cut can't put another file under the name meanwhile
	defer t.grow.Unlock()
	switch phase(t.seg.phase.Load()) {
	case phasePrepared:
		return t.h.f, nil
	case phaseActive:
		return t.e.acquire(t.h.path, openWrite)
	}
	return nil, nil
}

// zeroOne lays one piece of n zeros where the reserved blocks end, reserves it, and starts to write it back under
// FlushSync. more says that want is not reached.
func (t *tail) zeroOne(f file, want, size int64) (n int64, more bool, err error) {
	from, n, err := t.zeroLocked(f, want, size)
	if n > 0 && t.seg.gather != nil {
		if err := f.writeBack(from, n); err != nil {
			return n, false, &writeBackError{err}
		}
	}
	return n, err == nil && n > 0 && from+n < want, err
}

func (t *tail) zeroLocked(f file, want, size int64) (from, n int64, err error) {
	t.grow.Lock()
	defer t.grow.Unlock()
	from = t.reserved.Load()
	n = min(want-from, size)
	if n <= 0 || t.bulk.Load() || t.seg.phase.Load() > int32(phaseActive) {
		return from, 0, nil
	}
	if err := f.reserve(from, n); err != nil {
		return from, 0, err
	}
	if err := f.zero(from, n); err != nil {
		return from, 0, err
	}
	t.reserved.Store(from + n)
	return from, n, nil
}
