package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// ledger is the contents of the state file and the listing of the directory.
type ledger struct {
	st       state
	promised bool
	torn     int // slots of the state file that are damaged
	dir      directory
	foreign  []int64 // base offsets of segments that the state proves not to belong to the log; they are not in dir

	// Of an interrupted TruncateTo that the next Open will finish: the bytes of the segment at st.cutBase below st.cutPos stay,
	// followed by rest, which may be empty. All batches there end below cutLimit: one with greater offsets is not at its place.
	// A run of Repair that was interrupted may have taken bytes out of the file, and all that was behind st.cutPos.
	cutLimit int64
	rest     batch
	// void: the batch that belongs to the note of the cut did not reach the disk, so no file was changed, and the next Open gives
	// the cut up.
	void bool
}

const notOfThisLog = "file does not belong to this log"

// cuts reports whether a TruncateTo was interrupted that the next Open will finish by the plan in the state file.
func (g *ledger) cuts() bool { return g.promised && !g.void && g.st.truncating() }

// underCut reports whether a TruncateTo or a Reset is under way, or was interrupted and is finished by the next Open.
func (g *ledger) underCut() bool { return g.st.cut >= 0 && !g.void }

// readCut reads what the state file f has of the batch in which an interrupted TruncateTo ends the log.
func (g *ledger) readCut(f vfs.File) error {
	g.cutLimit = g.st.cut
	if !g.cuts() || g.st.cutLen == 0 {
		return nil
	}
	rest, err := readRest(f, g.st.cutLen)
	if err != nil {
		return err
	}
	if g.void = !g.st.isRest(rest); !g.void {
		g.rest, g.cutLimit = rest, rest.base()
	}
	return nil
}

// sealed reports whether all of segment i must be flushed and trimmed, with its indexes beside it.
func (g *ledger) sealed(i int) bool {
	last := i+1 == len(g.dir.bases)
	if !g.promised {
		return !last
	}
	return g.st.isSealed(g.dir.bases[i]) && !last
}

// closedEnd returns the offset and the position at which the batches of the segment at base end, whose file has size bytes, if it is
// the last one of a log that was closed; otherwise -1 and 0. A file that was cut short ends before that.
func (g *ledger) closedEnd(base, size int64) (end, endPos int64) {
	if n := len(g.dir.bases); g.st.clean && base == g.dir.bases[n-1] && size <= g.st.endPos {
		return g.st.end, g.st.endPos
	}
	return -1, 0
}

// endPos returns the position at which the batches of the segment at base must end, by the state file or, if it is sealed, by the size
// of its file; 0 if that is not known. Zeros at the end may be blocks that are reserved, or all that is left of a batch.
func (g *ledger) endPos(base, size int64) int64 {
	_, pos := g.closedEnd(base, size)
	if n := len(g.dir.bases); pos == 0 && g.promised && g.st.isSealed(base) && base != g.dir.bases[n-1] {
		pos = size
	}
	return pos
}

// belowStart reports whether a segment that ends where following begins lies wholly below the start, and waits for its
// deletion. It may never be sealed.
func (g *ledger) belowStart(following int64) bool {
	return g.promised && following >= 0 && following <= g.st.start
}

// promises returns the state that the log promises, or nil if it promises none.
func (g *ledger) promises() *state {
	if !g.promised {
		return nil
	}
	return &g.st
}

func (g *ledger) gaps() bool { return !g.promised || g.st.gaps }

// read reads the state file and lists the directory, once.
func (g *ledger) read(e *env) error {
	*g = ledger{}
	f, err := e.fs.Open(filepath.Join(e.dir, stateName), vfs.OpenRead)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("seglog: read %s: %w", e.dir, err)
	default:
		g.st, g.promised, err = readSlots(f)
		if err == nil {
			g.torn, err = tornSlots(f)
		}
		if err == nil && g.promised {
			err = g.readCut(f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("seglog: read %s: %w", filepath.Join(e.dir, stateName), err)
		}
	}
	if !g.promised {
		g.st = state{cut: -1}
	}
	g.dir, err = e.list()
	for len(g.dir.bases) > 0 && g.dir.bases[0] < g.st.first {
		g.dir.bases = g.dir.bases[1:] // of a deletion that goes on, or was cut short
	}
	if g.promised {
		g.foreign = g.st.foreign(g.dir.bases)
		g.dir.bases = slices.DeleteFunc(g.dir.bases, func(base int64) bool { return slices.Contains(g.foreign, base) })
	}
	return err
}

// tornSlots counts the slots that hold neither a state nor zeros.
func tornSlots(f vfs.File) (torn int, err error) {
	for i := range int64(2) {
		var b [stateLen]byte
		n, err := f.ReadAt(b[:], i*stateSlotGap)
		if err != nil && err != io.EOF {
			return 0, err
		}
		var s state
		if !s.decode(b[:n]) && !isZero(b[:n]) {
			torn++
		}
	}
	return torn, nil
}

const (
	lookTries = 100
	tornTries = 3                    // a slot that is being written is whole again at once
	lookPause = 5 * time.Millisecond // a cut seldom takes longer; one that still runs after half a second was interrupted
)

// look reads state file and directory until both are of the same moment, with no cut under way.
func (v *verifier) look() error {
	for try := 0; ; try++ {
		if err := v.ledger.read(&v.e); err != nil {
			return err
		}
		after, promised, err := readState(v.e.fs, filepath.Join(v.e.dir, stateName))
		if err != nil {
			return fmt.Errorf("seglog: verify %s: %w", v.e.dir, err)
		}
		settled := v.promised == promised && (!promised || v.st.sameSegments(&after))
		if settled && v.st.cut < 0 && (v.torn == 0 || try >= tornTries) || try == lookTries {
			return nil
		}
		select {
		case <-time.After(lookPause):
		case <-v.ctx.Done():
			return v.ctx.Err()
		}
	}
}

// verifier is one run of Verify.
type verifier struct {
	e      env // fs and dir
	ctx    context.Context
	o      VerifyOptions
	report *Report

	ledger
	done, total int64
	bare        int // missing index files in a directory without seglog.state
	check       recordCheck
	epochs      epochs
}

func (v *verifier) tell(done int64) {
	if v.o.Progress != nil {
		v.o.Progress(min(done, v.total), v.total)
	}
}

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
