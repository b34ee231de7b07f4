package seglog

import (
	"bytes"
	"math"
	"strings"
	"time"

	"github.com/seglog/seglog/internal/poison"
)

// Record is one entry of a log.
type Record struct {
	Offset  int64     // set by the log
	Time    time.Time // millisecond precision, from 1970 on; zero in an Append means now, zero in a read that the writer stored no time
	Key     []byte    // nil: no key, which is not the same as an empty one
	Value   []byte    // nil: a tombstone
	Headers []Header
}

// Header is a name and a value that travel with a record. Key is UTF-8; a nil Value is not the same as an empty one.
type Header struct {
	Key   string
	Value []byte
}

// Clone returns a copy that shares no memory with r. It is for keeping a record of an iterator beyond the next step.
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

// spoil overwrites a record that was lent, once its step is over, in a program built with -tags seglog_poison: one that is
// kept without Clone shows at once rather than when its buffer is used again.
func spoil(r *Record) {
	if !poison.On {
		return
	}
	fill := func(b []byte) {
		for i := range b {
			b[i] = 0xdb
		}
	}
	fill(r.Key)
	fill(r.Value)
	for i := range r.Headers {
		fill(r.Headers[i].Value)
		r.Headers[i] = Header{Key: "kept without Clone"}
	}
}

// Offsets are the bounds of a log, all half-open: Start <= RecoveryPoint <= HighWatermark <= End. An empty log has
// Start == End.
type Offsets struct {
	Start         int64 // first record that is kept
	RecoveryPoint int64 // everything below is on stable storage
	HighWatermark int64 // everything below may be read
	End           int64 // offset the next record gets
}

// Positions that methods which read or wait take in place of an offset: Records, RecordBatches, Follow, FollowBatches, Wait,
// WaitDurable, Batches, Section, TransferTo, and those of a DurableReader. An offset that the caller asks for first may be
// out of date when it is used, because retention or an append came in between.
const (
	// Oldest is the first record that the log has when the reading begins.
	Oldest int64 = math.MinInt64
	// Newest is the end of the log at the time of the call, so that reading begins with the next record appended.
	Newest int64 = math.MinInt64 + 1
)
