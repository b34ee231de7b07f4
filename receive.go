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

// TransferFrom stores the batches that arrive from r, n bytes of them or, with n < 0, all up to EOF: what a TransferTo
// or Section.WriteTo of another log sent. Each is checked (form, CRC, order of offsets and leader epochs; not the
// records inside, which the leader has checked) and stored as it is, offset included, so that a follower's files equal
// its leader's. read is the size of the batches that were taken, and when TransferFrom returns they are as durable as
// Options.Flush promises. A batch that arrived whole is not held back while r has no more: it is stored, flushed as
// Options.Flush promises, and readable. After any error the follower asks its leader for Offsets().End and goes on.
//
// The first batch must start at End; an empty log takes it at End or any higher offset. Batches below End are compared
// with those that are there and skipped. So if a leader's offsets have a gap right at the follower's End, which makes
// ErrNotJoined, ask for End-1. Gaps inside the stream are kept. A leader epoch must not be lower than that of the batch
// before it, unless it is -1, none. A batch that is refused changes nothing. Errors: ErrNotJoined, naming both offsets;
// a *CorruptError for bytes that are no batch, wrapping io.ErrUnexpectedEOF if they end in the middle of one;
// io.ErrUnexpectedEOF if r ends between two batches and before n bytes; ErrTooLarge; r's; and those of Append.
//
// Close interrupts a Read of r if r has a method SetReadDeadline, as a net.Conn does; TransferFrom then returns
// ErrClosed. Any other reader, a bufio.Reader around a connection for one, can't be interrupted from here: TransferFrom
// returns once its Read does, and stores nothing more. A struct that embeds the bufio.Reader and forwards
// SetReadDeadline to its connection closes that gap.
func (l *Log) TransferFrom(r io.Reader, n int64) (read int64, err error) {
	if err := l.writable(); err != nil {
		return 0, err
	}
	if conn, ok := r.(readDeadliner); ok {
		t := &transfer{conn: readDeadline{conn}}
		l.transfers.add(t)
		defer func() {
			l.transfers.drop(t)
			if err != nil && l.closed.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				err = ErrClosed
			}
		}()
		if l.closed.Load() { // Close may have looked for transfers to interrupt before this one was there
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
	for first := true; ; first = false {
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
		if err := l.receive(&rd.w, b, first); err != nil {
			s.pos = pos
			return acknowledge(err)
		}
		in.stored = true
		l.stats.received.Add(int64(len(b)))
		if s.w == s.r || s.pos-acked >= ackBytes {
			if _, err := acknowledge(nil); err != nil {
				return acked, err
			}
		}
	}
}

type readDeadliner interface{ SetReadDeadline(time.Time) error }

// readDeadline is a connection that is only read from.
type readDeadline struct{ readDeadliner }

func (r readDeadline) SetDeadline(at time.Time) error { return r.SetReadDeadline(at) }

// receiver reads the stream for TransferFrom. While it waits for more, the batches that are stored and not acknowledged
// yet are shown and flushed.
type receiver struct {
	l      *Log
	src    io.Reader
	left   int64 // of n; negative: up to EOF
	stored bool  // batches are stored and not acknowledged

	stall   *time.Timer // flushes, unless the read returns before
	flushes sync.WaitGroup
}

// stallAfter: a stream that flows has its next bytes by then, and shares a flush among many batches.
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
	if r.stored && r.l.o.Flush != FlushSync { // costs nothing, unless the disk can't keep up
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

// ackBytes: how much TransferFrom takes before it waits for durability; several batches share a flush.
const ackBytes = 1 << 20

// tooLarge gives a batch that is over MaxBatchBytes the error it has elsewhere.
func tooLarge(err error, s *scanner) error {
	if s.w-s.r >= headerLen && parseHeader(s.buf[s.r:s.w]) == "" {
		if size := batch(s.buf[s.r:]).size(); size > int64(s.most) {
			return fmt.Errorf("%w: batch of %d bytes at offset %d, Options.MaxBatchBytes is %d", ErrTooLarge, size, batch(s.buf[s.r:]).base(), s.most)
		}
	}
	return err
}

// receive stores one batch at its own offset. It looks through w at batches that are there.
func (l *Log) receive(w *window, b batch, first bool) error {
	for {
		// An empty log takes its first batch at a higher offset, which drops the empty segment there is.
		empty := l.start.Load() == l.end.Load()
		if empty {
			l.changing.Lock()
		}
		again, err := l.receiveOne(w, b, first, empty)
		if empty {
			l.changing.Unlock()
		}
		if !again {
			return err
		}
	}
}

// receiveOne asks to be called again if the log has become empty and mayReset, with l.changing held, is false. Nothing
// changes before all checks are done.
func (l *Log) receiveOne(w *window, b batch, first, mayReset bool) (again bool, err error) {
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
	switch {
	case b.last() < end:
		return false, l.compare(w, b)
	case base < end || base > end && first && !empty:
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

// liftFence forgets the fence that a cut left, for a batch of a leader that gives out the offsets under an epoch of its
// own: recovery must not take it for one that the cut removed. l.mu is held.
func (l *Log) liftFence(base int64, epoch int32) error {
	w := &l.writer
	if w.fenceEpoch == 0 || base < w.fenceOffset || epoch >= w.fenceEpoch {
		return nil
	}
	if err := l.state.commit(func(s *state) { s.fenceOffset, s.fenceEpoch = 0, 0 }); err != nil {
		return fmt.Errorf("seglog: note the leader epoch at offset %d: %w", base, err)
	}
	w.fenceOffset, w.fenceEpoch = 0, 0
	return nil
}

// receivedLast is the last batch that TransferFrom stored: the offset after it, and its leader epoch.
type receivedLast struct {
	next  int64
	epoch int32
}

// checkEpoch refuses a batch from an older leader than that of the last batch.
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

// lastEpoch is the leader epoch of the last batch; -1 if there is none. l.mu is held.
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

// compare says whether a batch from another log is the one that is here.
func (l *Log) compare(w *window, b batch) (err error) {
	base := b.base()
	if base < l.start.Load() {
		return fmt.Errorf("%w: batch has offsets %d to %d, the log starts at %d", ErrNotJoined, base, b.last(), l.start.Load())
	}
	if err := l.flushTo(l.lastMoment()); err != nil { // it may be gathered and not in the file yet
		return err
	}
	segs := l.view.Load().segs
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
		return fmt.Errorf("%w: batch with offsets %d to %d is not the one the log has there", ErrNotJoined, base, b.last())
	}
	return nil
}
