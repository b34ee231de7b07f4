package seglog

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxSend bounds one call of sendfile, so that a Close of the log is noticed between two calls.
const maxSend = 16 << 20

// direct sends by sendfile(2), or by splice(2) where there is much to send, with explicit offsets. These leave the position
// of the descriptor alone, which any number of transfers share. (io.Copy moves the position.) A header and a small section
// are sent by one writev(2) from the mapping. done is false if w is not of a type that is known to be a bare socket or
// file, or if the kernel refuses before the first byte. A type that merely embeds *net.TCPConn is not such a type, since
// its Write must see the bytes.
// https://man7.org/linux/man-pages/man2/sendfile.2.html
// https://man7.org/linux/man-pages/man2/splice.2.html
func (t *transfer) direct(w io.Writer) (done bool, err error) {
	switch c := w.(type) {
	case *net.TCPConn, *os.File:
	case *net.UnixConn:
		if a := c.LocalAddr(); a == nil || a.Network() != "unix" {
			return false, nil // each call would be a message of a datagram socket
		}
	default:
		return false, nil
	}
	src := t.s.h.f.OSFile()
	if src == nil {
		return false, nil
	}
	if !t.s.seg.lent.Load() { // a cut leaves these pages alone, which the socket may hold for a long time
		lend(src)
		t.s.seg.lent.Store(true)
	}
	t.src, t.err = int(src.Fd()), nil
	before := t.s.pos
	if _, isFile := w.(*os.File); !isFile && t.s.end-before >= minSplice {
		t.pipe = takePipe()
	}
	defer func() {
		t.pipe.giveBack()
		t.pipe = nil
	}()
	// A call for each type, so that the compiler sees the concrete type and the RawConn stays on the stack.
	switch c := w.(type) {
	case *net.TCPConn:
		err = sendTCP(c, t.step)
	case *net.UnixConn:
		err = sendUnix(c, t.step)
	case *os.File:
		err = sendFile(c, t.step)
	}
	if err != nil {
		return true, err
	}
	if t.err == unix.EINVAL || t.err == unix.ENOSYS || t.err == unix.EOPNOTSUPP {
		if t.s.pos == before {
			return false, nil
		}
	}
	if errno, ok := t.err.(unix.Errno); ok {
		call := "sendfile"
		if t.together {
			call = "writev"
		} else if t.pipe != nil {
			call = "splice"
		}
		return true, fmt.Errorf("seglog: transfer from %s at position %d: %w", t.s.h.path, t.s.pos, os.NewSyscallError(call, errno))
	}
	return true, t.err
}

// send is called by the poller whenever the destination may take bytes. It returns false to wait until it may again, within
// the write deadline.
func (t *transfer) send(fd uintptr) bool {
	s := t.s
	if t.together {
		return t.sendTogether(int(fd))
	}
	for len(s.header) > 0 {
		n, err := t.sendHeader(int(fd))
		s.header = s.header[max(n, 0):]
		if err == unix.EAGAIN {
			return false
		}
		if err != nil && err != unix.EINTR {
			t.err = err
			return true
		}
	}
	for s.pos < s.end {
		if s.l.closed.Load() {
			t.err = ErrClosed
			return true
		}
		n, err := t.sendSome(int(fd))
		if n > 0 {
			s.sent(n)
			continue
		}
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			t.err = err
			return true
		default:
			t.err = t.short()
			return true
		}
	}
	return true
}

func (t *transfer) sendHeader(fd int) (int, error) {
	if t.more {
		return unix.SendmsgN(fd, t.s.header, nil, nil, unix.MSG_MORE)
	}
	return unix.Write(fd, t.s.header)
}

// sendTogether writes header and section without copying them first. Faults of the mapping happen in the kernel: a page that
// comes from the disk keeps this thread in the system call, and one that is not in the file is EFAULT.
func (t *transfer) sendTogether(fd int) bool {
	s := t.s
	defer func() { t.parts = [2][]byte{} }()
	for s.pos < s.end || len(s.header) > 0 {
		t.parts = [2][]byte{s.header, s.h.m.Bytes[s.pos:s.end]}
		n, err := unix.Writev(fd, t.parts[:])
		if n > 0 {
			h := min(n, len(s.header))
			s.header = s.header[h:]
			s.sent(int64(n - h))
			continue
		}
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		case unix.EFAULT:
			t.err = t.short()
			return true
		default:
			t.err = err
			return true
		}
	}
	return true
}

// sendSome sends as much as the destination takes at once.
func (t *transfer) sendSome(dst int) (n int64, err error) {
	s := t.s
	if t.pipe != nil {
		n, err = t.pipe.send(dst, t.src, s.pos, s.end)
		if t.pipe.held > 0 || n > 0 || err != unix.EINVAL {
			return n, err
		}
		// The file system or the socket does not support splice(2).
		t.pipe.giveBack()
		t.pipe = nil
	}
	off := s.pos
	k, err := unix.Sendfile(dst, t.src, &off, int(min(s.end-s.pos, maxSend)))
	return int64(max(k, 0)), err
}

func sendTCP(c *net.TCPConn, step func(uintptr) bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Write(step)
}

func sendUnix(c *net.UnixConn, step func(uintptr) bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Write(step)
}

func sendFile(c *os.File, step func(uintptr) bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Write(step)
}

// pipe takes references to the pages of a file and hands them on to a socket, as sendfile(2) does with a pipe of its own
// that holds 64 KiB. A pipe of 1 MiB needs fewer rounds, for up to 15 % more speed and 15 % less processor time
// (docs/performance.md). The Go runtime has such pipes for its own use of splice: internal/poll, splice_linux.go.
type pipe struct {
	r, w int
	held int64 // bytes in it
}

const (
	pipeBytes = 1 << 20 // the most that any process may ask for: /proc/sys/fs/pipe-max-size
	// minSplice is the size of a section from which on splice(2) is used. Below it, sendfile(2) is as fast.
	minSplice = 512 << 10
	// maxPipes bounds the descriptors and pages that slow receivers hold. Further transfers use sendfile(2).
	maxPipes = 16
)

var (
	idlePipes sync.Pool // of empty pipes; a finalizer closes those that the garbage collector takes
	busyPipes atomic.Int32
)

// takePipe returns an empty pipe, or nil if there is none to be had.
func takePipe() *pipe {
	if busyPipes.Add(1) > maxPipes {
		busyPipes.Add(-1)
		return nil
	}
	if p, ok := idlePipes.Get().(*pipe); ok {
		return p
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		busyPipes.Add(-1)
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	runtime.SetFinalizer(p, (*pipe).close)
	// Refused once the user's pipes hold too much (pipe-user-pages-soft).
	if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeBytes); err != nil {
		busyPipes.Add(-1)
		p.close()
		return nil
	}
	return p
}

// giveBack returns a pipe to the pool, or closes it if there are bytes left in it.
func (p *pipe) giveBack() {
	if p == nil {
		return
	}
	busyPipes.Add(-1)
	if p.held > 0 {
		p.close() // the bytes in it belong to a transfer that failed
		return
	}
	idlePipes.Put(p)
}

func (p *pipe) close() {
	runtime.SetFinalizer(p, nil)
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// send moves as much of [pos, end) of src to dst as that takes at once; the first bytes may be in the pipe already. A result
// of 0 without an error means that src ends at pos.
func (p *pipe) send(dst, src int, pos, end int64) (int64, error) {
	flags := unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	if p.held == 0 {
		off := pos
		n, err := unix.Splice(src, &off, p.w, nil, int(min(end-pos, pipeBytes)), flags)
		if n <= 0 {
			return 0, err
		}
		p.held = int64(n) // an int where that has 32 bits
	}
	if pos+p.held < end {
		flags |= unix.SPLICE_F_MORE
	}
	n, err := unix.Splice(p.r, nil, dst, nil, int(p.held), flags)
	if n <= 0 {
		return 0, err
	}
	p.held -= int64(n)
	return int64(n), nil
}
