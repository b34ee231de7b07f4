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

// fileSystem is the one place through which the engine touches directories and files. osFS is the real one; the tests
// put others here that record, fail, and lose what was not flushed. Stores into a mapping are the exception to "all
// through here", since they are plain memory writes: the engine announces them to mapping.stored.
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
	lock(path string) (directoryLock, error) // ErrLocked if somebody else has it
}

// directoryHandle is an open directory: it can be flushed when no descriptor is left to open it.
type directoryHandle interface {
	io.Closer
	sync() error
	held() error // an error if its name leads to another directory by now, or to none
}

// directoryLock is a lock file that is held.
type directoryLock interface {
	io.Closer
	// held returns an error if another file, or none, has taken the place of the one that is locked: then somebody else
	// may write the directory, or write another directory that has taken the name of this one.
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
	// reserve makes [pos, pos+n) exist, backed by blocks that a later store can't fail for want of. It is
	// errors.ErrUnsupported where the file system can't promise that.
	reserve(pos, n int64) error
	// zero writes zeros to [pos, pos+n), which are reserved: what is stored there later meets pages that are in memory,
	// and once they are flushed, no block allocation is left to journal.
	zero(pos, n int64) error
	// writeBack returns once [pos, pos+n) is written to the disk, as far as that can be had without a flush.
	writeBack(pos, n int64) error
	// flush returns once all that was written is on stable storage (fdatasync).
	flush() error
	// mmap maps [0, n), which may reach past the end of the file: the caller touches no byte that is not reserved.
	// It is errors.ErrUnsupported where mapping would not be safe.
	mmap(n int64, writable bool) (*mapping, error)
	// lock locks the file for as long as it is open; ErrLocked if somebody else has. Where an open file can't be removed
	// there is no need for it, and it does nothing.
	lock() error
	unlock() error // before Close: a process that is being forked just then holds a copy of the descriptor until its exec
	// alone reports whether nobody but the caller has a hold of the file: no other name, no other descriptor and no
	// mapping, in this process or another. Where that can't be known it is false.
	alone() (bool, error)
	osFile() *os.File // for sendfile; nil if there is none
}

// mapping is a range of a file in memory. A fault while it is touched (EIO, a file cut from outside) is a Go panic that
// must be met by guard.
type mapping struct {
	b []byte
	// stored, if not nil, is told of each range of bytes written, before anything depends on it; an error stands for
	// a fault. Only tests set it.
	stored func(pos, n int64) error
	// unmap releases the mapping.
	unmap func() error
	// real: madvise and mprotect make sense.
	real bool
}

// osFS is the operating system's.
type osFS struct{}

// osFile is one of its files; the methods that differ by platform stand in file_*.go and mmap_*.go.
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

// errNotRegular: a directory, a pipe or a device stands in the place of a file.
var errNotRegular = errors.New("not a regular file")

func (osFS) open(path string, mode openMode) (file, error) {
	f, err := openFile(path, mode)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
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

// mkdirAll also makes the new directories' own entries durable, so that a log in a new directory survives a power cut
// with its directory.
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

func (osFS) remove(path string) error     { return os.Remove(path) }
func (osFS) rename(from, to string) error { return renameFile(from, to) }

// link makes a hard link to the file itself where from is a symbolic link: one to the link would lead nowhere from another
// directory.
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

// pathError gives the errors of raw system calls the form that package os gives its own.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// openDirectory is a directoryHandle of the operating system.
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

// errReplaced: a name leads to another file than the one that is open, or to none.
var errReplaced = errors.New("another one has taken its place")

// sameFile returns errReplaced unless the name of an open file still leads to it, and another error if that can't be known.
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
		return &fs.PathError{Op: "look at", Path: f.Name(), Err: errReplaced}
	}
	return nil
}

// copyChunk: large enough that the cost of a call vanishes, small enough to stay in the second-level cache.
const copyChunk = 256 << 10

// copyRange copies n bytes at from of src to pos of dst.
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
