package seglog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/internal/race"
)

// limitFiles sets the soft limit of the process on descriptors during the test.
func limitFiles(t *testing.T, n int) {
	t.Helper()
	var lim unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	old := lim
	lim.Cur = uint64(n)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
}

// openLogFiles returns the number of descriptors that this process has of segments below dir, including prepared ones.
func openLogFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		path, _ := os.Readlink(fd) // fails for the descriptor of Glob itself, which is closed
		if strings.HasPrefix(path, dir) && (strings.HasSuffix(path, logSuffix) || strings.HasSuffix(path, nextName)) {
			n++
		}
	}
	return n
}

// highestDescriptor returns the lowest free descriptor. With that as the limit, no descriptor is left.
func highestDescriptor(t *testing.T) int {
	t.Helper()
	f, err := os.Open("/dev/null") // the lowest that is free
	require.NoError(t, err)
	defer f.Close()
	return int(f.Fd())
}

func logOfSegments(t *testing.T, dir string, segments int) *Log {
	t.Helper()
	o := &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes, MaxOpenSegments: 10_000}
	l, err := Open(dir, o)
	require.NoError(t, err)
	for l.Stats().Segments < segments {
		appendNumbered(t, l)
	}
	require.NoError(t, l.Close()) // so that all segments but the last are sealed
	l, err = Open(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// The number of open segments must be bounded over all logs of a process, read-only ones included, and a segment in steady use
// must stay open, whichever log it belongs to.
func TestOpenSegmentsOfAllLogsAreBounded(t *testing.T) {
	before := processSegments.open.Load()
	dir := t.TempDir()
	var logs []*Log
	limitFiles(t, 200)
	for _, name := range []string{"a", "b", "c"} {
		logs = append(logs, logOfSegments(t, filepath.Join(dir, name), 50))
		r, err := Open(filepath.Join(dir, name), &Options{ReadOnly: true, MaxOpenSegments: 10_000})
		require.NoError(t, err)
		t.Cleanup(func() { r.Close() })
		logs = append(logs, r)
	}
	var hot *handle
	for round := range 3 {
		for _, l := range logs {
			end := l.Offsets().End
			for offset := int64(0); offset < end; offset += 4 {
				r, err := l.Read(offset)
				require.NoError(t, err)
				require.Equal(t, string(numbered(offset)), string(r.Value))
				_, err = logs[0].Read(0)
				require.NoError(t, err)
			}
			require.LessOrEqual(t, openLogFiles(t, dir), 100)
		}
		if round == 0 { // by the end of the first round, the clock algorithm knows which segments are in use
			hot = logs[0].view.Load().segs[0].h.Load()
		}
	}
	require.Same(t, hot, logs[0].view.Load().segs[0].h.Load(), "a segment in steady use was closed")
	require.Greater(t, openLogFiles(t, dir), 80, "the logs must use the budget")
	require.Eventually(t, func() bool { // a segment that is being prepared is counted a little later
		return int64(openLogFiles(t, dir)) == processSegments.open.Load()-before
	}, 10*time.Second, time.Millisecond)
	// Active segments count as well: for each, a segment that is only read is closed.
	for i := range 60 {
		l, err := Open(filepath.Join(dir, "w", string(rune('A'+i))), &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
		if err != nil { // each log takes three more descriptors
			require.ErrorIs(t, err, unix.EMFILE)
			break
		}
		logs = append(logs, l)
	}
	require.LessOrEqual(t, openLogFiles(t, dir), 100)
	for _, l := range logs {
		require.NoError(t, l.Close())
	}
	require.Equal(t, before, processSegments.open.Load())
	require.Empty(t, processSegments.logs)
	require.Zero(t, processSegments.sealed.Load())
}

// If the process runs out of descriptors all the same, a log must close segments that another log keeps open.
func TestDescriptorsAreTakenFromOtherLogs(t *testing.T) {
	dir := t.TempDir()
	a, b := logOfSegments(t, filepath.Join(dir, "a"), 60), logOfSegments(t, filepath.Join(dir, "b"), 5)
	for offset := int64(0); offset < a.Offsets().End; offset += 4 {
		_, err := a.Read(offset)
		require.NoError(t, err)
	}
	require.Greater(t, a.Stats().OpenSegments, 50)
	limitFiles(t, highestDescriptor(t)) // no descriptor is left
	r, err := b.Read(0)
	require.NoError(t, err)
	require.Equal(t, string(numbered(0)), string(r.Value))
	require.Less(t, a.Stats().OpenSegments, 40)
	for offset := int64(0); offset < a.Offsets().End; offset += 4 {
		_, err := a.Read(offset)
		require.NoError(t, err)
	}
	limitFiles(t, highestDescriptor(t))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "c"), 0o755))
	c, err := Open(filepath.Join(dir, "c"), &Options{Flush: FlushNone}) // needs descriptors for files that are not segments
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}

// If more logs are appended to at once than the process has descriptors for, those that were not used for a while must give theirs up,
// under each policy, and none must lose anything by it.
func TestMoreActiveLogsThanDescriptors(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushAsync, FlushNone} {
		t.Run(policy.String(), func(t *testing.T) {
			const n = 48
			dir := t.TempDir()
			o := &Options{Flush: policy, SegmentBytes: 8 * minSegmentBytes}
			limitFiles(t, highestDescriptor(t)+2*n+40) // all can be at rest, and a dozen awake
			logs := make([]*Log, n)
			for i := range logs {
				l, err := Open(filepath.Join(dir, strconv.Itoa(i)), o)
				require.NoError(t, err)
				defer l.Close()
				logs[i] = l
				appendNumbered(t, logs[i])
			}
			var wg sync.WaitGroup
			for g := range 4 { // each appends to its own logs, and reads all
				wg.Add(1)
				go func() {
					defer wg.Done()
					rng := rand.New(rand.NewPCG(uint64(g), uint64(policy)))
					for range 100 {
						appendNumbered(t, logs[rng.IntN(n/4)*4+g])
						l := logs[rng.IntN(n)]
						offset := rng.Int64N(l.Offsets().HighWatermark)
						r, err := l.Read(offset)
						if assert.NoError(t, err) {
							assert.Equal(t, string(numbered(offset)), string(r.Value))
						}
					}
				}()
			}
			wg.Wait()
			copied := filepath.Join(dir, "copy")
			require.NoError(t, logs[0].Snapshot(copied))
			for _, l := range logs[1:] { // no descriptor is left by now
				appendNumbered(t, l)
			}
			r, err := Open(copied, &Options{ReadOnly: true})
			require.NoError(t, err)
			require.Equal(t, logs[0].Offsets().End, r.Offsets().End)
			require.NoError(t, r.Close())
			for i, l := range logs {
				end := l.Offsets().End
				require.NoError(t, l.Close())
				l, err = Open(filepath.Join(dir, strconv.Itoa(i)), o)
				require.NoError(t, err)
				require.Equal(t, end, l.Offsets().End)
				require.NoError(t, l.Close())
			}
		})
	}
}

// A log in steady use must stay awake while others come to rest for want of descriptors.
func TestSteadyLogStaysAwake(t *testing.T) {
	const n = 30
	dir := t.TempDir()
	limitFiles(t, highestDescriptor(t)+2*n+30)
	logs := make([]*Log, n)
	var steady *handle
	for round := range 3 {
		for i := range logs {
			if round == 0 {
				l, err := Open(filepath.Join(dir, strconv.Itoa(i)), nil)
				require.NoError(t, err)
				defer l.Close()
				logs[i] = l
			}
			appendNumbered(t, logs[i])
			appendNumbered(t, logs[0])
			h := logs[0].view.Load().segs[0].h.Load()
			if steady == nil {
				steady = h
			}
			require.True(t, h == steady, "round %d, log %d", round, i)
		}
	}
	resting := 0
	for _, l := range logs {
		if l.atRest() {
			resting++
		}
		require.NoError(t, l.Close())
	}
	require.Greater(t, resting, n/4)
}

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
	if testing.Short() || race.On {
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

// mappedFiles returns the number of mappings that this process has of files below dir.
func mappedFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, dir) {
			n++
		}
	}
	return n
}

// Once the mappings of all logs reach the budget, further segments must be read and written through descriptors, under each
// flush policy, and be mapped again once there is room.
func TestMappingsOfAllLogsAreBounded(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("32-bit platforms map no files")
	}
	before, most := mappings.n.Load(), mappings.most
	defer func() { mappings.most = most }()
	const room = 20
	mappings.most = func() int64 { return before + room }
	dir := t.TempDir()
	var logs []*Log
	for i := range 12 {
		o := &Options{Flush: FlushPolicy(i % 3), SegmentBytes: 64 << 10, IndexBytes: 64} // the indexes are small, except those of log 5
		if i == 5 {
			o.SegmentBytes, o.IndexBytes = 1<<20, 1
		}
		l, err := Open(filepath.Join(dir, fmt.Sprint(i)), o)
		require.NoError(t, err)
		logs = append(logs, l)
		for l.Offsets().End < 70 || l.Stats().Segments < 3 {
			records := make([]Record, 20)
			for k := range records {
				records[k].Value = numbered(l.Offsets().End + int64(k))
			}
			_, err := l.Append(records...)
			require.NoError(t, err)
		}
		require.LessOrEqual(t, mappedFiles(t, dir), room)
	}
	for range 2 {
		for _, l := range logs {
			requireNumbered(t, l, l.Offsets().End)
			require.LessOrEqual(t, mappedFiles(t, dir), room)
		}
	}
	require.Greater(t, mappedFiles(t, dir), room/2, "the logs must use the budget")
	for _, l := range logs {
		require.NoError(t, l.Close())
	}
	require.Equal(t, before, mappings.n.Load())
	l, err := Open(filepath.Join(dir, "0"), nil)
	require.NoError(t, err)
	requireNumbered(t, l, l.Offsets().End)
	require.Positive(t, mappedFiles(t, dir))
	require.NoError(t, l.Close())
	require.Zero(t, l.Stats().Errors)
}

// The budget must leave at least three quarters of the system's limit to the rest of the process.
func TestMapBudget(t *testing.T) {
	n := mappings.most()
	require.Positive(t, n)
	require.LessOrEqual(t, 4*n, mapLimit())
}
