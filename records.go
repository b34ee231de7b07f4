package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
)

// Records returns an iterator over the records from offset from up to the high watermark at the time when the iteration
// starts. The iterator does not wait for more. It checks the CRC of each batch once, and skips control batches and gaps. A
// Record is valid until the next step; Clone keeps it.
//
// The iterator may be used more than once. Each iteration ends after its first error, and the errors are those of Read. An
// offset between the high watermark and the end of the log is no error, and yields nothing. A TruncateTo or Reset to an
// offset below the position of the iteration ends it with an *OffsetError, and so does retention that overtakes it. After a *CorruptError, a new iteration from its
// NextOffset yields the records behind the damage.
func (l *Log) Records(from int64) iter.Seq2[Record, error] {
	next := l.newest(from)
	return func(yield func(Record, error) bool) { l.records(next, false, yield, nil) }
}

// records iterates for yield or, if that is nil, for b. With durable, it ends at the recovery point.
func (l *Log) records(from int64, durable bool, yield func(Record, error) bool, b *batcher) {
	r := readers.Get().(*reader)
	defer r.release()
	if b != nil {
		yield = b.of(r)
	}
	if err := l.catchUp(); err != nil {
		yield(Record{}, err)
		return
	}
	r.cuts, r.durable = l.settledCuts(), durable
	l.walk(r, from, yield)
}

// Follow is like Records, but waits at the high watermark for more records. The end of ctx ends the iteration without an
// error, Close ends it with ErrClosed. As with Records, an offset above the end of the log is an *OffsetError: the log may
// have been cut, or restored from a copy, since the reader got the offset.
func (l *Log) Follow(ctx context.Context, from int64) iter.Seq2[Record, error] {
	next := l.newest(from)
	return func(yield func(Record, error) bool) { l.followFrom(ctx, next, false, yield, nil) }
}

func (l *Log) followFrom(ctx context.Context, from int64, durable bool, yield func(Record, error) bool, b *batcher) {
	if b != nil {
		yield = b.err
	}
	var cuts int64
	for next := from; ; {
		if ctx.Err() != nil {
			return
		}
		if err := l.catchUp(); err != nil {
			yield(Record{}, err)
			return
		}
		if next == from {
			cuts = l.settledCuts()
		}
		var ok bool
		if next, cuts, ok = l.followOnce(ctx, next, cuts, durable, yield, b); !ok {
			return
		}
		if err := l.waitFor(ctx, next, cuts, durable); err != nil {
			if ctx.Err() == nil {
				yield(Record{}, err)
			}
			return
		}
	}
}

// followOnce walks the records that can be read now. It takes a reader for that only, so that an idle follower keeps no
// buffer, and gives it back by defer, so that a panic in the body of the caller's loop leaves no segment pinned.
func (l *Log) followOnce(ctx context.Context, next, cuts int64, durable bool, yield func(Record, error) bool, b *batcher) (int64, int64, bool) {
	r := readers.Get().(*reader)
	defer r.release()
	if b != nil {
		yield = b.of(r)
	}
	r.cuts, r.durable = cuts, durable
	next, ok := l.walk(r, next, func(rec Record, err error) bool { return ctx.Err() == nil && yield(rec, err) })
	return next, r.cuts, ok
}

// newest replaces the position Newest by the offset that it stands for, and returns any other position unchanged.
func (l *Log) newest(from int64) int64 {
	if from != Newest {
		return from
	}
	_ = l.catchUp() // the caller's next step meets the same error and reports it
	return max(l.claimed(), l.highWatermark())
}

// walk yields the records that can be read from next on. It returns the offset to go on from; false means that the iteration
// is over, because of an error or because the caller's loop has ended.
func (l *Log) walk(r *reader, next int64, yield func(Record, error) bool) (int64, bool) {
	from := next
	fail := func(err error) (int64, bool) {
		var corrupt *CorruptError
		if errors.As(err, &corrupt) && corrupt.NextOffset > 0 {
			corrupt.NextOffset = max(corrupt.NextOffset, l.start.Load())
		}
		yield(Record{}, err)
		return next, false
	}
	end := l.readable(r.durable)
	if from == Oldest {
		next = min(l.start.Load(), end)
	}
	if next >= end {
		if next < l.start.Load() && from != Oldest || next > max(end, l.claimed()) {
			return fail(&OffsetError{Offset: next, Offsets: l.Offsets()})
		}
		return from, true // nothing can be read yet; Oldest stays Oldest, since retention may move the start
	}
	for a := (attempt{}); next < end; {
		var more bool
		var err error
		l.try(&a)
		next, more, err = l.walkOne(r, next, end, yield)
		if err != nil && l.readOnly.overtaken(&a, &err) {
			err = errCut
		}
		if err == errCut {
			next, end, err = l.afterCut(r, next)
			more = true
		}
		if start := l.start.Load(); from == Oldest && !r.yielded && next < start && errors.Is(err, ErrOutOfRange) {
			next, err, more = start, nil, true
		}
		if err != nil {
			return fail(err)
		}
		if !more {
			return next, false
		}
	}
	return next, true
}

// walkOne walks the segment that holds next. It returns the offset to go on from, and false if the caller's loop has ended.
func (l *Log) walkOne(r *reader, next, end int64, yield func(Record, error) bool) (int64, bool, error) {
	if err := l.pin(r, next); err != nil {
		return next, false, err
	}
	limit := r.limit(l)
	f, ok, err := r.seg.locate(&l.env, r.h, &r.w, next, limit)
	for from := next; err == nil && ok; {
		r.src = fileRange{r.h.f, f.pos, limit.pos()}
		r.s.init(&r.src, r.h.path, f.pos, f.base, r.seg.base+limit.rel())
		r.s.gaps = l.gaps.Load()
		var more bool
		next, more, err = l.walkSegment(r, next, end, yield)
		if err == nil && !more {
			return next, false, nil
		}
		if err == nil {
			break
		}
		if next > from {
			return next, false, r.seg.behindDamage(&l.env, r.h, err, limit)
		}
		f, ok, err = r.seg.locateBehind(&l.env, r.h, &r.w, err, next, limit)
	}
	if err != nil {
		return next, false, err
	}
	if next < end {
		next, err = l.nextSegment(r, next, end, limit)
	}
	return next, err == nil, err
}

// errCut tells walk that the log was cut since the iteration last looked. It does not leave this file.
var errCut = errors.New("seglog: cut")

// walkSegment yields the records of the scanner's batches with offsets in [next, end). Its results are those of walkOne.
func (l *Log) walkSegment(r *reader, next, end int64, yield func(Record, error) bool) (int64, bool, error) {
	var rec Record
	for next < min(end, r.s.end) { // r.s.end is where the offsets of this segment end
		pos := r.s.pos
		b, err := r.s.scan()
		if err == io.EOF {
			return next, true, nil
		}
		if err != nil {
			return next, false, err
		}
		l.passed(r.seg, r.h, pos, r.s.pos)
		if b.control() {
			next = min(b.last()+1, end) // the mark of the segment may be ahead of the high watermark
			continue
		}
		if err := r.d.reset(b); err != nil {
			return next, false, wrapBatchError(err, r.h.path, pos, b.base())
		}
		begin := next
		again := func() int64 { // the offset to go on from after an interruption inside the batch
			if r.batched {
				return begin // the batch has not been yielded yet
			}
			return next
		}
		for {
			ok := r.d.next(&rec)
			if r.d.why != "" {
				return again(), false, wrapBatchError(r.d.err(), r.h.path, pos, b.base())
			}
			if !ok {
				break
			}
			if rec.Offset < next {
				continue
			}
			if rec.Offset >= end {
				return end, true, nil // the high watermark lies inside this batch, as it may after a cut that failed
			}
			if l.cuts.Load() != r.cuts {
				return again(), false, errCut
			}
			if l.closed.Load() {
				return next, false, ErrClosed
			}
			next = rec.Offset + 1
			r.yielded = true
			more := yield(rec, nil)
			if !r.batched {
				spoil(&rec)
			}
			if !more {
				return next, false, nil
			}
		}
		next = min(max(next, b.last()+1), end)
	}
	return next, true, nil
}

// nextSegment returns the offset to go on from once the pinned segment has no more batches below limit. The offsets from next
// up to the next segment, or up to the end of the active one, are then a gap, which a log without gaps reports as corruption.
// end bounds what may be read; the caller has read it before limit.
func (l *Log) nextSegment(r *reader, next, end int64, limit mark) (int64, error) {
	v := l.view.Load()
	i := v.find(r.seg.base)
	if i < 0 || v.segs[i] != r.seg {
		return next, nil // a cut or a deletion took the segment: look again
	}
	behind := r.seg.base + limit.rel()
	if i+1 < len(v.segs) {
		behind = v.segs[i+1].base
	}
	if next < behind && r.limit(l) != limit {
		return next, nil // the segment has grown since limit was read: look again
	}
	if next < behind && (!l.gaps.Load() || l.lostEnd(r.h)) {
		return next, &CorruptError{Path: r.h.path, Pos: limit.pos(), Offset: next, NextOffset: min(behind, end),
			Reason: fmt.Sprintf("the batches of the segment end before this offset, the next one is %d", behind)}
	}
	return max(next, min(behind, end)), nil
}

// afterCut returns the offset from which, and the bound up to which, a walk goes on after the log was cut. It returns an
// *OffsetError if the cut took records below next, since those have been yielded already.
func (l *Log) afterCut(r *reader, next int64) (int64, int64, error) {
	err := l.cutBelow(&r.cuts, next)
	return next, l.readable(r.durable), err
}

// Wait returns once the record at offset can be read: with Oldest, once the log has a record; with Newest, once it has one
// that was not there at the time of the call. Errors: those of ctx; an *OffsetError if the record was deleted; ErrFailed,
// since a log that has failed gets no more records; ErrClosed.
func (l *Log) Wait(ctx context.Context, offset int64) error {
	return l.waitFor(ctx, l.newest(offset), -1, false)
}

// waitFor is Wait, with durable for the recovery point in place of the high watermark. Unless cuts is -1, it also returns an
// *OffsetError once the log was cut below offset since cuts was read.
func (l *Log) waitFor(ctx context.Context, offset, cuts int64, durable bool) error {
	if l.readOnly != nil {
		return l.readOnly.pollFor(ctx, offset, cuts, durable)
	}
	moved := &l.readers
	if durable {
		moved = &l.durableWaiters
	}
	return moved.wait(ctx, func() (bool, error) {
		if l.closed.Load() {
			return false, ErrClosed
		}
		start := l.start.Load()
		if hw := l.readable(durable); hw > offset && (offset != Oldest || hw > start) {
			if offset < start && offset != Oldest {
				return false, &OffsetError{Offset: offset, Offsets: l.Offsets()}
			}
			return true, nil
		}
		if cuts >= 0 && l.cuts.Load() != cuts && offset != Oldest {
			if l.settledCuts(); offset > l.lowestCut(cuts) {
				return false, &OffsetError{Offset: offset, Offsets: l.Offsets()}
			}
		}
		return false, l.failed()
	})
}

// batcher collects the records that a walk yields, until it has those of a whole batch.
type batcher struct {
	yield   func([]Record, error) bool
	records []Record
	headers []Header // those of all records: the decoder reuses its own slice for the next record
}

// of returns a yield function for records that r decodes, and tells r that an interrupted walk must begin the batch again.
func (b *batcher) of(r *reader) func(Record, error) bool {
	r.batched = true
	return func(rec Record, err error) bool {
		if err != nil {
			return b.err(rec, err)
		}
		if n := len(b.records); n > 0 && rec.Offset <= b.records[n-1].Offset {
			b.records, b.headers = b.records[:0], b.headers[:0] // an interrupted walk has begun the batch again
		}
		if rec.Headers != nil {
			n := len(b.headers)
			b.headers = append(b.headers, rec.Headers...)
			rec.Headers = b.headers[n:len(b.headers):len(b.headers)]
		}
		b.records = append(b.records, rec)
		if r.d.left > 0 {
			return true
		}
		more := b.yield(b.records, nil)
		for i := range b.records {
			spoil(&b.records[i])
		}
		b.records, b.headers = b.records[:0], b.headers[:0]
		return more
	}
}

// err yields an error, which ends the iteration. The records collected so far are dropped, since their batch is not whole.
func (b *batcher) err(_ Record, err error) bool { return b.yield(nil, err) }

// RecordBatches is like Records, but yields the records of one batch at each step. A batch holds the records of one Append,
// which are stored together or not at all. Of the first batch, only the records from offset from on are yielded. A reader
// that stores its position after each step never goes on, after a crash, in the middle of records that were appended
// together. The slice and its records are valid until the next step. Batches returns headers of batches instead.
func (l *Log) RecordBatches(from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.records(next, false, nil, &batcher{yield: yield}) }
}

// FollowBatches is like RecordBatches, but waits for more records as Follow does.
func (l *Log) FollowBatches(ctx context.Context, from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.followFrom(ctx, next, false, nil, &batcher{yield: yield}) }
}
