package seglog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
)

// A damaged batch at the end of a segment or of the log may be the one that OffsetForTime looks for, although the batches that are left
// are all earlier.
func TestOffsetForTimeBesideDamageAtAnEnd(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	const n = 60
	second := func(i int) time.Time { return time.UnixMilli(1_700_000_000_000 + int64(i)*1000) }
	sound := t.TempDir()
	l, err := Open(sound, &Options{SegmentBytes: minSegmentBytes, IndexBytes: 300, Flush: FlushNone})
	require.NoError(t, err)
	for i := range n {
		_, err := l.Append(Record{Time: second(i), Value: make([]byte, 100)})
		require.NoError(t, err)
	}
	at := allBatches(t, l)
	require.NoError(t, l.Close())
	end := slices.IndexFunc(at, func(b BatchInfo) bool { return b.Path != at[0].Path }) - 1
	require.Positive(t, end)
	damages := map[string]func(b []byte) []byte{
		"zeroed":   func(b []byte) []byte { clear(b[:100]); return b },
		"left out": func(b []byte) []byte { return slices.Delete(b, 30, 50) },
		"inserted": func(b []byte) []byte { return slices.Insert(b, 30, []byte("bytes")...) },
	}
	for what, pos := range map[string]int{"length": 10, "magic": 16, "crc": 19, "last offset": 25, "later": 36, "earlier": 39, "value": 80} {
		damages[what] = func(b []byte) []byte { b[pos] ^= 1 << (pos % 5); return b }
	}
	for _, killed := range []bool{false, true} {
		if killed {
			changeState(t, sound, func(s *state) { s.clean = false })
		}
		for what, damage := range damages {
			for i, k := range []int{end, n - 2, n - 1, end, n - 2, n - 1} {
				for _, readOnly := range []bool{true, false} {
					indexes := i >= 3
					what := fmt.Sprintf("batch %d, %s, killed %v, indexes %v, read-only %v", k, what, killed, indexes, readOnly)
					dir := copyFiles(t, sound)
					if !indexes {
						names, err := filepath.Glob(filepath.Join(dir, "*index"))
						require.NoError(t, err)
						for _, name := range names {
							require.NoError(t, os.Remove(name))
						}
					}
					path := filepath.Join(dir, filepath.Base(at[k].Path))
					b, err := os.ReadFile(path)
					require.NoError(t, err)
					b = append(b[:at[k].Pos:at[k].Pos], damage(slices.Clone(b[at[k].Pos:]))...)
					require.NoError(t, os.WriteFile(path, b, 0o644))
					l, err := Open(dir, &Options{ReadOnly: readOnly, IndexBytes: 300, Flush: FlushNone})
					if err != nil {
						require.ErrorIs(t, err, ErrCorrupt, what)
						continue
					}
					got, err := l.OffsetForTime(second(k))
					require.ErrorIs(t, err, ErrCorrupt, "%s: %d", what, got)
					got, err = l.OffsetForTime(second(k - 1))
					require.NoError(t, err, what)
					require.EqualValues(t, k-1, got, what)
					if k+2 < n {
						got, err = l.OffsetForTime(second(k + 2))
						require.NoError(t, err, what)
						require.EqualValues(t, k+2, got, what)
					}
					require.NoError(t, l.Close())
				}
			}
		}
	}
}
