package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where a sealed segment of a log with gaps has lost its last batches, nothing tells that from a gap but its index, which leads to some of
// them: readers and Verify say so, and Repair takes the index away.
func TestLostEndOfASegmentInALogWithGaps(t *testing.T) {
	whole := t.TempDir()
	o := &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes, IndexBytes: 500}
	l, err := Open(whole, o)
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(0, 5, 1), spaced(8, 200, 2)...)), -1)
	require.NoError(t, err)
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segs), 3)
	var at []BatchInfo // of the second segment
	var all []int64
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		all = append(all, b.Base)
		if b.Path == segs[1].Path {
			at = append(at, b)
		}
	}
	end := l.Offsets().End
	require.NoError(t, l.Close())

	for _, lost := range []int{0, 6, 20, len(at) - 1, len(at)} {
		short := copyFiles(t, whole)
		name := filepath.Base(segs[1].Path)
		from, next := at[0].Base, segs[2].Base
		if lost < len(at) {
			from = at[len(at)-lost-1].Next
		}
		if lost > 0 {
			require.NoError(t, os.Truncate(filepath.Join(short, name), at[len(at)-lost].Pos))
		}
		missed := func(l *Log) (damages int) {
			got, damages := readPast(t, name, l)
			require.Len(t, got, len(all)-lost)
			for _, size := range []int64{1, 1000, 1 << 20} {
				sent, missed := sectionsPast(t, name, l, size)
				require.Equal(t, got, sent)
				require.Equal(t, damages, missed)
			}
			listed, missed := batchesPast(t, name, l)
			require.Equal(t, got, listed)
			require.Equal(t, damages, missed)
			conn := new(bufferConn)
			if _, err := l.TransferTo(0, 1<<20, conn); damages > 0 {
				require.ErrorIs(t, err, ErrCorrupt)
			} else {
				require.NoError(t, err)
			}
			return damages
		}
		want := min(1, lost)
		for _, readOnly := range []bool{true, false, true} {
			o := *o
			o.ReadOnly = readOnly
			l, err := Open(short, &o)
			require.NoError(t, err)
			require.Equal(t, want, missed(l))
			for i := range lost {
				var corrupt *CorruptError
				_, err := l.Read(at[len(at)-lost+i].Base)
				require.ErrorAs(t, err, &corrupt)
				require.Equal(t, next, corrupt.NextOffset)
				_, err = l.Section(at[len(at)-lost+i].Base, 1)
				require.ErrorAs(t, err, &corrupt)
			}
			_, err = l.Read(segs[1].Base - 1) // a gap
			require.ErrorIs(t, err, ErrOutOfRange)
			_, err = l.OffsetForTime(at[len(at)-1].MaxTime)
			require.Equal(t, lost > 0, errors.Is(err, ErrCorrupt), "%v", err)
			require.NoError(t, l.Close())
		}
		report, err := Verify(short, nil)
		require.NoError(t, err)
		require.Equal(t, lost == 0, report.OK(), "%v", report.Problems)

		// A broker cuts segments off and leaves their indexes as they are for a while.
		foreign := copyFiles(t, short)
		require.NoError(t, os.Remove(filepath.Join(foreign, stateName)))
		report, err = Verify(foreign, nil)
		require.NoError(t, err)
		require.True(t, report.OK(), "%v", report.Problems)
		for _, readOnly := range []bool{true, false, true} {
			o := *o
			o.ReadOnly = readOnly
			l, err := Open(foreign, &o)
			require.NoError(t, err)
			require.Zero(t, missed(l))
			require.NoError(t, l.Close())
		}
		report, err = Verify(foreign, nil)
		require.NoError(t, err)
		require.True(t, report.OK(), "%v", report.Problems)

		for _, keep := range []bool{true, false} {
			dir := copyFiles(t, short)
			report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: keep})
			require.NoError(t, err)
			require.Equal(t, lost == 0, report.Sound(), "%+v", report)
			if lost > 0 {
				require.Equal(t, from, report.Removed[0].Offset, "%+v", report)
				require.Equal(t, keep, report.End == end, "%+v", report)
			}
			again, err := Repair(dir, &RepairOptions{KeepAfter: keep})
			require.NoError(t, err)
			require.True(t, again.Sound(), "%+v", again)
			verified, err := Verify(dir, nil)
			require.NoError(t, err)
			require.True(t, verified.OK(), "%v", verified.Problems)
			l, err := Open(dir, o)
			require.NoError(t, err)
			got, damages := readPast(t, "repaired", l)
			require.Zero(t, damages)
			require.Len(t, got, int(report.Records))
			require.NoError(t, l.Close())
		}
	}
}

// In a log without gaps a sealed segment that ends early, between two batches or inside one, must cost the batches that are lost, and no reader
// the last one that is left.
func TestLostEndOfASegment(t *testing.T) {
	whole := t.TempDir()
	l, err := Open(whole, &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes, IndexBytes: 300})
	require.NoError(t, err)
	for i := range 200 {
		_, err := l.Append(Record{Value: fmt.Appendf(nil, "record %d", i)}, Record{Value: []byte("another")})
		require.NoError(t, err)
	}
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segs), 3)
	var at []BatchInfo // of the second segment
	var all []int64
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		all = append(all, b.Base, b.Base+1)
		if b.Path == segs[1].Path {
			at = append(at, b)
		}
	}
	require.NoError(t, l.Close())
	for i, b := range at {
		for _, more := range []int64{0, 20, headerLen + 3} {
			dir := copyFiles(t, whole)
			require.NoError(t, os.Truncate(filepath.Join(dir, filepath.Base(b.Path)), b.Pos+more))
			var want []int64
			for _, offset := range all {
				if offset < b.Base || offset >= segs[2].Base {
					want = append(want, offset)
				}
			}
			for _, readOnly := range []bool{true, false} {
				what := fmt.Sprintf("%d bytes of batch %d are left, read-only %v", more, i, readOnly)
				l, err := Open(dir, &Options{Flush: FlushNone, ReadOnly: readOnly})
				require.NoError(t, err, what)
				got, damages := readPast(t, what, l)
				require.Equal(t, want, got, what)
				require.Equal(t, 1, damages, what)
				got, damages = batchesPast(t, what, l)
				require.Equal(t, want, got, what)
				require.Equal(t, 1, damages, what)
				for _, size := range []int64{1, 500, 1 << 20} {
					got, damages = sectionsPast(t, what, l, size)
					require.Equal(t, want, got, what)
					require.Equal(t, 1, damages, what)
				}
				require.NoError(t, l.Close())
			}
		}
	}
}
