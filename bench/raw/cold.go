package raw

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ColdStep is what a cold transfer sends by one call, from a multiple of it on. Folios are aligned to their size and no
// larger than 2 MiB, so that none reaches over the border of two steps: posix_fadvise drops whole folios only.
const ColdStep = 4 << 20

const (
	// coldLag is how far behind the sender pages are dropped. What is in a socket, on either end of a loopback connection,
	// can't be.
	coldLag = 32 << 20
	// coldProbe is how far ahead of the sender it is asked what is cached: past what the kernel reads ahead by itself, which
	// would else count as cached by somebody. Disks are set up for 128 KiB to 8 MiB, and two windows may be under way.
	coldProbe = 32 << 20
	coldAhead = 8 << 20
)

// ColdWay is a way to send a log that nobody else reads. New begins a transfer; its Send is for the steps of the log, one
// after the other.
type ColdWay struct {
	Name string
	New  func() func(conn *net.TCPConn, file *os.File, pos, n int64) error
}

// ColdWays are the raw ways of row cold.
func ColdWays() []ColdWay {
	sender := func(c coldSender) func() func(*net.TCPConn, *os.File, int64, int64) error {
		return func() func(*net.TCPConn, *os.File, int64, int64) error {
			fresh := c
			return fresh.send
		}
	}
	return []ColdWay{
		{"raw sendfile", sender(coldSender{})},
		{"raw sendfile, dropped 32 MiB behind", sender(coldSender{lag: coldLag})},
		{"raw sendfile, dropped 32 MiB behind where not cached before", sender(coldSender{lag: coldLag, probe: true})},
		{"raw preadv2 RWF_DONTCACHE of 256 KiB + write", newUncached},
		{"raw sendfile, 8 MiB read ahead", sender(coldSender{ahead: coldAhead})},
		{"raw sendfile, 8 MiB read ahead, dropped 32 MiB behind", sender(coldSender{ahead: coldAhead, lag: coldLag})},
	}
}

// coldSender is sendfile with advice about what comes next and what was sent.
type coldSender struct {
	ahead int64 // read into the cache before its turn
	lag   int64 // dropped from the cache when this much was sent after it; 0: never
	probe bool  // drop only what was not cached before

	sent   []step
	behind int64 // bytes in sent
	file   *os.File
	probed int64 // up to here of file
	cold   map[int64]bool
}

type step struct {
	file   *os.File
	pos, n int64
}

func (c *coldSender) send(conn *net.TCPConn, file *os.File, pos, n int64) error {
	fresh := file != c.file || pos == 0
	c.file = file
	if c.ahead > 0 {
		from := pos + n
		if fresh {
			from = pos
		}
		if err := unix.Fadvise(int(file.Fd()), from, pos+n+c.ahead-from, unix.FADV_WILLNEED); err != nil {
			return err
		}
	}
	drop := c.lag > 0
	if c.probe {
		if fresh {
			c.probed, c.cold = pos, map[int64]bool{}
		}
		for ; c.probed <= pos+coldProbe; c.probed += ColdStep {
			cached, err := Cached(file, c.probed, ColdStep)
			if err != nil {
				return err
			}
			c.cold[c.probed] = cached < ColdStep/2
		}
		drop = c.cold[pos]
	}
	if err := SendFile(conn, file, pos, n); err != nil || !drop {
		return err
	}
	c.sent = append(c.sent, step{file, pos, n})
	for c.behind += n; c.behind > c.lag; c.sent = c.sent[1:] {
		s := c.sent[0]
		if err := unix.Fadvise(int(s.file.Fd()), s.pos, s.n, unix.FADV_DONTNEED); err != nil {
			return err
		}
		c.behind -= s.n
	}
	return nil
}

// newUncached reads pages that leave the cache when they were copied, unless they were there before.
// https://man7.org/linux/man-pages/man2/readv.2.html (RWF_DONTCACHE, Linux 6.14)
func newUncached() func(conn *net.TCPConn, file *os.File, pos, n int64) error {
	buf := make([]byte, 256<<10)
	into := [][]byte{nil}
	return func(conn *net.TCPConn, file *os.File, pos, n int64) error {
		for n > 0 {
			into[0] = buf[:min(n, int64(len(buf)))]
			got, err := unix.Preadv2(int(file.Fd()), into, pos, unix.RWF_DONTCACHE)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return fmt.Errorf("preadv2: %w", err)
			}
			if got == 0 {
				return fmt.Errorf("%s ends at %d, %d bytes early", file.Name(), pos, n)
			}
			if _, err := conn.Write(buf[:got]); err != nil {
				return err
			}
			pos += int64(got)
			n -= int64(got)
		}
		return nil
	}
}

// Cached is how many bytes of [pos, pos+n) are in the page cache, in whole pages.
// https://man7.org/linux/man-pages/man2/cachestat.2.html (Linux 6.5)
func Cached(file *os.File, pos, n int64) (int64, error) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{Off: uint64(pos), Len: uint64(n)}, &stat, 0)
	return int64(stat.Cache) * int64(os.Getpagesize()), os.NewSyscallError("cachestat", err)
}

// Evict flushes every file below dir and drops it from the page cache.
func Evict(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(unix.Fdatasync(int(f.Fd())), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}
