package raftstore

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

const (
	batchOverhead  = 61 // the header of a batch
	recordOverhead = 64 // at most: lengths, deltas and the header's key
	maxKept        = 1 << 16
)

// IsMonotonic tells raft that there are no gaps between entries.
func (s *Store) IsMonotonic() bool { return true }

// FirstIndex returns the index of the first entry, 0 if there is none.
func (s *Store) FirstIndex() (uint64, error) {
	first, _, err := s.bounds()
	return first, err
}

// LastIndex returns the index of the last entry, 0 if there is none.
func (s *Store) LastIndex() (uint64, error) {
	_, next, err := s.bounds()
	return max(next, 1) - 1, err
}

// bounds are the indexes [first, next) of the entries that are on stable storage; 0, 0 if there is none.
func (s *Store) bounds() (first, next uint64, err error) {
	if err := s.open(); err != nil {
		return 0, 0, err
	}
	o := s.log.Offsets()
	if o.Start >= o.HighWatermark {
		return 0, 0, nil
	}
	return uint64(o.Start), uint64(o.HighWatermark), nil
}

// GetLog fills entry with the one at index, which shares no memory with the store. It takes no lock. Errors:
// raft.ErrLogNotFound if there is none; those of seglog.Log.Read.
func (s *Store) GetLog(index uint64, entry *raft.Log) error {
	if err := s.open(); err != nil {
		return err
	}
	s.counted.gets.Add(1)
	if index > math.MaxInt64 {
		return raft.ErrLogNotFound
	}
	if s.ahead.get(s.log, index, entry) {
		return nil
	}
	ok, err := s.ahead.fill(s.log, index, entry)
	if !ok && err == nil {
		var rec seglog.Record
		if rec, err = s.log.Read(int64(index)); err == nil {
			_, err = decode(&rec, entry)
		}
	}
	switch {
	case errors.Is(err, seglog.ErrOutOfRange):
		if err := s.failed(); err != nil { // an entry that a failed deletion hides is no entry that was deleted
			return err
		}
		return raft.ErrLogNotFound
	case err != nil:
		return fmt.Errorf("raftstore: get entry %d: %w", index, err)
	}
	return nil
}

// StoreLog stores one entry; see StoreLogs.
func (s *Store) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends entries, whose indexes follow each other and the last one stored, as one batch, and returns once it is
// on stable storage. An empty store takes any first index.
//
// Errors: seglog.ErrInvalid for an index that does not follow, and ErrTooLarge, after which nothing is stored; those of
// seglog.Log.Append, of which ErrFailed means that nothing more can be stored until the store is opened anew.
func (s *Store) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return s.open()
	}
	start := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	if err := s.joins(entries); err != nil {
		return err
	}
	bytes, err := s.append(entries)
	if err != nil {
		return fmt.Errorf("raftstore: store entries %d to %d: %w", entries[0].Index, entries[len(entries)-1].Index, err)
	}
	s.measureStore(start, len(entries), bytes)
	return nil
}

// joins checks that entries follow each other and the log, and moves an empty log to where they begin.
func (s *Store) joins(entries []*raft.Log) error {
	first := entries[0].Index
	for i, entry := range entries {
		if entry.Index != first+uint64(i) {
			return fmt.Errorf("raftstore: %w: entry %d is stored right after entry %d", seglog.ErrInvalid, entry.Index, first+uint64(i)-1)
		}
	}
	if err := checkIndex(entries[len(entries)-1].Index); err != nil {
		return err
	}
	o := s.log.Offsets()
	if uint64(o.End) == first {
		return nil
	}
	if err := s.failed(); err != nil {
		return err
	}
	if o.Start < o.End {
		return fmt.Errorf("raftstore: %w: entry %d does not follow entry %d, the last in the log (see Options.Snapshots)", seglog.ErrInvalid, first, o.End-1)
	}
	if err := s.change(func() error { return s.log.Reset(int64(first)) }); err != nil {
		return fmt.Errorf("raftstore: begin the log at entry %d: %w", first, err)
	}
	return nil
}

// checkIndex refuses an index behind which an offset would overflow.
func checkIndex(index uint64) error {
	if index == 0 || index >= math.MaxInt64 { // 0 stands for none
		return fmt.Errorf("raftstore: %w: index %d", seglog.ErrInvalid, index)
	}
	return nil
}

// append stores entries in as few batches as Options.MaxBatchBytes allows, all or none of them.
func (s *Store) append(entries []*raft.Log) (bytes int, err error) {
	defer s.forget()
	first := entries[0].Index
	for len(entries) > 0 {
		n, size := s.encode(entries)
		if _, err := s.log.Append(s.records...); err != nil {
			if entries[0].Index > first { // earlier batches must not stay, or the same entries can't be stored again
				err = errors.Join(err, s.change(func() error { return s.log.TruncateTo(int64(first)) }))
			}
			return 0, err
		}
		s.forget()
		entries, bytes = entries[n:], bytes+size
	}
	return bytes, nil
}

// encode makes s.records of as many entries as one batch holds, at least one, and returns how many and how large.
func (s *Store) encode(entries []*raft.Log) (n, size int) {
	commit := s.staged.Load()
	if cap(s.headers) < len(entries) {
		s.headers = make([]seglog.Header, 0, len(entries)) // records refer to its elements: it must not move
	}
	size = batchOverhead
	for _, entry := range entries {
		more := recordOverhead + maxKeyLen + len(entry.Data) + len(entry.Extensions)
		if n > 0 && size+more > s.most {
			break
		}
		begin := len(s.keys)
		s.keys = appendKey(s.keys, entry, commit)
		rec := seglog.Record{Time: recordTime(entry), Key: s.keys[begin:len(s.keys):len(s.keys)], Value: entry.Data}
		if entry.Extensions != nil {
			s.headers = append(s.headers, seglog.Header{Key: extensionsKey, Value: entry.Extensions})
			rec.Headers = s.headers[len(s.headers)-1:]
		}
		s.records = append(s.records, rec)
		n, size = n+1, size+more
	}
	return n, size
}

// forget lets go of the entries, and of buffers that an unusually large call made.
func (s *Store) forget() {
	clear(s.records)
	clear(s.headers)
	s.records, s.headers, s.keys = s.records[:0], s.headers[:0], s.keys[:0]
	if cap(s.records) > maxKept/16 || cap(s.keys) > maxKept {
		s.records, s.headers, s.keys = nil, nil, nil
	}
}

// failed returns ErrFailed if a change has failed half-way, or a flush: what the log shows may be less than it has, until it
// is opened anew.
func (s *Store) failed() error {
	if err := s.log.Sync(); errors.Is(err, seglog.ErrFailed) {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

// change runs what takes entries away that may come back with other contents.
func (s *Store) change(f func() error) error {
	s.ahead.begin()
	defer s.ahead.end()
	return f()
}

// DeleteRange deletes the entries from min to max, both included, which must reach one end of the log; an entry that is
// not there need not be deleted. It returns once the deletion is durable, and is atomic. Deleting all entries leaves an
// empty store, which takes any index next.
//
// Errors: seglog.ErrInvalid for a range in the middle; those of seglog.Log.TruncateTo, DeleteBefore and Reset. After one in
// the middle of a deletion the store may show less than it has, and every call says ErrFailed where it would say that an entry
// is not there, until the store is opened anew.
func (s *Store) DeleteRange(min, max uint64) error {
	start := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	o := s.log.Offsets()
	first, next := uint64(o.Start), uint64(o.End)
	var err error
	switch {
	case min > max || max < first || min >= next:
		return s.failed() // a deletion that failed may have done a part
	case min <= first && max >= next-1:
		// |min [first ... last] max|: the next entry may have any index
		err = s.change(func() error { return s.log.Reset(o.End) })
	case min <= first:
		// |min [first ... max| ... last]: a snapshot made them superfluous
		err = s.log.DeleteBefore(int64(max) + 1)
	case max >= next-1:
		// [first ... |min ... last] max|: they conflict with the leader's
		err = s.change(func() error { return s.log.TruncateTo(int64(min)) })
	default:
		return fmt.Errorf("raftstore: %w: delete entries %d to %d out of the middle of %d to %d", seglog.ErrInvalid, min, max, first, next-1)
	}
	if err != nil {
		return fmt.Errorf("raftstore: delete entries %d to %d of %d to %d: %w", min, max, first, next-1, err)
	}
	s.measureDelete(start)
	return nil
}

// StageCommitIndex has the next StoreLogs store index as the commit index, in the same batch.
func (s *Store) StageCommitIndex(index uint64) error {
	s.staged.Store(index)
	return s.open()
}

// GetCommitIndex returns the commit index that was stored with the last entry, at most that entry's index; 0 if there is
// none.
func (s *Store) GetCommitIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, next, err := s.bounds()
	if err != nil || next == 0 {
		return 0, err
	}
	rec, err := s.log.Read(int64(next - 1))
	if err != nil {
		return 0, fmt.Errorf("raftstore: get entry %d: %w", next-1, err)
	}
	var entry raft.Log
	return decode(&rec, &entry)
}
