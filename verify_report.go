package seglog

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// VerifyOptions are the options of Verify. The zero value is fine.
type VerifyOptions struct {
	// Context ends Verify early, with the error of the Context. Default: nil, never.
	Context context.Context
	// Progress, if not nil, is called with the number of bytes of .log files that were read, and of all that there are. It
	// is called on the goroutine that called Verify, every few hundred KiB and at the end.
	Progress func(done, total int64)
	// IndexBytes is the Options.IndexBytes that the indexes must have been written with. Default: 0, any value; an index is
	// then good if its entries are right and dense enough.
	IndexBytes int
	// MaxInflatedBytes is as in Options: the records of a compressed batch that inflates to more are not checked. Default:
	// 256 MiB.
	MaxInflatedBytes int64
}

// Severity says what a Problem means for the log.
type Severity int

const (
	// SeverityNote: worth knowing; nothing is wrong with the records or the indexes.
	SeverityNote Severity = iota
	// SeverityWarning: something that can be rebuilt is damaged, usually an index. The log rebuilds it when it needs it.
	SeverityWarning
	// SeverityError: records can't be read, or Open refuses the log. Repair is the way back.
	SeverityError
)

func (s Severity) String() string {
	switch s {
	case SeverityNote:
		return "note"
	case SeverityWarning:
		return "warning"
	case SeverityError:
		return "error"
	}
	return "unknown"
}

// MarshalText makes a Severity a word, for example in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Severity) UnmarshalText(b []byte) error {
	for c := SeverityNote; c <= SeverityError; c++ {
		if c.String() == string(b) {
			*s = c
			return nil
		}
	}
	return invalid("severity %q", b)
}

// Problem is something that Verify found.
type Problem struct {
	Path     string   `json:"path"`
	Pos      int64    `json:"pos"`             // position of the batch or entry in the file
	Bytes    int64    `json:"bytes,omitempty"` // how many bytes from there on are bad
	Offset   int64    `json:"offset"`          // offset of the first record concerned; -1 if none is
	Severity Severity `json:"severity"`
	Reason   string   `json:"reason"`
}

func (p Problem) String() string {
	at := fmt.Sprintf("%v: %s", p.Severity, p.Path)
	if p.Offset >= 0 {
		at += fmt.Sprintf(" at position %d, offset %d", p.Pos, p.Offset)
	}
	if p.Bytes > 0 {
		at += fmt.Sprintf(", %d bytes", p.Bytes)
	}
	return at + ": " + p.Reason
}

// SegmentReport is what Verify counted in one segment. Only good batches count.
type SegmentReport struct {
	Path           string           `json:"path"`
	Base           int64            `json:"base"`
	Next           int64            `json:"next"` // offset after its last record
	Bytes          int64            `json:"bytes"`
	TailBytes      int64            `json:"tailBytes,omitempty"` // bytes behind the batches: reserved, or torn
	Batches        int64            `json:"batches"`
	Records        int64            `json:"records"`
	ControlBatches int64            `json:"controlBatches,omitempty"` // of transactions; readers skip them
	Undecoded      int64            `json:"undecoded,omitempty"`      // batches of which only the CRC was checked
	MinTime        time.Time        `json:"minTime,omitzero"`
	MaxTime        time.Time        `json:"maxTime,omitzero"`
	Codecs         map[string]int64 `json:"codecs"` // batches by codec
	Sealed         bool             `json:"sealed"`
	OffsetEntries  int              `json:"offsetEntries"`
	TimeEntries    int              `json:"timeEntries"`
}

// Report is what Verify found.
type Report struct {
	Dir      string          `json:"dir"`
	State    string          `json:"state"` // "closed"; "not closed": in use, or killed; "none": no state file, as in a directory of Kafka
	Start    int64           `json:"start"` // offset of the first record that is kept
	Recovery int64           `json:"recoveryPoint"`
	End      int64           `json:"end"` // offset after the last good batch
	Batches  int64           `json:"batches"`
	Records  int64           `json:"records"`
	Bytes    int64           `json:"bytes"`
	Changed  bool            `json:"changed,omitempty"` // the log was cut meanwhile; some segments are reported as they were before
	Segments []SegmentReport `json:"segments"`
	Problems []Problem       `json:"problems"` // the worst first, then in the order of the log
	Duration time.Duration   `json:"nanos"`
}

// OK reports whether every durable record can be read: there is no problem of SeverityError.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Severity == SeverityError })
}
