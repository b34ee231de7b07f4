package raftstore

import (
	"os"
	"syscall"
)

// flush makes what was written durable; the times of the file may follow later.
func flush(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return os.NewSyscallError("fdatasync "+f.Name(), err)
		}
	}
}
