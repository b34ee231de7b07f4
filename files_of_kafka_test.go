package seglog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A Kafka broker's snapshots of its producers above the end of the log must go with the records, since the offsets will be
// assigned again. TruncateTo, Reset, and Open with a torn tail remove them.
func TestFilesOnProducersAboveTheEndGo(t *testing.T) {
	name := func(dir string, offset int64) string {
		return filepath.Join(dir, fmt.Sprintf("%020d.snapshot", offset))
	}
	left := func(dir string) (left []int64) {
		for _, offset := range []int64{0, 10, 12, 15, 20, 21} {
			if _, err := os.Stat(name(dir, offset)); err == nil {
				left = append(left, offset)
			}
		}
		return left
	}
	made := func(t *testing.T) (dir string, size int64) {
		dir = t.TempDir()
		l := open(t, dir, nil)
		appendN(t, l, 0, 20)
		size = l.Stats().Bytes
		require.NoError(t, l.Close())
		for _, offset := range []int64{0, 10, 12, 15, 20} {
			require.NoError(t, os.WriteFile(name(dir, offset), []byte("x"), 0o644))
		}
		return dir, size
	}
	t.Run("TruncateTo", func(t *testing.T) {
		dir, _ := made(t)
		l := open(t, dir, nil)
		require.Equal(t, []int64{0, 10, 12, 15, 20}, left(dir)) // the snapshot at the end stays: a broker writes one when it stops
		require.NoError(t, l.TruncateTo(12))
		require.Equal(t, []int64{0, 10, 12}, left(dir))
		require.NoError(t, l.Close())
	})
	t.Run("Reset", func(t *testing.T) {
		dir, _ := made(t)
		l := open(t, dir, nil)
		require.NoError(t, l.Reset(11))
		require.Equal(t, []int64{10}, left(dir)) // below the start, where a broker itself removes it
		require.NoError(t, l.Close())
	})
	t.Run("torn tail", func(t *testing.T) {
		dir, size := made(t)
		require.NoError(t, os.Remove(filepath.Join(dir, "seglog.state"))) // as a broker leaves it
		require.NoError(t, os.Truncate(filepath.Join(dir, fmt.Sprintf("%020d.log", 0)), size-1))
		l := open(t, dir, nil)
		require.EqualValues(t, 19, l.Offsets().End)
		require.Equal(t, []int64{0, 10, 12, 15}, left(dir))
		require.NoError(t, l.Close())
	})
}
