package seglog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// With KeepAfter, Repair keeps the end of a log whose last batches are gone, so that no durable offset is given out again; without, it
// says that the recovery point goes down.
func TestRepairKeepsTheEnd(t *testing.T) {
	t.Parallel()
	for _, gaps := range []bool{false, true} {
		for _, how := range []string{"cut short", "zeroed", "flipped", "removed"} {
			for _, keep := range []bool{false, true} {
				what := fmt.Sprintf("gaps %v, %s, keep %v", gaps, how, keep)
				s := sim.NewFS(sim.NewWorld(), true)
				l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
				require.NoError(t, err)
				if gaps {
					_, err := l.TransferFrom(bytes.NewReader(append(spaced(0, 1, 1), spaced(7, 1, 1)...)), -1)
					require.NoError(t, err)
				}
				for l.Stats().Segments < 2 {
					_, err := l.Append(Record{Value: make([]byte, 300)})
					require.NoError(t, err)
				}
				for range 3 {
					_, err := l.Append(Record{Value: make([]byte, 300)})
					require.NoError(t, err)
				}
				end := l.Offsets().End
				var last BatchInfo
				for b, err := range l.Batches(end - 1) {
					require.NoError(t, err)
					last = b
				}
				require.NoError(t, l.Close())
				changeNote(t, s, false, func(*state) {}) // not closed, as far as the log knows
				name := filepath.Base(last.Path)
				b := bytes.Clone(s.World.Get(name))
				switch how {
				case "cut short":
					s.World.Put(name, b[:last.Pos])
				case "zeroed":
					clear(b[last.Pos:])
					s.World.Put(name, b)
				case "flipped":
					b[len(b)-1] ^= 1
					s.World.Put(name, b)
				case "removed":
					s.World.Drop(name)
				}
				r, after := repaired(t, s.World, RepairOptions{Apply: true, KeepAfter: keep})
				require.False(t, r.Sound(), what)
				require.Equal(t, keep, r.End == end, "%s: %+v", what, r)
				require.Equal(t, !keep, slices.Contains(r.Changes, fmt.Sprintf("recovery point from %d to %d", end, r.End)), "%s: %v", what, r.Changes)
				again, _ := repaired(t, after, RepairOptions{KeepAfter: keep})
				require.True(t, again.Sound(), "%s: %+v", what, again)
				report := verifyWorld(t, after, nil)
				require.True(t, report.OK(), "%s: %v", what, report.Problems)
				for range 2 {
					s = sim.NewFS(after, true)
					l, err = openFS(s, sim.Dir, nil)
					require.NoError(t, err, what)
					offset, err := l.Append(Record{Value: []byte("more")})
					require.NoError(t, err)
					require.Equal(t, r.End, offset, what)
					r.End++
					after = s.Kill()
					ignore(l.Close())
				}
			}
		}
	}
}

// Without Apply, Repair leaves nothing behind; with it, the file that keeps a batch at the end of the log has all of its bytes, the last
// one too, which is zero.
func TestRepairOfTheLastBatch(t *testing.T) {
	dir := damagedLog(t, 5, func(i int) []byte { return make([]byte, i*10) }, func(b []byte, at []int) { b[at[4]+headerLen+2] ^= 1 })
	require.NoError(t, os.Remove(filepath.Join(dir, lockName)))
	b, err := os.ReadFile(filepath.Join(dir, fileName(0, logSuffix)))
	require.NoError(t, err)
	before, err := os.ReadDir(dir)
	require.NoError(t, err)
	dry, err := Repair(dir, nil)
	require.NoError(t, err)
	after, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Equal(t, len(before), len(after), "%v", after)
	report, err := Repair(dir, &RepairOptions{Apply: true})
	require.NoError(t, err)
	require.Equal(t, dry.Removed, report.Removed)
	require.Len(t, report.Removed, 1)
	saved, err := os.ReadFile(report.Removed[0].Saved)
	require.NoError(t, err)
	require.Equal(t, b[report.Removed[0].Pos:], saved)
}
