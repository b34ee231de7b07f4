// Package sim simulates what the engine runs on: a disk, on which files exist in a page cache and on stable storage, faults of
// it, power cuts, and a scheduler that decides which goroutine runs. It is for the tests of the engine; no program may import
// it.
package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// Dir is the directory of the log in a simulation.
const Dir = "simulated"

// Copies is the prefix of the names of directories beside Dir, which hold copies of the log. In World, the name of a
// file in such a directory contains the directory; that of a file in Dir does not.
const Copies = "copy"

// Name returns the name in World of the file at path.
func Name(path string) string {
	name := filepath.Base(path)
	if dir := folderOf(filepath.Dir(path)); dir != "" {
		return dir + "/" + name
	}
	return name
}

// folderOf returns the name in World of a directory, which is "" for the directory of the log.
func folderOf(dir string) string {
	if name := filepath.Base(dir); strings.HasPrefix(name, Copies) {
		return name
	}
	return ""
}

// inFolder returns the base of a file's name in World, and whether the file is in folder.
func inFolder(folder, name string) (string, bool) {
	of, base, ok := strings.Cut(name, "/")
	if !ok {
		of, base = "", name
	}
	return base, of == folder
}

// FS is a vfs.FS in memory that records, in order, the operations that change it, and fails operations on demand. Besides
// the directory of the log it may hold directories for copies of the log.
type FS struct {
	Mapped bool // reserve and mmap work, as on ext4; otherwise the log is written by pwrite
	// Shared, if not nil, is where files share flushes: the flush of one makes durable what write-back sent of the others.
	Shared      *commit.Device
	NoWriteBack bool // WriteBack is not supported

	Mu       sync.Mutex // guards all that follows
	World    *World
	Ops      []*Op
	Count    [Kinds]int
	Fault    func(kind Kind, nth int, path string) *Fault // nil: no fault
	Faults   []Hit                                        // the faults that have happened
	Dead     bool                                         // the process is dead, and every later operation fails
	locked   map[string]bool                              // the locked directories
	Files    map[*File]bool
	Mappings map[*mapping]bool
	Misuse   []string         // calls that break the contract of vfs.FS or vfs.File
	Bad      map[string]int64 // the unreadable page of a file, by the file's name
	BadTries int              // the number of reads of that page that fail; 0: all
	clock    int64
}

// Fault says how one operation fails.
type Fault struct {
	Err   error
	Short bool   // half of a write or store is done
	Keep  uint64 // of a flush: see Op.Keep
	// Late says that the call succeeds, but just before it a write-back by the kernel of the file's dirty pages fails. Each
	// descriptor gets that error from its next flush, or from an earlier call that reports it.
	Late bool
}

// Hit is a fault that has happened.
type Hit struct {
	Op, Path string
	Err      error
}

// NewFS returns a file system on w.
func NewFS(w *World, mapped bool) *FS {
	s := &FS{World: w, Mapped: mapped, Files: map[*File]bool{}, Mappings: map[*mapping]bool{}, locked: map[string]bool{}}
	if mapped {
		s.Shared = commit.NewDevice()
		s.Shared.Observe(func() { sched.Started("device") }, func() { sched.Yield("flushed") })
	}
	return s
}

// ErrDead is the error of each call after Kill.
var ErrDead = errors.New("the simulated process is dead")

// enter counts an operation, and returns how and with which error it fails, if it does. The caller holds Mu.
func (s *FS) enter(kind Kind, path string) (*Fault, error) {
	if s.Dead {
		return nil, &fs.PathError{Op: kind.String(), Path: path, Err: ErrDead}
	}
	s.Count[kind]++
	s.clock++
	if s.Fault == nil {
		return nil, nil
	}
	f := s.Fault(kind, s.Count[kind], path)
	if f == nil {
		return nil, nil
	}
	s.Faults = append(s.Faults, Hit{kind.String(), path, f.Err})
	return f, &fs.PathError{Op: kind.String(), Path: path, Err: f.Err}
}

func (s *FS) do(op *Op) {
	s.World.Apply(op)
	s.Ops = append(s.Ops, op)
}

// Event records a call or observation of the log's user.
func (s *FS) Event(name string, observed any) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if !s.Dead {
		s.Ops = append(s.Ops, &Op{Kind: Event, Name: name, Event: observed})
	}
}

// Kill kills the process, so that later operations of the engine have no effect. It returns the world as the kernel sees it.
func (s *FS) Kill() *World {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Dead = true
	return s.World
}

func (s *FS) wrong(format string, args ...any) {
	s.Misuse = append(s.Misuse, fmt.Sprintf(format, args...))
}

// InUse returns the numbers of open files and of mappings.
func (s *FS) InUse() (files, mappings int) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return len(s.Files), len(s.Mappings)
}

// Left describes the resources that were not released.
func (s *FS) Left() (left []string) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for f := range s.Files {
		left = append(left, "open file "+f.Path)
	}
	for m := range s.Mappings {
		left = append(left, fmt.Sprintf("mapping of file #%d", m.node))
	}
	for dir := range s.locked {
		left = append(left, "lock of "+Dir+" "+dir)
	}
	slices.Sort(left)
	return left
}

func (s *FS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	name := Name(path)
	n, ok := s.World.Names[name]
	kind := Open
	if mode == vfs.OpenCreate && !ok {
		kind = Create
	}
	if _, err := s.enter(kind, path); err != nil {
		return nil, err
	}
	switch {
	case kind == Create:
		n = s.World.next
		s.do(&Op{Kind: Create, Node: n, Name: name})
	case !ok:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case mode == vfs.OpenCreate:
		s.do(&Op{Kind: Truncate, Node: n, Name: name})
		s.truncateMappings(n, 0)
	}
	f := &File{s: s, Node: n, Path: path, Name: name, Mode: mode, Told: s.World.Nodes[n].wbErr}
	if s.World.Nodes[n].unseen {
		f.Told-- // Linux reports an unreported error to the next descriptor that is opened
	}
	s.Files[f] = true
	return f, nil
}

func (s *FS) Stat(path string) (vfs.FileInfo, error) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(Stat, path); err != nil {
		return vfs.FileInfo{}, err
	}
	if filepath.Base(path) == Dir || folderOf(path) != "" {
		return vfs.FileInfo{IsDir: true, ModTime: time.UnixMilli(s.clock)}, nil
	}
	if n, ok := s.World.Names[Name(path)]; ok {
		return vfs.FileInfo{Size: int64(len(s.World.Nodes[n].Cache)), ModTime: time.UnixMilli(s.clock)}, nil
	}
	return vfs.FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

func (s *FS) List(dir string) ([]string, error) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(List, dir); err != nil {
		return nil, err
	}
	var names []string
	folder := folderOf(dir)
	for _, name := range s.World.Sorted() {
		if base, ok := inFolder(folder, name); ok {
			names = append(names, base)
		}
	}
	if s.World.lockFile && folder == "" {
		names = append(names, "LOCK")
		slices.Sort(names)
	}
	return names, nil
}

func (s *FS) MkdirAll(dir string) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	_, err := s.enter(Mkdir, dir)
	return err
}

func (s *FS) Remove(path string) error {
	return s.rename1(Remove, path, "")
}

func (s *FS) Rename(from, to string) error { return s.rename1(Rename, from, to) }

func (s *FS) Link(from, to string) error { return s.rename1(Link, from, to) }

func (s *FS) rename1(kind Kind, from, to string) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(kind, from); err != nil {
		return err
	}
	op := &Op{Kind: kind, Name: Name(from)}
	if to != "" {
		op.To = Name(to)
	}
	n, ok := s.World.Names[op.Name]
	if !ok {
		return &fs.PathError{Op: kind.String(), Path: from, Err: fs.ErrNotExist}
	}
	if _, taken := s.World.Names[op.To]; taken && kind == Link {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: fs.ErrExist}
	}
	op.Node = n
	s.do(op)
	return nil
}

func (s *FS) SyncDir(dir string) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(SyncDir, dir); err != nil {
		return err
	}
	s.do(&Op{Kind: SyncDir, Name: folderOf(dir)})
	return nil
}

// Directory is an open directory of an FS, or of a file system that wraps one.
type Directory struct {
	fsys vfs.FS
	dir  string
}

// NewDirectory returns the open directory dir of fsys.
func NewDirectory(fsys vfs.FS, dir string) Directory { return Directory{fsys, dir} }

func (d Directory) Sync() error             { return d.fsys.SyncDir(d.dir) }
func (d Directory) List() ([]string, error) { return d.fsys.List(d.dir) }
func (Directory) Close() error              { return nil }
func (Directory) Held() error               { return nil }

func (s *FS) OpenDir(dir string) (vfs.Directory, error) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(Open, dir); err != nil {
		return nil, err
	}
	return Directory{s, dir}, nil
}

func (s *FS) Lock(path string) (vfs.DirectoryLock, error) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, err := s.enter(Lock, path); err != nil {
		return nil, err
	}
	folder := folderOf(filepath.Dir(path))
	if s.locked[folder] {
		return nil, fmt.Errorf("%w: %s", vfs.ErrLocked, path)
	}
	s.locked[folder] = true
	s.World.lockFile = s.World.lockFile || folder == ""
	return lockFile{s, folder}, nil
}

type lockFile struct {
	s      *FS
	folder string
}

func (l lockFile) Held() error { return nil }

func (l lockFile) Disk() uint64 { return 0 }

func (l lockFile) Quiet(vfs.File) commit.Flusher {
	if l.s.Shared == nil {
		return nil
	}
	return l
}

// Flush makes durable what the disk was sent.
func (l lockFile) Flush() error {
	l.s.Mu.Lock()
	defer l.s.Mu.Unlock()
	if _, err := l.s.enter(FlushDisk, filepath.Join(l.folder, "LOCK")); err != nil {
		return err
	}
	l.s.do(&Op{Kind: FlushDisk})
	return nil
}

func (l lockFile) Close() error {
	l.s.Mu.Lock()
	defer l.s.Mu.Unlock()
	if !l.s.locked[l.folder] {
		l.s.wrong("lock released twice")
	}
	delete(l.s.locked, l.folder)
	return nil
}

// SetFault replaces the function that decides which operations fail.
func (s *FS) SetFault(f func(kind Kind, nth int, path string) *Fault) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Fault = f
}
