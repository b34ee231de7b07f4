package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

// Keys that raft keeps in its stable store. The interface has no way to list them.
var (
	raftNumbers = []string{"CurrentTerm", "LastVoteTerm"}
	raftValues  = []string{"LastVoteCand"}
)

// MigrateOptions says how Migrate goes about it. The zero value is fine.
type MigrateOptions struct {
	// Store is how the new store is kept. Its Snapshots are not used.
	Store *Options
	// Numbers and Values are keys that the application keeps in the stable store by SetUint64 and by Set. Those of raft
	// are always copied.
	Numbers, Values []string
	// SnapshotIndex is the index of the newest snapshot of the same server. A store that is not monotonic, as raft-boltdb's,
	// may have a gap in its log, which a restored snapshot left. What lies below the gap is not copied if the snapshot covers
	// all entries up to its end. Default: 0, a gap is an error.
	SnapshotIndex uint64
	// BatchBytes is about how much is stored at once. Default: 1 MiB.
	BatchBytes int
	// Progress, if not nil, is told how far Migrate is, after each batch.
	Progress func(MigrateProgress)
}

// MigrateProgress is how far a Migrate is.
type MigrateProgress struct {
	Verifying   bool   // the copy is complete, and compared with the source
	Done, Total uint64 // entries
	Bytes       int64  // of Data and Extensions, since the call began
}

// Migrated is what Migrate did.
type Migrated struct {
	First, Last uint64 // entries that the new store has; 0, 0 if it has none
	Copied      uint64 // of them by this call; the others by an earlier one that was interrupted
	Below       uint64 // entries of the source that a snapshot covers, and that were left behind
}

// Migrate copies the entries of log and the keys of stable, such as a raft-boltdb or raft-wal, to a new store in dir, and
// compares every entry of the two afterwards. The server must not run meanwhile. The source is only read.
//
// Migrate may be interrupted at any point, killed too, and called again, which goes on where it stopped. Until it is
// complete, Open refuses dir with ErrMigrating. Called once more, it compares the two again and changes nothing.
//
// Errors: seglog.ErrInvalid for a gap in the source, or a dir with a store whose entries differ; those of ctx, of the
// source, and of Open and StoreLogs.
func Migrate(ctx context.Context, dir string, log raft.LogStore, stable raft.StableStore, opts *MigrateOptions) (Migrated, error) {
	m := migration{ctx: ctx, log: log, stable: stable}
	if opts != nil {
		m.o = *opts
	}
	if m.o.BatchBytes <= 0 {
		m.o.BatchBytes = 1 << 20
	}
	var store Options
	if m.o.Store != nil {
		store = *m.o.Store
	}
	store.Snapshots = nil
	done, err := m.run(dir, &store)
	if err != nil {
		return done, fmt.Errorf("raftstore: migrate to %s: %w", dir, err)
	}
	return done, nil
}

type migration struct {
	ctx         context.Context
	o           MigrateOptions
	log         raft.LogStore
	stable      raft.StableStore
	to          *Store
	first, last uint64 // of the source, without what is left behind
	done        Migrated
	bytes       int64
}

func (m *migration) run(dir string, store *Options) (_ Migrated, err error) {
	if err := m.bounds(); err != nil {
		return m.done, err
	}
	marker := filepath.Join(dir, migratingFile)
	complete, err := m.begin(dir, marker)
	if err != nil {
		return m.done, err
	}
	if m.to, err = open(dir, store); err != nil {
		return m.done, err
	}
	defer func() { err = errors.Join(err, m.to.Close()) }()
	if !complete {
		if err := m.copy(); err != nil {
			return m.done, err
		}
	}
	if err := m.verify(complete); err != nil {
		return m.done, err
	}
	if complete {
		return m.done, nil
	}
	return m.done, errors.Join(os.Remove(marker), syncDir(dir))
}

// begin marks dir as incomplete, unless it holds a store already.
func (m *migration) begin(dir, marker string) (complete bool, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	if _, err := os.Lstat(marker); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if _, err := os.Lstat(filepath.Join(dir, logDir)); err == nil {
		return true, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return false, errors.Join(writeFile(marker, nil), syncDir(dir))
}

// bounds finds what there is to copy: the entries behind the last gap.
func (m *migration) bounds() (err error) {
	if m.first, err = m.log.FirstIndex(); err != nil {
		return fmt.Errorf("first index of the source: %w", err)
	}
	if m.last, err = m.log.LastIndex(); err != nil {
		return fmt.Errorf("last index of the source: %w", err)
	}
	if m.first == 0 || m.last < m.first {
		m.first, m.last = 1, 0
		return nil
	}
	// A gap lies below the snapshot, so only that part need be looked at. Without a snapshot, copy finds it.
	for index := min(m.last, m.o.SnapshotIndex); index >= m.first && index > 0; index-- {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		var entry raft.Log
		err := m.log.GetLog(index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			return m.leaveBelow(index)
		}
		if err != nil {
			return fmt.Errorf("entry %d of the source: %w", index, err)
		}
	}
	return nil
}

// leaveBelow makes the source begin behind gap, the last index below the snapshot that is missing.
func (m *migration) leaveBelow(gap uint64) error {
	first := m.first
	m.first = gap + 1
	if m.first > m.last { // the gap ends above the snapshot, or the last entry is missing
		return fmt.Errorf("%w: the source's last entry, %d, is missing", seglog.ErrInvalid, gap)
	}
	for index := first; index < gap; index++ {
		var entry raft.Log
		if err := m.log.GetLog(index, &entry); err == nil {
			m.done.Below++
		} else if !errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("entry %d of the source: %w", index, err)
		}
		if err := m.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// copy brings the entries and keys over that the store does not have.
func (m *migration) copy() error {
	next, err := m.resume()
	if err != nil {
		return err
	}
	for next <= m.last {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		batch, size, err := m.batch(next)
		if err != nil {
			return err
		}
		if err := m.to.StoreLogs(batch); err != nil {
			return err
		}
		next += uint64(len(batch))
		m.done.Copied += uint64(len(batch))
		m.bytes += size
		m.progress(false, next-m.first)
	}
	return m.keys(func(key string, number uint64) error { return m.to.SetUint64([]byte(key), number) },
		func(key string, value []byte) error { return m.to.Set([]byte(key), value) })
}

// resume is the index to go on from. What an earlier call copied is dropped if the source is not the same any more.
func (m *migration) resume() (uint64, error) {
	first, next, err := m.to.bounds()
	if err != nil || next == 0 {
		return m.first, err
	}
	same := first == m.first && next-1 <= m.last
	if same {
		same, err = m.equal(next - 1)
	}
	if err != nil || same {
		return next, err
	}
	return m.first, m.to.DeleteRange(first, next-1)
}

// batch reads entries from next on.
func (m *migration) batch(next uint64) (entries []*raft.Log, size int64, err error) {
	for ; next <= m.last && size < int64(m.o.BatchBytes) && len(entries) < 4096; next++ {
		entry := new(raft.Log)
		if err := m.read(next, entry); err != nil {
			return nil, 0, err
		}
		entries = append(entries, entry)
		size += int64(len(entry.Data) + len(entry.Extensions))
	}
	return entries, size, nil
}

// read gets an entry of the source.
func (m *migration) read(index uint64, entry *raft.Log) error {
	err := m.log.GetLog(index, entry)
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		return fmt.Errorf("%w: the source has a gap at entry %d, and SnapshotIndex %d does not cover it", seglog.ErrInvalid, index, m.o.SnapshotIndex)
	case err != nil:
		return fmt.Errorf("entry %d of the source: %w", index, err)
	case entry.Index != index:
		return fmt.Errorf("%w: the source has entry %d at index %d", seglog.ErrInvalid, entry.Index, index)
	}
	return nil
}

// equal reports whether both have the same entry at index.
func (m *migration) equal(index uint64) (bool, error) {
	var from, to raft.Log
	if err := m.read(index, &from); err != nil {
		return false, err
	}
	if err := m.to.GetLog(index, &to); err != nil {
		return false, err
	}
	m.bytes += int64(len(from.Data) + len(from.Extensions))
	return from.Index == to.Index && from.Term == to.Term && from.Type == to.Type && bytes.Equal(from.Data, to.Data) &&
		bytes.Equal(from.Extensions, to.Extensions) && from.AppendedAt.Equal(to.AppendedAt), nil
}

// verify compares everything. Where the migration was complete before, a difference means that the store is another one, or
// was used since.
func (m *migration) verify(complete bool) error {
	differs := func(what string) error {
		if complete {
			return fmt.Errorf("%w: there is a store already, and %s", seglog.ErrInvalid, what)
		}
		return fmt.Errorf("%w: after the copy, %s", seglog.ErrCorrupt, what)
	}
	first, next, err := m.to.bounds()
	if err != nil {
		return err
	}
	if next == 0 {
		first, next = m.first, m.first
	}
	if first != m.first || next != m.last+1 {
		return differs(fmt.Sprintf("it has the entries %d to %d, the source has %d to %d", first, next-1, m.first, m.last))
	}
	for index := m.first; index <= m.last; index++ {
		same, err := m.equal(index)
		if err != nil {
			return err
		}
		if !same {
			return differs(fmt.Sprintf("entry %d is not the same as in the source", index))
		}
		if n := index - m.first + 1; n%1024 == 0 || index == m.last {
			m.progress(true, n)
			if err := m.ctx.Err(); err != nil {
				return err
			}
		}
	}
	if m.last >= m.first {
		m.done.First, m.done.Last = m.first, m.last
	}
	return m.keys(func(key string, number uint64) error {
		if got, err := m.to.GetUint64([]byte(key)); err != nil || got != number {
			return errors.Join(err, differs(fmt.Sprintf("key %q is %d, in the source %d", key, got, number)))
		}
		return nil
	}, func(key string, value []byte) error {
		if got, err := m.to.Get([]byte(key)); err != nil || !bytes.Equal(got, value) {
			return errors.Join(err, differs(fmt.Sprintf("key %q is not the same as in the source", key)))
		}
		return nil
	})
}

// keys calls one of the functions with each key that the source has a value for.
func (m *migration) keys(number func(string, uint64) error, value func(string, []byte) error) error {
	for _, key := range append(raftNumbers[:len(raftNumbers):len(raftNumbers)], m.o.Numbers...) {
		n, err := m.stable.GetUint64([]byte(key))
		if isMissing(err) || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("key %q of the source: %w", key, err)
		}
		if err := number(key, n); err != nil {
			return err
		}
	}
	for _, key := range append(raftValues[:len(raftValues):len(raftValues)], m.o.Values...) {
		b, err := m.stable.Get([]byte(key))
		if isMissing(err) || err == nil && len(b) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("key %q of the source: %w", key, err)
		}
		if err := value(key, b); err != nil {
			return err
		}
	}
	return nil
}

// isMissing: stores say so by an error with this text, which raft compares too.
func isMissing(err error) bool { return err != nil && err.Error() == "not found" }

func (m *migration) progress(verifying bool, done uint64) {
	if m.o.Progress != nil {
		m.o.Progress(MigrateProgress{Verifying: verifying, Done: done, Total: m.last - m.first + 1, Bytes: m.bytes})
	}
}
