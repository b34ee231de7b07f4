//go:build !unix

package seglog

import (
	"errors"

	"github.com/seglog/seglog/internal/vfs"
)

func (f osFile) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	return nil, pathError("mmap", f.Name(), errors.ErrUnsupported)
}
