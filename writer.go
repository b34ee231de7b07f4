package seglog

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// writer is the state that appends work on. Log.mu guards it.
type writer struct {
	tail      *tail
	next      *tail   // made ready for the next roll; nil if not yet
	prepareAt int64   // an append that ends behind this position in tail wakes the preparer
	sealing   []*tail // rolled, to be sealed by the keeper, oldest first
	sealErr   error   // why the last attempt to seal failed; nil if it did not
	// sealsBegun counts the attempts to seal; sealsEnded is the number of the last one that has ended.
	sealsBegun, sealsEnded int64
	sealed                 sync.Cond
	appended               struct{ batches, records, bytes int64 }
	warmth, counted        int64 // see Log.appendWarmth; counted is appended.batches at its last call
	clock                  coarseClock
	// epoch is the leader epoch of the last batch. Later batches get it too, since epochs never go back in a Kafka log.
	epoch    int32
	received receivedLast
	// fenceOffset and fenceEpoch are those of the state file: batches from fenceOffset on get at least fenceEpoch.
	fenceOffset int64
	fenceEpoch  int32
}

// receivedLast is the last batch that TransferFrom stored: the offset after it, and its leader epoch.
type receivedLast struct {
	next  int64
	epoch int32
}

// unsealed returns the first segment that is not sealed.
func (w *writer) unsealed() *segment {
	if len(w.sealing) > 0 {
		return w.sealing[0].seg
	}
	return w.tail.seg
}

// nextEpoch returns the leader epoch for a batch to which the log gives its offset.
func (w *writer) nextEpoch() int32 { return max(w.epoch, w.fenceEpoch) }

// Append stores records as one batch, whole or not at all, and returns the offset of the first. When it returns, the
// batch is as durable as Options.Flush promises; it may be called from many goroutines at once, which then share
// flushes. Offsets and, where Time is zero, times are set by the log.
//
// Errors: ErrTooLarge, ErrInvalid, also for no records at all (nothing was stored); the operating system's, such as a full
// disk (nothing was stored, and later appends work once the cause is gone); ErrFailed (see there); ErrClosed, ErrReadOnly.
func (l *Log) Append(records ...Record) (base int64, err error) {
	return l.appendAt(anyOffset, records)
}

// AppendAt is Append for a caller that must know the offset in advance: either the first record gets offset, or nothing is
// stored and the error is ErrConflict, because another append or a truncation came first. Errors: ErrConflict and those
// of Append.
func (l *Log) AppendAt(offset int64, records ...Record) error {
	if offset < 0 {
		return invalid("AppendAt offset %d", offset)
	}
	_, err := l.appendAt(offset, records)
	return err
}

// anyOffset lets an append take whatever offset comes next.
const anyOffset = -1

func (l *Log) appendAt(offset int64, records []Record) (base int64, err error) {
	if len(records) == 0 {
		return 0, invalid("Append of no records")
	}
	now := int64(0)
	for i := range records {
		if records[i].Time.IsZero() {
			now = l.writer.clock.millis()
			break
		}
	}
	size, maxTime, err := encodedSize(records, now)
	if err != nil {
		return 0, err
	}
	if size > int64(l.o.MaxBatchBytes) {
		return 0, fmt.Errorf("%w: batch of %d bytes, Options.MaxBatchBytes is %d", ErrTooLarge, size, l.o.MaxBatchBytes)
	}
	w := &l.writer
	l.mu.Lock()
	if err = l.makeRoom(size, int64(len(records)), maxTime); err == nil {
		base = l.end.Load()
		if offset != anyOffset && offset != base && l.writable() == nil {
			err = fmt.Errorf("%w: the next offset is %d, not %d", ErrConflict, base, offset)
		}
	}
	if err == nil {
		var dst []byte
		if dst, err = l.begin(base, size, largeBatch, int64(len(records)), maxTime); err == nil {
			epoch := w.nextEpoch()
			err = l.commit(dst, w.tail.encode(dst, base, epoch, records, now), int64(len(records)), epoch)
		}
	}
	m := l.lastMoment()
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return base, l.acknowledge(m)
}

// AppendBatch stores one batch that is encoded already, as a Kafka producer sends it: compressed or not, with its own
// attributes and times. Like a Kafka leader, the log checks its form, CRC, producer fields and records, gives it
// offsets and a leader epoch, and corrects its greatest timestamp if no record has it; the rest of the batch is stored
// unchanged. The caller's bytes are not modified. The records of a compressed batch are checked only if a decompressor
// is registered for its codec. The returned base is the offset of the first record. Errors: ErrInvalid for a malformed
// batch; ErrInflated; otherwise those of Append.
func (l *Log) AppendBatch(b []byte) (base int64, err error) {
	if len(b) < headerLen {
		return 0, invalid("batch of %d bytes", len(b))
	}
	if len(b) > l.o.MaxBatchBytes {
		return 0, fmt.Errorf("%w: batch of %d bytes, Options.MaxBatchBytes is %d", ErrTooLarge, len(b), l.o.MaxBatchBytes)
	}
	in := batch(b)
	why := parseHeader(b)
	switch {
	case why != "":
	case in.size() != int64(len(b)):
		why = fmt.Sprintf("its length field says %d bytes, there are %d", in.size(), len(b))
	default:
		if why = in.checkCRC(); why == "" {
			why = in.checkProducer()
		}
	}
	if why != "" {
		return 0, invalid("batch: %s", why)
	}
	base, m, err := l.produce(in)
	if err != nil {
		return 0, err
	}
	return base, l.acknowledge(m)
}

// produce checks the records of a producer's batch, whose header and CRC are checked already, and stores it.
func (l *Log) produce(b batch) (base int64, m moment, err error) {
	rd := readers.Get().(*reader)
	defer rd.release()
	head := batch(rd.head[:])
	copy(head, b)
	rd.d.limit, rd.d.checkOnly = l.o.MaxInflatedBytes, true
	maxTimestamp, err := b.checkRecords(&rd.d)
	rd.d.checkOnly = false
	switch {
	case errors.Is(err, ErrInflated):
		return 0, m, err
	case err != nil:
		return 0, m, invalid("batch: %v", err)
	case maxTimestamp != b.maxTimestamp():
		b.setMaxTimestamp(head, maxTimestamp)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err = l.makeRoom(b.size(), b.lastDelta()+1, maxTimestamp); err == nil {
		base = l.end.Load()
		err = l.place(head, b, base, l.writer.nextEpoch())
	}
	return base, l.lastMoment(), err
}

// lastMoment returns the present moment. l.mu is held.
func (l *Log) lastMoment() moment { return moment{cuts: l.cuts.Load(), end: l.end.Load()} }

// place stores a checked batch at base, with the header in head and the given leader epoch. l.mu is held.
func (l *Log) place(head, b batch, base int64, epoch int32) error {
	dst, err := l.begin(base, int64(len(b)), largePlaced, b.lastDelta()+1, head.maxTimestamp())
	if err != nil {
		return err
	}
	return l.commit(dst, l.writer.tail.place(dst, head, b, base, epoch), b.count(), epoch)
}

// maxUnsealed bounds the rolled segments that wait for their seal. Each has a descriptor, a mapping, its indexes and bytes
// that are not flushed, so a writer that rolls faster than the keeper seals has to wait (makeRoom).
const maxUnsealed = 8

// makeRoom wakes a log at rest, and waits until the keeper has caught up, if the batch needs a roll. l.mu is held, and is released
// while makeRoom waits, so what the caller read before may be out of date.
func (l *Log) makeRoom(size, count, maxTime int64) error {
	w := &l.writer
	if err := l.wake(); err != nil {
		return err
	}
	begun := w.sealsBegun
	for len(w.sealing) >= maxUnsealed {
		if err := l.writable(); err != nil {
			return err
		}
		if end := l.end.Load(); !l.mustRoll(w.tail, w.tail.seg.stored.load(), size, end+count-1, maxTime) {
			return nil
		}
		if w.sealErr != nil && w.sealsEnded > begun { // an earlier attempt may have lacked what is there again by now
			l.stats.errors.Add(1)
			return fmt.Errorf("seglog: %d rolled segments wait for their seal, which fails: %w", len(w.sealing), w.sealErr)
		}
		l.keeper.Kick()
		w.sealed.Wait()
	}
	return nil
}

// begin returns room for a batch of size bytes with count offsets from base on, and rolls if necessary. A batch of large
// bytes or more is written by pwrite (tail.begin). l.mu is held.
func (l *Log) begin(base, size, large, count, maxTime int64) (dst []byte, err error) {
	l.hooks.start()
	if err := l.writable(); err != nil {
		if l.failed() != nil {
			l.stats.errors.Add(1)
		}
		return nil, err
	}
	if err := usedUp(base, count); err != nil {
		return nil, err
	}
	w := &l.writer
	t := w.tail
	at := t.seg.stored.load()
	if l.mustRoll(t, at, size, base+count-1, maxTime) {
		if err := l.roll(base); err != nil {
			l.stats.errors.Add(1)
			return nil, fmt.Errorf("seglog: roll at offset %d: %w", base, err)
		}
		t, at = w.tail, 0
	}
	if at.pos()+size > w.prepareAt {
		w.prepareAt = math.MaxInt64
		l.preparer.Kick()
	}
	if dst, err = t.begin(size, large); err != nil {
		return nil, l.appendFailed(base, t.h.named(err))
	}
	return dst, nil
}

// appendFailed returns the error of an append at offset to the active segment that failed by err. Unless that is a shortage,
// the log has failed. l.mu is held.
func (l *Log) appendFailed(offset int64, err error) error {
	l.stats.errors.Add(1)
	err = fmt.Errorf("seglog: append at offset %d, position %d: %w", offset, l.writer.tail.seg.stored.load().pos(), err)
	l.failUnlessShortage(err)
	if failed := l.failed(); failed != nil {
		return failed
	}
	return err
}

// usedUp returns an error if fewer than count offsets are left from base on.
func usedUp(base, count int64) error {
	if base > math.MaxInt64-math.MaxInt32-count {
		return fmt.Errorf("%w: there are no offsets left from %d on", ErrTooLarge, base)
	}
	return nil
}

// mustRoll applies the rules of Kafka's LogSegment.shouldRoll.
func (l *Log) mustRoll(t *tail, at mark, size, last, maxTime int64) bool {
	if at.pos() == 0 {
		return last-t.seg.base > math.MaxInt32
	}
	return at.pos()+size > l.o.SegmentBytes ||
		l.o.SegmentAge > 0 && t.firstTime >= 0 && maxTime > t.firstTime && maxTime-t.firstTime > l.o.SegmentAge.Milliseconds() ||
		last-t.seg.base > math.MaxInt32 || t.x.full()
}

// commit publishes the batch in dst, unless encoding it failed. l.mu is held.
func (l *Log) commit(dst batch, encodeErr error, count int64, epoch int32) error {
	w := &l.writer
	err := encodeErr
	if err == nil {
		err = w.tail.commit(dst)
	}
	if encodeErr != nil {
		w.tail.abandon()
	}
	if err != nil {
		return l.appendFailed(l.end.Load(), w.tail.h.named(err))
	}
	w.appended.batches++
	w.appended.records += count
	w.appended.bytes += int64(len(dst))
	w.epoch = max(w.epoch, epoch)
	m := w.tail.seg.stored.load()
	l.end.Store(w.tail.seg.base + m.rel())
	return nil
}

// acknowledge returns once everything below the end of m is as durable as the flush policy promises.
func (l *Log) acknowledge(m moment) error {
	if l.o.Flush == FlushSync {
		return l.flushStored(m)
	}
	l.readers.wake()
	l.durableWaiters.wake()
	if l.o.Flush == FlushAsync {
		if !l.dirty.Load() && !l.dirty.Swap(true) {
			l.keeper.Kick() // starts the interval
		}
		switch unflushed := l.unflushed(); {
		case unflushed-l.o.FlushBytes >= l.o.FlushBytes:
			return l.flushStored(m)
		case unflushed >= l.o.FlushBytes:
			l.keeper.Kick()
		}
	}
	return nil
}

// flushStored is flushTo for a batch that is stored already: an append that returns another error than ErrFailed has stored
// nothing, so a shortage latches the log.
func (l *Log) flushStored(m moment) error {
	err := l.flushTo(m)
	if err != nil && l.failed() == nil {
		l.fail(err)
		err = l.failed()
	}
	return err
}

// coarseClock is the wall clock in ms, for half of the cost of time.Now: it reads only the monotonic clock, and both clocks
// every clockReadEvery, so that a change of the wall clock shows soon.
type coarseClock struct{ at atomic.Pointer[clockReading] }

type clockReading struct {
	at     time.Time
	millis float64 // the wall clock at that time, with a fraction, so that the ms changes when that of the wall clock does
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
