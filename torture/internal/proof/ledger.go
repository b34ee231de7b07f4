package proof

import (
	"errors"
	"fmt"
	"sync"

	"github.com/seglog/seglog"
)

// Ledger is what a log must hold, by what its writers were told. A batch that a writer began and was not answered for may
// be in the log or not: since each writer has at most one such batch, it is the one after its last acknowledged one.
type Ledger struct {
	Most int // bound of the size of a value

	mu      sync.Mutex
	records map[int64]ID       // acknowledged, by offset
	last    map[writer]int     // Seq of the last batch that is settled, acknowledged or not
	cut     int64              // a TruncateTo that began and was not answered for; -1 if there is none
	first   int64              // of records
	end     int64              // behind the last of records
	total   int64              // ever acknowledged
	settled int                // runs up to this one were checked since they ended: nothing more comes of them
	refused map[Batch]struct{} // answered with an error that says that nothing was stored
	// Where the log may start: where the last DeleteBefore put it, or one that was not answered for; nil once retention
	// may have moved it anywhere.
	starts map[int64]struct{}
}

type writer struct{ run, writer int }

// NewLedger returns the ledger of an empty log. With retention, the log may start anywhere.
func NewLedger(most int, retention bool) *Ledger {
	g := &Ledger{Most: most, records: map[int64]ID{}, last: map[writer]int{}, cut: -1, refused: map[Batch]struct{}{}}
	if !retention {
		g.starts = map[int64]struct{}{0: {}}
	}
	return g
}

// Acked notes that the batch was stored at base.
func (g *Ledger) Acked(b Batch, base int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range b.Len() {
		at := base + int64(i)
		if other, taken := g.records[at]; taken {
			return fmt.Errorf("offset %d was given out twice: to %v and to %v", at, other, ID{b, i})
		}
		g.records[at] = ID{b, i}
	}
	g.last[writer{b.Run, b.Writer}] = b.Seq
	g.end = max(g.end, base+int64(b.Len()))
	g.total += int64(b.Len())
	return nil
}

// Refused notes that the batch was answered with an error after which it must not be in the log.
func (g *Ledger) Refused(b Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[b] = struct{}{}
	g.last[writer{b.Run, b.Writer}] = b.Seq
}

// Cutting notes that a TruncateTo began, Cut that it was answered for.
func (g *Ledger) Cutting(offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = offset
}

// Cut notes that a TruncateTo was acknowledged.
func (g *Ledger) Cut(offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.takeCut(offset)
}

func (g *Ledger) takeCut(offset int64) {
	for at := offset; at < g.end; at++ {
		delete(g.records, at)
	}
	g.end, g.cut = min(g.end, offset), -1
}

// Deleting notes that a DeleteBefore began. It may have happened whatever the answer, unless that is Deleted.
func (g *Ledger) Deleting(offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starts[offset] = struct{}{}
}

// Deleted notes that a DeleteBefore was acknowledged.
func (g *Ledger) Deleted(offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starts = map[int64]struct{}{offset: {}}
}

// Total is how many records were acknowledged.
func (g *Ledger) Total() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}

// End is behind the last acknowledged record.
func (g *Ledger) End() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.end
}

// Check reads the whole log after its writers have ended and before others begin: every acknowledged record from its
// start offset on is there, at its offset, with its bytes; every other one belongs to a batch that a writer may have
// begun, whole; there is no hole and no record twice. What it found in doubt counts as acknowledged from then on. kept is
// the number of those.
func (g *Ledger) Check(l *seglog.Log) (kept int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		n, err := g.check(l)
		kept += n
		if g.starts == nil && errors.Is(err, seglog.ErrOutOfRange) && l.Offsets().Start > g.first {
			continue // retention passed by
		}
		return kept, err
	}
}

func (g *Ledger) check(l *seglog.Log) (kept int, err error) {
	o := l.Offsets()
	if g.cut >= 0 && o.End == g.cut {
		g.takeCut(g.cut)
	}
	if o.HighWatermark < g.end {
		return 0, fmt.Errorf("acknowledged up to offset %d, the log ends at %d", g.end, o.HighWatermark)
	}
	if _, ok := g.starts[o.Start]; !ok && g.starts != nil {
		return 0, fmt.Errorf("the log starts at offset %d, and nobody asked for that", o.Start)
	}
	for ; g.first < min(o.Start, g.end); g.first++ {
		delete(g.records, g.first)
	}
	g.first = o.Start
	kept, at, err := g.walk(l, o.Start)
	if err != nil {
		return kept, err
	}
	if at != o.HighWatermark {
		return kept, fmt.Errorf("the records end at offset %d, the log at %d", at, o.HighWatermark)
	}
	g.end, g.cut = at, -1
	for w := range g.last {
		g.settled = max(g.settled, w.run)
	}
	return kept, nil
}

// walk returns how many records nobody acknowledged, and where the log ends.
func (g *Ledger) walk(l *seglog.Log, from int64) (kept int, at int64, err error) {
	seen := make(map[ID]struct{}, len(g.records))
	at = from
	var doubt *ID // the record before, if nobody acknowledged it
	for r, err := range l.Records(from) {
		if err != nil {
			return kept, at, fmt.Errorf("read on at offset %d: %w", at, err)
		}
		id, err := Identify(r, g.Most)
		if err != nil {
			return kept, at, err
		}
		if r.Offset != at {
			return kept, at, fmt.Errorf("a hole: after offset %d comes %d", at-1, r.Offset)
		}
		if _, twice := seen[id]; twice {
			return kept, at, fmt.Errorf("offset %d: record %v is there twice", at, id)
		}
		seen[id] = struct{}{}
		if doubt, err = g.place(id, at, doubt); err != nil {
			return kept, at, err
		}
		if doubt != nil {
			kept++
		}
		at++
	}
	if doubt != nil && doubt.Index+1 < doubt.Len() {
		return kept, at, fmt.Errorf("half a batch at the end: record %v is the last one", *doubt)
	}
	return kept, at, nil
}

// place judges one record. It returns the record if nobody acknowledged it.
func (g *Ledger) place(id ID, at int64, doubt *ID) (*ID, error) {
	known, acked := g.records[at]
	switch {
	case doubt != nil && doubt.Index+1 < doubt.Len() && (id.Batch != doubt.Batch || id.Index != doubt.Index+1):
		return nil, fmt.Errorf("offset %d: half a batch: record %v follows %v", at, id, *doubt)
	case acked && known != id:
		return nil, fmt.Errorf("offset %d: record %v is there, %v was acknowledged", at, id, known)
	case acked:
		return nil, nil
	}
	if id.Run <= g.settled {
		return nil, fmt.Errorf("offset %d: record %v is there, and was not when the log was opened after its writer had ended", at, id)
	}
	if _, refused := g.refused[id.Batch]; refused {
		return nil, fmt.Errorf("offset %d: record %v is there, and its append was refused", at, id)
	}
	w := writer{id.Run, id.Writer}
	next := g.last[w] + 1
	if id.Index > 0 {
		next-- // its first record counted
	}
	switch {
	case id.Seq != next:
		return nil, fmt.Errorf("offset %d: record %v was never appended there: the next batch of that writer is %d", at, id, next)
	case id.Index > 0 && (doubt == nil || doubt.Batch != id.Batch):
		return nil, fmt.Errorf("offset %d: half a batch: it begins with record %v", at, id)
	}
	g.last[w] = id.Seq
	g.records[at] = id
	return &id, nil
}

// Holds returns an error if r is not what the log was last known to hold there. While a TruncateTo or an Append is not
// answered for, what they concern may be anything that was written.
func (g *Ledger) Holds(r seglog.Record) error {
	id, err := Identify(r, g.Most)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known, ok := g.records[r.Offset]; ok && known != id {
		return fmt.Errorf("offset %d: record %v is there, %v was acknowledged", r.Offset, id, known)
	}
	return nil
}

// Promised returns the last acknowledged offset that no TruncateTo, even an unanswered one, was to remove.
func (g *Ledger) Promised() (last int64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last = g.end - 1
	if g.cut >= 0 {
		last = min(last, g.cut-1)
	}
	return last, last >= g.first && g.end > 0
}
