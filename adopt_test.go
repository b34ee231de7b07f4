package seglog

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

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
