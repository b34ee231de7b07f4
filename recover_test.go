package seglog

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// everyFinding calls f with every combination of facts that recovery can find about a segment.
func everyFinding(f func(finding)) {
	for bits := range 1 << 8 {
		for _, ends := range []ending{endsWhole, endsBad} {
			bit := func(i int) bool { return bits>>i&1 == 1 }
			f(finding{promised: bit(0), clean: bit(1), sealed: bit(2), last: bit(3), empty: bit(4), joins: bit(5), below: bit(6), behind: bit(7), ends: ends})
		}
	}
}

// pattern encodes a finding as text, with one column per field: 0 or 1, except that ends is b for bad or w for whole. The
// order is that of recoveryPatterns.
func (f finding) pattern() string {
	p := []byte("000000000")
	for i, set := range []bool{f.promised, f.clean, f.sealed, f.last, f.empty, f.joins, f.below} {
		if set {
			p[i] = '1'
		}
	}
	p[7] = 'w'
	if f.ends == endsBad {
		p[7] = 'b'
	}
	if f.behind {
		p[8] = '1'
	}
	return string(p)
}

func fits(finding, pattern string) bool {
	for i := range pattern {
		if pattern[i] != '.' && pattern[i] != finding[i] {
			return false
		}
	}
	return true
}

// recoveryPatterns is the decision table again, written so that the order of rows does not matter: the patterns do not
// overlap. A dot stands for any value.
var recoveryPatterns = []struct {
	row     int
	id      byte
	pattern string // promised clean sealed last empty joins below ends behind
}{
	{0, 'A', ".1......."},
	{1, 'B', ".01......"},
	{2, 'F', ".00...1.."},
	{3, 'F', "0000..0b."}, // no promised records: a bad batch in a segment before the last
	{3, 'F', "0001..0b1"}, // or a bad batch before good ones
	{4, 'E', "1000..0b."},
	{4, 'E', "1001..0b."},
	{4, 'E', "0001..0b0"},
	{4, 'E', ".000.00w."}, // the next segment does not join
	{5, 'J', "0000.10w."},
	{5, 'J', "0001..0w."},
	{6, 'D', "1000.10w."},
	{7, 'G', "10011.0w."},
	{8, 'D', "10010.0w."},
}

// The decision table must decide every finding as recoveryPatterns does, so that a change of either shows.
func TestRecoveryTable(t *testing.T) {
	reached := map[int]int{}
	everyFinding(func(f finding) {
		p := f.pattern()
		row := -1
		for _, want := range recoveryPatterns {
			if !fits(p, want.pattern) {
				continue
			}
			require.Equal(t, -1, row, "two patterns fit %s", p)
			row = want.row
			require.Equal(t, string(want.id), string(recoveryCases[row].id))
		}
		require.NotEqual(t, -1, row, "no pattern fits %s", p)
		reached[row]++
		got := decide(f)
		require.Equal(t, recoveryCases[row].finds, got.finds, "%s", p)
		require.Equal(t, recoveryCases[row].does, got.does, "%s", p)
		for i, c := range recoveryCases[:row] {
			require.False(t, c.match(f), "%s: row %d decides before row %d", p, i, row)
		}
		require.True(t, recoveryCases[row].match(f))
	})
	require.Len(t, reached, len(recoveryCases), "the number of rows that decide some finding")
}

// Damage below the recovery point must make Open refuse the log. Above it, where a valid state file explains the damage by a
// crash, damage must never do so.
func TestRecoveryTableKeepsItsPromises(t *testing.T) {
	everyFinding(func(f finding) {
		if f.clean || f.sealed {
			return // such a segment is not scanned
		}
		switch id := decide(f).id; {
		case f.below:
			require.Equal(t, "F", string(id), f.pattern())
		case f.promised:
			require.NotEqual(t, "F", string(id), f.pattern())
		}
	})
}

// Open takes over a directory without a state file as another process left it: not flushed, with zeros behind the batches of each
// segment, perhaps with offsets left out. The records that it shows must outlast a power cut, the zeros must be gone from the
// segments that get no appends, and whether offsets are left out must be known: a log that forgets it takes its gaps for damage,
// and one that imagines it takes damage for gaps.
func TestTakenOverDirectory(t *testing.T) {
	const segments, each = 3, 10
	missing := map[string]int64{"no gap": -1, "a gap in the first segment": 4, "a gap before the second segment": 9,
		"a gap in the second segment": 14, "a gap before the last segment": 19, "a gap in the last segment": 24}
	for name, gap := range missing {
		t.Run(name, func(t *testing.T) {
			s := sim.NewFS(sim.NewWorld(), true)
			var offsets []int64
			sizes := map[int64]int{}
			for base := int64(0); base < segments*each; base += each {
				var b []byte
				for offset := base; offset < base+each; offset++ {
					if offset != gap {
						b = append(b, spaced(offset, 1, 1)...)
						offsets = append(offsets, offset)
					}
				}
				sizes[base] = len(b)
				f, err := s.Open(filepath.Join(sim.Dir, fileName(base, logSuffix)), vfs.OpenCreate)
				require.NoError(t, err)
				_, err = f.WriteAt(append(b, make([]byte, 700)...), 0)
				require.NoError(t, err)
				require.NoError(t, f.Close())
			}
			o := Options{Flush: FlushNone, SegmentBytes: minSegmentBytes}
			check := func(l *Log, err error) {
				t.Helper()
				require.NoError(t, err)
				require.EqualValues(t, segments*each, l.Offsets().End)
				require.Equal(t, gap >= 0, l.gaps.Load())
				requireOffsets(t, l, 0, offsets...)
				for _, offset := range offsets {
					i, _ := slices.BinarySearch(offsets, offset)
					requireOffsets(t, l, offset, offsets[i:]...)
				}
			}
			l, err := openFS(s, sim.Dir, &o)
			check(l, err)
			require.EqualValues(t, segments*each, l.Offsets().RecoveryPoint)
			for base := int64(0); base < (segments-1)*each; base += each {
				require.Len(t, s.World.Get(fileName(base, logSuffix)), sizes[base], "zeros behind the batches of segment %d", base)
				for _, suffix := range []string{indexSuffix, timeSuffix} {
					require.Contains(t, s.World.Names, fileName(base, suffix))
				}
			}
			w := s.Kill()
			ignore(l.Close())
			for what, w := range map[string]*sim.World{"killed": w.Clone(), "a power cut": cutNamed(t, w.Clone(), "nothing")} {
				require.Empty(t, verifyWorld(t, w, nil).Problems, what)
				s := sim.NewFS(w, true)
				for range 2 { // the second time after a Close
					l, err := openFS(s, sim.Dir, &o)
					check(l, err)
					require.NoError(t, l.Close())
				}
				require.Empty(t, verifyWorld(t, s.World, nil).Problems, what+", then opened")
			}
		})
	}
}
