//go:build unix

package seglog

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/internal/vfs"
)

// mapBudget bounds the mappings of all logs of the process: of segments, indexes and active segments. A process that has
// reached the system's limit gets no more memory, and the Go runtime ends it. Beyond the budget, segments are read and
// written through their descriptors.
type mapBudget struct {
	most func() int64
	n    atomic.Int64
}

var mappings = mapBudget{most: sync.OnceValue(func() int64 { return mapLimit() / 4 })}

func (b *mapBudget) take() bool {
	if b.n.Add(1) <= b.most() {
		return true
	}
	b.n.Add(-1)
	return false
}

func (b *mapBudget) giveBack() { b.n.Add(-1) }

func mappingsHeld() int64 { return mappings.n.Load() }

func (f osFile) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	if strconv.IntSize == 32 || n <= 0 {
		// Segments would use up a 32-bit address space.
		return nil, pathError("mmap", f.Name(), errors.ErrUnsupported)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	if !mappings.take() {
		return nil, pathError("mmap", f.Name(), unix.ENOMEM)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(n), prot, unix.MAP_SHARED)
	if err != nil {
		mappings.giveBack()
		return nil, pathError("mmap", f.Name(), err)
	}
	return &vfs.Mapping{Bytes: b, Real: true, Unmap: func() error {
		err := unix.Munmap(b)
		mappings.giveBack()
		return pathError("munmap", f.Name(), err)
	}}, nil
}
