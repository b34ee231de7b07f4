package seglog

import (
	"errors"
	"io"
	"math"
	"time"
)

// OffsetForTime returns the offset of the first record, in the order of offsets, whose time is t or later; times need not be
// in order. If there is none, it returns the high watermark, which is End once everything is flushed. The precision is a
// millisecond: times of records are whole ones, and t is rounded up, so a record that was appended in the same millisecond after
// t may be passed over. Errors: those of Read. If the record may lie in a damaged part of the log, the error is a *CorruptError, whose
// NextOffset is where reading can go on. If records with earlier times follow the damage, the record lies behind it, and
// damage is no error.
func (l *Log) OffsetForTime(t time.Time) (int64, error) {
	ms := unixMilli(t)
	if t.Nanosecond()%1e6 > 0 && ms < math.MaxInt64 {
		ms++ // a record at t's own millisecond is earlier than t
	}
	never := ms == math.MaxInt64 && t.After(time.UnixMilli(ms))
	for a := (attempt{}); ; {
		l.try(&a)
		offset, err := l.firstSince(ms, never)
		if err == nil || !l.readOnly.overtaken(&a, &err) {
			return offset, err
		}
	}
}

// firstSince is OffsetForTime for a time in milliseconds, or with never for one after all times.
func (l *Log) firstSince(ms int64, never bool) (int64, error) {
	r := readers.Get().(*reader)
	defer r.release()
	r.d.limit = l.o.MaxInflatedBytes
	if err := l.catchUp(); err != nil {
		return 0, err
	}
	if never {
		return l.highWatermark(), nil
	}
	search := timeSearch{r: r, ms: ms}
	segs := l.view.Load().segs
	for i, s := range segs {
		if i+1 < len(segs) && segs[i+1].base <= l.start.Load() {
			continue // it is about to be deleted, and was perhaps sealed without indexes
		}
		greatest, err := l.maxTime(s)
		if err == errGone {
			continue
		}
		if err == nil && greatest < ms && !s.unsure.Load() {
			search.earlier(greatest)
			continue
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return 0, err
		}
		offset, ok, gone := l.firstAt(&search, s)
		if gone != nil && gone != errGone {
			return 0, gone
		}
		if ok {
			return offset, search.damage
		}
		if errors.Is(err, io.ErrUnexpectedEOF) { // behind all of its batches
			search.pass(err)
		}
	}
	return l.highWatermark(), search.damage
}

// timeSearch is a search for the first record at or after ms.
type timeSearch struct {
	r  *reader
	ms int64
	// damage that the search went past, with no earlier time behind it: the record may lie in it.
	damage error
}

// earlier notes that a batch or record with that time was found. If the time is earlier, what the search is for lies behind it,
// and not in the damage before.
func (t *timeSearch) earlier(ms int64) {
	if ms < t.ms && ms != noTimestamp {
		t.damage = nil
	}
}

// pass notes damage that the search goes past. It returns the offset to go on at; ok is false if err is no such damage.
func (t *timeSearch) pass(err error) (next int64, ok bool) {
	var damage *CorruptError
	if !errors.As(err, &damage) || errors.Is(err, ErrOldFormat) {
		return 0, false
	}
	if t.damage == nil {
		t.damage = err
	}
	return damage.NextOffset, true
}

// firstAt finds the first readable record of a segment at or after the time that the search is for. It goes past damage.
func (l *Log) firstAt(t *timeSearch, s *segment) (offset int64, ok bool, err error) {
	r, ms := t.r, t.ms
	r.unpin()
	if r.h, err = s.pin(&l.env); err != nil {
		if _, damaged := t.pass(err); damaged {
			return 0, false, nil
		}
		return 0, false, err
	}
	r.seg = s
	limit := l.limit(s)
	from, indexed, err := l.timeEntryBefore(r, ms, limit)
	if err != nil {
		return 0, false, err
	}
	// from may be the last offset of a batch of which an earlier record is the one to find.
	f, ok, err := s.locate(&l.env, r.h, &r.w, from, limit)
	if indexed && ok && f.pos > 0 {
		t.damage = nil // all times before an entry are earlier than its own
	}
	passed := int64(-1) // the offset behind the damage that was passed last
	for ok || err != nil {
		var at int64
		if err == nil {
			if at, err = t.firstInBatch(f, l.start.Load()); err == nil && at >= 0 {
				return at, true, nil
			}
			from = f.base // if the batch is damaged, its last offset may be wrong
		}
		if err != nil {
			next, damaged := t.pass(s.behindDamage(&l.env, r.h, err, limit))
			if !damaged {
				return 0, false, err
			}
			if next <= max(from, passed) || next >= s.base+limit.rel() {
				break // it is not known where good batches go on, or none follows in the segment
			}
			from, passed = next, next
			f, ok, err = s.locateWhole(&l.env, r.h, &r.w, from, limit) // the damaged batch may claim that offset too
			continue
		}
		if f.last+1 >= s.base+limit.rel() {
			break
		}
		f, ok, err = l.nextBatchAt(t, f, limit)
	}
	return 0, false, nil
}

// timeEntryBefore returns the offset in the pinned segment from which on to look for ms, and whether it is from the time index.
func (l *Log) timeEntryBefore(r *reader, ms int64, limit mark) (from int64, indexed bool, err error) {
	s := r.seg
	from = max(s.base, l.start.Load())
	var entryMS int64
	var rel uint32
	var entry bool
	err = r.h.readIndexes(func(x *indexes) { entryMS, rel, entry = seekTime(x.times.bytes(), ms) })
	if err == nil && (!entry || int64(rel) >= limit.rel()) {
		return from, false, nil
	}
	var got int64
	if err == nil {
		got, err = s.maxTimeAt(&l.env, r.h, &r.w, s.base+int64(rel), limit)
	}
	if err == nil && got != entryMS {
		err = errIndex
	}
	switch {
	case err == nil:
		return max(from, s.base+int64(rel)), true, nil
	case err == errIndex && s.written() || errors.Is(err, ErrCorrupt): // the log is damaged, not the index: search from its start
		return from, false, nil
	case err == errIndex:
		return from, false, s.rebuild(&l.env, r.h, "a time entry does not match the batch that it points to")
	}
	return from, false, err
}

// nextBatchAt returns the first batch behind f with a greatest timestamp of ms or later. It checks the CRC of each batch that
// it skips, since only then the timestamp can be trusted.
func (l *Log) nextBatchAt(t *timeSearch, f found, limit mark) (found, bool, error) {
	r, s := t.r, t.r.seg
	var bad error
	f, ok, err := s.guardedLookUp(r.h, func(*indexes) (found, bool, error) {
		return s.walk(&l.env, &r.w, hint{rel: -1, pos: f.end(), next: f.last + 1 - s.base}, limit, func(f found) bool {
			p, err := r.w.at(f.pos, headerLen)
			if err != nil || batch(p).maxTimestamp() >= t.ms {
				return true // the caller reads it whole
			}
			if p, bad = r.w.at(f.pos, f.size); bad == nil {
				if why := batch(p).checkCRC(); why != "" {
					bad = &CorruptError{Path: r.h.path, Pos: f.pos, Offset: f.base, Reason: why}
				} else {
					t.earlier(batch(p).maxTimestamp())
				}
			}
			return bad != nil
		})
	})
	if bad != nil {
		err = bad
	}
	return f, ok && err == nil, err
}

// firstInBatch returns the offset of the first record of a batch that the search may be for, from offset start on, or -1.
func (t *timeSearch) firstInBatch(f found, start int64) (int64, error) {
	r := t.r
	r.src = fileRange{r.h.f, f.pos, f.end()}
	r.s.init(&r.src, r.h.path, f.pos, f.base, -1)
	b, err := r.s.scan()
	if err != nil {
		return -1, err
	}
	if t.earlier(b.maxTimestamp()); b.maxTimestamp() < t.ms || b.control() {
		return -1, nil // the time of a control batch that is later tells nothing of the records behind the damage
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
		if r.d.millis >= t.ms && rec.Offset >= start {
			return rec.Offset, nil
		}
		t.earlier(r.d.millis)
	}
}
