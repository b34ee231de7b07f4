package seglog

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// Section is a run of whole batches of one segment, pinned and ready to send: its bytes do not change, whatever retention or
// TruncateTo do meanwhile. It may be used by one goroutine at a time, and must be closed.
type Section struct {
	l          *Log
	seg        *segment
	h          *handle
	header     []byte // the part that is not sent yet; goes first
	pos, end   int64  // the bytes that are not sent yet
	len        int64
	base, next int64
}

// Section pins whole batches, from the one that holds offset on: at most n bytes, but at least one batch, all of one segment
// and none past the high watermark. The length is known before the first byte is sent, and Next is the offset to ask for
// afterwards. At an offset from the high watermark to the end of the log there is nothing to send yet, and the section is
// empty (Wait waits for more). Errors: an *OffsetError for any other offset that the log does not hold; a *CorruptError; those
// of the operating system; ErrClosed.
//
// Batches are not decoded: the receiver gets all records of the first batch, including those below offset, and has to check
// the CRCs, as Decode, TransferFrom and every Kafka client do. Under FlushAsync and FlushNone the records may not be
// durable: after a power cut the log can end below them and give their offsets to other records. The sections of a
// DurableReader have only records that a power cut can't take back.
func (l *Log) Section(offset, n int64) (*Section, error) { return l.sectionOf(offset, n, false) }

func (l *Log) sectionOf(offset, n int64, durable bool) (*Section, error) {
	s := new(Section)
	if err := l.section(s, offset, n, durable); err != nil {
		return nil, err
	}
	return s, nil
}

func (l *Log) section(s *Section, offset, n int64, durable bool) error {
	for a := (attempt{}); ; {
		l.try(&a)
		at := l.newest(offset)
		if offset == Oldest {
			at = l.start.Load()
		}
		err := l.sectionOnce(s, at, n, durable)
		if err == nil || !l.readOnly.overtaken(&a, &err) && !(offset == Oldest && at < l.start.Load() && errors.Is(err, ErrOutOfRange)) {
			return err
		}
	}
}

func (l *Log) sectionOnce(s *Section, offset, n int64, durable bool) error {
	r := readers.Get().(*reader)
	defer r.release()
	r.durable = durable
	for {
		hw := l.readable(durable)
		if offset >= hw {
			if err := l.catchUp(); err != nil {
				return err
			}
			if hw = l.readable(durable); offset >= hw && offset <= max(hw, l.claimed()) {
				return l.emptySection(s, r, offset)
			}
		}
		if err := l.pin(r, offset); err != nil {
			return err
		}
		r.w.unmapped = l.farBehind(r.seg)
		limit, err := l.limitAt(r, hw)
		if err != nil {
			return err
		}
		first, ok, err := r.seg.locateWhole(&l.env, r.h, &r.w, offset, limit)
		if err != nil {
			return err
		}
		if !ok {
			// The segment ends in a gap; the next one has the batch.
			if offset, err = l.nextSegment(r, offset, hw, limit); err != nil {
				return err
			}
			continue
		}
		end, next, err := l.sectionEnd(r, first, n, limit)
		if err != nil {
			return r.seg.behindDamage(&l.env, r.h, err, limit)
		}
		*s = Section{l: l, seg: r.seg, h: r.h, pos: first.pos, end: end, len: end - first.pos, base: first.base, next: next}
		r.h = nil // the section's now
		return nil
	}
}

// sectionEnd returns the end of a section of n bytes that begins with the batch first, and the offset behind. In a log without
// gaps the last batch must end where the next offset begins: the receiver can't notice a wrong base offset, which no CRC covers,
// until the batch behind does not join, and there may be none. If it does not end there, but is whole and joins those before, the
// segment has lost its end: the section ends with that batch, and whoever asks for the next offset is told. So it does in a log
// with gaps, where that end counts as a gap unless it is known that it was lost. There, a wrong base offset shows where the batch
// behind begins below the end of the last one: the section ends before that one then, and whoever asks for the next offset is told.
func (l *Log) sectionEnd(r *reader, first found, n int64, limit mark) (end, next int64, err error) {
	n = min(n, limit.pos()-first.pos)
	behind, gaps := r.seg.base+limit.rel(), l.gaps.Load()
	if gaps && n == limit.pos()-first.pos && !l.lostEnd(r.h) {
		return limit.pos(), behind, nil
	}
	last := first
	for pos := first.pos + n; ; pos, err = last.pos, nil {
		if n > first.size {
			b, ok, err := r.seg.boundaryFrom(&l.env, r.h, &r.w, r.seg.startAt(first), pos, limit)
			if err != nil {
				return 0, 0, err
			}
			if last = first; ok && b.pos >= first.end() { // a damaged one before may claim to reach further
				last = b
			}
		}
		doubt := !gaps && last.end() == limit.pos() && last.last+1 != behind
		if gaps && last != first {
			doubt, err = r.seg.overlapped(r.h, &r.w, last, limit)
		}
		if !doubt || err != nil {
			break
		}
		if err = r.seg.joins(&l.env, r.h, &r.w, first, last, limit); err == nil || last == first || !errors.Is(err, ErrCorrupt) {
			break
		}
	}
	return last.end(), last.last + 1, err
}

// emptySection makes the section for an offset that is not readable yet. It pins the last segment, so that the section can be
// used like any other.
func (l *Log) emptySection(s *Section, r *reader, offset int64) error {
	for {
		if l.closed.Load() {
			return ErrClosed // Close lets go of the segments, too
		}
		v := l.view.Load()
		r.seg = v.segs[len(v.segs)-1]
		h, err := r.seg.pin(&l.env)
		if err == nil {
			*s = Section{l: l, seg: r.seg, h: h, base: offset, next: offset}
			return nil
		}
		if err != errGone {
			return err
		}
		if err := l.failed(); err != nil && l.view.Load() == v {
			return err
		}
		sched.Spin("section", 0) // as in pin
	}
}

// limitAt returns the mark up to which the pinned segment may be sent. The segment's own mark may be ahead of the high
// watermark for a moment.
func (l *Log) limitAt(r *reader, hw int64) (mark, error) {
	limit := r.limit(l)
	if r.seg.base+limit.rel() <= hw || hw < r.seg.base {
		return limit, nil
	}
	f, ok, err := r.seg.locate(&l.env, r.h, &r.w, hw, limit)
	if err == nil && ok && f.base >= hw {
		limit = markAt(hw-r.seg.base, f.pos)
	}
	return limit, err
}

// Len is the length of the whole section in bytes.
func (s *Section) Len() int64 { return s.len }

// Base is the base offset of the first batch. It is at most the offset that was asked for, unless that lies in a gap.
func (s *Section) Base() int64 { return s.base }

// Next is the offset to ask for next.
func (s *Section) Next() int64 { return s.next }

// SetHeader makes WriteTo send b first, for example a protocol's header with the length. Header and section are combined in
// whichever way is fastest for their size: one write, MSG_MORE before sendfile, or two calls. WriteTo counts the bytes of
// b, Len does not. b must not be modified until it is sent.
func (s *Section) SetHeader(b []byte) { s.header = b }

// Close gives the pin back, whether the section was sent or not.
func (s *Section) Close() error {
	if s.h == nil {
		return nil
	}
	h := s.h
	s.h = nil
	return h.unref()
}

// WriteTo sends the bytes that were not sent yet. On Linux they go from the page cache to a *net.TCPConn, a stream
// *net.UnixConn or an *os.File (such as a pipe) by sendfile(2) or splice(2), without passing through the process. To any
// other writer, and on other systems, they go through its Write from a pooled buffer, so that a wrapper around a
// connection sees every byte. Write deadlines hold. The result is the number of bytes that w took; after an error, another
// WriteTo goes on behind them. Errors: those of w; ErrClosed once the log is closed; io.ErrUnexpectedEOF if the file is
// shorter than it was.
func (s *Section) WriteTo(w io.Writer) (int64, error) {
	if s.h == nil {
		return 0, errSectionClosed
	}
	t := transferPool.Get().(*transfer)
	defer transferPool.Put(t)
	return t.run(s, w)
}

// TransferTo sends whole batches to conn, from the one that holds offset on, like Section and WriteTo, and continues into the
// next segments: at most n bytes, but at least one batch, up to the high watermark. written is the number of bytes that conn
// took; after an error they may end inside a batch. The receiver sees from the batches where to go on; a sender that has to
// know uses Section and Next. Errors: those of Section and WriteTo; an *OffsetError if a TruncateTo or Reset removed batches
// that were sent, after which the receiver has to ask where the log ends.
func (l *Log) TransferTo(offset, n int64, conn net.Conn) (written int64, err error) {
	return l.transferTo(offset, n, conn, false)
}

func (l *Log) transferTo(offset, n int64, conn net.Conn, durable bool) (written int64, err error) {
	t := transferPool.Get().(*transfer)
	defer transferPool.Put(t)
	s := &t.own
	defer s.Close() // should a Write panic
	cuts := l.settledCuts()
	for {
		err := l.section(s, offset, n-written, durable)
		if l.cuts.Load() != cuts { // the section may be of before the cut or of after it
			if e := l.cutSince(&cuts, offset, written); e != nil {
				return written, e
			}
			if err == nil {
				err = s.Close()
			}
			if err == nil || errors.Is(err, ErrOutOfRange) {
				continue
			}
		}
		if written > 0 && errors.Is(err, ErrOutOfRange) {
			return written, nil // all that there is was sent
		}
		if err != nil {
			return written, err
		}
		if written > 0 && s.len > n-written {
			return written, s.Close()
		}
		sent, err := t.run(s, conn)
		written += sent
		offset = s.next
		if e := s.Close(); err == nil {
			err = e
		}
		if err != nil {
			return written, err
		}
		if written >= n || offset >= l.readable(durable) {
			return written, l.cutSince(&cuts, offset, written)
		}
	}
}

// cutSince returns an *OffsetError if batches below next were cut since l.cuts had the value *cuts, which it brings up to date.
// If the caller has used none so far, it can begin again.
func (l *Log) cutSince(cuts *int64, next, used int64) error {
	if used == 0 {
		*cuts = l.settledCuts()
		return nil
	}
	return l.cutBelow(cuts, next)
}

// transfer is one call of WriteTo. It is pooled, so that a transfer allocates nothing.
type transfer struct {
	s    *Section
	own  Section // TransferTo's
	peer peer
	// Of direct, on Linux:
	more     bool      // the header goes by MSG_MORE
	together bool      // header and section go by one write from the mapping
	parts    [2][]byte // of that write
	src      int       // descriptor of the segment
	pipe     *pipe     // for splice(2); nil: sendfile(2)
	err      error
	// step is t.send, bound once: a method value allocates.
	step func(fd uintptr) bool
	buf  []byte
}

var transferPool = sync.Pool{New: func() any {
	t := new(transfer)
	t.step = t.send
	return t
}}

// How a header and its section are sent depends on their size together. Thousands of round trips/s over eight connections
// (bench row 10):
//
//	             one copied write   MSG_MORE, sendfile   write, sendfile
//	2 KiB              77                  72                  48
//	32 KiB             51                  51                  39
//	48 KiB             37                  47                  36
//	64 KiB             60                  28                  51
//	256 KiB            17                  15                  19
//
// From 16 pages on, the kernel sends the bytes that MSG_MORE held back in pieces.
const (
	minMore     = 4 << 10
	maxMore     = 56 << 10
	maxTogether = 64 << 10
)

// plan decides how the header leaves.
func (t *transfer) plan(w io.Writer) {
	header := int64(len(t.s.header))
	size := t.s.end - t.s.pos + header
	_, tcp := w.(*net.TCPConn)
	t.more = header > 0 && tcp && size > minMore && size <= maxMore
	t.together = header > 0 && !t.more && size <= maxTogether
}

func (t *transfer) run(s *Section, w io.Writer) (sent int64, err error) {
	l := s.l
	if l.closed.Load() {
		return 0, ErrClosed
	}
	t.s = s
	defer func() { t.s = nil }()
	if conn, ok := w.(net.Conn); ok {
		t.peer.conn = conn
		l.transfers.add(&t.peer)
		defer func() {
			l.transfers.drop(&t.peer)
			t.peer.conn = nil
			if err != nil && l.closed.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				err = ErrClosed
			}
		}()
		if l.closed.Load() { // Close may have interrupted all transfers before this one was in the list
			return 0, ErrClosed
		}
	}
	pos, header := s.pos, len(s.header)
	t.plan(w)
	done := false
	if !t.together || s.h.m != nil {
		done, err = t.direct(w)
	}
	zeroCopy := s.pos - pos
	if t.together {
		zeroCopy = 0
	}
	if !done {
		err = t.copy(w)
	}
	sent = s.pos - pos + int64(header-len(s.header))
	l.stats.sentZeroCopy.Add(zeroCopy)
	l.stats.sentCopied.Add(sent - zeroCopy)
	return sent, err
}

// copy sends by w's own Write.
func (t *transfer) copy(w io.Writer) error {
	s := t.s
	if t.buf == nil {
		t.buf = make([]byte, vfs.CopyChunk)
	}
	for s.pos < s.end || len(s.header) > 0 {
		if s.h == nil {
			return errSectionClosed
		}
		if s.l.closed.Load() {
			return ErrClosed
		}
		h := copy(t.buf, s.header)
		n := h
		if s.pos < s.end {
			k, err := s.h.f.ReadAt(t.buf[h:min(int64(len(t.buf)), int64(h)+s.end-s.pos)], s.pos)
			if k == 0 && h < len(t.buf) {
				if err == io.EOF {
					return t.short()
				}
				return fmt.Errorf("seglog: read %s at position %d: %w", s.h.path, s.pos, s.h.named(err))
			}
			n += k
		}
		sent, err := w.Write(t.buf[:n])
		if sent < 0 || sent > n {
			return errWritten
		}
		if sent < n && err == nil {
			err = io.ErrShortWrite
		}
		h = min(sent, h)
		s.header = s.header[h:]
		s.sent(int64(sent - h))
		if err != nil {
			return err
		}
	}
	return nil
}

// sent notes that the destination took n bytes.
func (s *Section) sent(n int64) {
	s.pos += n
	if s.h != nil { // else the writer's Write has closed the section
		s.l.passed(s.seg, s.h, s.pos-n, s.pos)
	}
}

// short returns the error for a file that ends before the section does.
func (t *transfer) short() error {
	return fmt.Errorf("seglog: transfer from %s at position %d: file is shorter than the log: %w", t.s.h.path, t.s.pos, io.ErrUnexpectedEOF)
}
