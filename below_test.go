package seglog

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// changeState changes the state file of a log that is not open.
func changeState(t *testing.T, dir string, change func(*state)) {
	t.Helper()
	path := filepath.Join(dir, stateName)
	st, ok, err := readState(osFS{}, path)
	require.NoError(t, err)
	require.True(t, ok)
	f, err := openState(osFS{}, path, st)
	require.NoError(t, err)
	require.NoError(t, f.commit(change))
	require.NoError(t, f.close())
}

// segmentsIn makes a log of 110 records in more than three segments, and closes it.
func segmentsIn(t *testing.T, dir string, o *Options) []SegmentInfo {
	t.Helper()
	l, err := Open(dir, o)
	require.NoError(t, err)
	for range 110 {
		_, err := l.Append(Record{Value: make([]byte, 100)})
		require.NoError(t, err)
	}
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segs), 3)
	require.NoError(t, l.Close())
	return segs
}

// A segment wholly below the start that was not sealed before a kill waits for its deletion. Damage in it must not keep the
// log from opening: nobody reads there, and Verify and Repair rightly find nothing wrong.
func TestDamageBelowTheStart(t *testing.T) {
	for name, do := range map[string]func(b []byte) []byte{
		"sound":                   func(b []byte) []byte { return b },
		"sound, reserved":         func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
		"sound, a failed append":  func(b []byte) []byte { return append(append(b, b[:30]...), make([]byte, 4096)...) },
		"the first batch":         func(b []byte) []byte { b[30] ^= 1; return b },
		"the first length":        func(b []byte) []byte { b[8] ^= 0x40; return b },
		"the last batch":          func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a count before the mark": func(b []byte) []byte { b[57] ^= 0x40; return b },
		"zeros":                   func(b []byte) []byte { return make([]byte, len(b)) },
		"the end":                 func(b []byte) []byte { return b[:len(b)/2] },
		"all":                     func([]byte) []byte { return nil },
	} {
		for _, marked := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				warn := &warnings{Handler: slog.DiscardHandler}
				o := &Options{SegmentBytes: 4096, Logger: slog.New(warn)}
				segs := segmentsIn(t, dir, o)

				// The state as of a process that was killed behind DeleteBefore, before it sealed the first segment.
				changeState(t, dir, func(s *state) {
					s.clean, s.start = false, segs[2].Base+1
					s.scanBase, s.scanPos, s.scanOffset, s.segments, s.baseSum = 0, 0, 0, 1, 0
					if marked {
						first, err := os.ReadFile(segs[0].Path)
						require.NoError(t, err)
						b := batch(first)
						s.scanPos, s.scanOffset = b.size(), b.last()+1
					}
				})
				b, err := os.ReadFile(segs[0].Path)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(segs[0].Path, do(b), 0o644))

				r, err := Verify(dir, nil)
				require.NoError(t, err)
				require.True(t, r.OK(), "%v", r.Problems)
				report, err := Repair(dir, nil)
				require.NoError(t, err)
				require.Empty(t, report.Removed)
				for i := range 2 {
					l, err := Open(dir, o)
					require.NoError(t, err)
					if strings.HasPrefix(name, "sound") { // an ordinary kill must alarm nobody
						require.Empty(t, warn.lines)
					} else if !marked {
						require.Len(t, warn.lines, 1-i)
					}
					warn.lines = nil
					require.Equal(t, segs[2].Base+1, l.Offsets().Start)
					next := l.Offsets().Start
					for rec, err := range l.Records(Oldest) {
						require.NoError(t, err)
						require.Equal(t, next, rec.Offset)
						next++
					}
					require.EqualValues(t, 110, next)
					require.Eventually(t, func() bool { _, err := os.Stat(segs[0].Path); return os.IsNotExist(err) }, 10*time.Second, time.Millisecond)
					require.NoError(t, l.Close())
				}
			})
		}
	}
}

// A segment wholly below the start waits for its deletion, and Repair with KeepAfter takes out all of the segment behind it, in
// which the start lies. The log must open, with a start at the first offset that is left.
func TestRepairTakesOutTheSegmentOfTheStart(t *testing.T) {
	for name, do := range map[string]func(b []byte){
		"sound":           func(b []byte) {},
		"the first batch": func(b []byte) { b[30] ^= 1 },
		"the last batch":  func(b []byte) { b[len(b)-1] ^= 1 },
		"zeros":           func(b []byte) { clear(b) },
	} {
		for _, sealed := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				o := &Options{SegmentBytes: 4096, MayDelete: func(SegmentInfo) bool { return false }}
				segs := segmentsIn(t, dir, o)
				changeState(t, dir, func(s *state) {
					s.clean, s.start = false, segs[1].Base+1
					if !sealed {
						s.scanBase, s.scanPos, s.scanOffset, s.segments, s.baseSum = 0, 0, 0, 1, 0
					}
				})
				b, err := os.ReadFile(segs[0].Path)
				require.NoError(t, err)
				do(b)
				require.NoError(t, os.WriteFile(segs[0].Path, b, 0o644))
				junk := make([]byte, segs[1].Bytes)
				for i := range junk {
					junk[i] = 0xa5
				}
				require.NoError(t, os.WriteFile(segs[1].Path, junk, 0o644))

				report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
				require.NoError(t, err)
				require.NotEmpty(t, report.Removed)
				require.Equal(t, segs[2].Base, report.Start)
				again, err := Repair(dir, &RepairOptions{KeepAfter: true})
				require.NoError(t, err)
				require.True(t, again.Sound(), "%+v", again)
				r, err := Verify(dir, nil)
				require.NoError(t, err)
				require.True(t, r.OK(), "%v", r.Problems)
				for range 2 {
					l, err := Open(dir, o)
					require.NoError(t, err)
					require.Equal(t, segs[2].Base, l.Offsets().Start)
					next := l.Offsets().Start
					for rec, err := range l.Records(Oldest) {
						require.NoError(t, err)
						require.Equal(t, next, rec.Offset)
						next++
					}
					require.EqualValues(t, 110, next)
					require.NoError(t, l.Close())
				}
			})
		}
	}
}

// Repair leaves an interrupted Reset to the next Open, and reports the log as that will leave it.
func TestRepairReportsAnInterruptedReset(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("v")})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	changeState(t, dir, func(s *state) { s.clean, s.cut, s.reset = false, 700, true })
	report, err := Repair(dir, &RepairOptions{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 700, report.Start)
	require.EqualValues(t, 700, report.End)
	require.True(t, report.Sound())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.Equal(t, report.Start, l.Offsets().Start)
	require.Equal(t, report.End, l.Offsets().End)
	require.NoError(t, l.Close())
}

// A Reset that was interrupted is no damage, whatever it came to.
func TestVerifyOfAnInterruptedReset(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	w := s.World.Clone()
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for l.Stats().Segments < 3 {
		_, err = l.Append(Record{Value: make([]byte, 500)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	require.Eventually(t, func() bool { return l.Stats().Seals == 2 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
	l, err = openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	s.Event("reset", nil)
	require.NoError(t, l.Reset(3))
	s.Kill()
	ignore(l.Close())
	resetting := false
	for i, op := range s.Ops {
		w.Apply(op)
		resetting = resetting || op.Kind == sim.Event
		if !resetting || op.Kind != sim.Rename && op.Kind != sim.Remove {
			continue // Verify waits half a second for the cut each time
		}
		report := verifyWorld(t, w, nil)
		require.True(t, report.OK(), "after operation %d, %v: %v", i, op, report.Problems)
	}
}

// A read-only log does not look at a segment that lies wholly below the start, nor does an Open that writes.
func TestReadOnlyBesideDamageBelowTheStart(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushSync})
	appendValues(t, l, 10)
	require.NoError(t, l.DeleteBefore(10))
	appendValues(t, l, 1)
	w := s.Kill()
	ignore(l.Close())
	for _, size := range []int{0, 50} {
		w := w.Clone()
		w.Put(fileName(0, logSuffix), w.Get(fileName(0, logSuffix))[:size])
		for _, readOnly := range []bool{true, false} {
			c, err := openFS(sim.NewFS(w.Clone(), true), sim.Dir, &Options{ReadOnly: readOnly})
			require.NoError(t, err)
			got, err := readLog(c)
			require.NoError(t, err)
			require.Len(t, got.recs, 1)
			require.NoError(t, c.Close())
		}
	}
}

// OffsetForTime must leave alone the segments that lie below the start and are about to be deleted. They may have been sealed without indexes.
func TestOffsetForTimePassesSegmentsBelowTheStart(t *testing.T) {
	dir := t.TempDir()
	o := &Options{SegmentBytes: 5000}
	segs := segmentsIn(t, dir, o)
	for _, suffix := range []string{indexSuffix, timeSuffix} {
		require.NoError(t, os.Remove(filepath.Join(dir, fileName(segs[0].Base, suffix))))
	}
	l, err := Open(dir, o)
	require.NoError(t, err)
	l.start.Store(segs[1].Base)
	at, err := l.OffsetForTime(time.UnixMilli(1))
	require.NoError(t, err)
	require.Equal(t, segs[1].Base, at)
	require.Zero(t, l.Stats().IndexRebuilds)
	require.NoError(t, l.Close())
}
