package main

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog/raftstore"
	"github.com/stretchr/testify/require"
)

// TestBench runs every row briefly.
func TestBench(t *testing.T) {
	b := &bench{dir: t.TempDir(), round: 20 * time.Millisecond, rounds: 1, logMiB: 1, awayMiB: 1, figures: make(map[string]map[string][]float64)}
	require.NoError(t, b.run([]string{"store", "cluster", "away", "leader"}))
	require.Len(t, b.rows, 7*2+2+5*5+2)
	for _, row := range b.rows {
		for _, p := range peers {
			require.Len(t, b.figures[row][p.name], 1, "%s of %s", row, p.name)
			require.GreaterOrEqual(t, b.figures[row][p.name][0], 0.0)
		}
	}
}

// TestMigrate migrates stores of the peers, with all the data that a server keeps, after they have compacted and overwritten
// entries.
func TestMigrate(t *testing.T) {
	for _, p := range peers[1:] {
		t.Run(p.name, func(t *testing.T) {
			from, err := p.open(t.TempDir())
			require.NoError(t, err)
			defer from.Close()
			put := func(first, last, term uint64) {
				var list []*raft.Log
				for i := first; i <= last; i++ {
					list = append(list, &raft.Log{Index: i, Term: term, Type: raft.LogType(i % 6), Data: fmt.Appendf(nil, "%d in %d", i, term),
						Extensions: []byte("e"), AppendedAt: time.Unix(1700000000, int64(i)).UTC()})
				}
				require.NoError(t, from.StoreLogs(list))
			}
			put(1, 500, 1)
			require.NoError(t, from.DeleteRange(450, 500))
			put(450, 900, 2)
			require.NoError(t, from.DeleteRange(1, 100))
			require.NoError(t, from.SetUint64([]byte("CurrentTerm"), 2))
			require.NoError(t, from.SetUint64([]byte("LastVoteTerm"), 2))
			require.NoError(t, from.Set([]byte("LastVoteCand"), []byte("n1")))

			dir := filepath.Join(t.TempDir(), "new")
			done, err := raftstore.Migrate(context.Background(), dir, from, from, nil)
			require.NoError(t, err)
			require.Equal(t, raftstore.Migrated{First: 101, Last: 900, Copied: 800}, done)
			to, err := raftstore.Open(dir, nil)
			require.NoError(t, err)
			defer to.Close()
			for i := uint64(101); i <= 900; i++ {
				var a, b raft.Log
				require.NoError(t, from.GetLog(i, &a))
				require.NoError(t, to.GetLog(i, &b))
				require.True(t, a.AppendedAt.Equal(b.AppendedAt))
				a.AppendedAt, b.AppendedAt = time.Time{}, time.Time{}
				require.Equal(t, a, b)
			}
			term, err := to.GetUint64([]byte("CurrentTerm"))
			require.NoError(t, err)
			require.Equal(t, uint64(2), term)
			vote, err := to.Get([]byte("LastVoteCand"))
			require.NoError(t, err)
			require.Equal(t, "n1", string(vote))
		})
	}
}

// TestMigrateAGapOfBoltDB migrates the gap that a restored snapshot leaves in raft-boltdb.
func TestMigrateAGapOfBoltDB(t *testing.T) {
	from, err := peers[2].open(t.TempDir())
	require.NoError(t, err)
	defer from.Close()
	require.NoError(t, from.StoreLogs(entries(1, 10, 10)))
	require.NoError(t, from.StoreLogs(entries(100, 10, 10)))
	dir := t.TempDir()
	_, err = raftstore.Migrate(context.Background(), dir, from, from, nil)
	require.ErrorContains(t, err, "gap")
	done, err := raftstore.Migrate(context.Background(), dir, from, from, &raftstore.MigrateOptions{SnapshotIndex: 99})
	require.NoError(t, err)
	require.Equal(t, raftstore.Migrated{First: 100, Last: 109, Copied: 10, Below: 10}, done)
}
