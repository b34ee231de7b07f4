package seglog

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
