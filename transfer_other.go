//go:build !linux

package seglog

import "io"

type pipe struct{}

// direct does nothing: on other systems than Linux the bytes go through a pooled buffer.
func (t *transfer) direct(io.Writer) (done bool, err error) { return false, nil }

func (t *transfer) send(uintptr) bool { return true }
