package raftstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

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
	require.ErrorIs(t, s.Set([]byte("too large"), make([]byte, maxStableSize)), seglog.ErrTooLarge)
	b, err = s.Get([]byte("too large"))
	require.NoError(t, err)
	require.Empty(t, b)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 1))
}

// TestStableDamage: a vote that can't be read is an error, whichever bit is wrong, wherever the file ends, and if it is gone.
func TestStableDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stableFile)
	s := openStore(t, dir, nil)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 5))
	require.NoError(t, s.Set([]byte("LastVoteCand"), []byte("node-1")))
	require.NoError(t, s.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	refused := func(b []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, b, 0o644))
		_, err := Open(dir, nil)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		require.ErrorContains(t, err, path)
	}
	for bit := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		refused(bad)
	}
	for n := range good {
		refused(good[:n])
	}
	refused(append(bytes.Clone(good), 0))
	refused(make([]byte, maxStableSize+1))
	require.NoError(t, os.Remove(path))
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.ErrorContains(t, err, path)

	// What a killed Set left beside the file is nothing.
	require.NoError(t, os.WriteFile(path, good, 0o644))
	require.NoError(t, os.WriteFile(path+tmpSuffix, good[:7], 0o644))
	s = openStore(t, dir, nil)
	n, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.Equal(t, uint64(5), n)
	require.NoFileExists(t, path+tmpSuffix)
}

// TestStableOfANewStore: a store whose creation was interrupted is a new one, before and after its stable file is there.
func TestStableOfANewStore(t *testing.T) {
	for _, made := range []bool{false, true} {
		dir := t.TempDir()
		log, err := seglog.Open(filepath.Join(dir, logDir), nil)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		if made {
			require.NoError(t, os.WriteFile(filepath.Join(dir, stableFile), encodeStable(nil), 0o644))
		}
		s := openStore(t, dir, nil)
		require.NoError(t, s.StoreLogs(entries(1, 3, 1)))
		requireEntries(t, s, 1, of(1, 3)...)
	}
}

// TestStableFailure: what could not be stored is not returned, and the old value stays.
func TestStableFailure(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 5))
	path := filepath.Join(dir, stableFile)
	require.NoError(t, os.Mkdir(path+tmpSuffix, 0o755)) // so that it can't be written
	require.NoError(t, os.WriteFile(filepath.Join(path+tmpSuffix, "x"), nil, 0o644))
	require.Error(t, s.SetUint64([]byte("CurrentTerm"), 6))
	n, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.Equal(t, uint64(5), n)
	require.NoError(t, os.RemoveAll(path+tmpSuffix))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 6))
}
