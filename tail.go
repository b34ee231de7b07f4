package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

const (
	nextName  = "seglog.next" // the segment made ready for the next roll
	cutName   = "seglog.cut"  // what TruncateTo keeps of a segment, on its way to its place
	tmpPrefix = "seglog."     // of these, and of an index on its way to its place

	repairPrefix = "seglog.repair-" // what Repair took out of the log; kept

	// Blocks are reserved, and pages made ready, in steps: a small log takes little disk, a busy one seldom waits.
	minReserve = 1 << 20
	maxReserve = 32 << 20
	// Zeros are written ahead by smaller steps: they share the disk with the flushes that callers wait for.
	zeroStep = 4 << 20
)

// tail is the writer's side of the active segment. Log.mu guards it, but for what prepare may do beside appends.
type tail struct {
	e         *env
	seg       *segment
	h         *handle
	x         *indexBuilder
	firstTime int64 // timestamp of the first batch, for Options.SegmentAge; noTimestamp before it

	// Mapped: stores below reserved can't fail for want of blocks. grow is held to raise it; prepare does so beside
	// appends.
	grow      sync.Mutex
	reserved  atomic.Int64
	populated int64 // pages below were made ready; prepare's own

	// Written by pwrite where mapping is not safe: the batch being encoded, and whether bytes of a failed write may lie
	// behind the end.
	buf  []byte
	torn bool
}

// newTail makes an empty segment file at path, with blocks reserved and mapped where that is safe.
func newTail(e *env, path string, base int64) (*tail, error) {
	f, err := e.fs.open(path, openCreate)
	if err != nil {
		return nil, err
	}
	t, err := openTail(e, f, path, base, newIndexBuilder(e.o.IndexBytes), 0)
	if err != nil {
		return nil, errors.Join(err, f.Close(), e.fs.remove(path))
	}
	return t, nil
}

// openTail makes the writer's side for a file of which size bytes are good.
func openTail(e *env, f file, path string, base int64, x *indexBuilder, size int64) (*tail, error) {
	t := &tail{e: e, seg: &segment{base: base}, x: x, firstTime: noTimestamp}
	t.seg.maxTime.Store(x.maxTime)
	m, err := t.reserveAndMap(f, size)
	if err != nil {
		return nil, err
	}
	t.h = newHandle(f, path, m)
	t.h.x.Store(&x.indexes)
	t.seg.h.Store(t.h)
	return t, nil
}

// reserveAndMap returns nil where the file system or platform makes mapping unsafe.
func (t *tail) reserveAndMap(f file, size int64) (*mapping, error) {
	first := min(t.e.o.SegmentBytes, size+minReserve)
	err := f.reserve(size, max(0, first-size))
	if first == size {
		err = nil // full already: it rolls at the next append
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := f.mmap(max(t.e.o.SegmentBytes, size), true)
	if err != nil {
		// Not here, or out of mappings: pwrite does as well. The blocks stay reserved until the segment is sealed.
		return nil, nil
	}
	t.reserved.Store(max(first, size))
	t.populated = size
	return m, nil
}

// begin returns the n bytes that the next batch is encoded into: of the mapping, or a buffer. The segment has room.
func (t *tail) begin(n int64) ([]byte, error) {
	pos := t.seg.stored.load().pos()
	if t.h.m != nil {
		if pos+n > t.reserved.Load() {
			if err := t.reserve(pos + n); err != nil {
				return nil, err
			}
		}
		return t.h.m.b[pos : pos+n : pos+n], nil
	}
	if t.torn {
		if err := t.h.f.truncate(pos); err != nil {
			return nil, err
		}
		t.torn = false
	}
	if int64(cap(t.buf)) < n {
		t.buf = make([]byte, n)
	}
	return t.buf[:n:n], nil
}

// reserve makes room up to end at least; more, if the disk has it.
func (t *tail) reserve(end int64) error {
	t.grow.Lock()
	defer t.grow.Unlock()
	from := t.reserved.Load()
	if from >= end {
		return nil
	}
	want := min(max(end, from+min(max(from, minReserve), maxReserve)), t.e.o.SegmentBytes)
	err := t.h.f.reserve(from, want-from)
	if isDiskFull(err) && end < want {
		want = end
		err = t.h.f.reserve(from, want-from)
	}
	if err == nil {
		t.reserved.Store(want)
	}
	return err
}

// encode puts records into dst, which begin returned.
func (t *tail) encode(dst []byte, base int64, records []Record, now int64) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	encode(dst, base, records, now)
	return nil
}

// place puts an encoded batch into dst, which begin returned.
func (t *tail) place(dst []byte, b batch, base int64) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	copy(dst, b)
	batch(dst).setBase(base)
	return nil
}

// commit publishes the batch in dst, which follows the end of the segment.
func (t *tail) commit(dst []byte) (err error) {
	old := t.seg.stored.load()
	if t.h.m == nil {
		if _, err := t.h.f.WriteAt(dst, old.pos()); err != nil {
			t.torn = true
			return err
		}
	} else if t.h.m.stored != nil {
		if err := t.h.m.stored(old.pos(), int64(len(dst))); err != nil {
			return &fs.PathError{Op: "access mapping", Path: t.h.path, Err: err}
		}
	}
	return t.publish(old, dst)
}

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

// prepare gets ahead of the appends, in the background: it reserves blocks and makes them cheap to write to. Under
// FlushSync it writes zeros first, so that a flush has data to write and nothing to journal; else it populates the
// mapping, which would make a flush write the empty pages too.
func (t *tail) prepare() error {
	if t.h.m == nil {
		return nil
	}
	pos := t.seg.stored.load().pos()
	want := min(pos+min(max(pos, minReserve), maxReserve), t.e.o.SegmentBytes)
	if t.e.o.Flush == FlushSync {
		return t.zeroAhead(want)
	}
	if err := t.reserve(want); err != nil {
		return err
	}
	if from := max(t.populated, pos); from < want {
		t.h.m.populate(from, want-from)
		t.populated = want
	}
	return nil
}

func (t *tail) zeroAhead(want int64) error {
	for {
		t.grow.Lock()
		from := t.reserved.Load()
		n := min(want-from, zeroStep)
		if n <= 0 {
			t.grow.Unlock()
			return nil
		}
		err := t.h.f.reserve(from, n)
		if err == nil {
			if err = t.h.f.zero(from, n); err == nil {
				t.reserved.Store(from + n)
			}
		}
		t.grow.Unlock()
		if err != nil {
			return err
		}
	}
}

// seal makes the file what Kafka would have left: trimmed, with its indexes beside it. Everything in it is flushed.
func (t *tail) seal() error {
	if err := t.trim(); err != nil {
		return err
	}
	if err := writeIndexes(t.e, t.seg.base, t.x); err != nil {
		return err
	}
	return t.e.fs.syncDir(t.e.dir)
}

// trim gives back the blocks behind the end.
func (t *tail) trim() error {
	pos := t.seg.stored.load().pos()
	if err := t.h.f.truncate(pos); err != nil {
		return err
	}
	return t.h.f.flush()
}

// replaceFile writes a file under a temporary name and renames it into place. The caller syncs the directory.
func replaceFile(e *env, path string, content []byte) error {
	tmp := filepath.Join(e.dir, tmpPrefix+filepath.Base(path))
	f, err := e.fs.open(tmp, openCreate)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		if _, err := f.WriteAt(content, 0); err != nil {
			return errors.Join(err, f.Close(), e.fs.remove(tmp))
		}
	}
	if err := f.flush(); err != nil {
		return errors.Join(err, f.Close(), e.fs.remove(tmp))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("seglog: write %s: %w", path, err)
	}
	return e.fs.rename(tmp, path)
}
