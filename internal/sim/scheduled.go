//go:build go1.25

package sim

import (
	"os"
	"strings"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/vfs"
)

// ScheduledFS is an FS whose calls are points of the schedule, at which goroutines park.
type ScheduledFS struct {
	*FS
	Scheduler *Scheduler
	Plant     Plant
	// OnWrite, if not nil, is called before each write.
	OnWrite func(name string, p []byte)
}

// holdsRecords reports whether a file is a segment, or is going to be one.
func holdsRecords(name string) bool {
	return strings.HasSuffix(name, ".log") || name == "seglog.next" || name == "seglog.roll"
}

// Plant is a bug planted between the engine and the file system, which TestScheduleFindsPlantedBugs must find.
type Plant int

const (
	PlantNothing     Plant = iota
	plantNoFlush           // a flush does nothing
	plantNoSyncDir         // names are never made durable
	plantNoTruncate        // a file is never truncated
	plantWrongRead         // one bit that a read returns is wrong
	plantLeak              // a descriptor opened for reading stays open
	plantLateReserve       // zeros are written after the end of a trimmed segment
	Plants
)

func (f *ScheduledFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	kind := Open
	if mode == vfs.OpenCreate {
		kind = Create
	}
	f.Scheduler.call(kind, path)
	g, err := f.FS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return &scheduledFile{g.(*File), f}, nil
}

func (f *ScheduledFS) Stat(path string) (vfs.FileInfo, error) {
	f.Scheduler.call(Stat, path)
	return f.FS.Stat(path)
}

func (f *ScheduledFS) List(dir string) ([]string, error) {
	f.Scheduler.call(List, dir)
	return f.FS.List(dir)
}

func (f *ScheduledFS) MkdirAll(dir string) error {
	f.Scheduler.call(Mkdir, dir)
	return f.FS.MkdirAll(dir)
}

func (f *ScheduledFS) Remove(path string) error {
	f.Scheduler.call(Remove, path)
	return f.FS.Remove(path)
}

func (f *ScheduledFS) Rename(from, to string) error {
	f.Scheduler.call(Rename, from)
	return f.FS.Rename(from, to)
}

func (f *ScheduledFS) Link(from, to string) error {
	f.Scheduler.call(Link, from)
	return f.FS.Link(from, to)
}

func (f *ScheduledFS) SyncDir(dir string) error {
	f.Scheduler.call(SyncDir, dir)
	if f.Plant == plantNoSyncDir {
		return nil
	}
	return f.FS.SyncDir(dir)
}

func (f *ScheduledFS) OpenDir(dir string) (vfs.Directory, error) {
	f.Scheduler.call(Open, dir)
	if _, err := f.FS.OpenDir(dir); err != nil {
		return nil, err
	}
	return Directory{f, dir}, nil
}

func (f *ScheduledFS) Lock(path string) (vfs.DirectoryLock, error) {
	f.Scheduler.call(Lock, path)
	l, err := f.FS.Lock(path)
	if err != nil {
		return nil, err
	}
	return scheduledLock{l, f, path}, nil
}

type scheduledLock struct {
	vfs.DirectoryLock
	fs   *ScheduledFS
	path string
}

func (l scheduledLock) Quiet(f vfs.File) commit.Flusher {
	if quiet := l.DirectoryLock.Quiet(f); quiet != nil {
		return scheduledFlusher{quiet, l.fs, l.path}
	}
	return nil
}

type scheduledFlusher struct {
	commit.Flusher
	fs   *ScheduledFS
	path string
}

func (f scheduledFlusher) Flush() error {
	f.fs.Scheduler.call(FlushDisk, f.path)
	if f.fs.Plant == plantNoFlush {
		return nil
	}
	return f.Flusher.Flush()
}

type scheduledFile struct {
	*File
	fs *ScheduledFS
}

// at parks the goroutine before a call on the file.
func (f *scheduledFile) at(kind Kind) { f.fs.Scheduler.call(kind, f.Path) }

func (f *scheduledFile) ReadAt(p []byte, pos int64) (int, error) {
	f.at(Read)
	n, err := f.File.ReadAt(p, pos)
	if f.fs.Plant == plantWrongRead && n > 100 && holdsRecords(f.Name) {
		p[n-1] ^= 1
	}
	return n, err
}

func (f *scheduledFile) WriteAt(p []byte, pos int64) (int, error) {
	f.at(Write)
	if f.fs.OnWrite != nil {
		f.fs.OnWrite(f.Name, p)
	}
	return f.File.WriteAt(p, pos)
}

func (f *scheduledFile) Size() (int64, error) {
	f.at(Stat)
	return f.File.Size()
}

func (f *scheduledFile) Truncate(size int64) error {
	f.at(Truncate)
	if size > 0 {
		switch f.fs.Plant {
		case plantNoTruncate:
			return nil
		case plantLateReserve:
			if err := f.File.Truncate(size); err != nil {
				return err
			}
			return f.File.Zero(size, 100)
		}
	}
	return f.File.Truncate(size)
}

func (f *scheduledFile) Reserve(pos, n int64) error {
	f.at(Reserve)
	return f.File.Reserve(pos, n)
}

func (f *scheduledFile) Zero(pos, n int64) error {
	f.at(Zero)
	return f.File.Zero(pos, n)
}

func (f *scheduledFile) WriteBack(pos, n int64) error {
	f.at(WriteBack)
	return f.File.WriteBack(pos, n)
}

func (f *scheduledFile) Flush() error {
	f.at(Flush)
	if f.fs.Plant == plantNoFlush {
		return nil
	}
	return f.File.Flush()
}

func (f *scheduledFile) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	f.at(Map)
	m, err := f.File.Mmap(n, writable)
	if err == nil && m.Stored != nil {
		path, stored := f.Path, m.Stored
		m.Stored = func(pos, n int64) error {
			f.fs.Scheduler.call(Store, path)
			return stored(pos, n)
		}
	}
	return m, err
}

func (f *scheduledFile) Close() error {
	if f.fs.Plant == plantLeak && f.Mode == vfs.OpenRead {
		return nil
	}
	return f.File.Close()
}

func (f *scheduledFile) OSFile() *os.File { return nil }
