package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// Positions that Records, Follow, Wait, Batches, Section and TransferTo take in place of an offset, so that none has to be
// asked for first, which retention or an append may overtake.
const (
	// Oldest is the first record that is there when the reading begins.
	Oldest int64 = math.MinInt64
	// Newest is the end of the log at the time of the call: what is appended after it comes.
	Newest int64 = math.MinInt64 + 1
)

// Records walks the records from offset from up to the high watermark of the moment the walk starts; it never waits.
// Every batch's CRC is checked, once. Control batches and gaps are skipped. A Record is valid until the next step; Clone
// keeps it. The sequence may be walked more than once, and each walk ends after the first error, which are those of
// Read; walking from an offset between the high watermark and the end of the log is no error and yields nothing. A
// TruncateTo or Reset below the walk ends it with an *OffsetError. Behind a *CorruptError, its NextOffset is where a new walk goes on.
func (l *Log) Records(from int64) iter.Seq2[Record, error] {
	next := l.newest(from)
	return func(yield func(Record, error) bool) { l.records(next, false, yield, nil) }
}

// records yields to yield or, if that is nil, to b.
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

// Follow is Records that goes on: at the high watermark it waits for more, until ctx ends, which ends the sequence
// without an error, or the log is closed, which ends it with ErrClosed. An offset above the end of the log, which a reader
// has whose log was cut or restored meanwhile, is an *OffsetError as it is for Records.
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

// followOnce walks what there is. An idle follower keeps no buffer, and one whose body panics no pin.
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

// newest replaces the position Newest by its offset.
func (l *Log) newest(from int64) int64 {
	if from != Newest {
		return from
	}
	_ = l.catchUp() // an error comes from the walk as well
	return max(l.claimed(), l.highWatermark())
}

// catchUp looks, in a read-only log, for what the writer did.
func (l *Log) catchUp() error {
	if l.closed.Load() {
		return ErrClosed
	}
	if l.o.ReadOnly {
		return l.refresh()
	}
	return nil
}

// walk yields what can be read from next on. It returns the offset to go on from, and false once the walk is over.
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
		return from, true // not readable yet
	}
	for a := (attempt{}); next < end; {
		var more bool
		var err error
		l.try(&a)
		next, more, err = l.walkOne(r, next, end, yield)
		if err != nil && l.overtaken(&a, &err) {
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

// walkOne walks the segment that holds next, and returns where to go on.
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
			return next, false, r.seg.behindDamage(r.h, err, limit)
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

// errCut: the log was cut beside a walk.
var errCut = errors.New("seglog: cut")

// walkSegment yields the records of the scanner's batches with offsets in [next, end).
func (l *Log) walkSegment(r *reader, next, end int64, yield func(Record, error) bool) (int64, bool, error) {
	var rec Record
	for next < min(end, r.s.end) { // behind the last offset of a segment nothing counts
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
		again := func() int64 { // where a walk that is interrupted in the middle of the batch goes on
			if r.batched {
				return begin
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
				return end, true, nil // the high watermark lies inside the batch after a cut that failed
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
				poison(&rec)
			}
			if !more {
				return next, false, nil
			}
		}
		next = min(max(next, b.last()+1), end)
	}
	return next, true, nil
}

// nextSegment is where to go on once the pinned segment has no more batches below limit, which was read after end, a
// bound of what may be read: the offsets from next up to the end of the segment, or of the log, are left out.
func (l *Log) nextSegment(r *reader, next, end int64, limit mark) (int64, error) {
	v := l.view.Load()
	i := v.find(r.seg.base)
	if i < 0 || v.segs[i] != r.seg {
		return next, nil // the log was cut or its start moved: look again
	}
	behind := r.seg.base + limit.rel()
	if i+1 < len(v.segs) {
		behind = v.segs[i+1].base
	}
	if next < behind && r.limit(l) != limit {
		return next, nil // more came to this segment, before it was rolled: look again
	}
	if next < behind && !l.gaps.Load() {
		return next, &CorruptError{Path: r.h.path, Pos: limit.pos(), Offset: next, NextOffset: min(behind, end),
			Reason: fmt.Sprintf("the batches of the segment end before this offset, the next one is %d", behind)}
	}
	return max(next, min(behind, end)), nil
}

// afterCut is where a walk that is to yield next goes on after the log was cut, and up to where.
func (l *Log) afterCut(r *reader, next int64) (int64, int64, error) {
	err := l.cutBelow(&r.cuts, next)
	return next, l.readable(r.durable), err
}

// cutBelow returns an *OffsetError if the log was cut below next since cuts was read, which it brings up to date.
func (l *Log) cutBelow(cuts *int64, next int64) error {
	if l.cuts.Load() == *cuts {
		return nil
	}
	now := l.settledCuts()
	lowest := l.lowestCut(*cuts)
	*cuts = now
	if next > lowest {
		return &OffsetError{Offset: next, Offsets: l.Offsets()}
	}
	return nil
}

// Wait returns once the record at offset can be read: with Oldest, once there is one at all; with Newest, once there is one
// that was not there at the time of the call. Errors: those of ctx; an *OffsetError if it was deleted; ErrFailed, since
// nothing more comes; ErrClosed.
func (l *Log) Wait(ctx context.Context, offset int64) error {
	return l.waitFor(ctx, l.newest(offset), -1, false)
}

// waitFor also returns when the log was cut since cuts was read, unless that is -1.
func (l *Log) waitFor(ctx context.Context, offset, cuts int64, durable bool) error {
	if l.o.ReadOnly {
		return l.pollFor(ctx, offset, cuts, durable)
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
