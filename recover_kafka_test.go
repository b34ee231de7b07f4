package seglog_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// kafkaLike is what a Kafka broker leaves of a partition, with the offsets that a compaction took.
func kafkaLike(t testing.TB, clean bool) (dir string, stream []byte, end int64) {
	t.Helper()
	dir = t.TempDir()
	stream, end = leaderStream(300)
	o, _ := recoverOptions()
	l := open(t, dir, o)
	_, err := l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoError(t, errors.Join(os.Remove(filepath.Join(dir, "seglog.state")), os.Remove(filepath.Join(dir, "LOCK"))))
	for _, name := range []string{"partition.metadata", "leader-epoch-checkpoint", "00000000000000000200.snapshot"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("0\n1\n"), 0o644))
	}
	if !clean { // Kafka preallocates its indexes, and trims them when it is stopped in order
		for _, name := range append(files(t, dir, "*.index"), files(t, dir, "*.timeindex")...) {
			spoil(t, name, func(b []byte) []byte { return append(b, make([]byte, 64<<10)...) })
		}
	}
	return dir, stream, end
}

func TestOpenCaseJ(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir, stream, end := kafkaLike(t, clean)
		before := contents(t, dir)
		o, h := recoverOptions()
		l := open(t, dir, o)
		require.Equal(t, "J", h.opened)
		require.Equal(t, seglog.Offsets{Start: 100, RecoveryPoint: end, HighWatermark: end, End: end}, l.Offsets())
		var got bytes.Buffer
		for at := int64(100); at < end; {
			s, err := l.Section(at, 1<<30)
			require.NoError(t, err)
			_, err = s.WriteTo(&got)
			require.NoError(t, err)
			at = s.Next()
			require.NoError(t, s.Close())
		}
		require.True(t, bytes.Equal(stream, got.Bytes()))
		require.NoError(t, l.Close())
		for name, b := range contents(t, dir) {
			if strings.HasSuffix(name, ".log") || strings.HasPrefix(name, "partition") {
				require.Equal(t, before[name], b, name)
			}
		}
		l = open(t, dir, o)
		require.Equal(t, "A", h.opened)
		base, err := l.Append(seglog.Record{Value: []byte("ours")})
		require.NoError(t, err)
		require.Equal(t, end, base)
		require.NoError(t, l.Close())
	}
	t.Run("a torn tail", func(t *testing.T) {
		dir, stream, end := kafkaLike(t, false)
		all := storedBatches(t, dir)
		last := all[len(all)-1]
		spoil(t, last.segment, func(b []byte) []byte { return b[:len(b)-1] })
		o, h := recoverOptions()
		l := open(t, dir, o)
		require.Equal(t, "E", h.opened)
		require.NotEmpty(t, h.lines)
		require.Equal(t, all[len(all)-2].last+1, l.Offsets().End)
		n, err := l.TransferFrom(bytes.NewReader(stream[len(stream)-len(last.bytes)-len(all[len(all)-2].bytes):]), -1)
		require.NoError(t, err)
		require.Positive(t, n)
		require.Equal(t, end, l.Offsets().End)
		require.NoError(t, l.Close())
	})
	t.Run("damage before the last segment", func(t *testing.T) {
		dir, _, _ := kafkaLike(t, true)
		spoil(t, files(t, dir, "*.log")[1], flip(70))
		requireRefused(t, dir)
	})
}
