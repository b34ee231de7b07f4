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

// limitFiles sets the soft limit of the process on descriptors for the time of the test.
func limitFiles(t *testing.T, n int) {
	t.Helper()
	var lim unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	old := lim
	lim.Cur = uint64(n)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
}

// openLogFiles counts the descriptors of this process on segments below dir, those that are made ready included.
func openLogFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		path, _ := os.Readlink(fd) // that of Glob itself is gone
		if strings.HasPrefix(path, dir) && (strings.HasSuffix(path, logSuffix) || strings.HasSuffix(path, nextName)) {
			n++
		}
	}
	return n
}

// highestDescriptor is the number that the next limit has to lie above for what is open now.
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
	require.NoError(t, l.Close()) // so that no segment waits for its seal
	l, err = Open(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// What all logs of a process keep open has one bound, written and read-only ones alike, and a segment in use stays open
// whichever log it belongs to.
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
		if round == 0 { // in which all were used once when the first had to go
			hot = logs[0].view.Load().segs[0].h.Load()
		}
	}
	require.Same(t, hot, logs[0].view.Load().segs[0].h.Load(), "used all the time and closed")
	require.Greater(t, openLogFiles(t, dir), 80, "the budget is used")
	require.Eventually(t, func() bool { // a segment that is being made ready is counted a moment later
		return int64(openLogFiles(t, dir)) == processSegments.open.Load()-before
	}, 10*time.Second, time.Millisecond)
	// Segments that are written count as well: for each, one that is only read is closed.
	for i := range 60 {
		l, err := Open(filepath.Join(dir, "w", string(rune('A'+i))), &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
		if err != nil { // three more descriptors a log
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

// A process that runs out of descriptors all the same closes what another log keeps open.
func TestDescriptorsAreTakenFromOtherLogs(t *testing.T) {
	dir := t.TempDir()
	a, b := logOfSegments(t, filepath.Join(dir, "a"), 60), logOfSegments(t, filepath.Join(dir, "b"), 5)
	for offset := int64(0); offset < a.Offsets().End; offset += 4 {
		_, err := a.Read(offset)
		require.NoError(t, err)
	}
	require.Greater(t, a.Stats().OpenSegments, 50)
	limitFiles(t, highestDescriptor(t)) // not one is left
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
	c, err := Open(filepath.Join(dir, "c"), &Options{Flush: FlushNone}) // which is no segment, and needs one as well
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}
