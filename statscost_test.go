package seglog

import (
	"bytes"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// Stats keeps the sum of the sizes of sealed segments while the list of segments stays the same. The sum must be right after
// rolls, seals, deletions and cuts.
func TestStatsBytesFollowTheSegments(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	defer l.Close()
	check := func() {
		t.Helper()
		var want int64
		for _, s := range l.view.Load().segs {
			size, err := l.size(s)
			require.NoError(t, err)
			want += size
		}
		require.Equal(t, want, l.Stats().Bytes)
	}
	for i := range 400 {
		appendNumbered(t, l)
		check()
		switch i % 50 {
		case 20:
			require.NoError(t, l.DeleteBefore(l.Offsets().End-30))
		case 40:
			require.NoError(t, l.TruncateTo(l.Offsets().End-10))
		}
		check()
	}
	l.Stats()
	v, n := l.sized.of, l.sized.n
	require.Same(t, l.view.Load(), v)
	require.Greater(t, n, 3, "the sum must include the sealed segments")
	require.NoError(t, l.Reset(7))
	check()
	appendNumbered(t, l)
	check()
}

// fullDisk is a file system that fails reservations, writes and flushes while it is full.
type fullDisk struct {
	osFS
	full atomic.Bool
}

type fullDiskFile struct {
	vfs.File
	fs *fullDisk
}

func (f *fullDisk) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	g, err := f.osFS.Open(path, mode)
	return fullDiskFile{g, f}, err
}

func (f fullDiskFile) Reserve(pos, n int64) error {
	if f.fs.full.Load() {
		return &fs.PathError{Op: "fallocate", Path: "log", Err: syscall.ENOSPC}
	}
	return f.File.Reserve(pos, n)
}

func (f fullDiskFile) WriteAt(p []byte, pos int64) (int, error) { // for platforms that do not map segments
	if f.fs.full.Load() {
		return 0, &fs.PathError{Op: "write", Path: "log", Err: syscall.ENOSPC}
	}
	return f.File.WriteAt(p, pos)
}

func (f fullDiskFile) Flush() error {
	if f.fs.full.Load() {
		return &fs.PathError{Op: "fdatasync", Path: "log", Err: syscall.EIO}
	}
	return f.File.Flush()
}

// Stats.Errors must count each append that fails because of the disk: appends that find it full, and those that a failed log
// refuses.
func TestStatsCountFailedAppends(t *testing.T) {
	disk := new(fullDisk)
	l, err := openFS(disk, t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: 8 << 20})
	require.NoError(t, err)
	defer l.Close()
	appendNumbered(t, l) // Sync is to flush this record
	disk.full.Store(true)
	value := make([]byte, 1<<20)
	failures := int64(0)
	for failures < 5 {
		before := l.Stats().Errors
		if _, err := l.Append(Record{Value: value}); err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.Greater(t, l.Stats().Errors, before)
			failures++
		}
	}
	require.ErrorIs(t, l.Sync(), ErrFailed)
	for range 3 {
		before := l.Stats().Errors
		_, err := l.Append(Record{Value: value[:1]})
		require.ErrorIs(t, err, ErrFailed)
		require.Greater(t, l.Stats().Errors, before)
	}
}

// Retain must count only deleted segments, not those that it could not delete because a call failed.
func TestRetainCountsDeletedSegments(t *testing.T) {
	disk := new(fullDisk)
	l, err := openFS(disk, t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for l.Stats().Segments < 4 {
		appendNumbered(t, l)
	}
	l.o.RetentionBytes = 1
	disk.full.Store(true)
	n, err := l.Retain()
	require.Error(t, err)
	require.Zero(t, n)
	l.Close()
}

// Stats must count the batches, records and bytes of all ways to append, and not those of an append that failed.
func TestStatsCountAppends(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rec := Record{Time: time.UnixMilli(1), Value: []byte("v")}
	_, err := l.Append(rec, rec, rec)
	require.NoError(t, err)
	_, err = l.AppendBatch(encoded([]Record{rec, rec}, 0))
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(encoded([]Record{rec}, 5)), -1)
	require.NoError(t, err)
	before := l.Stats()
	require.EqualValues(t, 3, before.Appends)
	require.EqualValues(t, 6, before.AppendedRecords)
	require.Equal(t, before.Bytes, before.AppendedBytes)
	require.Positive(t, before.Bytes)
	s.SetFault(fails(sim.Rename, logSuffix, syscall.ENOSPC))
	_, err = l.Append(Record{Value: make([]byte, 3900)}) // its roll fails
	require.ErrorIs(t, err, syscall.ENOSPC)
	s.SetFault(nil)
	after := l.Stats()
	require.EqualValues(t, 1, after.Errors)
	require.Equal(t, []int64{before.Appends, before.AppendedRecords, before.AppendedBytes}, []int64{after.Appends, after.AppendedRecords, after.AppendedBytes})
	require.NoError(t, l.Close())
}
