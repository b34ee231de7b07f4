//go:build !linux

package seglog

import (
	"errors"
	"math"
	"os"
	"runtime"
	"syscall"
)

// reserve: no other platform here has a call that both allocates blocks and extends the file, so the log is written
// by pwrite.
func (f osFile) reserve(pos, n int64) error {
	return pathError("reserve", f.Name(), errors.ErrUnsupported)
}

func (f osFile) zero(pos, n int64) error { return pathError("zero", f.Name(), errors.ErrUnsupported) }

func (f osFile) writeBack(int64, int64) {}

// flush: os.File.Sync is fsync, on darwin F_FULLFSYNC, on Windows FlushFileBuffers.
func (f osFile) flush() error { return f.Sync() }

// syncDir: Windows keeps directory entries durable on its own, and can't open a directory to flush it.
func (osFS) syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func uncache(*os.File, int64, int64) {}

func memoryLimit() int64 { return math.MaxInt64 }

// openFileLimit: the usual soft limit of BSD and macOS is low, and Go raises it at start where it may.
func openFileLimit() int { return 4096 }

// windowsDiskFull is ERROR_DISK_FULL.
const windowsDiskFull = syscall.Errno(112)

func isDiskFull(err error) bool {
	if runtime.GOOS == "windows" {
		return errors.Is(err, windowsDiskFull)
	}
	return errors.Is(err, syscall.ENOSPC)
}
