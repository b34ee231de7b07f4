package raftstore

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

func TestStable(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	b, err := s.Get([]byte("missing"))
	require.NoError(t, err)
	require.Empty(t, b)
	n, err := s.GetUint64([]byte("missing"))
	require.NoError(t, err)
	require.Zero(t, n)

	value := []byte("127.0.0.1:1")
	require.NoError(t, s.Set([]byte("LastVoteCand"), value))
	clear(value)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 1<<63))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 1<<63+1))
	require.NoError(t, s.Set([]byte("empty"), nil))
	require.NoError(t, s.Set(nil, []byte("no key")))
	large := bytes.Repeat([]byte{0, 1, 2, 0xff}, 1<<16)
	require.NoError(t, s.Set([]byte("large"), large))
	for range 3 {
		b, err = s.Get([]byte("LastVoteCand"))
		require.NoError(t, err)
		require.Equal(t, "127.0.0.1:1", string(b))
		clear(b)
		n, err = s.GetUint64([]byte("CurrentTerm"))
		require.NoError(t, err)
		require.Equal(t, uint64(1<<63+1), n)
		b, err = s.Get(nil)
		require.NoError(t, err)
		require.Equal(t, "no key", string(b))
		b, err = s.Get([]byte("large"))
		require.NoError(t, err)
		require.Equal(t, large, b)
		_, err = s.GetUint64([]byte("LastVoteCand"))
		require.ErrorIs(t, err, seglog.ErrInvalid)
		require.NoError(t, s.Close())
		s = openStore(t, dir, nil)
	}
	require.ErrorIs(t, s.Set([]byte("too large"), make([]byte, maxStableSlot)), seglog.ErrTooLarge)
	b, err = s.Get([]byte("too large"))
	require.NoError(t, err)
	require.Empty(t, b)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 1))
}

// openTerm opens the store and returns its term.
func openTerm(t *testing.T, dir string) uint64 {
	t.Helper()
	s, err := Open(dir, nil)
	require.NoError(t, err)
	defer s.Close()
	vote, err := s.Get([]byte("LastVoteCand"))
	require.NoError(t, err)
	require.Equal(t, "node-1", string(vote))
	term, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	return term
}

// stableOfTerms makes a store whose last two states are terms 6 and 7, and returns its stable file.
func stableOfTerms(t *testing.T, dir string) []byte {
	s := openStore(t, dir, nil)
	require.NoError(t, s.Set([]byte("LastVoteCand"), []byte("node-1")))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 6))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 7))
	require.NoError(t, s.Close())
	b, err := os.ReadFile(filepath.Join(dir, stableFile))
	require.NoError(t, err)
	require.Len(t, b, 4*stableBlock)
	return b
}

// TestStableDamage checks that a store with a bad bit or block in its stable file has the latest term, and that Open repairs
// both copies. If no copy is good, or the file is not a stable file, Open must fail.
func TestStableDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stableFile)
	good := stableOfTerms(t, dir)
	write := func(b []byte) { require.NoError(t, os.WriteFile(path, b, 0o644)) }
	used := int(stableOverhead) + 60
	step := 11
	if testing.Short() {
		step = 31
	}
	for slot := range 4 {
		for bit := slot * stableBlock * 8; bit < (slot*stableBlock+used)*8; bit += step {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			write(bad)
			require.Equal(t, uint64(7), openTerm(t, dir), "bit %d", bit)
		}
		bad := bytes.Clone(good)
		clear(bad[slot*stableBlock : (slot+1)*stableBlock])
		write(bad)
		require.Equal(t, uint64(7), openTerm(t, dir), "slot %d", slot)
		healed, err := os.ReadFile(path)
		require.NoError(t, err)
		for at := openNumber(t, good) % 2 * stableBlock; at < 4*stableBlock; at += 2 * stableBlock {
			require.Equal(t, string(good[at:at+stableBlock]), string(healed[at:at+stableBlock]), "slot %d", slot)
		}
	}
	for slot := range 3 { // two adjacent slots
		bad := bytes.Clone(good)
		clear(bad[slot*stableBlock : (slot+2)*stableBlock])
		write(bad)
		require.Equal(t, uint64(7), openTerm(t, dir), "slots %d and %d", slot, slot+1)
	}
	refused := func(b []byte) {
		t.Helper()
		write(b)
		_, err := Open(dir, nil)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		require.ErrorContains(t, err, path)
	}
	bad := bytes.Clone(good)
	for slot := range 4 {
		bad[slot*stableBlock+20] ^= 1
	}
	refused(bad)
	refused(make([]byte, len(good)))
	refused(nil)
	refused(good[:len(good)-1])
	refused(good[:2*stableBlock])
	refused(append(bytes.Clone(good), 0))
	refused(append(bytes.Clone(good[stableBlock:]), good[:stableBlock]...)) // the blocks are in the wrong places
	require.NoError(t, os.Truncate(path, 8*maxStableSlot))
	_, err := Open(dir, nil)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.NoError(t, os.Remove(path))
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.ErrorContains(t, err, path)

	// A file that a killed Set left beside the stable file must be ignored and removed.
	write(good)
	require.NoError(t, os.WriteFile(path+tmpSuffix, good[:7], 0o644))
	require.Equal(t, uint64(7), openTerm(t, dir))
	require.NoFileExists(t, path+tmpSuffix)
}

// openNumber returns the greatest number of a state in a file.
func openNumber(t *testing.T, b []byte) (number uint64) {
	for slot := range 4 {
		s := b[slot*stableBlock:]
		n, _, err := decodeStable(s[:stableOverhead+int(binary.BigEndian.Uint32(s[stableHead-4:]))])
		require.NoError(t, err)
		number = max(number, n)
	}
	return number
}

// TestStableTorn checks that, wherever the write of a new state stops and in whichever order its blocks reach the disk, Open
// finds the old or the new state, and the new one if one of its copies is whole.
func TestStableTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stableFile)
	before := stableOfTerms(t, dir)
	s := openStore(t, dir, nil)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 8))
	require.NoError(t, s.Close())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	at := int(openNumber(t, after)%2) * stableBlock
	other := at + 2*stableBlock
	size := stableOverhead + int(binary.BigEndian.Uint32(after[at+stableHead-4:]))
	for first := 0; first <= size; first++ {
		for _, second := range []int{0, size - first, size} {
			torn := bytes.Clone(before)
			copy(torn[at:], after[at:at+first])
			copy(torn[other:], after[other:other+second])
			require.NoError(t, os.WriteFile(path, torn, 0o644))
			want := uint64(7)
			if bytes.Equal(torn[at:at+size], after[at:at+size]) || bytes.Equal(torn[other:other+size], after[at:at+size]) {
				want = 8
			}
			require.Equal(t, want, openTerm(t, dir), "%d and %d bytes", first, second)
		}
	}
}

// TestStableOfANewStore checks that a store whose creation was interrupted opens as a new one, with or without its stable file.
func TestStableOfANewStore(t *testing.T) {
	for _, made := range []bool{false, true} {
		dir := t.TempDir()
		log, err := seglog.Open(filepath.Join(dir, logDir), nil)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		if made {
			stable, err := openStable(filepath.Join(dir, stableFile), true)
			require.NoError(t, err)
			require.NoError(t, stable.close())
		}
		s := openStore(t, dir, nil)
		require.NoError(t, s.StoreLogs(entries(1, 3, 1)))
		requireEntries(t, s, 1, of(1, 3)...)
	}
}

// TestStableFailure checks that a value whose new file can't be written is not returned, and that the old state stays.
func TestStableFailure(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 5))
	path := filepath.Join(dir, stableFile)
	require.NoError(t, os.MkdirAll(filepath.Join(path+tmpSuffix, "x"), 0o755)) // so that the new file can't be written
	large := make([]byte, stableBlock)
	require.Error(t, s.Set([]byte("large"), large))
	b, err := s.Get([]byte("large"))
	require.NoError(t, err)
	require.Empty(t, b)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 6)) // fits in the old file
	require.NoError(t, os.RemoveAll(path+tmpSuffix))
	require.NoError(t, s.Set([]byte("large"), large))
	n, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.Equal(t, uint64(6), n)

	// A failed write may have reached the disk, so the store must refuse later ones.
	require.NoError(t, s.stable.f.Close())
	require.Error(t, s.SetUint64([]byte("CurrentTerm"), 7))
	require.ErrorIs(t, s.SetUint64([]byte("CurrentTerm"), 7), seglog.ErrFailed)
	s.stable.f = nil
}

// TestLostLog checks that Open refuses a store whose log, or the log's state file, is lost.
func TestLostLog(t *testing.T) {
	for _, lost := range []string{logDir, filepath.Join(logDir, "seglog.state")} {
		dir := t.TempDir()
		s := openStore(t, dir, nil)
		require.ErrorIs(t, s.StoreLog(&raft.Log{Index: 0}), seglog.ErrInvalid)
		require.NoError(t, s.StoreLog(&raft.Log{Index: 1, Term: 1}))
		require.NoError(t, s.Close())
		require.NoError(t, os.RemoveAll(filepath.Join(dir, lost)))
		_, err := Open(dir, nil)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		require.ErrorContains(t, err, "seglog.state is missing")
	}
}

// TestFailedStore checks that a store with a failed log does not report that an entry does not exist or does not follow, or
// that a deletion has nothing to do: the log may have more entries than it shows.
func TestFailedStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, nil)
	require.NoError(t, err)
	require.NoError(t, s.StoreLogs(entries(1, 10, 1)))
	require.NoError(t, os.Remove(filepath.Join(dir, logDir, "LOCK"))) // makes the log fail before it cuts
	require.ErrorIs(t, s.DeleteRange(5, 10), seglog.ErrFailed)
	require.ErrorIs(t, s.DeleteRange(50, 60), seglog.ErrFailed)
	require.ErrorIs(t, s.StoreLog(entry(50, 1)), seglog.ErrFailed)
	var got raft.Log
	require.ErrorIs(t, s.GetLog(50, &got), seglog.ErrFailed)
	require.NoError(t, s.GetLog(10, &got))
	require.ErrorIs(t, s.Close(), seglog.ErrFailed)
}
