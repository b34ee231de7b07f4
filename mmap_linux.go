package seglog

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/internal/vfs"
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

// populate makes the pages of [pos, pos+n) of m writable ahead of the stores that need them, which spares the appender a page
// fault for each page. It is a hint: kernels before 5.14 do not have it.
// https://man7.org/linux/man-pages/man2/madvise.2.html (MADV_POPULATE_WRITE)
func populate(m *vfs.Mapping, pos, n int64) { advise(m, pos, n, unix.MADV_POPULATE_WRITE) }

// loadPages brings the pages of [pos, pos+n) of m into memory by a system call. A page fault would do so too, but Go's scheduler
// does not see that a goroutine waits in one, and keeps its processor for it while the disk reads.
func loadPages(m *vfs.Mapping, pos, n int64) { advise(m, pos, n, unix.MADV_POPULATE_READ) }

// unmapPages removes the pages of [pos, pos+n) of m from the page tables of this process. They stay in the page cache, and are
// mapped again when they are touched (MADV_DONTNEED of a shared mapping).
func unmapPages(m *vfs.Mapping, pos, n int64) { advise(m, pos, n, unix.MADV_DONTNEED) }

func advise(m *vfs.Mapping, pos, n int64, advice int) {
	if !m.Real {
		return
	}
	page := int64(os.Getpagesize())
	start := pos - pos%page
	_ = unix.Madvise(m.Bytes[start:min(pos+n, int64(len(m.Bytes)))], advice)
}
