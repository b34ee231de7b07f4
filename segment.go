package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// sizeUnknown is the position in the marks of a sealed segment that was not opened yet.
const sizeUnknown = 1<<32 - 1

// No file is so large that its end could be taken for an unknown size.
const _ = uint(sizeUnknown - maxSegmentBytes - 1)

// unknownTime is the value of segment.maxTime until somebody has asked for the time.
const unknownTime = -2

// phase is where a segment is in its life. It only moves forward:
//
//	prepared or closed ──> active ──> rolled ──> sealed ──> gone
//
// prepared: seglog.next, made ready by the preparer, who alone touches it.
// closed:   the last segment of a log that was closed, with its indexes in files; the first append makes it active (Log.wake).
// active:   the writer appends; the writer and the preparer extend the file, both under tail.grow.
// rolled:   nobody extends the file any more; the keeper flushes it, trims it and writes its indexes.
// sealed:   the files do not change any more.
// gone:     deleted or cut, from any phase: not to be opened again; its name may belong to another file by now.
type phase int32

const (
	phasePrepared phase = iota
	phaseClosed
	phaseActive
	phaseRolled
	phaseSealed
	phaseGone
)

// env is what the segments of one log share.
type env struct {
	fs     vfs.FS
	dir    string
	dirH   vfs.Directory     // nil: syncDir opens the directory
	lock   vfs.DirectoryLock // of a log that is written
	o      Options
	stats  *counters
	opened openSegments
	reads  *readCache
	// gaps: offsets may be left out, as compaction does. A log starts without it, and then a gap is corruption.
	gaps atomic.Bool
	// cachedEnd: bytes further than this from the end of the log are dropped from the page cache behind a reader.
	cachedEnd int64
}

// syncDir makes the names in the log's directory durable.
func (e *env) syncDir() error {
	if e.dirH == nil {
		return e.fs.SyncDir(e.dir)
	}
	return e.dirH.Sync()
}

// errNotOurs: the name of the log's directory leads to no directory, or to another one, whose files must not be touched.
var errNotOurs = errors.New("seglog: the directory no longer belongs to this log")

// ours returns an error if the name of the log's directory no longer leads to it. It is called before files are opened,
// created or removed by their names.
func (e *env) ours() error {
	if e.dirH == nil {
		return nil
	}
	err := e.dirH.Held()
	switch {
	case errors.Is(err, errReplaced):
		return fmt.Errorf("%w: %w", errNotOurs, err)
	case err != nil:
		return fmt.Errorf("seglog: check the directory: %w", err)
	}
	return nil
}

func (e *env) path(base int64, suffix string) string {
	return e.dir + string(filepath.Separator) + fileName(base, suffix)
}

// segment is one .log file with its two indexes. It is safe for any number of goroutines.
type segment struct {
	base int64
	// stored is the end of the appended data, flushed the end of its durable part. In a sealed segment they are equal; their
	// position is sizeUnknown until the segment is opened or its size is asked for.
	stored, flushed atomicMark
	h               atomic.Pointer[handle]  // nil: not open
	maxTime         atomic.Int64            // greatest timestamp, or unknownTime
	unsure          atomic.Bool             // a batch may be later: it is damaged, or only its header was read
	gather          *gather                 // under FlushSync: the batches that are stored and not flushed; nil if not mapped
	own             atomic.Pointer[indexes] // the writer's indexes while the log is at rest; otherwise nil (see tail.rest)
	startPos        atomic.Int64            // see Log.startPos; 0: not known
	checked         atomic.Uint64           // sizes of the index files that were found to fit; 0: none were
	phase           atomic.Int32            // a phase
	touched         atomic.Bool             // used since the last sweep of openSegments
	reported        atomic.Bool             // the Logger was told that the times of the segment can't be had
	lent            atomic.Bool             // sockets may hold pages of the file, which must not change any more
	held            holders                 // counts the bytes of deleted segments that still take space
	mu              sched.Mutex             // held to open, to seal and to cut it, and to build its indexes
}

// enter moves the segment on to phase p, unless it is further already.
func (s *segment) enter(p phase) {
	for {
		old := s.phase.Load()
		if old >= int32(p) || s.phase.CompareAndSwap(old, int32(p)) {
			return
		}
	}
}

func (s *segment) is(p phase) bool { return phase(s.phase.Load()) == p }

// written reports whether the segment's indexes are the writer's, in memory, and must not be rebuilt.
func (s *segment) written() bool {
	p := phase(s.phase.Load())
	return p < phaseSealed && p != phaseClosed
}

// final reports whether nothing will be appended to the segment any more.
func (s *segment) final() bool { return phase(s.phase.Load()) >= phaseSealed }

// newSealed returns a sealed segment with the offsets [base, next) that is not opened yet.
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

// errGone: the segment was deleted or replaced after the caller had looked it up. The caller looks again.
var errGone = errors.New("seglog: segment is gone")

// handle is an open segment: descriptor, mapping, indexes. It lives until the last reference is given back; the first
// is the segment's own. A count that reached zero never rises again, so nobody can touch what was unmapped.
type handle struct {
	refs atomic.Int64
	id   uint64 // of no other handle of the process
	f    vfs.File
	path string
	m    *vfs.Mapping // nil: read through f
	warm warmth       // of m
	x    atomic.Pointer[indexes]
	// trusted: a read-only log has made sure, after the file was opened, that it is the file of the segment in the view.
	trusted atomic.Bool
	short   atomic.Bool // the file has lost batches at its end (checkEnd)
	// The segment and the budget that count the handle, or nil.
	seg    *segment
	budget *openBudget
}

// holders counts the handles of a segment that are not released yet. While a deleted segment has any, its file takes space,
// which holders adds to the log's statistics.
type holders struct {
	n      atomic.Int64 // handles, plus deletedSegment once the segment is deleted
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

// deleted notes that the segment was deleted or cut, after it gave its own reference back.
func (s *segment) deleted(stats *counters) {
	if s.held.n.Load() >= deletedSegment {
		return
	}
	s.held.pinned, s.held.bytes = &stats.pinned, s.stored.load().pos()
	if s.held.n.Add(deletedSegment) != deletedSegment {
		s.held.pinned.Add(s.held.bytes)
	}
}

// release notes that a handle was released.
func (s *segment) release() {
	if s.held.n.Add(-1) == deletedSegment {
		s.held.pinned.Add(-s.held.bytes)
	}
}

// lastHandle is the id that was given out last.
var lastHandle atomic.Uint64

func newHandle(f vfs.File, path string, m *vfs.Mapping) *handle {
	h := &handle{id: lastHandle.Add(1), f: f, path: path, m: m}
	if m != nil {
		h.warm = newWarmth(int64(len(m.Bytes)))
	}
	h.refs.Store(1)
	return h
}

// ref takes a reference. It returns false if the last one was given back already.
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

// named puts the present path into an error of a file that was opened under a temporary name.
func (h *handle) named(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		e.Path = h.path
	}
	return err
}

// seize takes the only reference, so that nobody can use the handle any more, and returns false if there are others. A
// caller that got true calls release or unseize in the end.
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
		err = h.m.Unmap()
	}
	err = errors.Join(err, h.x.Load().close(), h.f.Close())
	h.budget.closed()
	return err
}

// errFault is the cause of the error for a fault in a mapping (SIGBUS).
var errFault = errors.New("the file was truncated, or the page can't be read")

// catch is deferred by a function that touches a mapping: `defer h.catch(debug.SetPanicOnFault(true), &err)`. A fault in the
// mapping of the .log file, which would kill the process by SIGBUS, becomes an error, and one in the mapping of an index
// becomes errIndex. Any other panic goes on.
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
	if pos, ok := h.m.Position(fault.Addr()); ok {
		*err = &fs.PathError{Op: "access mapping", Path: h.path, Err: fmt.Errorf("position %d: %w", pos, errFault)}
		return
	}
	if x := h.x.Load(); x != nil {
		for _, m := range x.mapped {
			if _, ok := m.Position(fault.Addr()); ok {
				*err = errIndex
				return
			}
		}
	}
	panic(r)
}

// pin returns the handle with a reference, which the caller gives back by unref. It opens the segment if necessary.
func (s *segment) pin(e *env) (*handle, error) {
	if h := s.h.Load(); h != nil && h.ref() {
		if !s.touched.Load() {
			s.touched.Store(true)
		}
		return h, nil
	}
	return s.openSealed(e)
}

// acquire opens a file. If it is to be written to, and the name of the log's directory leads to another one by now, the file is not the
// log's, and must be left alone.
func (e *env) acquire(path string, mode vfs.OpenMode) (f vfs.File, err error) {
	f, err = e.fs.Open(path, mode)
	if err == nil && mode != vfs.OpenRead {
		if err = e.ours(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, err
}

// create makes a new file. It removes a file of the same name that a killed process left, rather than reuse it: the kernel
// may hold an error of its write-back, and would report it to a flush of the new contents.
func (e *env) create(path string) (vfs.File, error) {
	if err := e.ours(); err != nil {
		return nil, err
	}
	if err := e.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := e.acquire(path, vfs.OpenCreate)
	if err == nil {
		isNew(f.OSFile())
	}
	return f, err
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
	f, err := e.acquire(path, vfs.OpenRead)
	if err != nil {
		if s.is(phaseGone) {
			return nil, errGone
		}
		if errors.Is(err, fs.ErrNotExist) {
			if notOurs := e.ours(); notOurs != nil {
				return nil, fmt.Errorf("seglog: open segment %d: %w", s.base, notOurs)
			}
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
	size := s.stored.load().pos()
	if !s.final() {
		size = max(size, e.o.SegmentBytes) // a reader may still use the mapping when more is appended
	}
	m, err := f.Mmap(size, false)
	if err != nil {
		m = nil // not on this platform, or out of mappings: read through the descriptor
	}
	h := newHandle(f, path, m)
	if own := s.own.Load(); own != nil {
		h.x.Store(own)
	} else if err := s.loadIndexes(e, h); err != nil {
		return nil, errors.Join(err, h.unref())
	}
	h.refs.Add(1)
	s.touched.Store(true)
	s.hold(e, h)
	e.opened.add(s)
	return h, nil
}

// learnSize sets the position in the marks of a segment that is opened for the first time, and otherwise makes sure that the
// file is not shorter than it was.
func (s *segment) learnSize(f vfs.File, path string) error {
	known := s.stored.load()
	size, err := f.Size()
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

// retire marks a segment as gone and closes it, so that nobody opens it again: its file is removed or replaced, or the log is
// closed.
func (s *segment) retire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(phaseGone)
	return s.close()
}

// retire is segment.retire for a segment that readers may have opened, which it also takes off e.opened. In this order no
// reader can put it back there.
func (e *env) retire(s *segment) error {
	err := s.retire()
	e.opened.drop(s)
	return err
}
