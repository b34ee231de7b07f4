package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
)

// ErrNotJoined: a batch handed to TransferFrom does not continue the log.
var ErrNotJoined = errors.New("seglog: batches do not join the log")

// TransferFrom stores the batches that arrive from r, n bytes of them or, with n < 0, all up to EOF: what a TransferTo or
// Section.WriteTo of another log sent. Each is checked (form, CRC, order of offsets) and stored as it is, offset
// included, so that a follower's files equal its leader's. read is the size of the batches that were taken, and when
// TransferFrom returns they are as durable as Options.Flush promises. After any error the follower asks its leader for
// Offsets().End and goes on.
//
// The first batch must start at End; an empty log takes it at whatever offset it has. Batches below End are compared
// with those that are there and skipped, so that a leader whose offsets have a gap right at the follower's End can be
// asked for End-1; gaps inside the stream are kept. Errors: ErrNotJoined, naming both offsets; a *CorruptError for bytes
// that are no batch, wrapping io.ErrUnexpectedEOF if they end in the middle of one; ErrTooLarge; r's; and those of
// Append.
func (l *Log) TransferFrom(r io.Reader, n int64) (read int64, err error) {
	if err := l.writable(); err != nil {
		return 0, err
	}
	if conn, ok := r.(net.Conn); ok {
		t := &transfer{conn: conn}
		l.transfers.add(t)
		defer func() {
			l.transfers.drop(t)
			if err != nil && l.closed.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				err = ErrClosed
			}
		}()
	}
	if n >= 0 {
		r = io.LimitReader(r, n)
	}
	rd := readers.Get().(*reader)
	defer rd.release()
	s := &rd.s
	s.init(r, "", 0, -1, -1)
	s.most, s.gaps = l.o.MaxBatchBytes, true
	acked := int64(0)
	acknowledge := func(err error) (int64, error) {
		if s.pos > acked {
			if e := l.acknowledge(l.moment()); e != nil {
				return acked, e
			}
		}
		acked = s.pos
		return acked, err
	}
	for first := true; ; first = false {
		pos := s.pos
		b, err := s.scan()
		if err == io.EOF {
			return acknowledge(nil)
		}
		if err != nil {
			return acknowledge(tooLarge(err, s))
		}
		if err := l.receive(b, first); err != nil {
			s.pos = pos
			return acknowledge(err)
		}
		l.stats.received.Add(int64(len(b)))
		if s.w == s.r || s.pos-acked >= ackBytes {
			if _, err := acknowledge(nil); err != nil {
				return acked, err
			}
		}
	}
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

// receive stores one batch at its own offset.
func (l *Log) receive(b batch, first bool) error {
	for {
		// An empty log takes its first batch at any offset, which drops the empty segment there is.
		empty := l.start.Load() == l.end.Load()
		if empty {
			l.changing.Lock()
		}
		again, err := l.receiveOne(b, first, empty)
		if empty {
			l.changing.Unlock()
		}
		if !again {
			return err
		}
	}
}

// receiveOne asks to be called again if the log has become empty and mayReset, with l.changing held, is false.
func (l *Log) receiveOne(b batch, first, mayReset bool) (again bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return false, err
	}
	if err := l.makeRoom(b.size(), b.lastDelta()+1, b.maxTimestamp()); err != nil {
		return false, err
	}
	end, base := l.end.Load(), b.base()
	switch {
	case base == end:
	case l.start.Load() == end:
		if !mayReset {
			return true, nil
		}
		if err := l.cut(base, true); err != nil {
			return false, err
		}
	case b.last() < end:
		return false, l.compare(b)
	case base < end || first:
		return false, fmt.Errorf("%w: batch has offsets %d to %d, the log ends at %d", ErrNotJoined, base, b.last(), end)
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
	return false, l.place(b, base, b.epoch())
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

// compare says whether a batch from another log is the one that is here.
func (l *Log) compare(b batch) (err error) {
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
	if err != nil {
		return err
	}
	defer h.unref()
	var w window
	f, ok, err := s.locate(&l.env, h, &w, base, s.stored.load())
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
