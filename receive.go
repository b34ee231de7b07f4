package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// TransferFrom stores the batches that another log's TransferTo or Section.WriteTo sent, as they arrive from r: n bytes of
// them or, with n < 0, all up to EOF. It checks form, CRC, and the order of offsets and leader epochs of each batch, but
// not the records inside, which the leader has checked. Batches are stored unchanged, offsets included, so that a
// follower's files equal its leader's. read is the size of the batches that were taken; when TransferFrom returns they are
// as durable as Options.Flush promises. While r has no more to read, batches that arrived whole are not held back: they are
// stored, flushed as Options.Flush promises, and readable. After any error the follower goes on with the batch at its
// Offsets().End.
//
// The first batch must start at End; an empty log takes it at End or any higher offset. Batches below End are compared
// with those in the log, and skipped. So if the leader's offsets have a gap right at the follower's End, which causes
// ErrNotJoined, ask for End-1. If that brings nothing new, because a Section ends with its segment, put the follower's own
// last batch, a Section of End-1, in front of the leader's batches from End on. There is no such batch in a log that has Start below
// End and no record, as a DeleteBefore inside the gap at its end leaves it; a Kafka follower would take any batch from End on.
// Reset to End makes it an empty log, which does. Gaps inside the stream are kept. A batch's
// leader epoch must not be lower than that of the batch before it, unless it is -1, none. Offsets that a TruncateTo or Reset
// took away should come again under a greater epoch, as they do from a Kafka leader: otherwise nothing tells the new batches
// from the old, which a disk may show in the place of those that were not flushed before a power cut. A batch that is refused
// changes nothing. Errors: ErrNotJoined, which names both offsets; a *CorruptError for bytes that are no batch, wrapping
// io.ErrUnexpectedEOF if they end inside a batch; io.ErrUnexpectedEOF if r ends between two batches before n bytes;
// ErrTooLarge; those of r; and those of Append.
//
// Close interrupts a Read of r if r has a method SetReadDeadline, as a net.Conn has; TransferFrom then returns ErrClosed.
// Any other reader, such as a bufio.Reader around a connection, can't be interrupted: TransferFrom returns once its Read
// does, and stores nothing more. A struct that embeds the bufio.Reader and forwards SetReadDeadline to the connection can
// be interrupted.
func (l *Log) TransferFrom(r io.Reader, n int64) (read int64, err error) {
	if err := l.writable(); err != nil {
		return 0, err
	}
	if conn, ok := r.(readDeadliner); ok {
		p := &peer{conn: readDeadline{conn}}
		l.transfers.add(p)
		defer func() {
			l.transfers.drop(p)
			if err != nil && l.closed.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				err = ErrClosed
			}
		}()
		if l.closed.Load() { // Close may have interrupted all transfers before this one was in the list
			return 0, ErrClosed
		}
	}
	rd := readers.Get().(*reader)
	defer rd.release()
	in := receiver{l: l, src: r, left: n}
	defer in.flushes.Wait()
	s := &rd.s
	s.init(&in, "", 0, -1, -1)
	defer func() { s.src = nil }()
	s.most, s.gaps = l.o.MaxBatchBytes, true
	acked := int64(0)
	acknowledge := func(err error) (int64, error) {
		if s.pos > acked {
			if e := l.acknowledge(l.moment()); e != nil {
				return acked, e
			}
		}
		acked, in.stored = s.pos, false
		return acked, err
	}
	for joins := int64(-1); ; {
		pos := s.pos
		b, err := s.scan()
		if err == io.EOF {
			if in.left > 0 {
				return acknowledge(fmt.Errorf("seglog: stream ends %d bytes early, after %d: %w", in.left, s.pos, io.ErrUnexpectedEOF))
			}
			return acknowledge(nil)
		}
		if err != nil {
			return acknowledge(tooLarge(err, s))
		}
		if err := l.receive(&rd.w, b, joins); err != nil {
			s.pos = pos
			return acknowledge(err)
		}
		in.stored, joins = true, b.last()+1
		l.stats.received.Add(int64(len(b)))
		if s.w == s.r || s.pos-acked >= ackBytes {
			if _, err := acknowledge(nil); err != nil {
				return acked, err
			}
		}
	}
}

type readDeadliner interface{ SetReadDeadline(time.Time) error }

// readDeadline is a connection of which only the reads have a deadline.
type readDeadline struct{ readDeadliner }

func (r readDeadline) SetDeadline(at time.Time) error { return r.SetReadDeadline(at) }

// receiver reads the stream for TransferFrom. While it waits for more, it acknowledges the batches that are stored.
type receiver struct {
	l      *Log
	src    io.Reader
	left   int64 // of n; negative: up to EOF
	stored bool  // batches are stored and not acknowledged

	stall   *time.Timer // acknowledges, unless the read returns first
	flushes sync.WaitGroup
}

// stallAfter is how long a read may wait before stored batches are flushed. A stream that flows has more bytes by then, so
// that many batches share a flush.
const stallAfter = 2 * time.Millisecond

func (r *receiver) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if r.l.closed.Load() {
		return 0, ErrClosed
	}
	if r.left > 0 && int64(len(p)) > r.left {
		p = p[:r.left]
	}
	if r.stored && r.l.o.Flush != FlushSync { // this waits only where the disk can't keep up
		if err := r.l.acknowledge(r.l.moment()); err != nil {
			return 0, err
		}
		r.stored = false
	}
	if r.stored {
		r.startStall()
	}
	n, err := r.src.Read(p)
	if r.stored && r.stall.Stop() {
		r.flushes.Done()
	}
	if n < 0 || n > len(p) {
		return 0, errCount
	}
	if r.left > 0 {
		r.left -= int64(n)
	}
	return n, err
}

func (r *receiver) startStall() {
	r.flushes.Add(1)
	if r.stall != nil {
		r.stall.Reset(stallAfter)
		return
	}
	r.stall = time.AfterFunc(stallAfter, func() {
		defer r.flushes.Done()
		_ = r.l.acknowledge(r.l.moment()) // TransferFrom meets the same error when it acknowledges
	})
}

// ackBytes is how much TransferFrom stores before it waits for durability, so that several batches share a flush.
const ackBytes = 1 << 20

// tooLarge replaces err by ErrTooLarge if the batch at hand is larger than MaxBatchBytes.
func tooLarge(err error, s *scanner) error {
	if s.w-s.r >= headerLen && parseHeader(s.buf[s.r:s.w]) == "" {
		if size := batch(s.buf[s.r:]).size(); size > int64(s.most) {
			return fmt.Errorf("%w: batch of %d bytes at offset %d, Options.MaxBatchBytes is %d", ErrTooLarge, size, batch(s.buf[s.r:]).base(), s.most)
		}
	}
	return err
}

// receive stores one batch at its own offset, or compares it by w with the batch that is there. The batch of the stream before ended
// at joins, which is -1 for the first one.
func (l *Log) receive(w *window, b batch, joins int64) error {
	for {
		// An empty log takes its first batch at a higher offset, for which it has to be reset.
		empty := l.start.Load() == l.end.Load()
		if empty {
			l.changing.Lock()
		}
		again, err := l.receiveOne(w, b, joins, empty)
		if empty {
			l.changing.Unlock()
		}
		if !again {
			return err
		}
	}
}

// receiveOne stores or compares the batch; nothing changes before all checks are done. again is true if the log has become
// empty and must be reset, but mayReset is false: the caller then holds l.changing and tries again.
func (l *Log) receiveOne(w *window, b batch, joins int64, mayReset bool) (again bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return false, err
	}
	if err := l.makeRoom(b.size(), b.lastDelta()+1, b.maxTimestamp()); err != nil {
		return false, err
	}
	end, base := l.end.Load(), b.base()
	empty := l.start.Load() == end
	// A gap is one of the stream only if the log still ends where the stream left off: a cut may have come between.
	gap := end == joins || joins < 0 && empty
	switch {
	case b.last() < end:
		return false, l.compare(w, b)
	case base < end || base > end && !gap:
		return false, fmt.Errorf("%w: batch has offsets %d to %d, the log ends at %d", ErrNotJoined, base, b.last(), end)
	}
	if err := usedUp(base, b.lastDelta()+1); err != nil {
		return false, err
	}
	if err := l.checkEpoch(b); err != nil {
		return false, err
	}
	switch {
	case base == end:
	case empty:
		if !mayReset {
			return true, nil
		}
		if err := l.cut(base, true); err != nil {
			return false, err
		}
	default:
		if !l.gaps.Load() {
			if err := l.state.commit(func(s *state) { s.gaps = true }); err != nil {
				return false, fmt.Errorf("seglog: note a gap at offset %d: %w", end, err)
			}
			l.gaps.Store(true)
		}
	}
	if err := l.liftFence(base, b.epoch()); err != nil {
		return false, err
	}
	if err := l.place(b[:headerLen], b, base, b.epoch()); err != nil {
		return false, err
	}
	l.writer.received = receivedLast{next: b.last() + 1, epoch: b.epoch()}
	return false, nil
}

// liftFence removes the fence that a cut left, if the batch has a lower leader epoch: its leader counts epochs of its own, and
// recovery must not take the batch for one that the cut removed. l.mu is held.
func (l *Log) liftFence(base int64, epoch int32) error {
	w := &l.writer
	if w.fenceEpoch == 0 || base < w.fenceOffset || epoch >= w.fenceEpoch {
		return nil
	}
	if err := l.state.commit(func(s *state) { s.fenceOffset = fenceLifted }); err != nil {
		return fmt.Errorf("seglog: note the leader epoch at offset %d: %w", base, err)
	}
	w.fenceOffset = fenceLifted
	return nil
}

// checkEpoch refuses a batch with a lower leader epoch than the last batch of the log. l.mu is held.
func (l *Log) checkEpoch(b batch) error {
	end := l.end.Load()
	if b.epoch() < 0 || end == l.start.Load() {
		return nil
	}
	last := l.writer.received.epoch
	if l.writer.received.next != end {
		var err error
		if last, err = l.lastEpoch(); err != nil {
			return err
		}
		l.writer.received = receivedLast{next: end, epoch: last}
	}
	if b.epoch() < last {
		return fmt.Errorf("%w: batch with offsets %d to %d has leader epoch %d, the batch before offset %d has %d",
			ErrNotJoined, b.base(), b.last(), b.epoch(), end, last)
	}
	return nil
}

// lastEpoch returns the leader epoch of the last batch, or -1 if there is none. l.mu is held.
func (l *Log) lastEpoch() (epoch int32, err error) {
	if l.o.Flush == FlushSync { // it may be gathered and not in the file yet
		if err := l.flushTo(l.lastMoment()); err != nil {
			return 0, err
		}
	}
	segs := l.view.Load().segs
	for i := len(segs) - 1; i >= 0; i-- {
		if pos := segs[i].stored.load().pos(); pos == 0 {
			continue
		}
		epoch, ok, err := segs[i].lastEpoch(&l.env)
		if err == errGone {
			break // deleted by now, and so are those before it
		}
		if ok || err != nil {
			return epoch, err
		}
	}
	return -1, nil
}

// lastEpoch returns the leader epoch of the segment's last batch; ok is false if it has none.
func (s *segment) lastEpoch(e *env) (epoch int32, ok bool, err error) {
	h, err := s.pin(e)
	if err != nil {
		return 0, false, err
	}
	defer h.unref()
	var w window
	limit := s.stored.load()
	f, ok, err := s.boundary(e, h, &w, limit.pos(), limit)
	if err != nil || !ok {
		return 0, false, err
	}
	defer h.catch(debug.SetPanicOnFault(true), &err)
	p, err := w.at(f.pos, headerLen)
	if err != nil {
		return 0, false, err
	}
	return batch(p).epoch(), true, nil
}

// compare returns an error unless the log holds the same batch at its offset. l.mu is held.
func (l *Log) compare(w *window, b batch) (err error) {
	base, segs := b.base(), l.view.Load().segs
	if b.last() < l.start.Load() || base < segs[0].base { // the start may lie inside the batch
		return fmt.Errorf("%w: batch has offsets %d to %d, the log starts at %d", ErrNotJoined, base, b.last(), l.start.Load())
	}
	if err := l.flushTo(l.lastMoment()); err != nil { // it may be gathered and not in the file yet
		return err
	}
	s := segs[(&view{segs}).find(base)]
	h, err := s.pin(&l.env)
	if err == errGone {
		return fmt.Errorf("%w: batch has offsets %d to %d, which were deleted just now", ErrNotJoined, base, b.last())
	}
	if err != nil {
		return err
	}
	defer h.unref()
	f, ok, err := s.locate(&l.env, h, w, base, s.stored.load())
	if err != nil {
		return err
	}
	defer h.catch(debug.SetPanicOnFault(true), &err)
	var here []byte
	if ok {
		if here, err = w.at(f.pos, f.size); err != nil {
			return err
		}
	}
	if !bytes.Equal(here, b) {
		return fmt.Errorf("%w: batch with offsets %d to %d differs from the one in the log", ErrNotJoined, base, b.last())
	}
	return nil
}
