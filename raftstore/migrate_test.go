package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// source returns a store that is not monotonic, as raft-boltdb is.
func source(t *testing.T, ranges ...[2]uint64) *raft.InmemStore {
	from := raft.NewInmemStore()
	for _, r := range ranges {
		require.NoError(t, from.StoreLogs(entries(r[0], r[1], 3)))
	}
	require.NoError(t, from.SetUint64([]byte("CurrentTerm"), 3))
	require.NoError(t, from.SetUint64([]byte("LastVoteTerm"), 2))
	require.NoError(t, from.Set([]byte("LastVoteCand"), []byte("node-2")))
	require.NoError(t, from.SetUint64([]byte("mine"), 17))
	require.NoError(t, from.Set([]byte("my value"), []byte("v")))
	return from
}

func requireMigrated(t *testing.T, dir string, first uint64, n int) {
	t.Helper()
	s := openStore(t, dir, small)
	requireEntries(t, s, first, of(3, n)...)
	term, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.Equal(t, uint64(3), term)
	vote, err := s.Get([]byte("LastVoteCand"))
	require.NoError(t, err)
	require.Equal(t, "node-2", string(vote))
	mine, err := s.GetUint64([]byte("mine"))
	require.NoError(t, err)
	require.Equal(t, uint64(17), mine)
	require.NoError(t, s.Close())
}

func migrateOptions() *MigrateOptions {
	return &MigrateOptions{Store: small, Numbers: []string{"mine", "absent"}, Values: []string{"my value", "absent too"}, BatchBytes: 1000}
}

func TestMigrate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	from := source(t, [2]uint64{40, 400})
	o := migrateOptions()
	var calls int
	var last MigrateProgress
	o.Progress = func(p MigrateProgress) {
		require.True(t, p.Verifying == last.Verifying && p.Done > last.Done || p.Verifying && !last.Verifying)
		require.Equal(t, uint64(361), p.Total)
		last, calls = p, calls+1
	}
	done, err := Migrate(context.Background(), dir, from, from, o)
	require.NoError(t, err)
	require.Equal(t, Migrated{First: 40, Last: 400, Copied: 361}, done)
	require.Greater(t, calls, 10)
	require.Equal(t, MigrateProgress{true, 361, 361, last.Bytes}, last)
	requireMigrated(t, dir, 40, 361)

	// A second migration has nothing to do.
	last = MigrateProgress{}
	done, err = Migrate(context.Background(), dir, from, from, o)
	require.NoError(t, err)
	require.Equal(t, Migrated{First: 40, Last: 400}, done)

	// Once the server has run on the new store, another migration must not touch it.
	s := openStore(t, dir, small)
	require.NoError(t, s.StoreLogs(entries(401, 402, 3)))
	require.NoError(t, s.Close())
	last = MigrateProgress{}
	_, err = Migrate(context.Background(), dir, from, from, o)
	require.ErrorIs(t, err, seglog.ErrInvalid)
	requireMigrated(t, dir, 40, 363)
}

func TestMigrateNothing(t *testing.T) {
	dir := t.TempDir()
	from := source(t)
	done, err := Migrate(context.Background(), dir, from, from, migrateOptions())
	require.NoError(t, err)
	require.Equal(t, Migrated{}, done)
	requireMigrated(t, dir, 0, 0)
}

// interrupted is a store that fails at one entry, or cancels the context there.
type interrupted struct {
	raft.LogStore
	at     uint64
	err    error
	cancel func()
	gets   int
}

func (i *interrupted) GetLog(index uint64, e *raft.Log) error {
	i.gets++
	if index == i.at {
		if i.cancel != nil {
			i.cancel()
		} else {
			return i.err
		}
	}
	return i.LogStore.GetLog(index, e)
}

// TestMigrateInterrupted checks that Migrate continues where an earlier call was interrupted, and that Open refuses the store
// until the migration is complete.
func TestMigrateInterrupted(t *testing.T) {
	dir := t.TempDir()
	from := source(t, [2]uint64{1, 300})
	broken := errors.New("broken")
	var copied uint64
	for _, at := range []uint64{1, 50, 51, 150, 299, 300} {
		i := &interrupted{LogStore: from, at: at, err: broken}
		done, err := Migrate(context.Background(), dir, i, from, migrateOptions())
		require.ErrorIs(t, err, broken)
		copied += done.Copied
		_, err = Open(dir, small)
		require.ErrorIs(t, err, ErrMigrating)
	}
	require.Greater(t, copied, uint64(200))
	require.Less(t, copied, uint64(300))
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Migrate(ctx, dir, &interrupted{LogStore: from, at: 299, cancel: cancel}, from, migrateOptions())
	require.ErrorIs(t, err, context.Canceled)
	_, err = Open(dir, small)
	require.ErrorIs(t, err, ErrMigrating)

	done, err := Migrate(context.Background(), dir, from, from, migrateOptions())
	require.NoError(t, err)
	require.LessOrEqual(t, done.Copied, 300-copied)
	requireMigrated(t, dir, 1, 300)
}

// TestMigrateSourceMoved checks that Migrate discards an unfinished copy if the old server has run since.
func TestMigrateSourceMoved(t *testing.T) {
	for name, move := range map[string]func(from *raft.InmemStore) error{
		"compacted": func(from *raft.InmemStore) error { return from.DeleteRange(1, 20) },
		"cut": func(from *raft.InmemStore) error {
			return errors.Join(from.DeleteRange(60, 300), from.StoreLogs(entries(60, 300, 3)), from.StoreLogs(entries(301, 310, 3)))
		},
		"shorter": func(from *raft.InmemStore) error { return from.DeleteRange(30, 300) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from := source(t, [2]uint64{1, 59})
			require.NoError(t, from.StoreLogs(entries(60, 300, 2)))
			_, err := Migrate(context.Background(), dir, &interrupted{LogStore: from, at: 200, err: errors.New("broken")}, from, migrateOptions())
			require.Error(t, err)
			require.NoError(t, move(from))
			_, err = Migrate(context.Background(), dir, from, from, migrateOptions())
			require.NoError(t, err)
			first, _ := from.FirstIndex()
			last, _ := from.LastIndex()
			s := openStore(t, dir, small)
			got, err := s.LastIndex()
			require.NoError(t, err)
			require.Equal(t, last, got)
			for i := first; i <= last; i++ {
				var a, b raft.Log
				require.NoError(t, from.GetLog(i, &a))
				require.NoError(t, s.GetLog(i, &b))
				requireSame(t, &a, &b)
			}
		})
	}
}

// TestMigrateGap checks that Migrate accepts the gap that a restored snapshot leaves in a store that is not monotonic,
// provided that the snapshot covers the gap.
func TestMigrateGap(t *testing.T) {
	from := source(t, [2]uint64{1, 30}, [2]uint64{101, 150})
	for _, snapshot := range []uint64{0, 29, 30, 99} {
		o := migrateOptions()
		o.SnapshotIndex = snapshot
		dir := t.TempDir()
		_, err := Migrate(context.Background(), dir, from, from, o)
		require.ErrorIs(t, err, seglog.ErrInvalid, snapshot)
		require.ErrorContains(t, err, "gap")
	}
	for _, snapshot := range []uint64{100, 101, 120, 150, 1000} {
		o := migrateOptions()
		o.SnapshotIndex = snapshot
		dir := t.TempDir()
		done, err := Migrate(context.Background(), dir, from, from, o)
		require.NoError(t, err)
		require.Equal(t, Migrated{First: 101, Last: 150, Copied: 50, Below: 30}, done)
		requireMigrated(t, dir, 101, 50)
	}
}

// TestMigrateDoesNotTrustTheCopy checks that Migrate notices an entry that differs between the copy and the final comparison.
func TestMigrateDoesNotTrustTheCopy(t *testing.T) {
	from := source(t, [2]uint64{1, 100})
	c := &changing{LogStore: from}
	dir := t.TempDir()
	_, err := Migrate(context.Background(), dir, c, from, migrateOptions())
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.ErrorContains(t, err, "entry 50 ")
	_, err = Open(dir, small)
	require.ErrorIs(t, err, ErrMigrating)
	_, err = os.Stat(filepath.Join(dir, migratingFile))
	require.NoError(t, err)
}

type changing struct {
	raft.LogStore
	seen bool
}

func (c *changing) GetLog(index uint64, e *raft.Log) error {
	err := c.LogStore.GetLog(index, e)
	if index == 50 {
		if c.seen {
			changed := *e
			changed.Term++
			*e = changed
		}
		c.seen = true
	}
	return err
}
