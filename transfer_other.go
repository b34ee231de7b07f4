//go:build !linux

package seglog

import "io"

type pipe struct{}

// zeroCopy: elsewhere the bytes go through a pooled buffer.
func (t *transfer) zeroCopy(io.Writer) (done bool, err error) { return false, nil }

func (t *transfer) send(uintptr) bool { return true }
