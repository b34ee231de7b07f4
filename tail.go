package seglog

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

const (
	// Blocks are reserved, and pages made ready, in growing steps: a small log takes little disk, a busy one seldom waits.
	// The first step is small also because a flush into reserved blocks must journal their conversion, and nothing has
	// filled these with zeros yet.
	minReserve = 32 << 10
	maxReserve = 32 << 20
	// Zeros are flushed after every zeroStep bytes: they share the disk with the flushes that callers wait for.
	zeroStep = 4 << 20
	// Zeros are written in pieces, and an append that outruns them waits for one piece. Under FlushSync it is small, since
	// a flush that callers wait for writes every dirty page of the file, zeros included.
	syncPiece = 256 << 10 // under FlushSync
	zeroPiece = 1 << 20   // otherwise
)

// tail is the writer's side of the active segment. Log.mu guards it, except for what prepare does beside appends.
type tail struct {
	e   *env
	seg *segment
	// h is nil while the log is at rest. Changes of it and of seg.gather also take the ownership of Log.flushes, and
	// Log.preparing.
	h         *handle
	x         *indexBuilder // nil in a log that was not written to since it was opened
	firstTime int64         // timestamp of the first batch, for Options.SegmentAge; noTimestamp before it

	// grow is held to change the size of the file, which segment.phase must allow.
	grow sched.Mutex
	// With a mapping, blocks below reserved are allocated, so that a store can't fail for want of them.
	reserved  atomic.Int64
	populated int64 // pages below this position are mapped; used by the preparer alone
	ahead     int64 // how far the previous segment was prepared ahead of its appends
	woke      int64 // where the segment ended when the log came to rest last; 0 if it never did

	// For batches that are written by pwrite (see begin):
	buf   []byte      // the batch being encoded
	write bool        // the batch is in buf
	torn  bool        // bytes of a failed write may lie behind the end
	bulk  atomic.Bool // the last batch, or under FlushSync the last flush, was large: pages need not be made ready
}

// From largeBatch on, a write costs less than stores into fresh pages; at 1 MiB it costs a fifth (docs/performance.md). The
// two are coherent, since both go through the page cache. Batches that arrive encoded are usually part of a stream, where
// CPU time counts most, and zeros ahead cost CPU time too; they are written from largePlaced on.
const (
	largeBatch  = 64 << 10
	largePlaced = 8 << 10
)

// openTail returns the writer's side of an active segment of which the first size bytes of the file are good.
func openTail(e *env, f vfs.File, path string, base int64, x *indexBuilder, size int64) (*tail, error) {
	t := &tail{e: e}
	if err := t.open(f, path, base, x, size); err != nil {
		return nil, err
	}
	t.seg.enter(phaseActive)
	return t, nil
}

func (t *tail) open(f vfs.File, path string, base int64, x *indexBuilder, size int64) error {
	t.seg, t.firstTime = &segment{base: base}, noTimestamp
	m, err := t.reserveAndMap(f, size)
	if err != nil {
		return err
	}
	t.use(f, path, x, m, size)
	return nil
}

// use makes f the file of the segment, of which the first size bytes are good, x its indexes and m its mapping.
func (t *tail) use(f vfs.File, path string, x *indexBuilder, m *vfs.Mapping, size int64) {
	s := t.seg
	switch gathers := m != nil && t.e.o.Flush == FlushSync; {
	case !gathers:
		s.gather = nil
	case s.gather == nil:
		s.gather = &gather{at: size, fill: t.reserved.Load(), device: f.Device()}
	}
	s.maxTime.Store(x.maxTime)
	t.x, t.h = x, newHandle(f, path, m)
	t.h.x.Store(&x.indexes)
	s.hold(t.e, t.h)
}

// reserveAndMap reserves the first blocks behind size and maps the file. It returns nil where mapping is not safe or not
// possible.
func (t *tail) reserveAndMap(f vfs.File, size int64) (*vfs.Mapping, error) {
	step := int64(minReserve)
	if t.ahead > 0 { // prepare zeroes the rest
		step = minSegmentBytes
	}
	first := max(size, min(t.e.o.SegmentBytes, size+step))
	var err error
	if have := t.reserved.Load(); have > size {
		first = have // of a log that was at rest
	} else {
		// A file that is full already rolls at the next append. Its last byte is reserved all the same, to see whether the file
		// system can do it.
		err = f.Reserve(max(0, min(size, first-1)), max(1, first-size))
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if isShortage(err) {
		// A log on a full disk must open, so that something can be deleted from it. The first append asks again.
		first, err = size, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := f.Mmap(max(t.e.o.SegmentBytes, size), t.e.o.Flush != FlushSync)
	if err != nil {
		// The platform has none, or there are too many mappings: pwrite will do. The blocks stay reserved until the seal.
		return nil, nil
	}
	t.reserved.Store(first)
	t.populated = size
	return m, nil
}

// begin returns the n bytes that the next batch is encoded into; the segment has room for it. How the batch gets into the
// file depends on the policy, on whether the file is mapped, and on n:
//
//	                        mapped, n < large          mapped, n >= large         not mapped
//	FlushSync               gathered for the flush     gathered for the flush     buf, written by commit
//	FlushAsync, FlushNone   stored in the mapping      buf, written by commit     buf, written by commit
func (t *tail) begin(n, large int64) ([]byte, error) {
	pos := t.seg.stored.load().pos()
	if t.torn {
		if err := t.cutTorn(pos); err != nil {
			return nil, err
		}
	}
	if t.h.m != nil {
		if pos+n > t.reserved.Load() {
			if err := t.reserve(pos + n); err != nil {
				return nil, err
			}
		}
		if g := t.seg.gather; g != nil {
			if bulk := g.large.Load(); bulk != t.bulk.Load() {
				t.bulk.Store(bulk)
			}
			return g.begin(n), nil
		}
		t.write = n >= large
		if t.write != t.bulk.Load() {
			t.bulk.Store(t.write)
		}
		if !t.write {
			return t.h.m.Bytes[pos : pos+n : pos+n], nil
		}
	}
	if int64(cap(t.buf)) < n {
		t.buf = make([]byte, n)
	}
	return t.buf[:n:n], nil
}

// cutTorn removes what a failed write may have left behind the end, before anything else is stored there.
func (t *tail) cutTorn(pos int64) error {
	t.grow.Lock()
	defer t.grow.Unlock()
	if t.h.m != nil {
		t.reserved.Store(pos)
	}
	if err := t.h.f.Truncate(pos); err != nil {
		return err
	}
	t.torn = false
	return nil
}

// reserve allocates blocks up to end at least, and more if the disk has them. It does nothing once the segment was rolled:
// only the preparer calls it then, and needs nothing.
func (t *tail) reserve(end int64) error {
	t.grow.Lock()
	defer t.grow.Unlock()
	from := t.reserved.Load()
	if from >= end || t.seg.phase.Load() > int32(phaseActive) {
		return nil
	}
	want := min(max(end, from+min(max(from, minReserve), maxReserve)), t.e.o.SegmentBytes)
	err := t.h.f.Reserve(from, want-from)
	if isShortage(err) && end < want {
		want = end
		err = t.h.f.Reserve(from, want-from)
	}
	if err == nil {
		t.reserved.Store(want)
	}
	return err
}

// encode encodes records into dst, which begin returned.
func (t *tail) encode(dst []byte, base int64, epoch int32, records []Record, now int64) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	encode(dst, base, epoch, records, now)
	return nil
}

// place copies an encoded batch, with the header in head, into dst, which begin returned.
func (t *tail) place(dst []byte, head, b batch, base int64, epoch int32) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	copy(dst, head)
	copy(dst[len(head):], b[len(head):])
	batch(dst).setBase(base)
	batch(dst).setEpoch(epoch)
	return nil
}

// commit makes the batch in dst, which begin returned, the next batch of the segment.
func (t *tail) commit(dst []byte) (err error) {
	old := t.seg.stored.load()
	switch {
	case t.seg.gather != nil:
		err = t.publish(old, dst)
		t.seg.gather.end(len(dst))
		return err
	case t.h.m == nil || t.write:
		if _, err := t.h.f.WriteAt(dst, old.pos()); err != nil {
			t.torn = true
			return err
		}
	case t.h.m.Stored != nil:
		if err := t.h.m.Stored(old.pos(), int64(len(dst))); err != nil {
			return &fs.PathError{Op: "access mapping", Path: t.h.path, Err: err}
		}
	}
	return t.publish(old, dst)
}

// abandon gives back the room that begin returned, instead of commit.
func (t *tail) abandon() {
	if t.seg.gather != nil {
		t.seg.gather.end(0)
	}
}

// publish adds the index entry of a batch before it moves the mark, so that no reader sees a batch without its entry.
func (t *tail) publish(old mark, b batch) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	rel := b.last() - t.seg.base
	maxTime := b.maxTimestamp()
	t.x.add(old.pos(), uint32(rel), maxTime)
	if maxTime > t.seg.maxTime.Load() {
		t.seg.maxTime.Store(maxTime)
	}
	if t.firstTime == noTimestamp {
		t.firstTime = maxTime
	}
	t.seg.stored.store(markAt(rel+1, old.pos()+int64(len(b))))
	return nil
}

// firstTime returns the value of tail.firstTime for a segment that consists of the first size bytes of f, followed by rest.
func firstTime(f vfs.File, size int64, rest batch) (int64, error) {
	switch {
	case size > 0:
		var b [headerLen]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			return 0, err
		}
		return batch(b[:]).maxTimestamp(), nil
	case rest != nil:
		return rest.maxTimestamp(), nil
	}
	return noTimestamp, nil
}

// seal leaves the file as Kafka does: trimmed, with its indexes beside it. Its batches are flushed already. The names in the
// directory are made durable in any case, since the state file is about to count the segment that follows.
func (t *tail) seal() error {
	t.seg.enter(phaseRolled)
	if err := t.trim(); err != nil {
		return err
	}
	if !t.x.saved {
		if err := writeIndexes(t.e, t.seg.base, t.x, true); err != nil {
			return err
		}
	}
	return t.e.syncDir()
}

// leave is seal for the last segment of a log that is closed, some of whose flushes can be spared. If a power cut brings the old size
// of the file back, the next Open does not find what the clean mark says, and looks behind the end. The indexes of a segment without
// an entry in the offset index are checked against all of its batches when they are read, so that it does not matter which of their
// files a power cut takes. Of any other segment, an old time index beside a new offset index would not be noticed; synced says that
// the directory was flushed for these.
func (t *tail) leave() (synced bool, err error) {
	t.seg.enter(phaseRolled)
	t.grow.Lock()
	defer t.grow.Unlock()
	if err := t.h.f.Truncate(t.seg.stored.load().pos()); err != nil {
		return false, t.h.named(err)
	}
	if t.x.saved {
		return false, nil
	}
	indexed := len(t.x.offsets.bytes()) > 0
	if err := writeIndexes(t.e, t.seg.base, t.x, indexed); err != nil || !indexed {
		return false, err
	}
	return true, t.e.syncDir()
}

// trim gives back the blocks behind the end.
func (t *tail) trim() error {
	t.grow.Lock()
	defer t.grow.Unlock()
	if err := t.h.f.Truncate(t.seg.stored.load().pos()); err != nil {
		return t.h.named(err)
	}
	if err := t.h.f.Flush(); err != nil {
		return &writeBackError{t.h.named(err)}
	}
	return nil
}

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
	from, n, err = t.zeroLocked(f, want, size)
	if n > 0 && t.seg.gather != nil {
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
