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

// What Stats tells of the disk is what the files take, whatever state their segments are in.
func TestStatsTellWhatTheDiskHolds(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: 4 << 20})
	require.NoError(t, err)
	defer l.Close()
	value := make([]byte, 100<<10)
	for range 110 {
		_, err := l.Append(Record{Value: value})
		require.NoError(t, err)
		if l.Stats().Segments == 3 && l.Stats().ReservedBytes > 4<<20 { // the active one is begun and the next is made
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
		ahead := strconv.IntSize == 32 || s.ReservedBytes > 1<<20 // on 32 bits nothing is mapped, and nothing reserved
		return ahead && blocks > told-(64<<10) && blocks < told+(256<<10)
	}, 10*time.Second, 10*time.Millisecond)
}
