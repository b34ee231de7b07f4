package seglog

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The sizes in Stats must add up to the disk space of the files, whatever the states of the segments.
func TestStatsMatchDiskSpace(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: 4 << 20})
	require.NoError(t, err)
	defer l.Close()
	value := make([]byte, 100<<10)
	for range 1000 {
		_, err := l.Append(Record{Value: value})
		require.NoError(t, err)
		if l.Stats().Segments >= 3 && l.Stats().ReservedBytes > 4<<20 { // the active segment has data, and the next is prepared
			break
		}
	}
	require.Eventually(t, func() bool {
		var blocks int64
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		require.NoError(t, err)
		for _, name := range names {
			st, err := os.Stat(name)
			if err != nil {
				return false
			}
			blocks += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		s := l.Stats()
		told := s.Bytes + s.ReservedBytes + s.PinnedBytes
		t.Logf("%d bytes of blocks, %d of the log, %d reserved", blocks, s.Bytes, s.ReservedBytes)
		ahead := strconv.IntSize == 32 || s.ReservedBytes > 1<<20 // 32-bit platforms map no files, and reserve no blocks
		return ahead && blocks > told-(64<<10) && blocks < told+(256<<10)
	}, 10*time.Second, 10*time.Millisecond)
}
