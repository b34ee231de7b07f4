package seglog

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

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
