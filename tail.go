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
		if s.gather.device != nil {
			s.gather.quiet = t.e.lock.Quiet(f)
		}
	}
	s.takeTime(x)
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
// of the file back, the next Open does not find what the clean mark says, and looks behind the end. The directory is not flushed for
// the index files: it does not matter which of their names lead to what they did before, since missing entries at the end of either are
// noticed before they could do harm (segment.checkIndexes, Log.maxTime, segment.resumeIndexes). Nor are the index files of a segment
// without an entry in the offset index flushed: they are checked against all of its batches when they are read. A tiny segment gets none.
func (t *tail) leave() error {
	t.seg.enter(phaseRolled)
	t.grow.Lock()
	defer t.grow.Unlock()
	size := t.seg.stored.load().pos()
	if err := t.h.f.Truncate(size); err != nil {
		return t.h.named(err)
	}
	switch {
	case t.x.saved:
		return nil
	case size <= tinySegment:
		return t.e.removeIndexes(t.seg.base) // those of an earlier Close
	}
	return writeIndexes(t.e, t.seg.base, t.x, len(t.x.offsets.bytes()) > 0)
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
func newTail(e *env, name string) (*tail, error) {
	t := &tail{e: e}
	if err := t.create(name, newIndexBuilder(e.o.IndexBytes)); err != nil {
		return nil, err
	}
	return t, nil
}

// create makes the file of a new segment.
func (t *tail) create(name string, x *indexBuilder) error {
	path := filepath.Join(t.e.dir, name)
	f, err := t.e.create(path)
	if err != nil {
		return err
	}
	if err = t.open(f, path, 0, x, 0); err != nil {
		return errors.Join(err, f.Close(), t.e.fs.Remove(path))
	}
	return nil
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
