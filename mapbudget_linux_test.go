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

// mappedFiles counts the mappings of this process of files below dir.
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

// Logs whose mappings would be more than the budget read and write through descriptors, under each policy, and map again
// once there is room.
func TestMappingsOfAllLogsAreBounded(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("nothing is mapped in 32 bits")
	}
	before, most := mappings.n.Load(), mappings.most
	defer func() { mappings.most = most }()
	const room = 20
	mappings.most = func() int64 { return before + room }
	dir := t.TempDir()
	var logs []*Log
	for i := range 12 {
		o := &Options{Flush: FlushPolicy(i % 3), SegmentBytes: 64 << 10, IndexBytes: 64} // whose indexes are small, but for one
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
	require.Greater(t, mappedFiles(t, dir), room/2, "the budget is used")
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

// The budget leaves most of what the system allows to others.
func TestMapBudget(t *testing.T) {
	n := mappings.most()
	require.Positive(t, n)
	require.LessOrEqual(t, 4*n, mapLimit())
}
