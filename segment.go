package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// mark is a point between two batches of a segment: offset relative to the segment's base, and position. Both fit 32
// bits, so one atomic store publishes the two together.
type mark uint64

// markAt takes more offsets than a segment can hold, of which the rest are a gap before the next one, for as many as it can.
func markAt(rel, pos int64) mark { return mark(uint64(min(rel, 1<<31))<<32 | uint64(pos)) }
func (m mark) rel() int64        { return int64(m >> 32) }
func (m mark) pos() int64        { return int64(m & 0xffffffff) }

type atomicMark struct{ v atomic.Uint64 }

func (a *atomicMark) load() mark   { return mark(a.v.Load()) }
func (a *atomicMark) store(m mark) { a.v.Store(uint64(m)) }

// sizeUnknown is the position in the marks of a sealed segment that was not opened yet. No file reaches it.
const sizeUnknown = 1<<32 - 1

// A mark with an unknown size is not one of a file.
const _ = uint(sizeUnknown - maxSegmentBytes - 1)

// unknownTime is in segment.maxTime until somebody asked.
const unknownTime = -2

// phase is where a segment is in its life. It only moves forward:
//
//	prepared ──> active ──> rolled ──> sealed ──> gone
//
// prepared: seglog.next, made ready by the preparer, who alone touches it.
// active:   the writer appends; the writer and the preparer extend the file, both under tail.grow.
// rolled:   nobody extends the file any more; the keeper flushes it, trims it and writes its indexes.
// sealed:   the files do not change any more.
// gone:     deleted or cut, from any phase: not to be opened again; its name may belong to another file by now.
type phase int32

const (
	phasePrepared phase = iota
	phaseActive
	phaseRolled
	phaseSealed
	phaseGone
)

// env is what the segments of one log share.
type env struct {
	fs     fileSystem
	dir    string
	dirH   directoryHandle // nil: the directory is opened for each flush of it
	o      Options
	stats  *counters
	opened openSegments
	reads  *readCache
	// gaps: offsets may be left out, as compaction does. Without it, which is how a log starts, a gap is corruption.
	gaps atomic.Bool
	// cachedEnd: what lies further from the end is dropped from the page cache behind a reader.
	cachedEnd int64
}

// syncDir makes the names in the log's directory durable.
func (e *env) syncDir() error {
	if e.dirH == nil {
		return e.withDescriptor(func() error { return e.fs.syncDir(e.dir) })
	}
	return e.dirH.sync()
}

// errNotOurs: the name of the log's directory leads to another one, whose files must be neither read nor written, or to none.
var errNotOurs = errors.New("seglog: the directory is not this log's any more")

// ours is asked before files are opened, made or removed by their names.
func (e *env) ours() error {
	if e.dirH == nil {
		return nil
	}
	err := e.dirH.held()
	switch {
	case errors.Is(err, errReplaced):
		return fmt.Errorf("%w: %w", errNotOurs, err)
	case err != nil:
		return fmt.Errorf("seglog: look at the directory: %w", err)
	}
	return nil
}

func (e *env) path(base int64, suffix string) string {
	return e.dir + string(filepath.Separator) + fileName(base, suffix)
}

// segment is one .log file with its two indexes. Its fields are safe for any number of goroutines; only the writer of
// the log moves the marks.
type segment struct {
	base int64
	// stored is the end of what was appended, flushed of what of it is on stable storage. Of a sealed segment they are
	// equal, with sizeUnknown until it is opened.
	stored, flushed atomicMark
	h               atomic.Pointer[handle] // nil: not open
	maxTime         atomic.Int64           // greatest timestamp; unknownTime
	gather          *gather                // of an active segment under FlushSync: what is stored and not flushed
	startPos        atomic.Int64           // Log.startPos; 0: not known
	checked         atomic.Uint64          // sizes of the index files, once they were found to fit
	phase           atomic.Int32           // see phase
	touched         atomic.Bool            // since the last sweep of openSegments
	reported        atomic.Bool            // that its times can't be had
	lent            atomic.Bool            // sockets may still hold pages of it, which must not change any more
	held            holders                // to count the bytes of deleted segments that are still on the disk
	mu              mutex                  // held to open it and to (re)build its indexes
}

// enter moves the segment on to p, unless it is further already.
func (s *segment) enter(p phase) {
	for {
		old := s.phase.Load()
		if old >= int32(p) || s.phase.CompareAndSwap(old, int32(p)) {
			return
		}
	}
}

func (s *segment) is(p phase) bool { return phase(s.phase.Load()) == p }

// written reports whether the writer still has a hand in it: its indexes are in memory, and not to be rebuilt.
func (s *segment) written() bool { return phase(s.phase.Load()) < phaseSealed }

// newSealed is a sealed segment that is not opened yet.
func newSealed(base, next int64) *segment {
	s := new(segment)
	s.initSealed(base, next)
	return s
}

func (s *segment) initSealed(base, next int64) {
	s.base = base
	s.enter(phaseSealed)
	s.maxTime.Store(unknownTime)
	m := markAt(next-base, sizeUnknown)
	s.stored.store(m)
	s.flushed.store(m)
}

// errGone: the segment was deleted or replaced after the caller looked it up. The caller looks again.
var errGone = errors.New("seglog: segment is gone")

// handle is an open segment: descriptor, mapping, indexes. It lives until the last reference is given back; the first
// is the segment's own. A count that reached zero never rises again, so nobody can touch what was unmapped.
type handle struct {
	refs atomic.Int64
	id   uint64 // of no other handle of the process
	f    file
	path string
	m    *mapping // nil: read through f
	warm warmth   // of m
	x    atomic.Pointer[indexes]
	// trusted: a read-only log has found, after the file was opened, that it is the one of the view.
	trusted atomic.Bool
	// Who count it, if any:
	seg    *segment
	budget *openBudget
}

// holders counts the handles of a segment that are not released yet, and tells the log's statistics while a deleted one
// has any: its file takes space until then.
type holders struct {
	n      atomic.Int64 // handles, and deletedSegment once it is deleted
	pinned *atomic.Int64
	bytes  int64
}

const deletedSegment = 1 << 32

// hold makes h the open handle of s.
func (s *segment) hold(e *env, h *handle) {
	h.seg, h.budget = s, e.opened.budget
	s.held.n.Add(1)
	s.h.Store(h)
	h.budget.opened()
}

// deleted is called once, after the segment gave its own reference back.
func (s *segment) deleted(stats *counters) {
	if s.held.n.Load() >= deletedSegment {
		return
	}
	s.held.pinned, s.held.bytes = &stats.pinned, s.stored.load().pos()
	if s.held.n.Add(deletedSegment) != deletedSegment {
		s.held.pinned.Add(s.held.bytes)
	}
}

func (s *segment) release() {
	if s.held.n.Add(-1) == deletedSegment {
		s.held.pinned.Add(-s.held.bytes)
	}
}

// lastHandle is the id that was given out last.
var lastHandle atomic.Uint64

func newHandle(f file, path string, m *mapping) *handle {
	h := &handle{id: lastHandle.Add(1), f: f, path: path, m: m}
	if m != nil {
		h.warm = newWarmth(int64(len(m.b)))
	}
	h.refs.Store(1)
	return h
}

// ref takes a reference, unless the last one is gone.
func (h *handle) ref() bool {
	for {
		n := h.refs.Load()
		if n == 0 {
			return false
		}
		if h.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// named corrects the path in an error of a file that was made under a temporary name.
func (h *handle) named(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		e.Path = h.path
	}
	return err
}

// seize takes the only reference there is, so that nobody can touch the file through the handle any more; it returns false
// if there are others. The caller then ends by release or unseize.
func (h *handle) seize() bool { return h.refs.CompareAndSwap(1, 0) }

func (h *handle) unseize() { h.refs.Store(1) }

func (h *handle) unref() error {
	if h.refs.Add(-1) > 0 {
		return nil
	}
	return h.release()
}

// release gives back what the handle holds. Nobody has a reference any more.
func (h *handle) release() error {
	if h.seg != nil {
		h.seg.release()
	}
	var err error
	if h.m != nil {
		err = h.m.unmap()
	}
	err = errors.Join(err, h.x.Load().close(), h.f.Close())
	h.budget.closed()
	return err
}

// catch ends a function that touches a mapping: `defer h.catch(debug.SetPanicOnFault(true), &err)`. A fault in the mapping
// of the log, which without it kills the process by SIGBUS, becomes an error, one in an index errIndex; any other panic
// goes on.
func (h *handle) catch(old bool, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r == nil {
		return
	}
	fault, ok := r.(interface {
		error
		Addr() uintptr
	})
	if !ok {
		panic(r)
	}
	if pos, ok := h.m.position(fault.Addr()); ok {
		*err = &fs.PathError{Op: "access mapping", Path: h.path, Err: fmt.Errorf("position %d: %w", pos, fault)}
		return
	}
	if x := h.x.Load(); x != nil {
		for _, m := range x.mapped {
			if _, ok := m.position(fault.Addr()); ok {
				*err = errIndex
				return
			}
		}
	}
	panic(r)
}

// position is where in m an address lies.
func (m *mapping) position(addr uintptr) (pos int64, ok bool) {
	if m == nil {
		return 0, false
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(m.b)))
	return int64(addr - start), addr >= start && addr < start+uintptr(len(m.b))
}

// pin returns the handle with a reference that the caller gives back by unref, opening the segment if need be.
func (s *segment) pin(e *env) (*handle, error) {
	if h := s.h.Load(); h != nil && h.ref() {
		if !s.touched.Load() {
			s.touched.Store(true)
		}
		return h, nil
	}
	return s.openSealed(e)
}

// acquire opens a file.
func (e *env) acquire(path string, mode openMode) (f file, err error) {
	err = e.withDescriptor(func() error {
		f, err = e.fs.open(path, mode)
		return err
	})
	return f, err
}

// withDescriptor makes a call that takes a descriptor. Where fewer are left than the budget of the process counts on,
// sealed segments of all logs are closed for it.
func (e *env) withDescriptor(call func() error) error {
	err := call()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		e.opened.budget.closeHalf()
		err = call()
	}
	return err
}

// create makes a new file. One of the same name, left by a process that was killed, goes first: the kernel may hold an error
// of its write-back, and would tell the flush of the new one.
func (e *env) create(path string) (file, error) {
	if err := e.ours(); err != nil {
		return nil, err
	}
	if err := e.fs.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return e.acquire(path, openCreate)
}

func (s *segment) openSealed(e *env) (*handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.h.Load(); h != nil && h.ref() {
		return h, nil
	}
	if s.is(phaseGone) {
		return nil, errGone
	}
	path := e.path(s.base, logSuffix)
	f, err := e.acquire(path, openRead)
	if err != nil {
		if s.is(phaseGone) {
			return nil, errGone
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &CorruptError{Path: path, Offset: s.base, NextOffset: s.base + s.stored.load().rel(), Reason: "segment is missing", cause: err}
		}
		return nil, fmt.Errorf("seglog: open segment %d: %w", s.base, err)
	}
	if err := e.ours(); err != nil {
		return nil, errors.Join(fmt.Errorf("seglog: open segment %d: %w", s.base, err), f.Close())
	}
	if err := s.learnSize(f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m, err := f.mmap(s.stored.load().pos(), false)
	if err != nil {
		m = nil // not on this platform, or out of mappings: read through the descriptor
	}
	h := newHandle(f, path, m)
	if err := s.loadIndexes(e, h); err != nil {
		return nil, errors.Join(err, h.unref())
	}
	h.refs.Add(1)
	s.touched.Store(true)
	s.hold(e, h)
	e.opened.add(s)
	return h, nil
}

// learnSize completes the marks of a segment that is opened for the first time.
func (s *segment) learnSize(f file, path string) error {
	known := s.stored.load()
	size, err := f.size()
	if err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", s.base, err)
	}
	if known.pos() == sizeUnknown {
		if size > maxSegmentBytes {
			return &CorruptError{Path: path, Pos: size, Offset: s.base, NextOffset: s.base + known.rel(), Reason: "file is larger than 2 GiB - 1"}
		}
		m := markAt(known.rel(), size)
		s.stored.store(m)
		s.flushed.store(m)
	} else if size < known.pos() {
		return &CorruptError{Path: path, Pos: size, Offset: s.base, NextOffset: s.base + known.rel(), Reason: fmt.Sprintf("file has %d bytes, had %d", size, known.pos())}
	}
	return nil
}

// close gives back the segment's own reference; the handle lives on while others hold it.
func (s *segment) close() error {
	h := s.h.Swap(nil)
	if h == nil {
		return nil
	}
	return h.unref()
}

// retire marks a segment as gone and closes it. Its file must be unlinked or replaced already.
func (s *segment) retire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(phaseGone)
	return s.close()
}

// retire is segment.retire of one that readers may have opened. In this order none of them can put it back.
func (e *env) retire(s *segment) error {
	err := s.retire()
	e.opened.drop(s)
	return err
}
