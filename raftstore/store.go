package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

const (
	logDir        = "log"
	stableFile    = "stable"
	migratingFile = "migrating"
	tmpSuffix     = ".tmp"

	defaultSegmentBytes = 64 << 20
)

// ErrMigrating: Migrate into this directory has begun and has not ended; run it again.
var ErrMigrating = errors.New("raftstore: migration is not complete")

// Options says how a store is kept. The zero value is fine.
type Options struct {
	// SegmentBytes is the size at which a file of the log is rolled. DeleteRange at the front frees whole files, so a log
	// takes up to two of them more than its entries; an entry must fit into one. Default: 64 MiB.
	SegmentBytes int64
	// MaxBatchBytes bounds what StoreLogs appends as one batch. More entries are split into several, each atomic on its
	// own, and an entry that is larger is seglog.ErrTooLarge. Default: SegmentBytes.
	MaxBatchBytes int
	// Snapshots, if not nil, are those of the same server. If the newest of them that can be opened lies wholly above the
	// last entry, Open empties the log, as raft would have done next when the server was killed. Default: nil.
	Snapshots raft.SnapshotStore
	// Logger gets what an operator wants to know. Default: nil, silent.
	Logger *slog.Logger
}

// Store is the log and the stable store of one Raft server. All methods are safe for concurrent use.
type Store struct {
	log    *seglog.Log
	stable *stable
	logger *slog.Logger
	most   int // Options.MaxBatchBytes
	closed atomic.Bool

	staged  atomic.Uint64 // the commit index that the next StoreLogs stores
	ahead   readAhead
	counted counters

	mu      sync.Mutex // held by whatever changes the log
	records []seglog.Record
	headers []seglog.Header
	keys    []byte
}

var (
	_ raft.LogStore               = (*Store)(nil)
	_ raft.MonotonicLogStore      = (*Store)(nil)
	_ raft.CommitTrackingLogStore = (*Store)(nil)
	_ raft.StableStore            = (*Store)(nil)
)

// Open opens the store in dir, which it makes if need be. A nil opts is the zero Options. Only one Store at a time may
// have a directory open: a second one gets seglog.ErrLocked.
//
// Errors: ErrMigrating; those of seglog.Open, of which ErrCorrupt says that what was acknowledged is damaged.
func Open(dir string, opts *Options) (*Store, error) {
	if _, err := os.Lstat(filepath.Join(dir, migratingFile)); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrMigrating, filepath.Join(dir, migratingFile))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return open(dir, opts)
}

func open(dir string, opts *Options) (*Store, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.MaxBatchBytes == 0 {
		o.MaxBatchBytes = int(o.SegmentBytes)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := checkLogIsThere(dir); err != nil {
		return nil, err
	}
	log, err := seglog.Open(filepath.Join(dir, logDir), &seglog.Options{
		SegmentBytes:  o.SegmentBytes,
		MaxBatchBytes: o.MaxBatchBytes,
		Logger:        o.Logger,
	})
	if err != nil {
		return nil, err
	}
	s := &Store{log: log, logger: o.Logger, most: o.MaxBatchBytes}
	if err = s.openStable(filepath.Join(dir, stableFile)); err == nil {
		err = s.recover(o.Snapshots)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// checkLogIsThere refuses a directory in which the log is lost, or the file that tells where it begins and ends: the stable
// file is made after them.
func checkLogIsThere(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, stableFile)); err != nil {
		return nil // a new store, or openStable says what is missing
	}
	state := filepath.Join(dir, logDir, "seglog.state")
	if _, err := os.Stat(state); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("raftstore: %w: %s is missing, and %s is there", seglog.ErrCorrupt, state, filepath.Join(dir, stableFile))
	}
	return nil
}

// openStable also makes the empty file of a new store, and only then moves the new log's end off 0, so that a file that is
// missing later was lost.
func (s *Store) openStable(path string) (err error) {
	isNew := s.log.Offsets().End == 0
	if s.stable, err = openStable(path, isNew); err == nil && isNew {
		err = s.log.Reset(1)
	}
	return err
}

// recover reads what the store needs to know of the log, and drops a log that a snapshot covers.
func (s *Store) recover(snapshots raft.SnapshotStore) error {
	if snapshots != nil {
		if err := s.dropCovered(snapshots); err != nil {
			return err
		}
	}
	commit, err := s.GetCommitIndex()
	if err != nil {
		return err
	}
	s.staged.Store(commit)
	return nil
}

// dropCovered empties a log that ends below the newest snapshot: raft goes on behind the snapshot.
func (s *Store) dropCovered(snapshots raft.SnapshotStore) error {
	list, err := snapshots.List()
	if err != nil {
		return fmt.Errorf("raftstore: list snapshots: %w", err)
	}
	o := s.log.Offsets()
	if o.Start == o.End {
		return nil
	}
	for _, meta := range list { // the newest first; raft restores the first that opens
		opened, r, err := snapshots.Open(meta.ID)
		if err != nil {
			s.logger.Warn("raftstore: a snapshot can't be opened", "id", meta.ID, "error", err)
			continue
		}
		if err := r.Close(); err != nil {
			return fmt.Errorf("raftstore: snapshot %s: %w", meta.ID, err)
		}
		if opened.Index < uint64(o.End) {
			return nil
		}
		s.logger.Info("raftstore: the log ends below a snapshot and is dropped", "first", o.Start, "last", o.End-1, "snapshot", opened.Index)
		if err := checkIndex(opened.Index); err != nil {
			return err
		}
		return s.log.Reset(int64(opened.Index) + 1)
	}
	return nil
}

// Stats returns what the log counted since Open, and what is so now.
func (s *Store) Stats() seglog.Stats { return s.log.Stats() }

// Close releases everything. Everything that was acknowledged is on stable storage already. Other calls fail with
// seglog.ErrClosed from then on. Close is idempotent.
func (s *Store) Close() error {
	s.closed.Store(true)
	s.ahead.forget()
	var err error
	if s.stable != nil {
		err = s.stable.close()
	}
	return errors.Join(err, s.log.Close()) // the log last: it has the lock
}

func (s *Store) open() error {
	if s.closed.Load() {
		return seglog.ErrClosed
	}
	return nil
}
