//go:build unix

package seglog

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

func (f osFile) mmap(n int64, writable bool) (*mapping, error) {
	if strconv.IntSize == 32 || n <= 0 {
		// Segments would use up a 32-bit address space.
		return nil, pathError("mmap", f.Name(), errors.ErrUnsupported)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, pathError("mmap", f.Name(), err)
	}
	return &mapping{b: b, real: true, unmap: func() error { return pathError("munmap", f.Name(), unix.Munmap(b)) }}, nil
}
