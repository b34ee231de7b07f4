package raftstore

import (
	"bytes"
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
// rather than once for each of them. Random reads go past it, and it holds at most aheadSlots windows.
type readAhead struct {
	// changes counts begins and ends of what takes entries away: a window is good while it stays what it was, and even.
	changes atomic.Int64
	turn    atomic.Uint32 // the slot that the next new walk gets
	slots   [aheadSlots]aheadSlot
}

type aheadSlot struct {
	next   atomic.Uint64 // the index that continues the walk
	window atomic.Pointer[window]
}

// window is entries that were read ahead. It never changes.
type window struct {
	changes int64
	first   uint64
	entries []raft.Log // of one buffer
}

func (a *readAhead) begin() { a.changes.Add(1) }

func (a *readAhead) end() {
	a.changes.Add(1)
	a.forget()
}

func (a *readAhead) forget() {
	for i := range a.slots {
		a.slots[i].window.Store(nil)
	}
}

// get copies the entry at index out of a window, if one holds it.
func (a *readAhead) get(log *seglog.Log, index uint64, entry *raft.Log) bool {
	for i := range a.slots {
		w := a.slots[i].window.Load()
		if w == nil || index < w.first || index-w.first >= uint64(len(w.entries)) {
			continue
		}
		// The start first: a window is put aside by whoever takes entries away, but not when the front is deleted.
		if start := log.Offsets().Start; index < uint64(start) || w.changes != a.changes.Load() {
			return false
		}
		*entry = w.entries[index-w.first]
		entry.Data = bytes.Clone(entry.Data)
		entry.Extensions = bytes.Clone(entry.Extensions)
		if index-w.first == uint64(len(w.entries))-1 {
			a.slots[i].window.CompareAndSwap(w, nil) // a walk is over it; whoever comes later reads it anew
		}
		return true
	}
	return false
}

// fill reads ahead from index on if that continues a walk, and fills entry with the first. Otherwise it notes that a walk
// may begin, and reports false.
func (a *readAhead) fill(log *seglog.Log, index uint64, entry *raft.Log) (ok bool, err error) {
	var slot *aheadSlot
	for i := range a.slots {
		if a.slots[i].next.Load() == index {
			slot = &a.slots[i]
		}
	}
	changes := a.changes.Load()
	if slot == nil || changes%2 != 0 {
		a.slots[a.turn.Add(1)%aheadSlots].next.Store(index + 1)
		return false, nil
	}
	w := &window{changes: changes, first: index}
	var buf []byte
	for rec, err := range log.Records(int64(index)) {
		if err != nil {
			if len(w.entries) > 0 {
				break // GetLog of that entry says what is wrong with it
			}
			return false, err
		}
		if n := len(rec.Value); cap(buf) == 0 {
			buf = make([]byte, 0, min(n*(aheadEntries+1), aheadBytes+n))
		}
		kept := keep(&buf, &rec)
		var e raft.Log
		if _, err := decode(&kept, &e); err != nil {
			if len(w.entries) > 0 {
				break
			}
			return false, err
		}
		w.entries = append(w.entries, e)
		if len(w.entries) == aheadEntries || len(buf) >= aheadBytes {
			break
		}
	}
	if len(w.entries) == 0 || w.entries[0].Index != index {
		return false, nil // it is the end of the log, or was deleted; Read says which
	}
	*entry = w.entries[0]
	entry.Data, entry.Extensions = bytes.Clone(entry.Data), bytes.Clone(entry.Extensions)
	slot.next.Store(index + uint64(len(w.entries)))
	if len(w.entries) > 1 {
		slot.window.Store(w)
	}
	return true, nil
}

// keep copies a record that an iterator lent to the end of buf.
func keep(buf *[]byte, rec *seglog.Record) seglog.Record {
	hold := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		begin := len(*buf)
		*buf = append(*buf, b...)
		return (*buf)[begin:len(*buf):len(*buf)]
	}
	kept := seglog.Record{Offset: rec.Offset, Key: rec.Key, Value: hold(rec.Value)} // the key is decoded at once
	for _, h := range rec.Headers {
		kept.Headers = append(kept.Headers, seglog.Header{Key: h.Key, Value: hold(h.Value)})
	}
	return kept
}
