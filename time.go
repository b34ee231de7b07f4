package seglog

import (
	"math"
	"sync/atomic"
	"time"
)

// coarseClock is the wall clock in ms for half of what time.Now costs: it asks for the monotonic clock alone, and for
// both every so often, so that a change of the wall clock shows soon.
type coarseClock struct{ at atomic.Pointer[clockReading] }

type clockReading struct {
	at     time.Time
	millis float64 // with a fraction, so that the ms turns when the wall clock's does
}

const clockReadEvery = 50 * time.Millisecond

func (c *coarseClock) millis() int64 {
	r := c.at.Load()
	if r != nil {
		if since := time.Since(r.at); since < clockReadEvery {
			return int64(r.millis + float64(since)/float64(time.Millisecond))
		}
	}
	now := time.Now()
	c.at.Store(&clockReading{now, float64(now.UnixNano()) / float64(time.Millisecond)})
	return now.UnixMilli()
}

// OffsetForTime returns the offset of the first record, in the order of offsets, whose time is t or later; times need not
// be in order. It returns the high watermark if there is none, which is End once all is flushed. The precision is a
// millisecond. Errors: those of Read.
func (l *Log) OffsetForTime(t time.Time) (int64, error) {
	ms := unixMilli(t)
	if t.Nanosecond()%1e6 > 0 && ms < math.MaxInt64 {
		ms++ // a record at t's own millisecond is earlier than t
	}
	r := readers.Get().(*reader)
	defer r.release()
	r.d.limit = l.o.MaxInflatedBytes
	if err := l.catchUp(); err != nil {
		return 0, err
	}
	if ms == math.MaxInt64 && t.After(time.UnixMilli(ms)) {
		return l.highWatermark(), nil
	}
	for _, s := range l.view.Load().segs {
		greatest, err := l.maxTime(s)
		if err == errGone {
			continue
		}
		if err != nil {
			return 0, err
		}
		if greatest < ms {
			continue
		}
		offset, ok, err := l.firstAt(r, s, ms)
		if err != nil && err != errGone {
			return 0, err
		}
		if ok {
			return offset, nil
		}
	}
	return l.highWatermark(), nil
}

// maxTime is the greatest timestamp of a segment: by the last entry of its time index, unless a batch behind the one it
// points to has a greater one, as when the file lost entries at its end.
func (l *Log) maxTime(s *segment) (int64, error) {
	if ms := s.maxTime.Load(); ms != unknownTime {
		return ms, nil
	}
	h, err := s.pin(&l.env)
	if err != nil {
		return 0, err
	}
	defer h.unref()
	ms, from := int64(noTimestamp), hint{rel: -1}
	var w window
	limit := s.stored.load()
	w.reset(h, limit.pos())
	_, greater, err := s.guardedLookUp(h, func(x *indexes) (found, bool, error) {
		if times := x.times.bytes(); len(times) > 0 {
			var rel uint32
			ms, rel = timeEntry(times, len(times)/timeEntryLen-1)
			from = seekOffset(x.offsets.bytes(), rel)
		}
		return s.walk(&l.env, &w, from, limit, func(f found) bool {
			p, err := w.at(f.pos, headerLen)
			return err == nil && batch(p).maxTimestamp() > ms
		})
	})
	if greater || err == errIndex {
		if err = s.rebuild(&l.env, h, "time index ends early"); err == nil {
			if times := h.x.Load().times.bytes(); len(times) > 0 {
				ms, _ = timeEntry(times, len(times)/timeEntryLen-1)
			}
		}
	}
	if err != nil {
		return 0, err
	}
	s.maxTime.Store(ms)
	return ms, nil
}

// firstAt finds the first readable record of a segment at or after ms.
func (l *Log) firstAt(r *reader, s *segment, ms int64) (offset int64, ok bool, err error) {
	r.unpin()
	if r.h, err = s.pin(&l.env); err != nil {
		return 0, false, err
	}
	r.seg = s
	limit := l.limit(s)
	from := max(s.base, l.start.Load())
	var entryMS int64
	var rel uint32
	var entry bool
	err = r.h.readIndexes(func(x *indexes) { entryMS, rel, entry = seekTime(x.times.bytes(), ms) })
	if err != nil || entry && int64(rel) < limit.rel() {
		var got int64
		if err == nil {
			got, err = s.maxTimeAt(&l.env, r.h, &r.w, s.base+int64(rel), limit)
		}
		if err == nil && got != entryMS {
			err = errIndex
		}
		switch {
		case err == errIndex && s.written(): // the log is damaged, not the index: from the start
		case err == errIndex:
			if err := s.rebuild(&l.env, r.h, "a time entry points to a batch that it does not fit"); err != nil {
				return 0, false, err
			}
		case err != nil:
			return 0, false, err
		default:
			from = max(from, s.base+int64(rel))
		}
	}
	// from may be the last offset of a batch whose first records are the ones.
	f, ok, err := s.locate(&l.env, r.h, &r.w, from, limit)
	for err == nil && ok {
		var at int64
		if at, err = r.firstInBatch(f, ms, l.start.Load()); err != nil || at >= 0 {
			return at, err == nil, err
		}
		if f.last+1 >= s.base+limit.rel() {
			break
		}
		f, ok, err = l.nextBatchAt(r, f, ms, limit)
	}
	return 0, false, err
}

// nextBatchAt is the first batch behind f with a timestamp of ms or later. A batch is only passed over if its CRC says
// that its timestamps are good.
func (l *Log) nextBatchAt(r *reader, f found, ms int64, limit mark) (found, bool, error) {
	s := r.seg
	after := f.last
	return s.throughIndex(&l.env, r.h, func(x *indexes) (found, bool, error) {
		var bad error
		f, ok, err := s.walk(&l.env, &r.w, seekOffset(x.offsets.bytes(), uint32(after-s.base)), limit, func(f found) bool {
			if f.last <= after {
				return false
			}
			p, err := r.w.at(f.pos, headerLen)
			if err != nil || batch(p).maxTimestamp() >= ms {
				return true // the caller reads it whole
			}
			if p, bad = r.w.at(f.pos, f.size); bad == nil {
				if why := batch(p).checkCRC(); why != "" {
					bad = &CorruptError{Path: r.h.path, Pos: f.pos, Offset: f.base, Reason: why}
				}
			}
			return bad != nil
		})
		if bad != nil {
			err = bad
		}
		return f, ok && err == nil, err
	})
}

// firstInBatch is the first offset at or after ms in a batch, from start on; -1 if there is none.
func (r *reader) firstInBatch(f found, ms, start int64) (int64, error) {
	r.src = fileRange{r.h.f, f.pos, f.end()}
	r.s.init(&r.src, r.h.path, f.pos, f.base, -1)
	b, err := r.s.scan()
	if err != nil {
		return -1, err
	}
	if b.maxTimestamp() < ms || b.control() {
		return -1, nil
	}
	if err := r.d.reset(b); err != nil {
		return -1, wrapBatchError(err, r.h.path, f.pos, f.base)
	}
	var rec Record
	for {
		ok := r.d.next(&rec)
		if r.d.why != "" {
			return -1, wrapBatchError(r.d.err(), r.h.path, f.pos, f.base)
		}
		if !ok {
			return -1, nil
		}
		if r.d.millis >= ms && rec.Offset >= start {
			return rec.Offset, nil
		}
	}
}
