// Package vfs is the seam between the engine and the operating system: the interfaces through which the engine touches
// directories, files and mappings. Package seglog implements them by system calls; the tests' simulation implements them in
// memory, records calls, lets them fail, and loses what was not flushed.
package vfs

import (
	"errors"
	"io"
	"os"
	"time"
	"unsafe"

	"github.com/seglog/seglog/internal/commit"
)

// ErrLocked is wrapped by the errors of FS.Lock and File.Lock if another owner has the lock.
var ErrLocked = errors.New("seglog: directory is locked by another writer")

// FS is a file system. It is the only way in which the engine touches directories and files. Stores into a Mapping are plain
// memory writes that do not pass through it, so the engine announces them to Mapping.Stored. All methods may be called by any
// number of goroutines at the same time.
type FS interface {
	// Open opens a regular file.
	Open(path string, mode OpenMode) (File, error)
	Stat(path string) (FileInfo, error)
	// List returns the names in a directory, in any order.
	List(dir string) ([]string, error)
	// MkdirAll makes a directory and its parents, as far as they don't exist, and makes their names durable.
	MkdirAll(dir string) error
	Remove(path string) error
	// Rename renames a file, over another one if there is one, which may be open.
	Rename(from, to string) error
	// Link makes a hard link. It fails if the name to is taken.
	Link(from, to string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
	OpenDir(dir string) (Directory, error)
	// Lock creates the lock file at path, if necessary, and locks it. The error wraps ErrLocked if another owner has the lock.
	Lock(path string) (DirectoryLock, error)
}

// Directory is an open directory. It can be flushed even when no descriptor is left to open it.
type Directory interface {
	io.Closer
	// Sync makes the names in the directory durable.
	Sync() error
	// List returns the names in the directory, in any order. Only one goroutine calls it at a time.
	List() ([]string, error)
	// Held returns an error if the name of the directory now leads to another one, or to none.
	Held() error
}

// DirectoryLock is a lock file that is held until Close.
type DirectoryLock interface {
	io.Closer
	// Held returns an error if the name of the lock file now leads to another file, or to none: another process may be writing
	// the directory, or another directory may have taken its name.
	Held() error
	// Disk returns a number of the disk on which the file is, or 0 where it is not known.
	Disk() uint64
	// Quiet returns a file that is flushed in the place of f when f shares flushes (commit.Device.Flush), or nil. Nothing is
	// written to it.
	Quiet(f File) commit.Flusher
}

// OpenMode says what a file is opened for.
type OpenMode int

const (
	OpenRead   OpenMode = iota // for reading; the file must exist
	OpenWrite                  // for reading and writing; the file must exist
	OpenCreate                 // for reading and writing; the file is created, or emptied if it exists
)

// FileInfo describes a file or directory.
type FileInfo struct {
	Size    int64
	ModTime time.Time
	IsDir   bool
}

// File is an open file. Reads and writes are at explicit positions, since many readers share a descriptor.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Reserve allocates blocks for [pos, pos+n) and extends the file over them, so that a later store can't fail for want of
	// space. The error is errors.ErrUnsupported where the file system can't promise that.
	Reserve(pos, n int64) error
	// Zero writes zeros to [pos, pos+n), which is reserved: later stores find the pages in memory, and once the zeros are
	// flushed, no block allocation is left to journal.
	Zero(pos, n int64) error
	// StartWriteBack begins what WriteBack does and does not wait for it. It may do nothing.
	StartWriteBack(pos, n int64)
	// WriteBack sends [pos, pos+n) to the disk and waits until it has arrived there, perhaps in a volatile cache of the disk. The
	// error is errors.ErrUnsupported where that is not possible.
	WriteBack(pos, n int64) error
	// Device returns the device on which the file may share flushes with other files, or nil. See commit.Device for what that
	// takes.
	Device() *commit.Device
	// Flush returns once everything that was written is on stable storage (fdatasync).
	Flush() error
	// Mmap maps [0, n), which may reach past the end of the file: the caller touches only bytes that are reserved. The error
	// is errors.ErrUnsupported where mapping would not be safe.
	Mmap(n int64, writable bool) (*Mapping, error)
	// Lock locks the file for as long as it is open. The error wraps ErrLocked if another owner has it locked. Where an open
	// file can't be removed, a lock is not needed, and Lock does nothing.
	Lock() error
	// Unlock releases the lock. It must be called before Close, because a child that is just being forked holds a copy of the
	// descriptor, and with it the lock, until its exec.
	Unlock() error
	// Alone reports whether the caller is the only one to use the file: it has no other name, and no other descriptor or
	// mapping in this process or another. It returns false where that can't be known.
	Alone() (bool, error)
	// OSFile returns the file of the operating system, for sendfile, or nil if there is none.
	OSFile() *os.File
}

// Mapping is a range of a file in memory. A fault while it is touched (EIO, a file that was cut from outside) is a panic, which
// the engine turns into an error.
type Mapping struct {
	Bytes []byte
	// Stored, if not nil, is called for each range of bytes written, before anything depends on it; an error stands for a
	// fault. Only tests set it.
	Stored func(pos, n int64) error
	// Unmap releases the mapping.
	Unmap func() error
	// Real is true if the system mapped Bytes, so that madvise makes sense.
	Real bool
}

// Position returns the position in m of an address, and whether it lies in m. A nil Mapping contains no address.
func (m *Mapping) Position(addr uintptr) (pos int64, ok bool) {
	if m == nil {
		return 0, false
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(m.Bytes)))
	return int64(addr - start), addr >= start && addr < start+uintptr(len(m.Bytes))
}

// CopyChunk is the size of the buffers for copying: large enough for the cost of a call to vanish, small enough for the
// second-level cache.
const CopyChunk = 256 << 10

// CopyRange copies n bytes from position from of src to position pos of dst.
func CopyRange(dst File, pos int64, src File, from, n int64) error {
	buf := make([]byte, min(n, CopyChunk))
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if err := ReadFull(src, b, from); err != nil {
			return err
		}
		if _, err := dst.WriteAt(b, pos); err != nil {
			return err
		}
		k := int64(len(b))
		pos, from, n = pos+k, from+k, n-k
	}
	return nil
}

// ReadFull fills p from position pos. The error is io.ErrUnexpectedEOF if the file ends before.
func ReadFull(f File, p []byte, pos int64) error {
	n, err := f.ReadAt(p, pos)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
