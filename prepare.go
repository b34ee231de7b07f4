package seglog

import (
	"errors"
	"runtime"

	"github.com/seglog/seglog/internal/vfs"
)

// The preparer's work on a segment ahead of the appends.

const (
	// Zeros are flushed after every zeroStep bytes: they share the disk with the flushes that callers wait for.
	zeroStep = 4 << 20
	// Zeros are written in pieces, and an append that outruns them waits for one piece. Under FlushSync it is small, since
	// a flush that callers wait for writes every dirty page of the file, zeros included.
	syncPiece = 256 << 10 // under FlushSync
	zeroPiece = 1 << 20   // otherwise
)

// prepareNext makes the segment that is to follow before, and prepares it as far ahead as that one.
func prepareNext(e *env, before *tail) (*tail, error) {
	t := &tail{e: e, ahead: before.lead(before.seg.stored.load().pos())}
	t.bulk.Store(before.bulk.Load())
	x := newIndexBuilder(e.o.IndexBytes)
	x.reserve(e.o.SegmentBytes)
	if err := t.create(nextName, x); err != nil {
		return nil, err
	}
	if err := t.prepare(); err != nil {
		return nil, errors.Join(err, t.discard())
	}
	return t, nil
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

// half is the position from which on the next segment is made ready: half of the way to the end, from the beginning or, since a log
// that rests gives the next segment up, from where the log woke.
func (t *tail) half() int64 { return max(t.e.o.SegmentBytes/2, t.woke+(t.e.o.SegmentBytes-t.woke)/2) }

// lead returns the number of bytes that prepare works ahead of an append at pos: as many as the segment holds already or the
// previous one was given, between minReserve and maxReserve.
func (t *tail) lead(pos int64) int64 { return min(max(pos, t.ahead, minReserve), maxReserve) }

// zeroAhead writes zeros up to want. Under FlushSync it flushes them, so that no append pays for the journal. An append
// may overtake it.
func (t *tail) zeroAhead(want int64) (err error) {
	if t.seg.gather == nil {
		for more := true; more && err == nil; {
			_, _, more, err = t.zeroOne(t.h.f, want, zeroPiece)
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
	from := t.reserved.Load() // where the zeros that are not flushed begin
	to := from
	for more := true; more; {
		var at, n int64
		if at, n, more, err = t.zeroOne(f, want, syncPiece); err != nil {
			return err
		}
		if n > 0 && at != to { // an append has reserved blocks meanwhile
			from = at
		}
		if n > 0 {
			to = at + n
		}
		if to-from >= zeroStep || !more && to > from {
			giveWay()
			if err := f.Flush(); err != nil {
				return &writeBackError{err}
			}
			t.seg.gather.zeroed(from, to)
			from = to
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
// writes it back. It returns the piece, [from, from+n), and whether there is more to do up to want.
func (t *tail) zeroOne(f vfs.File, want, size int64) (from, n int64, more bool, err error) {
	giveWay()
	from, n, err = t.zeroLocked(f, want, size)
	if n > 0 && t.seg.gather != nil {
		giveWay()
		if err := f.WriteBack(from, n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return from, n, false, &writeBackError{err}
		}
	}
	return from, n, err == nil && n > 0 && from+n < want, err
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

// giveWay lets the goroutines run that are ready to, before a system call that takes long. The runtime notices only after up to 20 ms that
// a processor is in one, and until then nobody runs what is queued there if the others are busy as well.
func giveWay() { runtime.Gosched() }
