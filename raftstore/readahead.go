package raftstore

import (
	"bytes"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

const (
	aheadSlots   = 4         // walks that are noticed at once: one for each follower that catches up, and for the FSM
	aheadEntries = 64        // raft.Config.MaxAppendEntries
	aheadBytes   = 256 << 10 // of entries in one window; the last may go over it
)

// readAhead makes GetLog(i), GetLog(i+1), ... one walk: a batch that holds many entries is then checked and decoded once
// rather than once for each of them. Random reads go past it, and nobody waits for it. It holds at most aheadSlots windows.
type readAhead struct {
	// changes counts begins and ends of what takes entries away: a window is good while it stays what it was, and even.
	changes atomic.Int64
	turn    atomic.Uint32 // the slot that the next new walk gets
	slots   [aheadSlots]aheadSlot
}

// aheadSlot is a walk, and the window of entries that were read ahead for it.
type aheadSlot struct {
	next       atomic.Uint64 // the index that continues the walk
	first, end atomic.Uint64 // what the window holds, to see without the lock that it has not what is wanted

	mu      sync.Mutex // only tried: whoever does not get it reads the log
	changes int64
	entries []raft.Log // from first on
	buf     []byte     // what they refer to
}

func (a *readAhead) begin() { a.changes.Add(1) }
func (a *readAhead) end()   { a.changes.Add(1) }

// get copies the entry at index out of a window, if one holds it.
func (a *readAhead) get(log *seglog.Log, index uint64, entry *raft.Log) bool {
	for i := range a.slots {
		s := &a.slots[i]
		if index < s.first.Load() || index >= s.end.Load() {
			continue
		}
		if !s.mu.TryLock() {
			return false
		}
		ok := a.copyOut(s, log, index, entry)
		s.mu.Unlock()
		return ok
	}
	return false
}

// copyOut is get for a slot that is locked.
func (a *readAhead) copyOut(s *aheadSlot, log *seglog.Log, index uint64, entry *raft.Log) bool {
	first := s.first.Load()
	if index < first || index-first >= uint64(len(s.entries)) {
		return false
	}
	// What deletes the front does not count as a change, so ask the log, too.
	if s.changes != a.changes.Load() || index < uint64(log.Offsets().Start) {
		return false
	}
	*entry = s.entries[index-first]
	entry.Data = bytes.Clone(entry.Data)
	entry.Extensions = bytes.Clone(entry.Extensions)
	return true
}

// fill reads ahead from index on if that continues a walk, and fills entry with the first. Otherwise it notes that a walk
// may begin, and reports false.
func (a *readAhead) fill(log *seglog.Log, index uint64, entry *raft.Log) (ok bool, err error) {
	var s *aheadSlot
	for i := range a.slots {
		if a.slots[i].next.Load() == index {
			s = &a.slots[i]
		}
	}
	changes := a.changes.Load()
	if s == nil || changes%2 != 0 {
		a.slots[a.turn.Add(1)%aheadSlots].next.Store(index + 1)
		return false, nil
	}
	if !s.mu.TryLock() {
		return false, nil
	}
	defer s.mu.Unlock()
	s.reset(changes, index)
	if err := s.read(log, index); err != nil || len(s.entries) == 0 {
		return false, err // without an error it is the end of the log, or was deleted; Read says which
	}
	s.next.Store(index + uint64(len(s.entries)))
	s.end.Store(index + uint64(len(s.entries)))
	*entry = s.entries[0]
	entry.Data, entry.Extensions = bytes.Clone(entry.Data), bytes.Clone(entry.Extensions)
	return true, nil
}

// reset empties the window. It keeps the memory, unless a large entry made it more than is good to keep.
func (s *aheadSlot) reset(changes int64, first uint64) {
	s.end.Store(0)
	s.first.Store(first)
	s.changes = changes
	if s.entries == nil {
		s.entries = make([]raft.Log, 0, aheadEntries)
	}
	clear(s.entries)
	s.entries, s.buf = s.entries[:0], s.buf[:0]
	if s.buf == nil || cap(s.buf) > 2*aheadBytes {
		s.buf = make([]byte, 0, 4096)
	}
}

// read fills the window. What is wrong with an entry behind the first is left to be said when it is wanted.
func (s *aheadSlot) read(log *seglog.Log, index uint64) error {
	for rec, err := range log.Records(int64(index)) {
		var e raft.Log
		if err == nil {
			kept := s.keep(&rec)
			_, err = decode(&kept, &e)
		}
		if err != nil {
			if len(s.entries) > 0 {
				return nil
			}
			return err
		}
		if e.Index != index+uint64(len(s.entries)) {
			return nil
		}
		s.entries = append(s.entries, e)
		if len(s.entries) == aheadEntries || len(s.buf) >= aheadBytes {
			return nil
		}
	}
	return nil
}

// keep copies a record that an iterator lent, but for its key, which is decoded at once. Where the buffer grows, earlier
// entries keep the old one.
func (s *aheadSlot) keep(rec *seglog.Record) seglog.Record {
	hold := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		begin := len(s.buf)
		s.buf = append(s.buf, b...)
		return s.buf[begin:len(s.buf):len(s.buf)]
	}
	kept := seglog.Record{Offset: rec.Offset, Key: rec.Key, Value: hold(rec.Value)}
	for _, h := range rec.Headers {
		kept.Headers = append(kept.Headers, seglog.Header{Key: h.Key, Value: hold(h.Value)})
	}
	return kept
}

// forget gives the memory back.
func (a *readAhead) forget() {
	for i := range a.slots {
		s := &a.slots[i]
		s.mu.Lock()
		s.end.Store(0)
		s.entries, s.buf = nil, nil
		s.mu.Unlock()
	}
}
