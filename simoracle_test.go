package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/seglog/seglog/internal/sim"
)

// oracle knows which records a log may hold, and whether each was appended, acknowledged and durable. During a call that removes
// records, the log may be in the state before it or after it, so there may be more than one lineage.
type oracle struct {
	lineages []*lineage
	// retained, if not nil, points to the offset below which retention may have deleted records.
	retained *int64
	// judge, if not nil, decides in place of the lineages until the log is opened. It is a history of concurrent calls.
	judge judge
}

// judge knows which records a log may show after a crash.
type judge interface {
	check(got *content, machine bool) error
	batchEnds(r *Record) bool
	checkCopies(state *sim.World, mapped bool) error
	holes() bool // offsets may be missing, for which lineages have no room
}

// lineage is one history: records first, first+1, ...
type lineage struct {
	first   int64
	slots   []slot
	start   int64 // the log starts here or above: deleted records do not come back
	started int64 // the log starts here or below: no other records were deleted
	acked   int64 // records below were acknowledged, and survive a kill of the process
	durable int64 // records below survive a power cut
}

type slot struct {
	rec  *Record // nil: not known to be appended
	last bool    // the record is the last of its batch
}

func newOracle(first int64) *oracle {
	return &oracle{lineages: []*lineage{{first: first, start: first, started: first, acked: first, durable: first}}}
}

func (o *oracle) clone() *oracle {
	c := &oracle{retained: o.retained, judge: o.judge}
	for _, l := range o.lineages {
		k := *l
		k.slots = slices.Clip(l.slots)
		c.lineages = append(c.lineages, &k)
	}
	return c
}

func (o *oracle) each(f func(*lineage)) {
	for _, l := range o.lineages {
		f(l)
	}
}

// only returns the single lineage. No call that removes records may be running.
func (o *oracle) only() *lineage {
	if len(o.lineages) != 1 {
		panic("the oracle was asked during a removal")
	}
	return o.lineages[0]
}

func (l *lineage) end() int64 { return l.first + int64(len(l.slots)) }

// begin notes that an append of batch begins. The offsets of its records are set.
func (o *oracle) begin(batch []Record) {
	o.each(func(l *lineage) {
		at := batch[0].Offset - l.first
		slots := slices.Clone(l.slots) // copies of the lineage share it
		if need := at + int64(len(batch)) - int64(len(slots)); need > 0 {
			slots = append(slots, make([]slot, need)...)
		}
		for i := range batch {
			slots[at+int64(i)] = slot{&batch[i], i == len(batch)-1}
		}
		l.slots = slots
	})
}

// forget undoes begin: the append failed and left the log unchanged.
func (o *oracle) forget(base int64) {
	o.each(func(l *lineage) { l.slots = l.slots[:max(0, min(int64(len(l.slots)), base-l.first))] })
}

func (o *oracle) ack(end int64) {
	o.each(func(l *lineage) { l.acked = max(l.acked, end) })
}

func (o *oracle) flushed(end int64) {
	o.each(func(l *lineage) { l.durable = max(l.durable, end) })
}

// remove notes that a call begins that changes a lineage as after does.
func (o *oracle) remove(after func(l *lineage)) {
	c := o.clone()
	c.each(after)
	o.lineages = append(o.lineages, c.lineages...)
}

// removed notes that the call ended; done says that it succeeded. After a failure both lineages remain possible.
func (o *oracle) removed(done bool) {
	if done {
		o.lineages = o.lineages[len(o.lineages)/2:]
	}
}

func (l *lineage) truncate(offset int64) {
	keep := max(0, offset-l.first)
	if keep < int64(len(l.slots)) {
		slots := slices.Clone(l.slots[:keep])
		if keep > 0 {
			slots[keep-1].last = true
		}
		l.slots = slots
	}
	l.acked, l.durable = min(l.acked, offset), min(l.durable, offset)
}

func (l *lineage) reset(offset int64) {
	*l = lineage{first: offset, start: offset, started: offset, acked: offset, durable: offset}
}

func (l *lineage) deleteBefore(offset int64) {
	l.start = max(l.start, offset)
	l.started = max(l.started, offset)
}

// opened notes the contents that an Open found, from which the history continues.
func (o *oracle) opened(got *content) {
	l := &lineage{first: got.start, start: got.start, started: got.start, acked: got.end, durable: got.durable}
	// The ends of batches are known from the previous lineages only.
	for i := range got.recs {
		l.slots = append(l.slots, slot{&got.recs[i], o.endsBatch(&got.recs[i]) || i == len(got.recs)-1})
	}
	o.lineages, o.judge = []*lineage{l}, nil
}

func (o *oracle) endsBatch(r *Record) bool {
	if o.judge != nil {
		return o.judge.batchEnds(r)
	}
	for _, l := range o.lineages {
		if at := r.Offset - l.first; at >= 0 && at < int64(len(l.slots)) && l.slots[at].last {
			return true
		}
	}
	return false
}

// content holds the records and bounds that a log shows.
type content struct {
	start, end int64
	durable    int64
	recs       []Record
}

// check returns an error if a crash can't have left these contents of a log. machine says that the power failed; otherwise
// only the process died.
func (o *oracle) check(got *content, machine bool) error {
	if o.judge != nil {
		return o.judge.check(got, machine)
	}
	var all []error
	for _, l := range o.lineages {
		c := *l
		if o.retained != nil {
			c.started = max(c.started, *o.retained)
		}
		err := c.check(got, machine)
		if err == nil {
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (l *lineage) check(got *content, machine bool) error {
	low, what := l.durable, "durable"
	if !machine {
		low, what = l.acked, "acknowledged"
	}
	switch {
	case got.end < got.start:
		return fmt.Errorf("starts at %d, after its end %d", got.start, got.end)
	case got.start < l.start:
		return fmt.Errorf("starts at %d, although the records below %d were deleted", got.start, l.start)
	case got.start > l.started:
		return fmt.Errorf("lost %s: starts at %d, although no record from %d on was deleted", what, got.start, l.started)
	case got.end < low:
		return fmt.Errorf("lost %s: ends at %d, although the records below %d were %s", what, got.end, low, what)
	case got.end > max(l.end(), l.started):
		return fmt.Errorf("phantom: ends at %d, although only records below %d were appended", got.end, l.end())
	case int64(len(got.recs)) != got.end-got.start:
		return fmt.Errorf("hole: [%d, %d) holds %d records", got.start, got.end, len(got.recs))
	}
	for i := range got.recs {
		r := &got.recs[i]
		if r.Offset != got.start+int64(i) {
			return fmt.Errorf("hole: record %d in the place of record %d", r.Offset, got.start+int64(i))
		}
		at := r.Offset - l.first
		if at < 0 || at >= int64(len(l.slots)) || l.slots[at].rec == nil {
			return fmt.Errorf("phantom: record %d was never appended", r.Offset)
		}
		if why := differ(r, l.slots[at].rec); why != "" {
			return fmt.Errorf("wrong bytes: record %d: %s", r.Offset, why)
		}
	}
	if at := got.end - l.first; at > 0 && at <= int64(len(l.slots)) && got.end > got.start && !l.slots[at-1].last {
		return fmt.Errorf("half a batch: ends at %d, inside a batch", got.end)
	}
	return nil
}

// differ describes the first difference between two records, or returns "".
func differ(got, want *Record) string {
	switch {
	case got.Offset != want.Offset:
		return fmt.Sprintf("offset %d, want %d", got.Offset, want.Offset)
	case !got.Time.Equal(want.Time):
		return fmt.Sprintf("time %v, want %v", got.Time, want.Time)
	case !bytes.Equal(got.Key, want.Key) || (got.Key == nil) != (want.Key == nil):
		return fmt.Sprintf("key %q, want %q", got.Key, want.Key)
	case !bytes.Equal(got.Value, want.Value) || (got.Value == nil) != (want.Value == nil):
		return fmt.Sprintf("value of record %d (%d bytes), want that of record %d (%d bytes)", idOf(got), len(got.Value), idOf(want), len(want.Value))
	case len(got.Headers) != len(want.Headers):
		return fmt.Sprintf("%d headers, want %d", len(got.Headers), len(want.Headers))
	}
	for i, h := range want.Headers {
		g := got.Headers[i]
		if g.Key != h.Key || !bytes.Equal(g.Value, h.Value) || (g.Value == nil) != (h.Value == nil) {
			return fmt.Sprintf("header %d is %v, want %v", i, g, h)
		}
	}
	return ""
}

// idOf returns the number that identifies a record in a run, the first bytes of its value; -1 if there is none.
func idOf(r *Record) int64 {
	if len(r.Value) < 8 {
		return -1
	}
	return int64(binary.BigEndian.Uint64(r.Value))
}

// readLog returns the bounds and all records of l.
func readLog(l *Log) (*content, error) {
	o := l.Offsets()
	got := &content{start: o.Start, end: o.HighWatermark, durable: o.RecoveryPoint}
	if o.Start > o.RecoveryPoint || o.RecoveryPoint > o.HighWatermark || o.HighWatermark > o.End {
		return got, fmt.Errorf("offsets out of order: %+v", o)
	}
	for r, err := range l.Records(o.Start) {
		if err != nil {
			return got, fmt.Errorf("records from %d: %w", o.Start, err)
		}
		if r.Offset >= o.HighWatermark {
			break // it was appended after the bounds were read
		}
		got.recs = append(got.recs, r.Clone())
	}
	return got, nil
}

// encoded returns a batch as another program would write it. It follows the description of the format, not the engine's encoder,
// so that the two check each other.
func encoded(recs []Record, base int64) []byte {
	be := binary.BigEndian
	first := recs[0].Time.UnixMilli()
	greatest := first
	b := make([]byte, headerLen)
	for i := range recs {
		ms := recs[i].Time.UnixMilli()
		greatest = max(greatest, ms)
		body := binary.AppendVarint([]byte{0}, ms-first)
		body = binary.AppendVarint(body, int64(i))
		body = encodedBytes(body, recs[i].Key)
		body = encodedBytes(body, recs[i].Value)
		body = binary.AppendVarint(body, int64(len(recs[i].Headers)))
		for _, h := range recs[i].Headers {
			body = encodedBytes(body, append([]byte{}, h.Key...))
			body = encodedBytes(body, h.Value)
		}
		b = append(binary.AppendVarint(b, int64(len(body))), body...)
	}
	be.PutUint64(b[atBaseOffset:], uint64(base))
	b[atMagic] = magicV2
	be.PutUint32(b[atLastOffsetDelta:], uint32(len(recs)-1))
	be.PutUint64(b[atBaseTimestamp:], uint64(first))
	be.PutUint64(b[atMaxTimestamp:], uint64(greatest))
	for i := atProducerID; i < atRecordsCount; i++ {
		b[i] = 0xff // no producer
	}
	be.PutUint32(b[atRecordsCount:], uint32(len(recs)))
	batch(b).seal()
	return b
}

func encodedBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}
