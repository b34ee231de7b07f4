//go:build !linux

package seglog

import (
	"errors"
	"math"
	"os"
	"runtime"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/vfs"
)

// Reserve is not supported: no other platform here has a call that both allocates blocks and extends the file. Logs are
// written by pwrite.
func (f osFile) Reserve(pos, n int64) error {
	return pathError("reserve", f.Name(), errors.ErrUnsupported)
}

func (f osFile) Zero(pos, n int64) error { return pathError("zero", f.Name(), errors.ErrUnsupported) }

func (f osFile) StartWriteBack(int64, int64) {}

func (f osFile) WriteBack(int64, int64) error { return errors.ErrUnsupported }

func (f osFile) Device() *commit.Device { return nil }

func (l fileLock) Disk() uint64 { return 0 }

func (l fileLock) Quiet(vfs.File) commit.Flusher { return nil }

func (f osFile) Alone() (bool, error) { return false, nil }

// Nothing is lent: bytes are sent by a copy.
func lend(*os.File)  {}
func isNew(*os.File) {}

// mayCutInPlace is as osFile.Alone.
func mayCutInPlace(f *os.File) bool { return f == nil }

// Flush uses os.File.Sync, which is fsync, on darwin F_FULLFSYNC, and on Windows FlushFileBuffers.
func (f osFile) Flush() error {
	flushCalls.Enter()
	defer flushCalls.Leave()
	return f.Sync()
}

// Sync does nothing on Windows, which makes directory entries durable by itself and can't flush a directory.
func (d openDirectory) Sync() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	flushCalls.Enter()
	defer flushCalls.Leave()
	return d.f.Sync()
}

func uncache(*os.File, int64, int64) {}

func memoryLimit() int64 { return math.MaxInt64 }

// openFileLimit is a guess: the usual soft limit of BSD and macOS is low, and Go raises it at the start if it may.
func openFileLimit() int { return 4096 }

// mapLimit returns the default of Linux, which does no harm where there is no limit.
func mapLimit() int64 { return 65530 }

func populate(m *vfs.Mapping, pos, n int64) {}

func unmapPages(m *vfs.Mapping, pos, n int64) {}

func loadPages(m *vfs.Mapping, pos, n int64) {}
