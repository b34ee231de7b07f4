package seglog

import (
	"bytes"
	"strings"
	"time"
)

// Record is one entry of a log.
type Record struct {
	Offset  int64     // set by the log
	Time    time.Time // millisecond precision; zero on Append means now, zero on a read means the writer stored none
	Key     []byte    // nil: no key (not the same as empty)
	Value   []byte    // nil: a tombstone
	Headers []Header
}

// Header is a name and a value that travel with a record. Key is UTF-8; a nil Value is not the same as an empty one.
type Header struct {
	Key   string
	Value []byte
}

// Clone returns a copy that shares no memory with r, to keep a record that an iterator lent.
func (r Record) Clone() Record {
	r.Key = bytes.Clone(r.Key)
	r.Value = bytes.Clone(r.Value)
	if r.Headers != nil {
		headers := make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			headers[i] = Header{Key: strings.Clone(h.Key), Value: bytes.Clone(h.Value)}
		}
		r.Headers = headers
	}
	return r
}

// Offsets are the bounds of a log, all half-open: Start <= RecoveryPoint <= HighWatermark <= End. An empty log has
// Start == End.
type Offsets struct {
	Start         int64 // first record that is kept
	RecoveryPoint int64 // everything below is on stable storage
	HighWatermark int64 // everything below may be read
	End           int64 // offset the next record gets
}
