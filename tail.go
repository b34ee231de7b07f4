package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
)

const (
	// Blocks are reserved, and pages made ready, in steps: a small log takes little disk, a busy one seldom waits.
	minReserve = 1 << 20
	maxReserve = 32 << 20
	// A flush into reserved blocks must journal their conversion, so a new durable log reserves only this much without
	// zero-filling it.
	firstReserve = 64 << 10
	// Zeros are flushed by steps of this size: they share the disk with the flushes that callers wait for.
	zeroStep = 4 << 20
	// A flush that callers wait for writes every dirty page of the file, zeros included, so few of them are dirty at a
	// time; and an append that outruns the zeros waits for one piece of them.
	syncPiece = 256 << 10
	zeroPiece = 1 << 20
)

// tail is the writer's side of the active segment. Log.mu guards it, but for what prepare may do beside appends.
type tail struct {
	e         *env
	seg       *segment
	h         *handle
	x         *indexBuilder
	firstTime int64 // timestamp of the first batch, for Options.SegmentAge; noTimestamp before it

	// grow is held to change the size of the file, which segment.phase must allow.
	grow mutex
	// With a mapping, blocks below reserved are allocated, so that a store can't fail for want of them.
	reserved  atomic.Int64
	populated int64 // pages below were mapped; the preparer's own
	ahead     int64 // how far the segment before was prepared ahead of its appends

	// Written by pwrite, where mapping is not safe and for large batches: the batch being encoded, and whether bytes of a
	// failed write may lie behind the end.
	buf   []byte
	write bool // the batch is in buf
	torn  bool
	bulk  atomic.Bool // the last batch, or the last flush of many, was large: pages need not be made ready
}

// largeBatch: from here on a write costs less than stores into fresh pages, at 1 MiB a fifth (docs/performance.md). The
// two are coherent, there is one page cache. Batches that come encoded are part of a stream, as a rule, and what counts
// there is the CPU, which zeros ahead cost too: they are written from largePlaced on.
const (
	largeBatch  = 64 << 10
	largePlaced = 8 << 10
)

// newTail makes an empty segment under a temporary name: it gets its name when it becomes the active one (tail.activate), so that
// no crash and no failure leaves a segment under a name that the log gave up.
//
// With before, the segment that it is to follow, the caller is in the background, and the new one is made as ready as that
// one is.
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
		return nil, errors.Join(err, f.Close(), e.fs.remove(path))
	}
	if before != nil {
		if err = t.prepare(); err != nil {
			return nil, errors.Join(err, t.discard())
		}
	}
	return t, nil
}

// activate gives a prepared segment its name and makes it the one that begins at base. If it fails nothing has changed.
func (t *tail) activate(base int64) error {
	path := t.e.path(base, logSuffix)
	if err := t.e.fs.rename(t.h.path, path); err != nil {
		return err
	}
	t.seg.base, t.h.path = base, path
	t.seg.enter(phaseActive)
	return nil
}

// discard removes a segment that was prepared in vain.
func (t *tail) discard() error {
	if err := t.e.ours(); err != nil {
		return errors.Join(err, t.seg.retire())
	}
	return errors.Join(t.e.fs.remove(t.h.path), t.seg.retire())
}

// openTail makes the writer's side for a file of which size bytes are good.
func openTail(e *env, f file, path string, base int64, x *indexBuilder, size int64) (*tail, error) {
	t := &tail{e: e}
	if err := t.open(f, path, base, x, size); err != nil {
		return nil, err
	}
	t.seg.enter(phaseActive)
	return t, nil
}

func (t *tail) open(f file, path string, base int64, x *indexBuilder, size int64) error {
	t.seg, t.x, t.firstTime = &segment{base: base}, x, noTimestamp
	t.seg.maxTime.Store(x.maxTime)
	m, err := t.reserveAndMap(f, size)
	if err != nil {
		return err
	}
	if m != nil && t.e.o.Flush == FlushSync {
		t.seg.gather = &gather{at: size}
	}
	t.h = newHandle(f, path, m)
	t.h.x.Store(&x.indexes)
	t.seg.hold(t.e, t.h)
	return nil
}

// reserveAndMap returns nil where the file system or platform makes mapping unsafe.
func (t *tail) reserveAndMap(f file, size int64) (*mapping, error) {
	step := int64(minReserve)
	switch { // the rest is zeroed by prepare
	case t.ahead > 0:
		step = minSegmentBytes
	case t.e.o.Flush == FlushSync:
		step = firstReserve
	}
	first := max(size, min(t.e.o.SegmentBytes, size+step))
	// Of a file that is full already, which rolls at the next append, the last byte: to see whether it can be done.
	err := f.reserve(max(0, min(size, first-1)), max(1, first-size))
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
	m, err := f.mmap(max(t.e.o.SegmentBytes, size), t.e.o.Flush != FlushSync)
	if err != nil {
		// Not here, or out of mappings: pwrite does as well. The blocks stay reserved until the segment is sealed.
		return nil, nil
	}
	t.reserved.Store(first)
	t.populated = size
	return m, nil
}

// begin returns the n bytes that the next batch goes to: of the mapping or, from large on, a buffer. The segment has room.
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
			return t.h.m.b[pos : pos+n : pos+n], nil
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
	if err := t.h.f.truncate(pos); err != nil {
		return err
	}
	t.torn = false
	return nil
}

// reserve makes room up to end at least; more, if the disk has it. The preparer, who needs none of it, does nothing once
// the segment was rolled.
func (t *tail) reserve(end int64) error {
	t.grow.Lock()
	defer t.grow.Unlock()
	from := t.reserved.Load()
	if from >= end || t.seg.phase.Load() > int32(phaseActive) {
		return nil
	}
	want := min(max(end, from+min(max(from, minReserve), maxReserve)), t.e.o.SegmentBytes)
	err := t.h.f.reserve(from, want-from)
	if isShortage(err) && end < want {
		want = end
		err = t.h.f.reserve(from, want-from)
	}
	if err == nil {
		t.reserved.Store(want)
	}
	return err
}

// encode puts records into dst, which begin returned.
func (t *tail) encode(dst []byte, base int64, epoch int32, records []Record, now int64) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	encode(dst, base, epoch, records, now)
	return nil
}

// place puts an encoded batch, its header from head, into dst, which begin returned.
func (t *tail) place(dst []byte, head, b batch, base int64, epoch int32) (err error) {
	defer t.h.catch(debug.SetPanicOnFault(true), &err)
	copy(dst, head)
	copy(dst[len(head):], b[len(head):])
	batch(dst).setBase(base)
	batch(dst).setEpoch(epoch)
	return nil
}

// commit publishes the batch in dst, which follows the end of the segment.
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
	case t.h.m.stored != nil:
		if err := t.h.m.stored(old.pos(), int64(len(dst))); err != nil {
			return &fs.PathError{Op: "access mapping", Path: t.h.path, Err: err}
		}
	}
	return t.publish(old, dst)
}

// abandon gives back what begin returned.
func (t *tail) abandon() {
	if t.seg.gather != nil {
		t.seg.gather.end(0)
	}
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

// writeBackError is a failed flush or write-back of a file that holds records: what was stored is in doubt.
type writeBackError struct{ err error }

func (e *writeBackError) Error() string { return e.err.Error() }
func (e *writeBackError) Unwrap() error { return e.err }

// seal makes the file what Kafka would have left: trimmed, with its indexes beside it. Everything in it is flushed.
func (t *tail) seal() error {
	t.seg.enter(phaseRolled)
	if err := t.trim(); err != nil {
		return err
	}
	if err := writeIndexes(t.e, t.seg.base, t.x); err != nil {
		return err
	}
	return t.e.syncDir()
}

// trim gives back the blocks behind the end.
func (t *tail) trim() error {
	t.grow.Lock()
	defer t.grow.Unlock()
	if err := t.h.f.truncate(t.seg.stored.load().pos()); err != nil {
		return t.h.named(err)
	}
	if err := t.h.f.flush(); err != nil {
		return &writeBackError{t.h.named(err)}
	}
	return nil
}

// replaceFile writes a file under a temporary name and renames it into place. The caller syncs the directory.
func replaceFile(e *env, path string, content []byte) error {
	tmp := filepath.Join(e.dir, tmpPrefix+filepath.Base(path))
	f, err := e.create(tmp)
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
		return errors.Join(fmt.Errorf("seglog: write %s: %w", path, err), e.fs.remove(tmp))
	}
	if err := e.fs.rename(tmp, path); err != nil {
		return errors.Join(err, e.fs.remove(tmp))
	}
	return nil
}
