package measure

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// Holds is what a process has of what is limited. Mappings are those of files: a thread has two others, and comes when it pleases.
type Holds struct{ Goroutines, Descriptors, Mappings, Heap int64 }

// ProcessHolds counts them, after a garbage collection.
func ProcessHolds() Holds {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	open, _ := os.ReadDir("/proc/self/fd") // what can't be read counts as nothing
	maps, _ := os.ReadFile("/proc/self/maps")
	return Holds{int64(runtime.NumGoroutine()), int64(len(open)), int64(bytes.Count(maps, []byte(" /"))), int64(m.HeapAlloc)}
}

// Minus is what h has more than before.
func (h Holds) Minus(before Holds) Holds {
	return Holds{h.Goroutines - before.Goroutines, h.Descriptors - before.Descriptors, h.Mappings - before.Mappings, h.Heap - before.Heap}
}

// DiskBytes is the space that the files below dir take.
func DiskBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && !d.IsDir() {
			if err = syscall.Stat(path, &st); err == nil {
				n += st.Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // it was removed or renamed meanwhile
			err = nil
		}
		return err
	})
	return n, err
}
