//go:build unix

package seglog

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// retry repeats a system call that a signal interrupted: the Go runtime preempts by signals.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func renameFile(from, to string) error { return os.Rename(from, to) }

// lock takes flock(2) on the file at path. The kernel drops it with the process, so a dead holder never blocks. The
// holder's pid is written into the file for the error message of the next one; it is not what decides.
func (osFS) lock(path string) (directoryLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
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
	// Without it, on a full disk, the next one is only told less.
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-19d\n", os.Getpid()), 0)
	return fileLock{f}, nil
}

// fileLock unlocks before it closes: a process that is being forked at the moment holds a copy of the descriptor, which
// would keep the lock until its exec.
type fileLock struct{ f *os.File }

func (l fileLock) Close() error {
	return errors.Join(pathError("flock", l.f.Name(), unix.Flock(int(l.f.Fd()), unix.LOCK_UN)), l.f.Close())
}

func openFile(path string, mode openMode) (*os.File, error) {
	flag := os.O_RDONLY
	switch mode {
	case openWrite:
		flag = os.O_RDWR
	case openCreate:
		flag = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	}
	return os.OpenFile(path, flag|unix.O_NONBLOCK, 0o644) // which a pipe in the place of a file would wait for
}

func (l fileLock) held() error { return sameFile(l.f) }

// lock takes flock(2), which dies with the open file description.
func (f osFile) lock() error {
	err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrLocked, f.Name())
	}
	return pathError("flock", f.Name(), err)
}

func (f osFile) unlock() error {
	return pathError("flock", f.Name(), unix.Flock(int(f.Fd()), unix.LOCK_UN))
}

// isShortage reports whether err says that the system lacks something for a while: room on the disk, descriptors, memory.
// The call that failed so has done nothing, and may be made again.
func isShortage(err error) bool {
	for _, errno := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
