package seglog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// unnamedLog returns the directory of a killed log whose last segment, with the records from base to n, is still named
// seglog.next. Old versions, which named a segment only after the roll, could leave such a log.
func unnamedLog(t *testing.T) (dir string, base, n int64) {
	dir = t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: 1 << 16})
	require.NoError(t, err)
	for range 40 {
		appendNumbered(t, l)
	}
	killedDir := killed(t, dir)
	require.NoError(t, l.Close())
	base, n = 40, 50
	next := make([]byte, 0, 1<<16)
	for offset := base; offset < n; offset++ {
		next = append(next, encoded([]Record{{Value: numbered(offset)}}, offset)...)
	}
	require.NoError(t, os.WriteFile(filepath.Join(killedDir, nextName), next[:cap(next)], 0o600))
	return killedDir, base, n
}

func appendNumbered(t testing.TB, l *Log) {
	_, err := l.Append(Record{Value: numbered(l.Offsets().End)})
	require.NoError(t, err)
}

func numbered(offset int64) []byte {
	return fmt.Appendf(nil, "record %d %s", offset, strings.Repeat("x", 900))
}

func requireNumbered(t testing.TB, l *Log, n int64) {
	t.Helper()
	next := int64(0)
	for r, err := range l.Records(0) {
		require.NoError(t, err)
		require.Equal(t, next, r.Offset)
		require.Equal(t, string(numbered(next)), string(r.Value))
		next++
	}
	require.Equal(t, n, next)
	require.Equal(t, n, l.Offsets().End)
}

// killed returns a copy of the directory of an open log, as a kill of its process would leave it.
func killed(t testing.TB, dir string) string {
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// A read-only log, Verify and Repair must see the unnamed segment, and Open must name it.
func TestUnnamedSegment(t *testing.T) {
	dir, base, n := unnamedLog(t)
	beside, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	requireNumbered(t, beside, n)
	require.NoError(t, beside.Close())

	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, n, report.End)
	require.Equal(t, n, report.Records)
	repaired, err := Repair(dir, &RepairOptions{Apply: true})
	require.NoError(t, err)
	require.True(t, repaired.Sound(), "%+v", repaired)
	require.Equal(t, n, repaired.Records)

	l, err := Open(dir, &Options{SegmentBytes: 1 << 16})
	require.NoError(t, err)
	require.FileExists(t, l.path(base, logSuffix))
	requireNumbered(t, l, n)
	for range 100 {
		appendNumbered(t, l)
	}
	requireNumbered(t, l, n+100)
	require.NoError(t, l.Close())
	require.NoFileExists(t, filepath.Join(dir, nextName))
}

// A power cut may leave the unnamed segment without the end of the segment before it. Open must then drop the unnamed segment.
func TestUnnamedSegmentThatDoesNotJoin(t *testing.T) {
	dir, base, _ := unnamedLog(t)
	before := filepath.Join(dir, fileName(0, logSuffix))
	b, err := os.ReadFile(before)
	require.NoError(t, err)
	kept := base / 2
	pos := int64(0)
	for range kept {
		pos += batch(b[pos:]).size()
	}
	require.NoError(t, os.WriteFile(before, b[:pos], 0o600))
	l, err := Open(dir, &Options{SegmentBytes: 1 << 16})
	require.NoError(t, err)
	requireNumbered(t, l, kept)
	require.NoFileExists(t, filepath.Join(dir, fileName(base, logSuffix)))
	for range 100 {
		appendNumbered(t, l)
	}
	requireNumbered(t, l, kept+100)
	require.NoError(t, l.Close())
}

// Repair must remove a damaged batch before the unnamed segment, and keep the unnamed segment's records.
func TestRepairBeforeUnnamedSegment(t *testing.T) {
	dir, base, n := unnamedLog(t)
	f, err := os.OpenFile(filepath.Join(dir, fileName(0, logSuffix)), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 100)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.Equal(t, n-1, report.Records)
	require.Equal(t, n, report.End)
	l, err := Open(dir, nil)
	require.NoError(t, err)
	_, err = l.Read(0)
	require.ErrorIs(t, err, ErrOutOfRange)
	for offset := int64(1); offset < n; offset++ {
		r, err := l.Read(offset)
		require.NoError(t, err, "%d of %d, unnamed from %d", offset, n, base)
		require.Equal(t, string(numbered(offset)), string(r.Value))
	}
	require.NoError(t, l.Close())
}
