package seglog

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
)

func randomState(rng *rand.Rand) state {
	n := func() int64 { return int64(rng.Uint64()) >> rng.IntN(60) }
	s := state{policy: FlushPolicy(rng.IntN(3)), clean: rng.IntN(2) == 0, gaps: rng.IntN(2) == 0, reset: rng.IntN(2) == 0,
		start: n(), recoveryPoint: n(),
		manifest: manifest{first: n(), scanBase: n(), scanPos: n(), scanOffset: n(), segments: n(), baseSum: n()}, end: n(), endPos: n(), cut: n(), cuts: n(), lastCut: n()}
	return s
}

// newStateFile returns a new state file and its path.
func newStateFile(t *testing.T) (s *stateFile, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), stateName)
	_, ok, err := readState(osFS{}, path)
	require.NoError(t, err)
	require.False(t, ok, "a missing file must yield no state")
	s, err = openState(osFS{}, path, state{cut: -1})
	require.NoError(t, err)
	t.Cleanup(func() { s.f.Close() })
	return s, path
}

func set(to state) func(*state) {
	return func(s *state) {
		seq := s.seq
		*s = to
		s.seq = seq
	}
}

func readBack(t *testing.T, path string) (state, bool) {
	t.Helper()
	s, ok, err := readState(osFS{}, path)
	require.NoError(t, err)
	s.seq = 0
	return s, ok
}

func TestStateRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	s, path := newStateFile(t)
	for i := range 50 {
		want := randomState(rng)
		if i%2 == 0 {
			require.NoError(t, s.commit(set(want)))
		} else {
			s.stage(set(want))
			require.NoError(t, s.note())
		}
		got, ok := readBack(t, path)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
}

// A changed byte must invalidate one slot at most, and never be accepted.
func TestStateEveryByte(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	rng := rand.New(rand.NewPCG(2, 2))
	s, path := newStateFile(t)
	older, newer := randomState(rng), randomState(rng)
	require.NoError(t, s.commit(set(older)))
	s.stage(set(newer))
	require.NoError(t, s.note())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	slotOf := s.cur.seq % 2
	for i := 0; i < len(whole); i++ {
		if i == stateLen+10 {
			i = stateSlotGap - 10 // there is nothing between the slots
		}
		for _, bit := range []byte{1, 0x80} {
			bad := append([]byte(nil), whole...)
			bad[i] ^= bit
			require.NoError(t, os.WriteFile(path, bad, 0o644))
			got, ok := readBack(t, path)
			require.True(t, ok)
			inSlot := i%stateSlotGap < stateLen
			if inSlot && uint64(i/stateSlotGap) == slotOf {
				require.Equal(t, older, got, "byte %d", i)
			} else {
				require.Equal(t, newer, got, "byte %d", i)
			}
		}
	}
	// The same for a file cut at any length. A file that is too short, or has two bad slots, must yield no state.
	for n := 0; n < len(whole); n++ {
		if n == stateLen+10 {
			n = stateSlotGap - 10
		}
		require.NoError(t, os.WriteFile(path, whole[:n], 0o644))
		got, ok := readBack(t, path)
		switch {
		case n < stateLen:
			require.False(t, ok, "%d bytes", n)
		case n < stateSlotGap+stateLen:
			want := newer
			if slotOf == 1 {
				want = older
			}
			require.True(t, ok)
			require.Equal(t, want, got)
		}
	}
	for _, at := range []int{5, stateSlotGap + 20} {
		whole[at] ^= 1
	}
	require.NoError(t, os.WriteFile(path, whole, 0o644))
	_, ok := readBack(t, path)
	require.False(t, ok)
}

// After a commit, no older state may be read, whichever slot is lost.
func TestStateCommitReplacesBothSlots(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	s, path := newStateFile(t)
	require.NoError(t, s.commit(set(randomState(rng))))
	want := randomState(rng)
	require.NoError(t, s.commit(set(want)))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, lost := range []int{0, stateSlotGap} {
		bad := append([]byte(nil), whole...)
		clear(bad[lost : lost+stateLen])
		require.NoError(t, os.WriteFile(path, bad, 0o644))
		got, ok := readBack(t, path)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
}

// A note that is made during a commit must be written when the commit ends, but never overwrite the state that a cut has
// committed.
func TestMissedNoteIsWritten(t *testing.T) {
	fsys := sim.NewFS(sim.NewWorld(), false)
	f, err := openState(fsys, stateName, state{cut: -1})
	require.NoError(t, err)
	read := func() state {
		st, ok, err := readState(fsys, stateName)
		require.NoError(t, err)
		require.True(t, ok)
		return st
	}
	f.mu.Lock()
	require.NoError(t, f.noteFlushed(7, 0, markAt(7, 700)))
	f.unlock()
	require.EqualValues(t, 7, read().recoveryPoint)
	require.EqualValues(t, 700, read().scanPos)
	require.NoError(t, f.commit(func(s *state) {
		require.NoError(t, f.noteFlushed(9, 0, markAt(9, 900))) // this note is made during a commit, and written at its end
	}))
	require.EqualValues(t, 9, read().recoveryPoint)
	f.mu.Lock()
	require.NoError(t, f.noteFlushed(12, 0, markAt(12, 1200)))
	f.mu.Unlock()
	require.NoError(t, f.commit(func(s *state) {
		require.EqualValues(t, 12, s.recoveryPoint)
		s.recoveryPoint = 3
	}))
	require.EqualValues(t, 3, read().recoveryPoint)
	require.NoError(t, f.close())
}

// Whatever segments are sealed, deleted or kept, the manifest must be that of a log made of these segments at once, and tell any
// other list of segments from it.
func TestManifest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		bases := []int64{rng.Int64N(1000)}
		var m manifest
		m.set(bases, bases[0], markAt(3, 77))
		require.Equal(t, manifest{first: bases[0], scanBase: bases[0], scanPos: 77, scanOffset: bases[0] + 3, segments: 1, baseSum: bases[0]}, m)
		for range rng.IntN(20) {
			if len(bases) > 1 && rng.IntN(3) == 0 {
				n := 1 + rng.IntN(len(bases)-1)
				m.deleted(bases[:n], bases[n])
				bases = bases[n:]
			} else {
				bases = append(bases, bases[len(bases)-1]+1+rng.Int64N(1000))
				m.sealed(bases[len(bases)-1], markAt(1, 61))
			}
			var anew manifest
			anew.set(bases, bases[len(bases)-1], markAt(m.scanOffset-m.scanBase, m.scanPos))
			require.Equal(t, anew, m)
		}
		require.Empty(t, m.differs(bases))
		require.Empty(t, m.differs(append(slices.Clone(bases), m.scanBase+5)), "segments behind the scan point do not count")
		require.Empty(t, m.foreign(bases))
		for i, base := range bases {
			require.Equal(t, base != m.scanBase, m.isSealed(base))
			require.NotEmpty(t, m.differs(slices.Delete(slices.Clone(bases), i, i+1)))
			if other := base + 1; !slices.Contains(bases, other) && other < m.scanBase {
				with := slices.Insert(slices.Clone(bases), i+1, other)
				require.NotEmpty(t, m.differs(with))
				require.Equal(t, []int64{other}, m.foreign(with))
			}
		}
		require.True(t, m.trusts(m.scanBase, m.scanPos-1))
		require.False(t, m.trusts(m.scanBase, m.scanPos))
		require.False(t, m.isUnfinished())
	}
	require.True(t, unfinishedManifest.isUnfinished())
	require.NotEmpty(t, unfinishedManifest.differs([]int64{0}))
}

// The sum of base offsets overflows where these are great, as times in nanoseconds are, and must not look like that of a snapshot that
// was not finished.
func TestManifestOfGreatOffsets(t *testing.T) {
	var bases []int64
	for i := range int64(30) {
		bases = append(bases, 1_700_000_000_000_000_000+10*i)
		var m manifest
		m.set(bases, bases[len(bases)-1], markAt(1, 61))
		require.False(t, m.isUnfinished(), bases)
		require.Empty(t, m.differs(bases))
		if other := bases[0] + 5; i > 0 {
			require.Equal(t, []int64{other}, m.foreign(slices.Insert(slices.Clone(bases), 1, other)))
		}
	}
}
