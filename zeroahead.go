package seglog

import (
	"errors"
	"path/filepath"

	"github.com/seglog/seglog/internal/vfs"
)

// newTail makes an empty segment under a temporary name. It gets its final name when it becomes active (tail.activate), so
// no crash and no failure leaves a segment under a name that the log gave up.
//
// The preparer passes the active segment as before; the new segment is then prepared as far ahead as that one. Otherwise before
// is nil.
func newTail(e *env, name string, before *tail) (*tail, error) {
	path := filepath.Join(e.dir, name)
	f, err := e.create(path)
	if err != nil {
		return nil, err
	}
	t := &tail{e: e}
	x := newIndexBuilder(e.o.IndexBytes)
	if before != nil {
		t.ahead = before.lead(before.seg.stored.load().pos())
		t.bulk.Store(before.bulk.Load())
		x.reserve(e.o.SegmentBytes)
	}
	if err = t.open(f, path, 0, x, 0); err != nil {
		return nil, errors.Join(err, f.Close(), e.fs.Remove(path))
	}
	if before != nil {
		if err = t.prepare(); err != nil {
			return nil, errors.Join(err, t.discard())
		}
	}
	return t, nil
}

// activate renames a prepared segment to its final name and makes it active, beginning at base. If it fails, nothing has
// changed.
func (t *tail) activate(base int64) error {
	path := t.e.path(base, logSuffix)
	if err := t.e.fs.Rename(t.h.path, path); err != nil {
		return err
	}
	t.seg.base, t.h.path = base, path
	t.seg.enter(phaseActive)
	return nil
}

// discard removes a prepared segment that is not needed.
func (t *tail) discard() error {
	if err := t.e.ours(); err != nil {
		return errors.Join(err, t.seg.retire())
	}
	return errors.Join(t.e.fs.Remove(t.h.path), t.seg.retire())
}

// prepare works ahead of the appends, in the background: it reserves blocks and fills them with zeros, by writes large
// enough for the page cache to use large folios. Appends then find their pages in memory, and under FlushSync a flush has
// data to write and nothing to journal. Under the other policies the pages are also mapped ahead.
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
		populate(t.h.m, from, want-from)
		t.populated = want
	}
	return nil
}

// lead returns the number of bytes that prepare works ahead of an append at pos: as many as the segment holds already or the
// previous one was given, between minReserve and maxReserve.
func (t *tail) lead(pos int64) int64 { return min(max(pos, t.ahead, minReserve), maxReserve) }

// zeroAhead writes zeros up to want. Under FlushSync it flushes them, so that no append pays for the journal. An append
// may overtake it.
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
			if err := f.Flush(); err != nil {
				return &writeBackError{err}
			}
		}
	}
	return nil
}

// zeroFile returns the file through which zeros are written and flushed, or nil once the segment was rolled. The kernel reports a
// failed write-back once for each open file description. If the preparer flushed an active segment through the writer's
// descriptor, it could consume the error that the flush of records must see, so it opens one of its own.
func (t *tail) zeroFile() (vfs.File, error) {
	t.grow.Lock() // a cut can't put another file under the name meanwhile
	defer t.grow.Unlock()
	switch phase(t.seg.phase.Load()) {
	case phasePrepared:
		return t.h.f, nil
	case phaseActive:
		return t.e.acquire(t.h.path, vfs.OpenWrite)
	}
	return nil, nil
}

// zeroOne reserves one piece of at most size bytes behind the reserved blocks, fills it with zeros and, under FlushSync,
// writes it back. It returns the size of the piece, and whether there is more to do up to want.
func (t *tail) zeroOne(f vfs.File, want, size int64) (n int64, more bool, err error) {
	from, n, err := t.zeroLocked(f, want, size)
	if n > 0 && t.seg.gather != nil {
		if err := f.WriteBack(from, n); err != nil {
			return n, false, &writeBackError{err}
		}
	}
	return n, err == nil && n > 0 && from+n < want, err
}

// zeroLocked is zeroOne up to the write-back. It returns the piece, [from, from+n).
func (t *tail) zeroLocked(f vfs.File, want, size int64) (from, n int64, err error) {
	t.grow.Lock()
	defer t.grow.Unlock()
	from = t.reserved.Load()
	n = min(want-from, size)
	if n <= 0 || t.bulk.Load() || t.seg.phase.Load() > int32(phaseActive) {
		return from, 0, nil
	}
	if err := f.Reserve(from, n); err != nil {
		return from, 0, err
	}
	if err := f.Zero(from, n); err != nil {
		return from, 0, err
	}
	t.reserved.Store(from + n)
	return from, n, nil
}
