//go:build go1.25

package seglog

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

// schedID returns the number by which the records of a schedule are told apart.
func schedID(r *Record) int64 {
	if b := r.Value; len(b) >= 8 {
		return int64(binary.BigEndian.Uint64(b))
	} else if b = r.Key; len(b) >= 8 {
		return int64(binary.BigEndian.Uint64(b))
	}
	return -1
}

// history holds the calls that many users made at the same time, with their results: an interval of events for each call. It
// says which records a log may show at any moment, without knowing in which order overlapping calls took effect: an
// acknowledged record is there unless a call that removes records overlapped or followed, and a record that was removed
// before is not.
type history struct {
	events int
	calls  []*histCall
	byID   map[int64]histRecord
	// retained is, in a run with retention, the greatest start that was seen or noted anywhere.
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
	histMark            // everything below offset that was acknowledged before the call is durable
	histOpened          // a log was opened and showed got; no other call ran at that time
	histCopy            // Snapshot, into the directory name
)

const histRuns = math.MaxInt

// histCall is one call. The fields behind the events are valid only once the call has ended.
type histCall struct {
	kind       histKind
	begin, end int
	at         time.Time // when it ended
	recs       []Record  // histAppend
	fixed      bool      // their offsets were given, as by TransferFrom
	offset     int64     // of the first record; of a cut, a deletion or a mark
	reset      bool
	name       string
	noted      int64 // of a copy by another process: it need not have what lies above, which the writer had not noted yet
	asked      int   // of a copy: removals and acknowledgments before this event count, even if the reader had not seen them
	policy     FlushPolicy
	got        *content // histOpened
	err        error
	doubt      bool // it failed, and it is not known whether it took effect
	none       bool // it failed and had no effect
}

// histView is a history as it was at some event.
type histView struct {
	h *history
	n int
}

func newHistory() *history { return &history{byID: map[int64]histRecord{}} }

// begin and finish are called while the lock of the trace is held.
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

// ended reports whether the call had returned.
func (v histView) ended(c *histCall) bool { return c.end < v.n }

// removes reports whether the call may have removed the record at offset, which was there from some time after from on.
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

// base returns the call by which the log was last opened, and the calls since.
func (v histView) base() (*content, int, []*histCall) {
	for i := len(v.h.calls) - 1; i >= 0; i-- {
		if c := v.h.calls[i]; c.kind == histOpened && c.begin < v.n {
			return c.got, c.begin, v.h.calls[i+1:]
		}
	}
	return &content{}, -1, v.h.calls
}

// check returns what is wrong with the contents of a log after a crash, of the machine or of the process alone.
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
			return fmt.Errorf("%w (it was there when the log was opened; durable then below %d)", err, base.durable)
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

// lost returns the error for a record that was at offset from an event on, that no call may have removed, and that is missing.
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

// marked reports whether the record that was at offset from an event on was reported to be durable.
func (v histView) marked(calls []*histCall, offset int64, from int) bool {
	for _, c := range calls {
		if c.kind == histMark && v.ended(c) && c.err == nil && c.begin > from && offset < c.offset {
			return true
		}
	}
	return false
}

// checkShown checks each record that a log shows to a read that began at the event asked.
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
			return fmt.Errorf("half a batch: record %d follows one of another batch at offset %d", r.Offset, got.recs[i-1].Offset)
		}
		before = this
	}
	if before.call != nil && !v.endsBatch(before, base, calls, got.recs[len(got.recs)-1].Offset+1) {
		return fmt.Errorf("half a batch: ends at %d, inside one", got.end)
	}
	return nil
}

// endsBatch reports whether r is the last record of its batch, or the log was cut behind it.
func (v histView) endsBatch(r histRecord, base *content, calls []*histCall, next int64) bool {
	if r.at == len(r.call.recs)-1 {
		return true
	}
	for _, c := range calls {
		if c.kind == histCut && !c.reset && c.begin < v.n && c.offset == next && !(v.ended(c) && c.none) {
			return true
		}
	}
	// It may have been cut before the log was last opened.
	for i := range base.recs {
		if base.recs[i].Offset == next-1 {
			return i+1 == len(base.recs) || schedID(&base.recs[i+1]) != schedID(&r.call.recs[r.at])+1
		}
	}
	return false
}

// givenAt reports whether a batch had that offset given. The log may end there since, if the batch could not be stored.
func (v histView) givenAt(calls []*histCall, offset int64) bool {
	return slices.ContainsFunc(calls, func(c *histCall) bool { return c.begin < v.n && c.kind == histAppend && c.fixed && c.offset == offset })
}

// cutAt reports whether the log was cut at offset, which may be in a gap.
func (v histView) cutAt(calls []*histCall, offset int64) bool {
	return slices.ContainsFunc(calls, func(c *histCall) bool { return c.kind == histCut && c.begin < v.n && c.offset == offset })
}

// near describes the records around the place where one is missing.
func (c *content) near(offset int64) string {
	i, ok := slices.BinarySearchFunc(c.recs, offset, func(g Record, o int64) int { return int(g.Offset - o) })
	switch {
	case ok:
		return fmt.Sprintf(": record %x is at its place", schedID(&c.recs[i]))
	case i < len(c.recs):
		return fmt.Sprintf(": the next one is at %d", c.recs[i].Offset)
	}
	return fmt.Sprintf(", which holds %d records", len(c.recs))
}

func (c *content) find(r *Record) *Record {
	i, ok := slices.BinarySearchFunc(c.recs, r.Offset, func(g Record, o int64) int { return int(g.Offset - o) })
	if ok && schedID(&c.recs[i]) == schedID(r) {
		return &c.recs[i]
	}
	return nil
}

// checkRecord checks one record that a read returned which began at the event asked: that it was appended at its offset, and
// not removed before.
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
		return this, fmt.Errorf("phantom: record %d, %x, was gone when the log was opened", r.Offset, id)
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
			return this, fmt.Errorf("record %d, %x, came back: it was cut away at offset %d", r.Offset, id, c.offset)
		}
	}
	return this, nil
}

// starts returns the lowest and the greatest offset at which a log may start, after deletions and resets.
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
		return fmt.Errorf("starts at %d, behind its end %d", got.start, got.end)
	case got.start < low:
		return fmt.Errorf("starts at %d: what is below %d was deleted and came back", got.start, low)
	case got.start > high:
		return fmt.Errorf("starts at %d, nothing from %d on was deleted", got.start, high)
	}
	return nil
}

// batchEnds reports whether a batch ends with r, for a history that goes on with the log that an Open found.
func (v histView) batchEnds(r *Record) bool {
	h, ok := v.h.byID[schedID(r)]
	base, _, calls := v.base()
	return ok && v.endsBatch(h, base, calls, r.Offset+1)
}

func (v histView) holes() bool { return v.h.gaps }
