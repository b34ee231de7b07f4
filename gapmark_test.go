package seglog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// In a log with gaps, a batch that is left out of the last segment is one more gap by its offsets, but the file does not end any more, or have
// a batch that ends, where the state file says: Open refuses the log, Verify says so, and Repair makes it open.
func TestBatchLeftOutOfALogWithGaps(t *testing.T) {
	t.Parallel()
	for _, behind := range []int{0, 3} { // batches that were not flushed
		for _, out := range []int{0, 4, 9} {
			what := fmt.Sprintf("batch %d left out, %d not flushed", out, behind)
			dir := t.TempDir()
			l, err := Open(dir, nil)
			require.NoError(t, err)
			_, err = l.TransferFrom(bytes.NewReader(spaced(0, 10+behind, 3)), -1)
			require.NoError(t, err)
			at := allBatches(t, l)
			require.NoError(t, l.Close())
			if behind > 0 {
				changeState(t, dir, func(s *state) {
					s.clean, s.end, s.endPos = false, 0, 0
					s.scanPos, s.scanOffset, s.recoveryPoint = at[9].Pos+at[9].Bytes, at[9].Next, at[9].Next
				})
			}
			report, err := Verify(dir, nil)
			require.NoError(t, err)
			require.True(t, report.OK(), "%v", report.Problems)
			path := filepath.Join(dir, fileName(0, logSuffix))
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, slices.Delete(b, int(at[out].Pos), int(at[out].Pos+at[out].Bytes)), 0o644))
			_, err = Open(copyFiles(t, dir), nil)
			require.ErrorIs(t, err, ErrCorrupt, what)
			report, err = Verify(dir, nil)
			require.NoError(t, err)
			require.False(t, report.OK(), what)
			_, err = Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
			require.NoError(t, err)
			report, err = Verify(dir, nil)
			require.NoError(t, err)
			require.True(t, report.OK(), "%s: %v", what, report.Problems)
			l, err = Open(dir, nil)
			require.NoError(t, err, what)
			require.NoError(t, l.Close())
		}
	}
}

// Where the last segment is gone and the one before is not sealed, Repair with KeepAfter keeps the end of the log, and the log opens.
func TestRepairWithoutTheLastSegment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := &Options{SegmentBytes: minSegmentBytes}
	segs := segmentsIn(t, dir, o)
	n := len(segs)
	changeState(t, dir, func(s *state) {
		s.clean = false
		s.segments, s.baseSum = s.segments-1, s.baseSum-segs[n-1].Base
		s.scanBase, s.scanPos, s.scanOffset = segs[n-2].Base, segs[n-2].Bytes, segs[n-1].Base
	})
	require.NoError(t, os.Remove(segs[n-1].Path))
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.EqualValues(t, 110, report.End)
	verified, err := Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, verified.OK(), "%v", verified.Problems)
	l, err := Open(dir, o)
	require.NoError(t, err)
	require.EqualValues(t, 110, l.Offsets().End)
	require.NoError(t, l.Close())
}
