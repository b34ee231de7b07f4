package raw

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Way is one way to bring n bytes of a file, from pos on, to a socket.
type Way struct {
	Name string
	Send func(conn *net.TCPConn, file *os.File, pos, n int64) error
}

// Ways are the raw ways of row 9. What a way needs beside the socket it keeps from call to call.
func Ways() ([]Way, func(), error) {
	pipe, err := newPipe(1 << 20)
	if err != nil {
		return nil, nil, err
	}
	small, large := make([]byte, 32<<10), make([]byte, 1<<20)
	ways := []Way{
		{"raw sendfile", SendFile},
		{"raw splice, 1 MiB pipe", pipe.send},
		{"io.Copy of the file", copyFile},
		{"read + write 32 KiB", func(c *net.TCPConn, f *os.File, pos, n int64) error { return readWrite(c, f, pos, n, small) }},
		{"read + write 1 MiB", func(c *net.TCPConn, f *os.File, pos, n int64) error { return readWrite(c, f, pos, n, large) }},
	}
	return ways, pipe.close, nil
}

// SendFile is sendfile(2) with an offset of its own, waiting in the poller.
func SendFile(conn *net.TCPConn, file *os.File, pos, n int64) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for n > 0 {
			sent, err := unix.Sendfile(int(fd), int(file.Fd()), &pos, int(min(n, 1<<30)))
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if errors.Is(err, syscall.EAGAIN) {
				return false
			}
			if err == nil && sent == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				failed = err
				return true
			}
			n -= int64(sent)
		}
		return true
	})
	return errors.Join(err, failed)
}

type pipe struct {
	r, w int
	size int
}

func newPipe(size int) (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	p := &pipe{r: fds[0], w: fds[1], size: size}
	if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, size); err != nil {
		p.close()
		return nil, fmt.Errorf("pipe of %d bytes: %w", size, err)
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// send moves page references from the file into the pipe and from there into the socket.
func (p *pipe) send(conn *net.TCPConn, file *os.File, pos, n int64) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	inPipe := int64(0)
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for n > 0 || inPipe > 0 {
			if inPipe == 0 {
				got, err := unix.Splice(int(file.Fd()), &pos, p.w, nil, int(min(n, int64(p.size))), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				if err != nil {
					failed = err
					return true
				}
				if got == 0 {
					failed = io.ErrUnexpectedEOF
					return true
				}
				n -= got
				inPipe = got
			}
			flags := unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
			if n > 0 {
				flags |= unix.SPLICE_F_MORE
			}
			put, err := unix.Splice(p.r, nil, int(fd), nil, int(inPipe), flags)
			if errors.Is(err, syscall.EAGAIN) {
				return false
			}
			if err != nil {
				failed = err
				return true
			}
			inPipe -= put
		}
		return true
	})
	return errors.Join(err, failed)
}

// copyFile is what a Go service writes today: io.Copy, which the standard library turns into sendfile over the shared
// position of the file.
func copyFile(conn *net.TCPConn, file *os.File, pos, n int64) error {
	if _, err := file.Seek(pos, io.SeekStart); err != nil {
		return err
	}
	got, err := io.Copy(conn, io.LimitReader(file, n))
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func readWrite(conn *net.TCPConn, file *os.File, pos, n int64, buf []byte) error {
	for n > 0 {
		got, err := file.ReadAt(buf[:min(n, int64(len(buf)))], pos)
		if err != nil {
			return err
		}
		if _, err := conn.Write(buf[:got]); err != nil {
			return err
		}
		pos += int64(got)
		n -= int64(got)
	}
	return nil
}

// SendHeaderMore sends the header with MSG_MORE, so that it leaves in one segment with the body that follows.
func SendHeaderMore(conn *net.TCPConn, header []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for len(header) > 0 {
			n, err := unix.SendmsgN(int(fd), header, nil, nil, unix.MSG_MORE)
			if errors.Is(err, syscall.EAGAIN) {
				return false
			}
			if err != nil {
				failed = err
				return true
			}
			header = header[n:]
		}
		return true
	})
	return errors.Join(err, failed)
}
