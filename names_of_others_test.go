package seglog_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// Open must not remove directories, even if they have the names of temporary files.
func TestOpenLeavesDirectoriesAlone(t *testing.T) {
	dir := closedLog(t, 300)
	for _, name := range []string{"seglog.next", "seglog.cut", "seglog.d", "seglog.00000000000000000000.index"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name, "sub"), 0o755))
	}
	l := open(t, dir, nil)
	requireN(t, l, 0, 300)
	require.NoError(t, l.Close())
	report, err := seglog.Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK())
	for _, name := range []string{"seglog.next", "seglog.cut", "seglog.d", "seglog.00000000000000000000.index"} {
		require.DirExists(t, filepath.Join(dir, name, "sub"))
	}
}

// A file that is named like a segment above all offsets that a log gives out must not become a part of it. Open with such an end
// never returned.
func TestSegmentNamesAboveAllOffsets(t *testing.T) {
	for _, name := range []string{"09223372036854775807.log", "09223372034707292161.log"} {
		dir := closedLog(t, 150)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		for _, keep := range []bool{false, true} {
			report, err := seglog.Repair(dir, &seglog.RepairOptions{Apply: true, KeepAfter: keep})
			require.NoError(t, err)
			require.True(t, report.Sound(), "%v", report)
		}
		requireGoesOn(t, dir, 150)
		require.FileExists(t, filepath.Join(dir, name))
	}
}

// requireGoesOn opens a log that must have the records 0 to n-1 and take one more.
func requireGoesOn(t *testing.T, dir string, n int) {
	t.Helper()
	l := open(t, dir, nil)
	require.EqualValues(t, n, l.Offsets().End)
	appendN(t, l, n, 1)
	requireN(t, l, 0, n+1)
	require.NoError(t, l.Close())
}

// If a file that is named like a segment lies in the middle of the last one of a killed log, Open must keep what it takes away.
func TestSegmentNamedInsideAnother(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
	appendN(t, l, 0, 10)
	killed := copyDir(t, dir)
	require.NoError(t, l.Close())
	require.NoError(t, os.WriteFile(filepath.Join(killed, "00000000000000000005.log"), nil, 0o644))
	l = open(t, killed, nil)
	requireN(t, l, 0, 5)
	require.NoError(t, l.Close())
	saved := files(t, killed, "seglog.repair-*")
	require.Len(t, saved, 1)
	b, err := os.ReadFile(saved[0])
	require.NoError(t, err)
	for i := 5; i < 10; i++ {
		require.True(t, bytes.Contains(b, value(i)))
	}
}

// Repair must leave an empty segment far behind the end to the next Open, which takes it away. With KeepAfter it became the end.
func TestRepairOfAnEmptySegmentBehindTheEnd(t *testing.T) {
	for _, name := range []string{"00000001099511627776.log", "09223372034707292159.log"} {
		for _, killed := range []bool{false, true} {
			dir := closedLog(t, 150)
			if killed {
				dir = killedLog(t, 110, 40)
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
			report, err := seglog.Repair(dir, &seglog.RepairOptions{Apply: true, KeepAfter: true})
			require.NoError(t, err)
			require.EqualValues(t, 150, report.End, "%v", report)
			requireGoesOn(t, dir, 150)
			require.NoFileExists(t, filepath.Join(dir, name))
		}
	}
}

// Kafka's files of a segment must be removed together with the segment.
func TestFilesOfKafkaGoWithTheirSegment(t *testing.T) {
	o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10}
	dir := t.TempDir()
	l := open(t, dir, o)
	appendN(t, l, 0, 300)
	require.NoError(t, l.Close())
	l = open(t, dir, o) // now all segments but the last are sealed
	segments, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segments), 4)
	sides := func(s seglog.SegmentInfo) []string {
		base := s.Path[:len(s.Path)-len(".log")]
		return []string{base + ".txnindex", base + ".snapshot"}
	}
	for _, s := range segments {
		for _, name := range sides(s) {
			require.NoError(t, os.WriteFile(name, []byte("x"), 0o644))
		}
	}
	gone := func(s seglog.SegmentInfo) {
		t.Helper()
		for _, name := range sides(s) {
			require.NoFileExists(t, name)
		}
	}
	require.NoError(t, l.DeleteBefore(segments[1].Base))
	gone(segments[0])
	n := len(segments)
	require.NoError(t, l.TruncateTo(segments[n-2].Base+1))
	gone(segments[n-1])
	require.NoFileExists(t, sides(segments[n-2])[0], "the transaction index covers removed records, too")
	require.FileExists(t, sides(segments[n-2])[1], "the snapshot is of the producers at the start of the segment, so it stays")
	require.FileExists(t, sides(segments[1])[0])
	require.NoError(t, l.Reset(segments[1].Base))
	for _, s := range segments {
		gone(s)
	}
}

// Snapshot must accept the root of a new file system, which holds only the directory lost+found.
func TestSnapshotIntoFreshVolume(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	appendN(t, l, 0, 10)
	to := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(to, "lost+found"), 0o700))
	require.NoError(t, l.Snapshot(to))
	c := open(t, to, nil)
	requireN(t, c, 0, 10)
	require.DirExists(t, filepath.Join(to, "lost+found"))
	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "lost+found"), nil, 0o600))
	require.ErrorIs(t, l.Snapshot(other), seglog.ErrInvalid, "a file of that name is not the file system's")
}

// If segments were moved to another disk and replaced by symbolic links, a snapshot must hold the segments, not dangling links.
func TestSnapshotOfLinkedSegments(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "log")
	o := &seglog.Options{SegmentBytes: 4 << 10}
	l := open(t, dir, o)
	appendN(t, l, 0, 300)
	require.NoError(t, l.Close())
	require.NoError(t, os.Mkdir(filepath.Join(root, "cold"), 0o755))
	for _, suffix := range []string{".log", ".index"} {
		name := "00000000000000000000" + suffix
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(root, "cold", name)))
		require.NoError(t, os.Symlink(filepath.Join("..", "cold", name), filepath.Join(dir, name)))
	}
	l = open(t, dir, o)
	requireN(t, l, 0, 300)
	to := filepath.Join(t.TempDir(), "deep", "copy")
	require.NoError(t, l.Snapshot(to))
	c := open(t, to, o)
	requireN(t, c, 0, 300)
}

// These error messages must name the cause.
func TestErrorMessages(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
	_, err := l.TransferFrom(bytes.NewReader(append(plainBatch(0, "a", "b"), plainBatch(10, "c")...)), -1)
	require.NoError(t, err)
	_, err = l.Read(5)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	require.EqualError(t, err, "seglog: offset 5 is missing in [0, 11): a compaction, a control batch or a cut took its record")
	_, err = l.Read(11)
	require.EqualError(t, err, "seglog: offset 11 out of range: the readable range is [0, 11)")
	s, err := l.Section(0, 1)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = s.WriteTo(io.Discard)
	require.ErrorIs(t, err, seglog.ErrClosed)
	require.EqualError(t, err, "seglog: section is closed")
	_, err = l.AppendBatch(rawBatch{attributes: 4, count: 1, maxTime: time.Now().UnixMilli(), body: make([]byte, 50)}.bytes())
	require.NoError(t, err)
	_, err = l.Read(11)
	require.ErrorIs(t, err, seglog.ErrCodec)
	require.Contains(t, err.Error(), "zstd: "+filepath.Join(dir, "00000000000000000000.log")+" at position ")
	require.Contains(t, err.Error(), ", offset 11")
}

// A walk that a cut ends reports an offset that may hold another record since then. The error must not deny the existence of a
// record that Read would return.
func TestErrorMessageBesideACut(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	appendN(t, l, 0, 3)
	var err error
	for _, walkErr := range l.Records(0) {
		if err = walkErr; err != nil {
			break
		}
		require.NoError(t, l.TruncateTo(0))
		_, err = l.Append(make([]seglog.Record, 20)...)
		require.NoError(t, err)
	}
	require.EqualError(t, err, "seglog: offset 1 is missing in [0, 20): a compaction, a control batch or a cut took its record")
}

// If the directory was only moved, the error must not claim that another directory took its place.
func TestErrorMessageOfAMovedDirectory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open directory can't be moved")
	}
	dir := filepath.Join(t.TempDir(), "log")
	l, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	require.NoError(t, os.Rename(dir, dir+".moved"))
	err = l.Reset(5)
	require.ErrorIs(t, err, seglog.ErrFailed)
	require.ErrorContains(t, err, "it was moved, replaced or removed")
	require.ErrorIs(t, l.Close(), seglog.ErrFailed)
}

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
