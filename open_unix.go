//go:build unix

package seglog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lock takes flock(2) on the file at path. The kernel drops it with the process, so a dead holder never blocks. The
// holder's pid is written into the file for the error message of the next one; it is not what decides.
func (osFS) lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
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
	if _, err := f.WriteAt(fmt.Appendf(nil, "%-19d\n", os.Getpid()), 0); err != nil {
		f.Close()
		return nil, err
	}
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
	return os.OpenFile(path, flag, 0o644)
}
