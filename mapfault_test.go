//go:build linux

package seglog_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// faultyLog returns a log with three segments of 1 MiB, the last of them active, whose first 100 batches are small.
func faultyLog(t *testing.T) (l *seglog.Log, segments []string) {
	t.Helper()
	dir := t.TempDir()
	l = open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 20})
	appendN(t, l, 0, 100)
	for range 25 {
		_, err := l.Append(seglog.Record{Value: bytes.Repeat([]byte{1}, 100<<10)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	eventually(t, "two segments are sealed", func() bool { return l.Stats().Seals == 2 })
	segments = files(t, dir, "*.log")
	require.Len(t, segments, 3)
	return l, segments
}

// If another program truncates the active segment, a store into the mapping faults. The append must return an error and latch
// the log, without crashing the process, and intact records must stay readable.
func TestMapFaultOnAppend(t *testing.T) {
	if strconv.IntSize == 32 {
		t.Skip("nothing is mapped where int has 32 bits")
	}
	l, segments := faultyLog(t)
	o := l.Offsets()
	require.NoError(t, os.Truncate(segments[2], 0))
	_, err := l.Append(seglog.Record{Value: []byte("into nothing")})
	require.Error(t, err)
	require.NotErrorIs(t, err, seglog.ErrClosed)
	var at *fs.PathError
	require.ErrorAs(t, err, &at)
	require.Equal(t, segments[2], at.Path)
	require.Contains(t, err.Error(), "position")
	for range 2 {
		_, again := l.Append(seglog.Record{Value: []byte("too late")})
		require.ErrorIs(t, again, seglog.ErrFailed)
		require.ErrorAs(t, again, &at, "later errors must carry the first one")
	}
	_, err = l.AppendBatch(plainBatch(0, "x"))
	require.ErrorIs(t, err, seglog.ErrFailed)
	require.ErrorIs(t, l.Sync(), seglog.ErrFailed)
	require.ErrorIs(t, l.TruncateTo(o.Start), seglog.ErrFailed)
	require.Equal(t, o, l.Offsets())
	requireSmallOnes(t, l)
	require.ErrorIs(t, l.Close(), seglog.ErrFailed)
}

// requireSmallOnes checks the first 100 records of the log.
func requireSmallOnes(t *testing.T, l *seglog.Log) {
	t.Helper()
	for i := range 100 {
		r, err := l.Read(int64(i))
		require.NoError(t, err)
		require.Equal(t, string(value(i)), string(r.Value))
	}
	n := 0
	for r, err := range l.Records(0) {
		if n == 100 {
			break
		}
		require.NoError(t, err)
		require.Equal(t, string(value(n)), string(r.Value))
		n++
	}
	require.Equal(t, 100, n)
}

// If another program truncates a segment, all ways of reading the lost part must return errors that name the file.
func TestMapFaultOnRead(t *testing.T) {
	for name, segment := range map[string]int{"sealed": 0, "active": 2} {
		t.Run(name, func(t *testing.T) {
			l, segments := faultyLog(t)
			o := l.Offsets()
			offset := o.End - 1
			if segment == 0 {
				offset = 105
			}
			_, err := l.Read(offset) // so that the segment is mapped, with its index
			require.NoError(t, err)
			require.NoError(t, os.Truncate(segments[segment], 0))
			for range 2 {
				_, err = l.Read(offset)
				requireFileError(t, err, segments[segment])
			}
			var last error
			for _, err := range l.Records(offset) {
				last = err
			}
			requireFileError(t, last, segments[segment])
			if segment == 2 {
				requireSmallOnes(t, l)
				return
			}
			// A damaged sealed segment does not prevent appends.
			_, err = l.Append(seglog.Record{Value: []byte("goes on")})
			require.NoError(t, err)
			r, err := l.Read(o.End)
			require.NoError(t, err)
			require.Equal(t, "goes on", string(r.Value))
		})
	}
}

func requireFileError(t *testing.T, err error, path string) {
	t.Helper()
	require.Error(t, err)
	var c *seglog.CorruptError
	var p *fs.PathError
	switch {
	case errors.As(err, &c):
		require.Equal(t, path, c.Path)
	case errors.As(err, &p):
		require.Equal(t, path, p.Path)
	default:
		require.Contains(t, err.Error(), path)
	}
}

// If another program removes a segment, the other segments must stay readable, and the next Open must fail with an error that
// names both neighbors.
func TestRemovedFromOutside(t *testing.T) {
	l, segments := faultyLog(t)
	require.NoError(t, os.Remove(segments[1]))
	s, err := l.Section(105, 1) // of the segment before the removed one
	require.NoError(t, err)
	require.NoError(t, s.Close())
	requireSmallOnes(t, l)
	require.NoError(t, l.Close())
	_, err = seglog.Open(filepath.Dir(segments[0]), nil)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.Contains(t, err.Error(), segments[0], "the error must name both neighbors")
	require.Contains(t, err.Error(), filepath.Base(segments[2]))
}

// Large indexes are mapped. If another program truncates one, the log must rebuild it, and readers must not get an error.
func TestMapFaultInIndex(t *testing.T) {
	if strconv.IntSize == 32 {
		t.Skip("nothing is mapped where int has 32 bits")
	}
	dir := t.TempDir()
	o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 20, IndexBytes: 128}
	l := open(t, dir, o)
	appendN(t, l, 0, 40_000)
	require.NoError(t, l.Close())
	l = open(t, dir, o)
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segs), 3)
	times := make([]int64, 0, 3)
	for i, seg := range segs[:3] {
		offset, err := l.OffsetForTime(seg.MaxTime)
		require.NoError(t, err)
		times = append(times, offset)
		require.Greater(t, l.Stats().OpenSegments, i, "the segment must be open, so that its indexes are mapped")
	}
	for _, pattern := range []string{"*.index", "*.timeindex"} {
		for _, path := range files(t, dir, pattern)[:3] {
			info, err := os.Stat(path)
			require.NoError(t, err)
			if pattern == "*.index" {
				require.Greater(t, info.Size(), int64(16<<10), path)
			}
			require.NoError(t, os.Truncate(path, 0))
		}
	}
	for i, seg := range segs[:3] {
		if i == 0 { // the first segment is accessed by a time first, the others by an offset
			offset, err := l.OffsetForTime(seg.MaxTime)
			require.NoError(t, err)
			require.Equal(t, times[i], offset)
		}
		for offset := seg.Base; offset < seg.Next; offset += 97 {
			r, err := l.Read(offset)
			require.NoError(t, err)
			require.Equal(t, string(value(int(offset))), string(r.Value))
		}
		offset, err := l.OffsetForTime(seg.MaxTime)
		require.NoError(t, err)
		require.Equal(t, times[i], offset)
	}
	require.GreaterOrEqual(t, l.Stats().IndexRebuilds, int64(3))
	require.NoError(t, l.Close())
}
