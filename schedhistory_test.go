//go:build go1.25

package seglog

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

// schedID returns the number that identifies a record in a schedule, or -1 if the record has none.
func schedID(r *Record) int64 {
	if b := r.Value; len(b) >= 8 {
		return int64(binary.BigEndian.Uint64(b))
	} else if b = r.Key; len(b) >= 8 {
		return int64(binary.BigEndian.Uint64(b))
	}
	return -1
}

// history holds the calls of concurrent users with their results, each call as an interval of events. It decides which records
// a log may show at any moment, although the order in which overlapping calls took effect is unknown: an acknowledged record
// must be there unless a call that removes it overlapped or followed, and a record that was removed earlier must not.
type history struct {
	events int
	calls  []*histCall
	byID   map[int64]histRecord
	// retained is the greatest start offset that any call returned or the state file noted. It matters in a run with retention.
	retention bool
	retained  int64
	gaps      bool // offsets may be missing
}

type histRecord struct {
	call *histCall
	at   int
}

type histKind uint8

const (
	histAppend histKind = iota
	histCut             // TruncateTo; Reset with reset
	histDelete          // DeleteBefore
	histMark            // once it succeeds, all records below offset that were acknowledged before the call are durable
	histOpened          // a log was opened and showed got, while no other call ran
	histCopy            // Snapshot, into the directory name
)

const histRuns = math.MaxInt // the end of a call that has not ended

// histCall is one call. Its results are valid only once the call has ended.
type histCall struct {
	kind       histKind
	begin, end int
	at         time.Time // when it ended
	recs       []Record  // histAppend
	fixed      bool      // the caller gave the offsets, as to TransferFrom
	offset     int64     // of the first record; of a cut, a deletion or a mark
	reset      bool
	name       string
	noted      int64 // of a copy by another process: records from here on may be missing, as the state file did not cover them yet
	asked      int   // of a copy: it must reflect the removals and acknowledgments before this event
	policy     FlushPolicy
	got        *content // histOpened
	err        error
	doubt      bool // it failed, and may have taken effect
	none       bool // it failed and had no effect
}

// histView is a history as of event n.
type histView struct {
	h *history
	n int
}

func newHistory() *history { return &history{byID: map[int64]histRecord{}} }

// begin notes that a call begins. The caller of begin and finish holds the lock of the trace.
func (h *history) begin(c *histCall) {
	c.begin, c.end = h.events, histRuns
	h.events++
	h.calls = append(h.calls, c)
	for i := range c.recs {
		h.byID[schedID(&c.recs[i])] = histRecord{c, i}
	}
	if c.kind == histOpened {
		c.end = c.begin
	}
}

func (h *history) finish(c *histCall) {
	c.end, c.at = h.events, time.Now()
	h.events++
}

// ended reports whether the call had returned by then.
func (v histView) ended(c *histCall) bool { return c.end < v.n }

// removes reports whether c may have removed a record that was at offset at some time after the event from.
func (v histView) removes(c *histCall, offset int64, from int) bool {
	if c.begin >= v.n || v.ended(c) && (c.none || c.end < from) {
		return false
	}
	switch c.kind {
	case histCut:
		return c.reset || c.offset <= offset
	case histDelete:
		return offset < c.offset
	}
	return false
}

// base returns the contents that the last Open found, the event of that Open, and the calls since.
func (v histView) base() (*content, int, []*histCall) {
	for i := len(v.h.calls) - 1; i >= 0; i-- {
		if c := v.h.calls[i]; c.kind == histOpened && c.begin < v.n {
			return c.got, c.begin, v.h.calls[i+1:]
		}
	}
	return &content{}, -1, v.h.calls
}

// check returns an error if a crash can't have left these contents of a log. machine says that the power failed; otherwise
// only the process died.
func (v histView) check(got *content, machine bool) error {
	base, since, calls := v.base()
	if err := v.checkShown(got, base, calls, v.n); err != nil {
		return err
	}
	low, high := v.starts(base, calls)
	if err := checkStart(got, low, high); err != nil {
		return err
	}
	for i := range base.recs {
		r := &base.recs[i]
		if machine && r.Offset >= base.durable && !v.marked(calls, r.Offset, since) {
			continue
		}
		if err := v.lost(got, calls, r, r.Offset, since); err != nil {
			return fmt.Errorf("%w (the last Open found it; records below %d were durable then)", err, base.durable)
		}
	}
	for _, c := range calls {
		if c.kind != histAppend || !v.ended(c) || c.err != nil {
			continue
		}
		for i := range c.recs {
			offset := c.offset + int64(i)
			if machine && c.policy != FlushSync && !v.marked(calls, offset, c.end) {
				continue
			}
			if err := v.lost(got, calls, &c.recs[i], offset, c.begin); err != nil {
				return err
			}
		}
	}
	return nil
}

// lost returns an error if r, which was at offset from the event from on, is missing although no call may have removed it.
func (v histView) lost(got *content, calls []*histCall, r *Record, offset int64, from int) error {
	if v.h.retention && offset < v.h.retained {
		return nil
	}
	for _, c := range calls {
		if v.removes(c, offset, from) {
			return nil
		}
	}
	i, ok := slices.BinarySearchFunc(got.recs, offset, func(g Record, o int64) int { return int(g.Offset - o) })
	if ok && schedID(&got.recs[i]) == schedID(r) {
		return nil
	}
	return fmt.Errorf("lost: record %x, acknowledged at offset %d, is not in [%d, %d)%s", schedID(r), offset, got.start, got.end, got.near(offset))
}

// marked reports whether the log declared durable the record that was at offset from the event from on.
func (v histView) marked(calls []*histCall, offset int64, from int) bool {
	for _, c := range calls {
		if c.kind == histMark && v.ended(c) && c.err == nil && c.begin > from && offset < c.offset {
			return true
		}
	}
	return false
}

// checkShown checks all records that a log showed to a read that began at the event asked.
func (v histView) checkShown(got, base *content, calls []*histCall, asked int) error {
	if !v.h.gaps && int64(len(got.recs)) != got.end-got.start {
		return fmt.Errorf("hole: [%d, %d) holds %d records", got.start, got.end, len(got.recs))
	}
	var before histRecord
	for i := range got.recs {
		r := &got.recs[i]
		if i > 0 && r.Offset != got.recs[i-1].Offset+1 {
			if h := v.h.byID[schedID(r)]; !v.h.gaps || h.call == nil || !h.call.fixed && base.find(r) == nil && r.Offset != base.end && !v.cutAt(calls, r.Offset) && !v.givenAt(calls, r.Offset) {
				return fmt.Errorf("hole: record %d after %d", r.Offset, got.recs[i-1].Offset)
			}
		}
		this, err := v.checkRecord(r, base, calls, asked)
		if err != nil {
			return err
		}
		if this.call != before.call && before.call != nil && !v.endsBatch(before, base, calls, got.recs[i-1].Offset+1) {
			return fmt.Errorf("half a batch: record %d follows a record inside another batch, at offset %d", r.Offset, got.recs[i-1].Offset)
		}
		before = this
	}
	if before.call != nil && !v.endsBatch(before, base, calls, got.recs[len(got.recs)-1].Offset+1) {
		return fmt.Errorf("half a batch: ends at %d, inside a batch", got.end)
	}
	return nil
}

// endsBatch reports whether r is the last record of its batch, or the log was cut right after r.
func (v histView) endsBatch(r histRecord, base *content, calls []*histCall, next int64) bool {
	if r.at == len(r.call.recs)-1 {
		return true
	}
	for _, c := range calls {
		if c.kind == histCut && !c.reset && c.begin < v.n && c.offset == next && !(v.ended(c) && c.none) {
			return true
		}
	}
	// The cut may have been before the log was last opened.
	for i := range base.recs {
		if base.recs[i].Offset == next-1 {
			return i+1 == len(base.recs) || schedID(&base.recs[i+1]) != schedID(&r.call.recs[r.at])+1
		}
	}
	return false
}

// givenAt reports whether a caller gave a batch this offset. If that batch could not be stored, the log may go on there.
func (v histView) givenAt(calls []*histCall, offset int64) bool {
	return slices.ContainsFunc(calls, func(c *histCall) bool { return c.begin < v.n && c.kind == histAppend && c.fixed && c.offset == offset })
}

// cutAt reports whether the log was cut at offset, which may be in a gap.
func (v histView) cutAt(calls []*histCall, offset int64) bool {
	return slices.ContainsFunc(calls, func(c *histCall) bool { return c.kind == histCut && c.begin < v.n && c.offset == offset })
}

// near describes the records around the offset of a missing record.
func (c *content) near(offset int64) string {
	i, ok := slices.BinarySearchFunc(c.recs, offset, func(g Record, o int64) int { return int(g.Offset - o) })
	switch {
	case ok:
		return fmt.Sprintf(": record %x is in its place", schedID(&c.recs[i]))
	case i < len(c.recs):
		return fmt.Sprintf(": the next record is at %d", c.recs[i].Offset)
	}
	return fmt.Sprintf(", which holds only %d records, all below it", len(c.recs))
}

func (c *content) find(r *Record) *Record {
	i, ok := slices.BinarySearchFunc(c.recs, r.Offset, func(g Record, o int64) int { return int(g.Offset - o) })
	if ok && schedID(&c.recs[i]) == schedID(r) {
		return &c.recs[i]
	}
	return nil
}

// checkRecord checks one record that was returned by a read that began at the event asked: it must have been appended at its
// offset, and not have been removed before the read.
func (v histView) checkRecord(r *Record, base *content, calls []*histCall, asked int) (histRecord, error) {
	id := schedID(r)
	this, ok := v.h.byID[id]
	if !ok || this.call.begin >= v.n {
		return this, fmt.Errorf("phantom: record %d, %x, was never appended", r.Offset, id)
	}
	want := this.call.recs[this.at]
	want.Offset = r.Offset
	if why := differ(r, &want); why != "" {
		return this, fmt.Errorf("wrong bytes: record %d: %s", r.Offset, why)
	}
	from, known := this.call.end, this.call.offset+int64(this.at)
	inBase := base.find(r) != nil
	switch {
	case inBase:
		from = -1
	case !slices.Contains(calls, this.call):
		return this, fmt.Errorf("phantom: record %d, %x, was not there when the log was opened", r.Offset, id)
	case v.ended(this.call) && this.call.none:
		return this, fmt.Errorf("phantom: record %d, %x, whose append failed: %v", r.Offset, id, this.call.err)
	case (this.call.fixed || v.ended(this.call) && this.call.err == nil) && known != r.Offset:
		return this, fmt.Errorf("record %x is at offset %d and was stored at %d", id, r.Offset, known)
	}
	if !inBase && !v.ended(this.call) {
		return this, nil
	}
	for _, c := range calls {
		if c.kind == histCut && c.end < asked && c.err == nil && c.begin > from && (c.reset || c.offset <= r.Offset) {
			return this, fmt.Errorf("record %d, %x, came back: a cut at offset %d had removed it", r.Offset, id, c.offset)
		}
	}
	return this, nil
}

// starts returns the lowest and the highest offset at which the log may start, given its deletions and resets.
func (v histView) starts(base *content, calls []*histCall) (low, high int64) {
	low, high = base.start, base.start
	if v.h.retention {
		high = max(high, v.h.retained)
	}
	var resets []*histCall
	for _, c := range calls {
		if c.begin < v.n && c.kind == histCut && c.reset && !(v.ended(c) && c.none) {
			resets = append(resets, c)
			low, high = 0, max(high, c.offset)
		}
		if c.begin < v.n && c.kind == histDelete {
			high = max(high, c.offset)
		}
		if c.begin < v.n && c.kind == histAppend && c.fixed { // an empty log takes the batch at its offset
			high = max(high, c.offset)
			low = min(low, c.offset)
		}
	}
	for _, c := range calls {
		if c.kind == histDelete && v.ended(c) && c.err == nil && !slices.ContainsFunc(resets, func(r *histCall) bool { return !v.ended(r) || r.end > c.begin }) {
			low = max(low, c.offset)
		}
	}
	return low, high
}

func checkStart(got *content, low, high int64) error {
	switch {
	case got.start > got.end:
		return fmt.Errorf("starts at %d, after its end %d", got.start, got.end)
	case got.start < low:
		return fmt.Errorf("starts at %d, although the records below %d were deleted", got.start, low)
	case got.start > high:
		return fmt.Errorf("starts at %d, although no record from %d on was deleted", got.start, high)
	}
	return nil
}

// batchEnds is endsBatch for a record of a log that an Open found.
func (v histView) batchEnds(r *Record) bool {
	h, ok := v.h.byID[schedID(r)]
	base, _, calls := v.base()
	return ok && v.endsBatch(h, base, calls, r.Offset+1)
}

func (v histView) holes() bool { return v.h.gaps }
