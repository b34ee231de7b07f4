package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// osFS is the vfs.FS of the operating system.
type osFS struct{}

// osFile is the vfs.File of osFS. The methods that differ by platform are in file_*.go, open_*.go and mmap_*.go.
type osFile struct{ *os.File }

func (f osFile) OSFile() *os.File { return f.File }

func (f osFile) Close() error { return closeFile(f.File) }

// descriptors is the number of files, directories and locks that all logs of the process have open.
var descriptors atomic.Int64

// counted counts f, which closeFile closes.
func counted(f *os.File) *os.File {
	descriptors.Add(1)
	return f
}

func closeFile(f *os.File) error {
	err := f.Close()
	if !errors.Is(err, fs.ErrClosed) {
		descriptors.Add(-1)
	}
	return err
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// errNotRegular: there is a directory, a pipe or a device where a file must be.
var errNotRegular = errors.New("not a regular file")

// regularFile returns f as a file, or errNotRegular if it is none, in which case it closes f.
func regularFile(f *os.File) (vfs.File, error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{counted(f)}, nil
}

func (osFS) Stat(path string) (vfs.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return vfs.FileInfo{}, err
	}
	return vfs.FileInfo{Size: st.Size(), ModTime: st.ModTime(), IsDir: st.IsDir()}, nil
}

func (osFS) List(dir string) ([]string, error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// MkdirAll also makes the names of the new directories durable, so that a log in a new directory survives a power cut.
func (osFS) MkdirAll(dir string) error {
	var created []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err == nil {
			if !st.IsDir() {
				return &fs.PathError{Op: "mkdir", Path: d, Err: errors.New("not a directory")}
			}
			if len(created) == 0 {
				return nil
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
		if err := (osFS{}).SyncDir(filepath.Dir(d)); err != nil {
			for _, d := range created { // so that the next call makes them again, and their names durable
				_ = os.Remove(d)
			}
			return err
		}
	}
	return nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

// Link makes a hard link. If from is a symbolic link it links the file that this leads to: a link to a relative symbolic link
// would lead nowhere from another directory.
func (osFS) Link(from, to string) error {
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

// openDirectory is the vfs.Directory of osFS.
type openDirectory struct{ f *os.File }

func (d openDirectory) Close() error { return closeFile(d.f) }
func (d openDirectory) Held() error  { return sameFile(d.f) }

func (d openDirectory) List() ([]string, error) {
	if _, err := d.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return d.f.Readdirnames(-1)
}

// O_NONBLOCK, which means nothing for a directory, spares the system calls by which package os would try to set it.
func (osFS) OpenDir(dir string) (vfs.Directory, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return openDirectory{counted(f)}, nil
}

func (o osFS) SyncDir(dir string) error {
	d, err := o.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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

// flushCalls limits the flushes of files and directories. A disk works on a few dozen at a time at most; the others would wait
// in the kernel instead of here.
var flushCalls = sched.Limiter{Most: 256}

// noFile is the file of a segment that does not exist. It is empty, and nothing is read from it.
type noFile struct{ vfs.File }

func (noFile) Size() (int64, error) { return 0, nil }
func (noFile) Close() error         { return nil }
func (noFile) OSFile() *os.File     { return nil }
