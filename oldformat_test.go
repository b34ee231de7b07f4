package seglog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// oldMessage returns a message of format 0 or 1, as Kafka wrote before version 0.11.
func oldMessage(magic byte, offset int64, value string) []byte {
	be := binary.BigEndian
	body := []byte{magic, 0}
	if magic == 1 {
		body = be.AppendUint64(body, 1_400_000_000_000)
	}
	body = be.AppendUint32(body, 0xffffffff) // no key
	body = append(be.AppendUint32(body, uint32(len(value))), value...)
	b := be.AppendUint64(nil, uint64(offset))
	b = be.AppendUint32(b, uint32(4+len(body)))
	b = be.AppendUint32(b, crc32.ChecksumIEEE(body))
	return append(b, body...)
}

// Open and Verify must recognize messages of the formats before Kafka 0.11, also after batches of format 2, and not change the
// files.
func TestOldMessageFormats(t *testing.T) {
	for _, magic := range []byte{0, 1} {
		for name, before := range map[string][]byte{"first": nil, "after batches": spaced(0, 3, 1)} {
			dir := t.TempDir()
			content := before
			for i := range int64(20) {
				content = append(content, oldMessage(magic, 3+i, "a value that is long enough to look at a header")...)
			}
			path := filepath.Join(dir, fileName(0, logSuffix))
			require.NoError(t, os.WriteFile(path, content, 0o644))
			for _, readOnly := range []bool{false, true} {
				_, err := Open(dir, &Options{ReadOnly: readOnly})
				require.ErrorIs(t, err, ErrOldFormat, name)
				require.ErrorIs(t, err, ErrCorrupt, name)
				require.ErrorContains(t, err, path)
			}
			report, err := Verify(dir, nil)
			require.NoError(t, err)
			require.False(t, report.OK(), name)
			require.Contains(t, report.Problems[0].Reason, "before 0.11", name)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, content, after)
		}
	}
}

// For an archive of bare .log files, Verify must give one warning, not two for each segment.
func TestVerifyBareLogs(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for range 100 {
		_, err := l.Append(Record{Value: make([]byte, 300)})
		require.NoError(t, err)
	}
	infos, err := l.Segments()
	require.NoError(t, err)
	require.False(t, infos[len(infos)-1].Sealed)
	require.NoError(t, l.Close())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	infos, err = l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(infos), 3)
	for i, info := range infos {
		require.Equal(t, i+1 < len(infos), info.Sealed)
	}
	require.NoError(t, l.Close())
	for _, suffix := range []string{"*.index", "*.timeindex", stateName} {
		names, err := filepath.Glob(filepath.Join(dir, suffix))
		require.NoError(t, err)
		for _, name := range names {
			require.NoError(t, os.Remove(name))
		}
	}
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK())
	require.Len(t, report.Problems, 1)
	require.Equal(t, SeverityWarning, report.Problems[0].Severity)
	require.Contains(t, report.Problems[0].Reason, "index files are missing")
}

// If a broker was killed during a compaction, its .swap files hold records that the segments no longer have. Open must refuse
// the rest.
func TestInterruptedCompaction(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, swapSuffix)), spaced(0, 50, 2), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(100, logSuffix)), spaced(100, 20, 1), 0o644))
	for _, readOnly := range []bool{false, true} {
		_, err := Open(dir, &Options{ReadOnly: readOnly})
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, "start and stop the broker once")
	}
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.False(t, report.OK())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		require.NotEqual(t, stateName, e.Name(), "Open must not take over the directory")
	}
}

// A compaction of Kafka that was killed while it still renamed its output has removed no segment yet. Its .cleaned files, and
// the .swap files from their lowest offset on, are not part of the log.
func TestCleanedFilesOfKafka(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, logSuffix)), spaced(0, 50, 1), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(20, swapSuffix)), spaced(20, 10, 2), 0o644))
	_, err := Open(dir, nil)
	require.ErrorIs(t, err, ErrCorrupt)
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(30, indexSuffix)+cleanedSuffix), nil, 0o644))
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, ErrCorrupt, "the .swap file lies below the .cleaned file")
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, logSuffix)+cleanedSuffix), nil, 0o644))
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK())
	require.Len(t, report.Problems, 3, "%v", report.Problems) // two of Kafka's files, and the missing indexes
	for _, readOnly := range []bool{true, false} {
		l, err := Open(dir, &Options{ReadOnly: readOnly})
		require.NoError(t, err)
		require.EqualValues(t, 50, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

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
