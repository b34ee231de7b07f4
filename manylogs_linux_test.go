package seglog

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// threads returns the number of threads of this process. Go never ends a thread that it started.
func threads(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if n, ok := strings.CutPrefix(line, "Threads:"); ok {
			threads, err := strconv.Atoi(strings.TrimSpace(n))
			require.NoError(t, err)
			return threads
		}
	}
	t.Fatal("/proc/self/status has no line Threads")
	return 0
}

// When two thousand logs are opened, appended to and closed at once, each must not take a thread of its own: the number of
// threads in blocking system calls is bounded for the process.
func TestThreadsOfManyLogs(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("opens 2,000 logs")
	}
	const n, perLog = 2000, 5 // descriptors: lock, directory, state, active segment, and a temporary one
	var lim unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	if lim.Cur < n*perLog+1000 {
		t.Skipf("the limit on open files is %d", lim.Cur)
	}
	var takes atomic.Int64
	slow := func(int) error {
		d := unix.NsecToTimespec(takes.Load())
		_ = unix.Nanosleep(&d, nil) // a system call that blocks its thread, as a flush does
		return nil
	}
	fdatasync, fsync = slow, slow
	defer func() { fdatasync, fsync = unix.Fdatasync, unix.Fsync }()
	dir, err := os.MkdirTemp("/dev/shm", "seglog") // so that nothing else waits for a disk
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	before := threads(t)
	logs := make([]*Log, n)
	errs := make([]error, n)
	each := func(name string, do func(i int) error) {
		start := time.Now()
		var wg sync.WaitGroup
		for i := range n {
			wg.Add(1)
			go func() {
				defer wg.Done()
				errs[i] = do(i)
			}()
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		t.Logf("%s: %v, %d threads", name, time.Since(start).Round(time.Millisecond), threads(t))
	}
	began := time.Now()
	each("open", func(i int) (err error) {
		logs[i], err = Open(filepath.Join(dir, fmt.Sprint(i)), nil)
		return err
	})
	takes.Store(int64(300 * time.Millisecond))
	each("append", func(i int) error {
		_, err := logs[i].Append(Record{Value: numbered(0)})
		return err
	})
	descriptors, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	require.LessOrEqual(t, len(descriptors), n*perLog+200)
	takes.Store(int64(time.Millisecond))
	each("close", func(i int) error { return logs[i].Close() })
	require.Less(t, threads(t)-before, 600)
	t.Log("total:", time.Since(began).Round(time.Millisecond))
}
