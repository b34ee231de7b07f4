//go:build !unix

package seglog

import "errors"

func (f osFile) mmap(n int64, writable bool) (*mapping, error) {
	return nil, pathError("mmap", f.Name(), errors.ErrUnsupported)
}
