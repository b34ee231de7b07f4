package measure

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// flushesField is where the number of flushes stands in a disk's stat, from 0.
// https://docs.kernel.org/block/stat.html
const flushesField = 15

// StartFlushes begins to count the flushes that the disk of dir does, for whomever, and returns the function that ends it. The
// count is 0 where the disk has none, as that of a file system which spans several.
func StartFlushes(dir string) (count func() int64) {
	before := diskFlushes(dir)
	return func() int64 { return diskFlushes(dir) - before }
}

func diskFlushes(dir string) int64 {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0
	}
	disk, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return 0
	}
	if _, err := os.Stat(filepath.Join(disk, "partition")); err == nil {
		disk = filepath.Dir(disk) // flushes are of the whole disk
	}
	b, err := os.ReadFile(filepath.Join(disk, "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) <= flushesField {
		return 0
	}
	n, _ := strconv.ParseInt(fields[flushesField], 10, 64)
	return n
}
