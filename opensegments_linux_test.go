package seglog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
