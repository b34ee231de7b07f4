package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// simDir is the directory of the log in a simulation.
const simDir = "simulated"

// simCopies is the prefix of the names of directories beside simDir, which hold copies of the log. In simWorld, the name of a
// file in such a directory contains the directory; that of a file in simDir does not.
const simCopies = "copy"

// simName returns the name in simWorld of the file at path.
func simName(path string) string {
	name := filepath.Base(path)
	if dir := simFolder(filepath.Dir(path)); dir != "" {
		return dir + "/" + name
	}
	return name
}

// simFolder returns the name in simWorld of a directory, which is "" for the directory of the log.
func simFolder(dir string) string {
	if name := filepath.Base(dir); strings.HasPrefix(name, simCopies) {
		return name
	}
	return ""
}

// inFolder returns the base of a file's name in simWorld, and whether the file is in folder.
func inFolder(folder, name string) (string, bool) {
	of, base, ok := strings.Cut(name, "/")
	if !ok {
		of, base = "", name
	}
	return base, of == folder
}

// simFS is a vfs.FS in memory that records, in order, the operations that change it, and fails operations on demand. Besides
// the directory of the log it may hold directories for copies of the log.
type simFS struct {
	mapped bool // reserve and mmap work, as on ext4; otherwise the log is written by pwrite

	mu       sync.Mutex
	w        *simWorld
	ops      []*simOp
	count    [simKinds]int
	fault    func(kind simKind, nth int, path string) *simFault // nil: no fault
	faults   []simHit                                           // the faults that have happened
	dead     bool                                               // the process is dead, and every later operation fails
	locked   map[string]bool                                    // the locked directories
	files    map[*simFile]bool
	mappings map[*simMapping]bool
	misuse   []string         // calls that break the contract of vfs.FS or vfs.File
	bad      map[string]int64 // the unreadable page of a file, by the file's name
	badTries int              // the number of reads of that page that fail; 0: all
	clock    int64
}

// simFault says how one operation fails.
type simFault struct {
	err   error
	short bool   // half of a write or store is done
	keep  uint64 // of a flush: see simOp.keep
	// late says that the call succeeds, but just before it a write-back by the kernel of the file's dirty pages fails. Each
	// descriptor gets that error from its next flush, or from an earlier call that reports it.
	late bool
}

type simHit struct {
	op, path string
	err      error
}

func newSimFS(w *simWorld, mapped bool) *simFS {
	return &simFS{w: w, mapped: mapped, files: map[*simFile]bool{}, mappings: map[*simMapping]bool{}, locked: map[string]bool{}}
}

var errDead = errors.New("the simulated process is dead")

// enter counts an operation, and returns how and with which error it fails, if it does. The caller holds mu.
func (s *simFS) enter(kind simKind, path string) (*simFault, error) {
	if s.dead {
		return nil, &fs.PathError{Op: kind.String(), Path: path, Err: errDead}
	}
	s.count[kind]++
	s.clock++
	if s.fault == nil {
		return nil, nil
	}
	f := s.fault(kind, s.count[kind], path)
	if f == nil {
		return nil, nil
	}
	s.faults = append(s.faults, simHit{kind.String(), path, f.err})
	return f, &fs.PathError{Op: kind.String(), Path: path, Err: f.err}
}

func (s *simFS) do(op *simOp) {
	s.w.apply(op)
	s.ops = append(s.ops, op)
}

// event records a call or observation of the log's user.
func (s *simFS) event(name string, f func(*oracle)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dead {
		s.ops = append(s.ops, &simOp{kind: simEvent, name: name, event: f})
	}
}

// kill kills the process, so that later operations of the engine have no effect. It returns the world as the kernel sees it.
func (s *simFS) kill() *simWorld {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	return s.w
}

func (s *simFS) wrong(format string, args ...any) {
	s.misuse = append(s.misuse, fmt.Sprintf(format, args...))
}

// left describes the resources that were not released.
func (s *simFS) left() (left []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.files {
		left = append(left, "open file "+f.path)
	}
	for m := range s.mappings {
		left = append(left, fmt.Sprintf("mapping of file #%d", m.node))
	}
	for dir := range s.locked {
		left = append(left, "lock of "+simDir+" "+dir)
	}
	slices.Sort(left)
	return left
}

func (s *simFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := simName(path)
	n, ok := s.w.names[name]
	kind := simOpen
	if mode == vfs.OpenCreate && !ok {
		kind = simCreate
	}
	if _, err := s.enter(kind, path); err != nil {
		return nil, err
	}
	switch {
	case kind == simCreate:
		n = s.w.next
		s.do(&simOp{kind: simCreate, node: n, name: name})
	case !ok:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case mode == vfs.OpenCreate:
		s.do(&simOp{kind: simTruncate, node: n, name: name})
		s.truncateMappings(n, 0)
	}
	f := &simFile{s: s, node: n, path: path, name: name, mode: mode, told: s.w.nodes[n].wbErr}
	if s.w.nodes[n].unseen {
		f.told-- // Linux reports an unreported error to the next descriptor that is opened
	}
	s.files[f] = true
	return f, nil
}

func (s *simFS) Stat(path string) (vfs.FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(simStat, path); err != nil {
		return vfs.FileInfo{}, err
	}
	if filepath.Base(path) == simDir || simFolder(path) != "" {
		return vfs.FileInfo{IsDir: true, ModTime: time.UnixMilli(s.clock)}, nil
	}
	if n, ok := s.w.names[simName(path)]; ok {
		return vfs.FileInfo{Size: int64(len(s.w.nodes[n].cache)), ModTime: time.UnixMilli(s.clock)}, nil
	}
	return vfs.FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

func (s *simFS) List(dir string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(simList, dir); err != nil {
		return nil, err
	}
	var names []string
	folder := simFolder(dir)
	for _, name := range s.w.sorted() {
		if base, ok := inFolder(folder, name); ok {
			names = append(names, base)
		}
	}
	if s.w.lockFile && folder == "" {
		names = append(names, "LOCK")
		slices.Sort(names)
	}
	return names, nil
}

func (s *simFS) MkdirAll(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.enter(simMkdir, dir)
	return err
}

func (s *simFS) Remove(path string) error {
	return s.rename1(simRemove, path, "")
}

func (s *simFS) Rename(from, to string) error { return s.rename1(simRename, from, to) }

func (s *simFS) Link(from, to string) error { return s.rename1(simLink, from, to) }

func (s *simFS) rename1(kind simKind, from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(kind, from); err != nil {
		return err
	}
	op := &simOp{kind: kind, name: simName(from)}
	if to != "" {
		op.to = simName(to)
	}
	n, ok := s.w.names[op.name]
	if !ok {
		return &fs.PathError{Op: kind.String(), Path: from, Err: fs.ErrNotExist}
	}
	if _, taken := s.w.names[op.to]; taken && kind == simLink {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: fs.ErrExist}
	}
	op.node = n
	s.do(op)
	return nil
}

func (s *simFS) SyncDir(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(simSyncDir, dir); err != nil {
		return err
	}
	s.do(&simOp{kind: simSyncDir, name: simFolder(dir)})
	return nil
}

// simDirectory is an open directory of a simFS, or of a file system that wraps one.
type simDirectory struct {
	fsys vfs.FS
	dir  string
}

func (d simDirectory) Sync() error { return d.fsys.SyncDir(d.dir) }
func (simDirectory) Close() error  { return nil }
func (simDirectory) Held() error   { return nil }

func (s *simFS) OpenDir(dir string) (vfs.Directory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(simOpen, dir); err != nil {
		return nil, err
	}
	return simDirectory{s, dir}, nil
}

func (s *simFS) Lock(path string) (vfs.DirectoryLock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.enter(simLock, path); err != nil {
		return nil, err
	}
	folder := simFolder(filepath.Dir(path))
	if s.locked[folder] {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	s.locked[folder] = true
	s.w.lockFile = s.w.lockFile || folder == ""
	return simLockFile{s, folder}, nil
}

type simLockFile struct {
	s      *simFS
	folder string
}

func (l simLockFile) Held() error { return nil }

func (l simLockFile) Close() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if !l.s.locked[l.folder] {
		l.s.wrong("lock released twice")
	}
	delete(l.s.locked, l.folder)
	return nil
}

// simFile is a descriptor.
type simFile struct {
	s          *simFS
	node       int
	path, name string
	mode       vfs.OpenMode
	closed     bool
	told       int // the number of write-back errors that this descriptor has been told of
}

// enter is simFS.enter for an operation on this file. The caller holds mu.
func (f *simFile) enter(kind simKind, writes bool) (*simFault, error) {
	if f.closed {
		return nil, &fs.PathError{Op: kind.String(), Path: f.path, Err: fs.ErrClosed}
	}
	if writes && f.mode == vfs.OpenRead {
		f.s.wrong("%v on %s, opened for reading", kind, f.path)
	}
	fault, err := f.s.enter(kind, f.path)
	if fault != nil && fault.late {
		if len(f.s.w.nodes[f.node].pending) > 0 {
			f.do(&simOp{kind: simFlush, failed: true, keep: fault.keep})
		}
		return nil, nil
	}
	return fault, err
}

func (f *simFile) content() []byte { return f.s.w.nodes[f.node].cache }

func (f *simFile) do(op *simOp) {
	op.node, op.name = f.node, f.name
	f.s.do(op)
}

func (f *simFile) ReadAt(p []byte, pos int64) (int, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simRead, false); err != nil {
		return 0, err
	}
	b := f.content()
	if pos >= int64(len(b)) {
		return 0, io.EOF
	}
	if page, ok := f.s.bad[f.name]; ok && pos < (page+1)*simPageBytes && pos+int64(len(p)) > page*simPageBytes {
		if f.s.badTries--; f.s.badTries == 0 {
			delete(f.s.bad, f.name)
		}
		err := &fs.PathError{Op: "read", Path: f.path, Err: syscall.EIO}
		f.s.faults = append(f.s.faults, simHit{"read", f.path, syscall.EIO})
		if pos >= page*simPageBytes {
			return 0, err
		}
		return copy(p, b[pos:min(page*simPageBytes, int64(len(b)))]), err
	}
	n := copy(p, b[pos:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(p []byte, pos int64) (int, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	fault, err := f.enter(simWrite, true)
	if err != nil {
		if fault == nil || !fault.short {
			return 0, err
		}
		p = p[:len(p)/2]
	}
	if len(p) > 0 {
		f.do(&simOp{kind: simWrite, pos: pos, data: slices.Clone(p)})
		f.s.copyToMappings(f.node, pos, p, nil)
	}
	return len(p), err
}

func (f *simFile) Close() error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.closed {
		f.s.wrong("%s closed twice", f.path)
		return &fs.PathError{Op: "close", Path: f.path, Err: fs.ErrClosed}
	}
	f.closed = true
	delete(f.s.files, f)
	return nil
}

func (f *simFile) Size() (int64, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simStat, false); err != nil {
		return 0, err
	}
	return int64(len(f.content())), nil
}

func (f *simFile) Truncate(size int64) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simTruncate, true); err != nil {
		return err
	}
	f.do(&simOp{kind: simTruncate, n: size})
	f.s.truncateMappings(f.node, size)
	return nil
}

func (f *simFile) Reserve(pos, n int64) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simReserve, true); err != nil {
		return err
	}
	if !f.s.mapped {
		return &fs.PathError{Op: "reserve", Path: f.path, Err: errors.ErrUnsupported}
	}
	f.do(&simOp{kind: simReserve, pos: pos, n: n})
	return nil
}

// WriteBack makes nothing durable, but it returns the error that the next flush would return.
func (f *simFile) WriteBack(int64, int64) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.closed || !f.tell() {
		return nil
	}
	return &fs.PathError{Op: "write back", Path: f.path, Err: syscall.EIO}
}

func (f *simFile) Alone() (bool, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simStat, false); err != nil {
		return false, err
	}
	holds := 0
	for _, n := range f.s.w.names {
		if n == f.node {
			holds++
		}
	}
	for g := range f.s.files {
		if g.node == f.node && g != f {
			holds++
		}
	}
	for m := range f.s.mappings {
		if m.node == f.node {
			holds++
		}
	}
	return holds <= 1, nil
}

func (f *simFile) Unlock() error { return nil }

func (f *simFile) Lock() error { return nil } // the directory's lock is enough for one process

func (f *simFile) Zero(pos, n int64) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if _, err := f.enter(simZero, true); err != nil {
		return err
	}
	f.do(&simOp{kind: simZero, pos: pos, n: n})
	f.s.copyToMappings(f.node, pos, make([]byte, n), nil)
	return nil
}

func (f *simFile) Flush() error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	fault, err := f.enter(simFlush, true)
	if fault != nil {
		f.do(&simOp{kind: simFlush, failed: true, keep: fault.keep})
		f.tell()
		return err
	}
	if err == nil {
		f.do(&simOp{kind: simFlush})
		if f.tell() {
			err = &fs.PathError{Op: "flush", Path: f.path, Err: syscall.EIO}
			f.s.faults = append(f.s.faults, simHit{"flush", f.path, syscall.EIO})
		}
	}
	return err
}

// tell reports whether the file has a write-back error that was not reported to this descriptor, and counts it as reported.
func (f *simFile) tell() bool {
	n := f.s.w.nodes[f.node]
	if f.told == n.wbErr {
		return false
	}
	f.told = n.wbErr
	f.do(&simOp{kind: simTold})
	return true
}

func (f *simFile) OSFile() *os.File { return nil }

// setFault replaces the function that decides which operations fail.
func (s *simFS) setFault(f func(kind simKind, nth int, path string) *simFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}
