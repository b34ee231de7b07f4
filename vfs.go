package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// fileSystem is the only way in which the engine touches directories and files. osFS is the real one; tests use others, which
// record calls, fail, and lose what was not flushed. Stores into a mapping are plain memory writes that do not pass through
// it, so the engine announces them to mapping.stored.
type fileSystem interface {
	open(path string, mode openMode) (file, error)
	stat(path string) (fileInfo, error)
	list(dir string) ([]string, error) // names, in any order
	mkdirAll(dir string) error
	remove(path string) error
	rename(from, to string) error
	link(from, to string) error
	syncDir(dir string) error
	openDir(dir string) (directoryHandle, error)
	lock(path string) (directoryLock, error) // ErrLocked if somebody else holds it
}

// directoryHandle is an open directory. It can be flushed even when no descriptor is left to open it.
type directoryHandle interface {
	io.Closer
	sync() error
	held() error // an error if the name of the directory now leads to another one, or to none
}

// directoryLock is a lock file that is held.
type directoryLock interface {
	io.Closer
	// held returns an error if the name of the lock file now leads to another file, or to none: somebody else may be writing
	// the directory, or another directory may have taken its name.
	held() error
}

type openMode int

const (
	openRead   openMode = iota // must exist
	openWrite                  // read and write; must exist
	openCreate                 // read and write; created, or emptied if it exists
)

type fileInfo struct {
	size  int64
	mtime time.Time
	isDir bool
}

// file is an open file. Reads and writes are at explicit positions: a descriptor is shared by many readers.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	size() (int64, error)
	truncate(size int64) error
	// reserve allocates blocks for [pos, pos+n) and extends the file over them, so that a later store can't fail for want of
	// space. The error is errors.ErrUnsupported where the file system can't promise that.
	reserve(pos, n int64) error
	// zero writes zeros to [pos, pos+n), which is reserved: later stores find the pages in memory, and once the zeros are
	// flushed, no block allocation is left to journal.
	zero(pos, n int64) error
	// writeBack writes [pos, pos+n) to the disk, as far as that is possible without a flush, and waits for it.
	writeBack(pos, n int64) error
	// flush returns once everything that was written is on stable storage (fdatasync).
	flush() error
	// mmap maps [0, n), which may reach past the end of the file: the caller touches only bytes that are reserved. The error
	// is errors.ErrUnsupported where mapping would not be safe.
	mmap(n int64, writable bool) (*mapping, error)
	// lock locks the file for as long as it is open; the error is ErrLocked if somebody else has it locked. Where an open
	// file can't be removed, lock is not needed and does nothing.
	lock() error
	unlock() error // called before Close: a process that is just being forked has a copy of the descriptor until its exec
	// alone reports whether the caller is the only one to use the file: it has no other name, and no other descriptor or
	// mapping in this process or another. It returns false where that can't be known.
	alone() (bool, error)
	osFile() *os.File // for sendfile; nil if there is none
}

// mapping is a range of a file in memory. A fault while it is touched (EIO, a file that was cut from outside) is a panic that
// handle.catch turns into an error.
type mapping struct {
	b []byte
	// stored, if not nil, is called for each range of bytes written, before anything depends on it; an error stands for a
	// fault. Only tests set it.
	stored func(pos, n int64) error
	// unmap releases the mapping.
	unmap func() error
	// real: b is mapped by the system, so madvise makes sense.
	real bool
}

// osFS is the file system of the operating system.
type osFS struct{}

// osFile is a file of osFS. The methods that differ by platform are in file_*.go, open_*.go and mmap_*.go.
type osFile struct{ *os.File }

func (f osFile) osFile() *os.File { return f.File }

func (f osFile) size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) truncate(size int64) error { return f.Truncate(size) }

// errNotRegular: there is a directory, a pipe or a device where a file must be.
var errNotRegular = errors.New("not a regular file")

// regularFile returns f as a file, or errNotRegular if it is none, in which case it closes f.
func regularFile(f *os.File) (file, error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f}, nil
}

func (osFS) stat(path string) (fileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return fileInfo{}, err
	}
	return fileInfo{size: st.Size(), mtime: st.ModTime(), isDir: st.IsDir()}, nil
}

func (osFS) list(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// mkdirAll also makes the names of the new directories durable, so that a log in a new directory survives a power cut.
func (osFS) mkdirAll(dir string) error {
	var created []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err == nil {
			if !st.IsDir() {
				return &fs.PathError{Op: "mkdir", Path: d, Err: errors.New("not a directory")}
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			return err
		}
		created = append(created, d)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, d := range created {
		if err := (osFS{}).syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

func (osFS) remove(path string) error { return os.Remove(path) }

// link makes a hard link. If from is a symbolic link it links the file that this leads to: a link to a relative symbolic link
// would lead nowhere from another directory.
func (osFS) link(from, to string) error {
	if st, err := os.Lstat(from); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		file, err := filepath.EvalSymlinks(from)
		if err != nil {
			return err
		}
		from = file
	}
	return os.Link(from, to)
}

// pathError gives the error of a raw system call the form of those of package os.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// openDirectory is the directoryHandle of osFS.
type openDirectory struct{ f *os.File }

func (d openDirectory) Close() error { return d.f.Close() }
func (d openDirectory) held() error  { return sameFile(d.f) }

func (osFS) openDir(dir string) (directoryHandle, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return openDirectory{f}, nil
}

func (o osFS) syncDir(dir string) error {
	d, err := o.openDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.sync(), d.Close())
}

// errReplaced: the name of an open file leads to another file, or to none.
var errReplaced = errors.New("it was moved, replaced or removed")

// sameFile returns errReplaced if the name of an open file no longer leads to it, and another error if that can't be known.
func sameFile(f *os.File) error {
	is, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errReplaced, err)
	}
	if err != nil {
		return err
	}
	if !os.SameFile(is, named) {
		return &fs.PathError{Op: "check", Path: f.Name(), Err: errReplaced}
	}
	return nil
}

// copyChunk is the size of the buffers for copying: large enough for the cost of a call to vanish, small enough for the
// second-level cache.
const copyChunk = 256 << 10

// copyRange copies n bytes from position from of src to position pos of dst.
func copyRange(dst file, pos int64, src file, from, n int64) error {
	buf := make([]byte, min(n, copyChunk))
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if err := readFull(src, b, from); err != nil {
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

// readFull fills p from position pos. The error is io.ErrUnexpectedEOF if the file ends before.
func readFull(f file, p []byte, pos int64) error {
	n, err := f.ReadAt(p, pos)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
