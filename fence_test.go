package seglog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// fencedLog makes a log with a fence at offset 4: batches of two records each at 0, 2, 4, 6, 8, and then a changed state file.
func fencedLog(t *testing.T, change func(*state, []batch)) (dir, name string, batches []batch) {
	dir = t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	add := func(n int) {
		for range n {
			_, err := l.Append(Record{Value: []byte("v")}, Record{Value: []byte("w")})
			require.NoError(t, err)
		}
	}
	add(4)
	require.NoError(t, l.TruncateTo(4))
	add(3)
	require.NoError(t, l.Close())
	name = filepath.Join(dir, fileName(0, logSuffix))
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	for rest := batch(b); len(rest) > 0; rest = rest[rest.size():] {
		batches = append(batches, rest[:rest.size()])
	}
	require.Len(t, batches, 5)
	require.Less(t, batches[1].epoch(), batches[2].epoch())
	changeState(t, dir, func(s *state) { change(s, batches) })
	return dir, name, batches
}

// markBehind makes the state that of a killed process that noted only the first n batches as flushed.
func markBehind(s *state, batches []batch, n int) {
	s.clean, s.end, s.endPos, s.scanPos = false, 0, 0, 0
	for _, b := range batches[:n] {
		s.scanPos += b.size()
		s.scanOffset = b.last() + 1
	}
}

// requireRepairs checks that Open refuses the log, that Verify says why, and that the log is whole up to end after a Repair.
func requireRepairs(t *testing.T, dir, reason string, keep bool, end int64, removed int) {
	_, err := Open(dir, nil)
	require.ErrorIs(t, err, ErrCorrupt)
	r, err := Verify(dir, nil)
	require.NoError(t, err)
	require.False(t, r.OK())
	require.Contains(t, r.Problems[0].Reason, reason)
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: keep})
	require.NoError(t, err)
	require.Len(t, report.Removed, removed)
	require.Equal(t, end, report.End)
	r, err = Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, r.OK(), "%v", r.Problems)
	for range 2 {
		l, err := Open(dir, nil)
		require.NoError(t, err)
		require.Equal(t, end, l.Offsets().End)
		offset, err := l.Append(Record{Value: []byte("after")})
		require.NoError(t, err)
		require.Equal(t, end, offset)
		end++
		for _, err := range l.Records(Oldest) {
			require.NoError(t, err)
		}
		require.NoError(t, l.Close())
	}
}

// A flipped bit raises the offset of a batch in a log that may have gaps, so that the batch lies behind the fence of an earlier
// cut, under an older leader epoch. Open takes it for one that came back, and refuses the log. Verify must say so, and Repair
// must take the batch out, whether it lies behind the point where recovery starts to check or before it.
func TestRepairTakesOutABatchBehindTheFence(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprint("KeepAfter ", keep), func(t *testing.T) {
			dir, name, batches := fencedLog(t, func(s *state, batches []batch) {
				markBehind(s, batches, 1)
				s.gaps = true
			})
			var b []byte
			for _, x := range batches[:2] {
				b = append(b, x...)
			}
			binary.BigEndian.PutUint64(b[len(batches[0]):], 2|1<<4)
			require.NoError(t, os.WriteFile(name, b, 0o644))
			end := int64(2)
			if keep {
				end = 10 // the recovery point
			}
			requireRepairs(t, dir, "left from before a cut at offset 4", keep, end, 1)
		})
	}
	t.Run("before the mark", func(t *testing.T) {
		dir, name, batches := fencedLog(t, func(s *state, batches []batch) {
			markBehind(s, batches, 3)
			s.gaps = true
		})
		var b []byte
		for _, x := range batches {
			b = append(b, x...)
		}
		raised := len(batches[0])
		binary.BigEndian.PutUint64(b[raised:], 2|1<<5) // the batches behind no longer follow
		require.NoError(t, os.WriteFile(name, b, 0o644))
		requireRepairs(t, dir, "collides with the next batch's", true, 10, 1)
	})
}

// A flipped bit lowers the leader epoch of a batch behind the fence. Its neighbours tell that, or the fence does, so Repair sets
// the epoch right and loses nothing.
func TestRepairOfALoweredEpochBehindTheFence(t *testing.T) {
	for which := 2; which < 5; which++ {
		for _, mark := range []int{1, 2, 4} {
			t.Run(fmt.Sprint("batch ", which, " marked ", mark), func(t *testing.T) {
				dir, name, batches := fencedLog(t, func(s *state, batches []batch) { markBehind(s, batches, mark) })
				pos := 0
				for _, b := range batches[:which] {
					pos += len(b)
				}
				b, err := os.ReadFile(name)
				require.NoError(t, err)
				b[pos+atLeaderEpoch+3] ^= 1
				require.NoError(t, os.WriteFile(name, b, 0o644))
				if which >= mark {
					requireRepairs(t, dir, "must have been", false, 10, 0)
					return
				}
				r, err := Verify(dir, nil)
				require.NoError(t, err)
				require.True(t, r.OK(), "recovery trusts the batch")
				require.Len(t, r.Problems, 1)
				report, err := Repair(dir, &RepairOptions{Apply: true})
				require.NoError(t, err)
				require.Len(t, report.Changes, 1)
				require.Empty(t, report.Removed)
			})
		}
	}
}

// The fence that a cut leaves stays for batches of a leader that counts on from it, and is lifted for the first one of a leader that
// counts epochs of its own: recovery must keep that batch.
func TestFenceOfReceivedBatches(t *testing.T) {
	for _, c := range []struct {
		epoch  uint32
		offset int64
	}{{2, 2}, {1, 2}, {0, fenceLifted}} {
		s := sim.NewFS(sim.NewWorld(), true)
		o := &Options{Flush: FlushNone, SegmentBytes: 64 << 10}
		l, err := openFS(s, sim.Dir, o)
		require.NoError(t, err)
		for range 4 {
			appendNumbered(t, l)
		}
		require.NoError(t, l.TruncateTo(2))
		require.EqualValues(t, 1, l.writer.fenceEpoch)
		b := encoded([]Record{{Time: time.UnixMilli(1), Value: []byte("a leader's")}}, 2)
		binary.BigEndian.PutUint32(b[12:], c.epoch)
		_, err = l.TransferFrom(bytes.NewReader(b), -1)
		require.NoError(t, err)
		st, _, err := readState(s, filepath.Join(sim.Dir, stateName))
		require.NoError(t, err)
		require.Equal(t, c.offset, st.fenceOffset, "epoch %d", c.epoch)
		s = sim.NewFS(s.Kill(), true)
		ignore(l.Close())
		l, err = openFS(s, sim.Dir, o)
		require.NoError(t, err)
		require.EqualValues(t, 3, l.Offsets().End, "epoch %d", c.epoch)
		require.NoError(t, l.Close())
	}
}
