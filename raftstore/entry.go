package raftstore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

// The key of a record holds what a raft.Log has beside Data and Extensions:
//
//	version     1 byte, entryVersion
//	type        1 byte, the raft.LogType
//	flags       1 byte, hasTime and hasCommit; others must be 0
//	index       uvarint, equal to the record's offset: a batch's CRC does not cover its base offset
//	term        uvarint
//	seconds     varint, since 1970     } if hasTime: AppendedAt
//	nanoseconds uvarint, < 1e9         }
//	uncommitted uvarint, <= index        if hasCommit: index minus the commit index that was known
//
// Each varint has the shortest form, so that there is one encoding of each entry.
const (
	entryVersion = 1

	hasTime   = 1 << 0
	hasCommit = 1 << 1

	maxKeyLen = 3 + 5*binary.MaxVarintLen64

	extensionsKey = "extensions"
)

// appendKey appends the key of an entry to b. A commit index of 0 is none.
func appendKey(b []byte, entry *raft.Log, commit uint64) []byte {
	var flags byte
	commit = min(commit, entry.Index)
	if !entry.AppendedAt.IsZero() {
		flags |= hasTime
	}
	if commit > 0 {
		flags |= hasCommit
	}
	b = append(b, entryVersion, byte(entry.Type), flags)
	b = binary.AppendUvarint(b, entry.Index)
	b = binary.AppendUvarint(b, entry.Term)
	if flags&hasTime != 0 {
		b = binary.AppendVarint(b, entry.AppendedAt.Unix())
		b = binary.AppendUvarint(b, uint64(entry.AppendedAt.Nanosecond()))
	}
	if flags&hasCommit != 0 {
		b = binary.AppendUvarint(b, entry.Index-commit)
	}
	return b
}

// recordTime is the time that a record shows to other readers: the zero time, which the log replaces by the current time,
// for an entry without a time or with one that the format can't hold.
func recordTime(entry *raft.Log) time.Time {
	if year := entry.AppendedAt.Year(); year <= 1970 || year > 9999 {
		return time.Time{}
	}
	return entry.AppendedAt
}

// decode fills entry from a record, and returns the commit index that was known when it was stored. The entry takes over
// the record's memory.
func decode(rec *seglog.Record, entry *raft.Log) (commit uint64, err error) {
	k := keyReader{b: rec.Key}
	version, kind, flags := k.byte(), k.byte(), k.byte()
	index, term := k.uvarint(), k.uvarint()
	var at time.Time
	if flags&hasTime != 0 {
		seconds, nanoseconds := k.varint(), k.uvarint()
		if nanoseconds >= 1e9 {
			k.bad = true
		} else {
			at = time.Unix(seconds, int64(nanoseconds)).UTC()
			k.bad = k.bad || at.IsZero()
		}
	}
	if flags&hasCommit != 0 {
		uncommitted := k.uvarint()
		if uncommitted >= index { // a commit index of 0 is not stored
			k.bad = true
		}
		commit = index - uncommitted
	}
	switch {
	case version != entryVersion && len(rec.Key) > 0:
		return 0, badEntry(rec, fmt.Sprintf("its version is %d, this package knows %d", version, entryVersion))
	case k.bad || len(k.b) > 0 || flags&^(hasTime|hasCommit) != 0:
		return 0, badEntry(rec, fmt.Sprintf("its key %x is malformed", rec.Key[:min(len(rec.Key), maxKeyLen)]))
	case index != uint64(rec.Offset):
		return 0, badEntry(rec, fmt.Sprintf("it is the entry at index %d", index))
	}
	var extensions []byte
	switch {
	case len(rec.Headers) == 1 && rec.Headers[0].Key == extensionsKey:
		extensions = rec.Headers[0].Value
	case len(rec.Headers) > 0:
		return 0, badEntry(rec, fmt.Sprintf("it has %d headers, the first is %.40q", len(rec.Headers), rec.Headers[0].Key))
	}
	*entry = raft.Log{Index: index, Term: term, Type: raft.LogType(kind), Data: rec.Value, Extensions: extensions, AppendedAt: at}
	return commit, nil
}

func badEntry(rec *seglog.Record, why string) error {
	return fmt.Errorf("raftstore: %w: the record at offset %d is no entry of a Raft log: %s", seglog.ErrCorrupt, rec.Offset, why)
}

// keyReader takes a key apart; bad is set once it is malformed.
type keyReader struct {
	b   []byte
	bad bool
}

func (k *keyReader) byte() byte {
	if len(k.b) == 0 {
		k.bad = true
		return 0
	}
	c := k.b[0]
	k.b = k.b[1:]
	return c
}

func (k *keyReader) uvarint() uint64 {
	v, n := binary.Uvarint(k.b)
	if n <= 0 || n > 1 && k.b[n-1] == 0 {
		k.bad = true
		return 0
	}
	k.b = k.b[n:]
	return v
}

func (k *keyReader) varint() int64 {
	u := k.uvarint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}
