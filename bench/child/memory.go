package child

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// memoryMounts are where the memory controller is found, and the file that takes the limit there: of the first version of
// control groups, and of the second.
var memoryMounts = []struct{ dir, limit string }{
	{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
	{"/sys/fs/cgroup", "memory.max"},
}

// MemoryGroup is a control group with a limit of memory. The pages of a file count for the group whose process brought
// them into the cache.
// https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
type MemoryGroup struct{ dir string }

// NewMemoryGroup makes one. It takes a machine that has the controller, and the right to use it.
func NewMemoryGroup(limit int64) (*MemoryGroup, error) {
	var failed []error
	for _, m := range memoryMounts {
		g := &MemoryGroup{filepath.Join(m.dir, "seglog-bench-"+strconv.Itoa(os.Getpid()))}
		if _, err := os.Stat(filepath.Join(m.dir, "cgroup.procs")); err != nil {
			failed = append(failed, err)
			continue
		}
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			failed = append(failed, err)
			continue
		}
		// Without O_CREATE: a group that lacks the controller has no such file.
		f, err := os.OpenFile(filepath.Join(g.dir, m.limit), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(strconv.FormatInt(limit, 10))
			err = errors.Join(err, f.Close())
		}
		if err == nil {
			return g, nil
		}
		failed = append(failed, err, g.Remove())
	}
	return nil, fmt.Errorf("no memory group: %w", errors.Join(failed...))
}

// joinMemoryGroup moves this process, with all its threads, into the group in dir.
func joinMemoryGroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// Remove waits for the processes of the group that are ending.
func (g *MemoryGroup) Remove() error {
	for tries := 0; ; tries++ {
		err := unix.Rmdir(g.dir)
		if err != unix.EBUSY || tries == 100 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
