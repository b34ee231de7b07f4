package seglog_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// kafkaLike returns a directory like a Kafka partition's, in which offsets are missing as after a compaction. Its batches are
// also returned as a stream.
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
	if !clean { // Kafka preallocates its indexes, and trims them only in an orderly shutdown
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

// Without a valid seglog.state no recovery point says which records must be there, so good batches after bad bytes are worth
// as much as those before them, and Open must refuse the log. A torn tail with no good batch after it is removed from the log
// and saved.
func TestOpenCutsNothingGoodWithoutAState(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	stateless := func(t *testing.T) (dir, path string, last []stored) {
		dir = killedLog(t, 100, 200)
		require.NoError(t, os.Remove(filepath.Join(dir, "seglog.state")))
		all := storedBatches(t, dir)
		path = all[len(all)-1].segment
		for _, b := range all {
			if b.segment == path {
				last = append(last, b)
			}
		}
		require.Greater(t, len(last), 4)
		return dir, path, last
	}
	at := func(last []stored, n int) (pos int) {
		for _, b := range last[:n] {
			pos += len(b.bytes)
		}
		return pos
	}
	dir, path, last := stateless(t)
	end := at(last, len(last))
	for n := range last[:len(last)-1] {
		for what, spoilAt := range map[string]int{"length": 10, "magic": 16, "crc": 20, "last offset": 26, "records": 64} {
			t.Run(fmt.Sprintf("batch %d, %s", n, what), func(t *testing.T) {
				damaged := copyDir(t, dir)
				name := filepath.Join(damaged, filepath.Base(path))
				spoil(t, name, flip(at(last, n)+spoilAt))
				c := requireRefused(t, damaged)
				require.Equal(t, [4]any{name, int64(at(last, n)), last[n].base, last[n+1].base}, [4]any{c.Path, c.Pos, c.Offset, c.NextOffset})
				require.Contains(t, c.Reason, fmt.Sprintf("good batches go on at position %d", at(last, n+1)))
			})
		}
	}
	t.Run("Repair makes the log open", func(t *testing.T) {
		damaged := copyDir(t, dir)
		spoil(t, filepath.Join(damaged, filepath.Base(path)), flip(at(last, 1)+64))
		report, err := seglog.Verify(damaged, nil)
		require.NoError(t, err)
		require.False(t, report.OK())
		_, err = seglog.Repair(damaged, &seglog.RepairOptions{Apply: true, KeepAfter: true})
		require.NoError(t, err)
		l := open(t, damaged, nil)
		require.Equal(t, last[len(last)-1].last+1, l.Offsets().End)
		require.NoError(t, l.Close())
	})
	torn := map[string]func(b []byte) []byte{
		"half a batch":               func(b []byte) []byte { return b[:end-10] },
		"half a batch, then zeros":   func(b []byte) []byte { clear(b[end-10:]); return b },
		"half a header":              func(b []byte) []byte { return b[:at(last, len(last)-1)+30] },
		"a bit of the last batch":    flip(end - 10),
		"a bit of its length":        flip(at(last, len(last)-1) + 10),
		"a hole in the last batch":   func(b []byte) []byte { clear(b[at(last, len(last)-1)+20 : end-5]); return b },
		"the last two are unwritten": func(b []byte) []byte { clear(b[at(last, len(last)-2)+20 : end-10]); return b },
	}
	for what, spoiled := range torn {
		t.Run(what, func(t *testing.T) {
			damaged := copyDir(t, dir)
			spoil(t, filepath.Join(damaged, filepath.Base(path)), spoiled)
			n := len(last) - 1
			if strings.Contains(what, "two") {
				n--
			}
			o, h := recoverOptions()
			l := open(t, damaged, o)
			require.Equal(t, "E", h.opened)
			require.Equal(t, last[n].base, l.Offsets().End)
			require.NoError(t, l.Close())
			require.Len(t, files(t, damaged, "seglog.repair-*"), 1)
		})
	}
	t.Run("garbage after the last batch", func(t *testing.T) {
		damaged := copyDir(t, dir)
		spoil(t, filepath.Join(damaged, filepath.Base(path)), func(b []byte) []byte { copy(b[end:], "this is not a batch"); return b })
		requireLog(t, damaged, "E", 0, 300)
		require.Len(t, files(t, damaged, "seglog.repair-*"), 1)
	})
	t.Run("with a state file, records from a hole above the recovery point on are dropped", func(t *testing.T) {
		holed := killedLog(t, 100, 200)
		spoil(t, filepath.Join(holed, filepath.Base(path)), func(b []byte) []byte { clear(b[at(last, 1):at(last, 2)]); return b })
		requireLog(t, holed, "E", 0, int(last[1].base))
	})
	t.Run("killed before the first state", func(t *testing.T) {
		for _, state := range [][]byte{nil, {}, make([]byte, 8192)} {
			fresh := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(fresh, "00000000000000000000.log"), make([]byte, 4096), 0o644))
			if state != nil {
				require.NoError(t, os.WriteFile(filepath.Join(fresh, "seglog.state"), state, 0o644))
			}
			l := open(t, fresh, nil)
			require.Zero(t, l.Offsets().End)
			require.NoError(t, l.Close())
		}
	})
}
