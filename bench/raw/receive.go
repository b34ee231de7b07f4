package raw

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// errFrame: what arrived is not what was sent.
var errFrame = errors.New("a frame is damaged")

// checkFrames checks the whole frames that b begins with, and returns how long they are together.
func checkFrames(b []byte) (int, error) {
	n := 0
	for len(b)-n >= FrameHeader {
		size := frameSize(b[n:])
		if size > len(b)-n {
			break
		}
		if size < FrameHeader || !frameIntact(b[n:n+size]) {
			return n, errFrame
		}
		n += size
	}
	return n, nil
}

// ReadCheckWrite stores what arrives on a connection: read, check, write, through a buffer.
func ReadCheckWrite(conn *net.TCPConn, file *os.File) (stored int64, err error) {
	buf := make([]byte, 1<<20)
	have := 0
	for {
		n, readErr := conn.Read(buf[have:])
		have += n
		whole, err := checkFrames(buf[:have])
		if err != nil {
			return stored, err
		}
		if _, err := file.WriteAt(buf[:whole], stored); err != nil {
			return stored, err
		}
		stored += int64(whole)
		have = copy(buf, buf[whole:have])
		if readErr == io.EOF {
			return stored, nil
		}
		if readErr != nil {
			return stored, readErr
		}
	}
}

// SpliceCheck stores what arrives by splice(2) through a pipe, and checks it in a mapping of the file, which can hold limit
// bytes. What is damaged is in the file by then, and would have to be taken out again.
func SpliceCheck(conn *net.TCPConn, file *os.File, limit int64) (stored int64, err error) {
	p, err := newPipe(1 << 20)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, limit); err != nil {
		return 0, err
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, int(limit), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(mapped)) }()
	conn4, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var checked int64
	var failed error
	err = conn4.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Splice(int(fd), nil, p.w, nil, p.size, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if err != nil || n == 0 {
				failed = err
				return true
			}
			for n > 0 {
				k, err := unix.Splice(p.r, nil, int(file.Fd()), &stored, int(n), unix.SPLICE_F_MOVE)
				if err != nil {
					failed = err
					return true
				}
				n -= k
			}
			whole, err := checkFrames(mapped[checked:stored])
			if err != nil {
				failed = err
				return true
			}
			checked += int64(whole)
		}
	})
	return checked, errors.Join(err, failed)
}
