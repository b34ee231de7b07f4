//go:build unix

package seglog

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/internal/vfs"
)

// retry repeats a system call that was interrupted by a signal: the Go runtime preempts goroutines by signals.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

// Lock takes a flock(2) lock on the file at path. The kernel releases it when the process ends, so a dead holder never
// blocks. The pid of the holder is written into the file only for the error message of the next process.
func (osFS) Lock(path string) (vfs.DirectoryLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o644) // as for OpenDir
	if err != nil {
		return nil, err
	}
	err = retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		if pid := strings.TrimSpace(string(holder[:n])); pid != "" {
			return nil, fmt.Errorf("%w: %s is held by process %s", ErrLocked, path, pid)
		}
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	if err != nil {
		f.Close()
		return nil, pathError("flock", path, err)
	}
	// If this fails, as on a full disk, the error message of the next process says less.
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-19d\n", os.Getpid()), 0)
	return fileLock{counted(f)}, nil
}

// fileLock is a lock file. It is unlocked before it is closed: a process that is being forked at the moment has a copy of the
// descriptor, which would keep the lock until its exec.
type fileLock struct{ f *os.File }

func (l fileLock) Close() error {
	return errors.Join(pathError("flock", l.f.Name(), unix.Flock(int(l.f.Fd()), unix.LOCK_UN)), closeFile(l.f))
}

func (osFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	flag := os.O_RDONLY
	switch mode {
	case vfs.OpenWrite:
		flag = os.O_RDWR
	case vfs.OpenCreate:
		flag = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0o644) // opening a pipe by that name must not wait for its other end
	if err != nil {
		return nil, err
	}
	return regularFile(f)
}

func (l fileLock) Held() error { return sameFile(l.f) }

// Lock takes a flock(2) lock, which ends with the open file description.
func (f osFile) Lock() error {
	err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrLocked, f.Name())
	}
	return pathError("flock", f.Name(), err)
}

func (f osFile) Unlock() error {
	return pathError("flock", f.Name(), unix.Flock(int(f.Fd()), unix.LOCK_UN))
}

// isShortage reports whether err is a shortage of the system that may pass: of disk space, descriptors or memory. The call
// that failed has done nothing, and may be made again.
func isShortage(err error) bool {
	for _, errno := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
