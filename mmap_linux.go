package seglog

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapLimit returns how many mappings a process may have.
// https://docs.kernel.org/admin-guide/sysctl/vm.html#max-map-count
func mapLimit() int64 {
	b, _ := os.ReadFile("/proc/sys/vm/max_map_count")
	if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
		return n
	}
	return defaultMapLimit
}

const defaultMapLimit = 65530 // the kernel's

// populate makes the pages of [pos, pos+n) writable ahead of the stores that need them, which spares the appender a page
// fault for each page. It is a hint: kernels before 5.14 do not have it.
// https://man7.org/linux/man-pages/man2/madvise.2.html (MADV_POPULATE_WRITE)
func (m *mapping) populate(pos, n int64) { m.advise(pos, n, unix.MADV_POPULATE_WRITE) }

// load brings the pages of [pos, pos+n) into memory by a system call. A page fault would do so too, but Go's scheduler does
// not see that a goroutine waits in one, and keeps its processor for it while the disk reads.
func (m *mapping) load(pos, n int64) { m.advise(pos, n, unix.MADV_POPULATE_READ) }

// unmapPages removes the pages of [pos, pos+n) from the page tables of this process. They stay in the page cache, and are
// mapped again when they are touched (MADV_DONTNEED of a shared mapping).
func (m *mapping) unmapPages(pos, n int64) { m.advise(pos, n, unix.MADV_DONTNEED) }

func (m *mapping) advise(pos, n int64, advice int) {
	if !m.real {
		return
	}
	page := int64(os.Getpagesize())
	start := pos - pos%page
	_ = unix.Madvise(m.b[start:min(pos+n, int64(len(m.b)))], advice)
}
