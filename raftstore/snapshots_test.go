package raftstore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

func saveSnapshot(t *testing.T, snapshots raft.SnapshotStore, index, term uint64) string {
	t.Helper()
	_, transport := raft.NewInmemTransport("")
	sink, err := snapshots.Create(raft.SnapshotVersionMax, index, term, raft.Configuration{}, 1, transport)
	require.NoError(t, err)
	_, err = sink.Write([]byte("the state"))
	require.NoError(t, err)
	require.NoError(t, sink.Close())
	return sink.ID()
}

// TestSnapshotAboveTheLog is about a follower that was killed between saving its leader's snapshot and emptying its log. Its
// leader sends the entries after the snapshot, so Open must empty the log.
func TestSnapshotAboveTheLog(t *testing.T) {
	dir, snapshotDir := t.TempDir(), t.TempDir()
	snapshots, err := raft.NewFileSnapshotStore(snapshotDir, 3, nil)
	require.NoError(t, err)
	saveSnapshot(t, snapshots, 60, 1)
	s := openStore(t, dir, small)
	require.NoError(t, s.StoreLogs(entries(50, 100, 1)))
	require.NoError(t, s.Close())
	with := &Options{SegmentBytes: 4096, Snapshots: snapshots}

	s = openStore(t, dir, with)
	requireEntries(t, s, 50, of(1, 51)...) // the snapshot ends inside the log
	require.NoError(t, s.Close())

	saveSnapshot(t, snapshots, 100, 1)
	s = openStore(t, dir, with)
	requireEntries(t, s, 50, of(1, 51)...) // the snapshot ends with the log
	require.NoError(t, s.Close())

	id := saveSnapshot(t, snapshots, 500, 2)
	s = openStore(t, dir, small)
	err = s.StoreLogs(entries(501, 510, 2))
	require.ErrorIs(t, err, seglog.ErrInvalid)
	require.ErrorContains(t, err, "Options.Snapshots")
	require.NoError(t, s.Close())

	// A snapshot that can't be restored does not count.
	state := filepath.Join(snapshotDir, "snapshots", id, "state.bin")
	good, err := os.ReadFile(state)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(state, []byte("the stare"), 0o644))
	s = openStore(t, dir, with)
	requireEntries(t, s, 50, of(1, 51)...)
	require.NoError(t, s.Close())
	require.NoError(t, os.WriteFile(state, good, 0o644))

	s = openStore(t, dir, with)
	requireEntries(t, s, 0)
	require.NoError(t, s.StoreLogs(entries(501, 510, 2)))
	requireEntries(t, s, 501, of(2, 10)...)
	require.NoError(t, s.Close())
	s = openStore(t, dir, with)
	requireEntries(t, s, 501, of(2, 10)...)
}
