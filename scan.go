package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
)

// scanner reads whole batches, of a file (recovery, iterators, Verify, index rebuilds) or of a stream (Decode, TransferFrom).
// Each batch that it returns has passed parseHeader, its CRC and the order of offsets. (Look-ups, which do not read the
// records, walk over headers by segment.walk.)
//
// The buffer never grows past twice the bytes that have arrived, whatever a length field claims.
type scanner struct {
	src  io.Reader
	path string // of the file; "" for a stream
	buf  []byte
	r, w int   // buf[r:w] was read from src and not returned yet
	pos  int64 // position of buf[r]
	next int64 // offset that comes next: one above the last; -1 if any offset may come
	end  int64 // offset that no batch may reach; -1 if not known
	most int   // size of the largest batch that is accepted
	gaps bool  // offsets may be missing between batches
}

const (
	// scanChunk is the size of a read: a call costs less than 1 % of copying and checking that many bytes, and the buffer
	// still fits the second-level cache.
	scanChunk = 256 << 10
	// firstChunk is the size of the first read, so that a short scan does not pay for a long one.
	firstChunk = 4 << 10
)

func (s *scanner) init(src io.Reader, path string, pos, next, end int64) {
	s.src, s.path, s.pos, s.next, s.end = src, path, pos, next, end
	s.r, s.w = 0, 0
	s.most = maxBatchSize
	s.gaps = false
}

// restart goes on at another position of the source, to which the caller has moved the source.
func (s *scanner) restart(pos, next int64) {
	s.pos, s.next = pos, next
	s.r, s.w = 0, 0
}

// skipTo goes on at a position that lies in the buffer. It returns false if it does not lie there.
func (s *scanner) skipTo(pos, next int64) bool {
	n := pos - s.pos
	if n < 0 || n > int64(s.w-s.r) {
		return false
	}
	s.r += int(n)
	s.pos, s.next = pos, next
	return true
}

// scan returns the next batch, which is valid until the next call. At the end of a source that ends with a whole batch the
// error is io.EOF; otherwise it is a *CorruptError or the error of the source.
func (s *scanner) scan() (batch, error) {
	if err := s.fill(headerLen); err != nil {
		return nil, err
	}
	if why := parseHeader(s.buf[s.r:s.w]); why != "" {
		return nil, s.headerError(why)
	}
	h := batch(s.buf[s.r : s.r+headerLen])
	base, last, size := h.base(), h.last(), h.size()
	why := h.follows(s.next, s.gaps)
	switch {
	case why != "":
	case s.end >= 0 && last >= s.end:
		why = fmt.Sprintf("offsets overlap those that begin at %d: batch has %d to %d", s.end, base, last)
	case size > int64(s.most):
		why = fmt.Sprintf("batch of %d bytes, at most %d are allowed", size, s.most)
	}
	if why != "" {
		return nil, s.corrupt(why)
	}
	if err := s.fill(int(size)); err != nil {
		return nil, err
	}
	b := batch(s.buf[s.r : s.r+int(size)])
	if why = b.checkCRC(); why != "" {
		return nil, s.corrupt(why)
	}
	if s.next >= 0 && base > s.next {
		if err := s.confirmGap(int(size), base, last); err != nil {
			return nil, err
		}
		b = batch(s.buf[s.r : s.r+int(size)])
	}
	s.r += int(size)
	s.pos += size
	s.next = last + 1
	return b, nil
}

// follows returns why the batch can't stand where next is the next offset, or "". With gaps, offsets may be missing before
// it; next is -1 where any offset may come.
func (b batch) follows(next int64, gaps bool) string {
	base := b.base()
	switch {
	case base < next:
		return fmt.Sprintf("offsets go back: batch has %d to %d", base, b.last())
	case base > next && next >= 0 && !gaps:
		return fmt.Sprintf("offsets are missing: batch has %d to %d", base, b.last())
	}
	return ""
}

// collides returns why b, the header behind a batch that says it has the offsets base to last, proves that batch wrong, or "".
// That batch stands where next is the next offset: if its base was raised from next, it truly ends at next+last-base, and b
// begins above that though not above last. With a base below that, it is b that is wrong, as where a kill tore it.
func (b batch) collides(next, base, last int64) string {
	if parseWalk(b) == "" && b.base() <= last && b.base() > next+last-base {
		return fmt.Sprintf("its last offset %d collides with the next batch's %d", last, b.base())
	}
	return ""
}

// confirmGap looks at the batch behind one that comes after a gap. The format allows gaps (compaction makes them), but the
// CRC does not cover the base offset: if a flipped bit raised it, the batch collides with the one behind it.
func (s *scanner) confirmGap(size int, base, last int64) error {
	if s.path == "" && s.w-s.r < size+headerLen {
		return nil // the next batch of a stream may be long in coming
	}
	err := s.fill(size + headerLen)
	if err != nil || isZero(s.buf[s.r+size:s.r+size+headerLen]) {
		return nil // no batch follows that could tell
	}
	if why := batch(s.buf[s.r+size:s.r+size+headerLen]).collides(s.next, base, last); why != "" {
		return s.corrupt(why)
	}
	return nil
}

// fill makes n unread bytes available. The error is io.EOF if there is not one byte.
func (s *scanner) fill(n int) error {
	for idle := 0; s.w-s.r < n; {
		if s.w == len(s.buf) || len(s.buf)-s.r < n {
			s.makeRoom()
		}
		k, err := s.src.Read(s.buf[s.w:])
		if k < 0 || k > len(s.buf)-s.w {
			return s.readError(errCount)
		}
		s.w += k
		if s.w-s.r >= n {
			return nil
		}
		if err == io.EOF {
			if s.w == s.r {
				return io.EOF
			}
			return s.torn(n)
		}
		if k > 0 {
			idle = 0
		} else if idle++; err == nil && idle == maxIdleReads {
			err = io.ErrNoProgress
		}
		if err != nil {
			return s.readError(err)
		}
	}
	return nil
}

// makeRoom moves the unread bytes to the front, and doubles the buffer if it is full of them or still small.
func (s *scanner) makeRoom() {
	unread := s.buf[s.r:s.w]
	if len(unread) == len(s.buf) || len(s.buf) < scanChunk {
		s.buf = make([]byte, max(firstChunk, 2*len(s.buf)))
	}
	s.w = copy(s.buf, unread)
	s.r = 0
}

func (s *scanner) corrupt(why string) error {
	return &CorruptError{Path: s.path, Pos: s.pos, Offset: s.next, Reason: why}
}

// maxOldMessage bounds the size of the messages of old formats that headerError recognizes.
const maxOldMessage = 16 << 20

// headerError returns the error for bytes that are no header of a batch. Messages of format 0 and 1, which have other fields
// behind the length (the CRC of all that follows, magic, attributes), are told from damage by their CRC.
func (s *scanner) headerError(why string) error {
	magic := s.buf[s.r+atMagic]
	n := lengthOverhead + int64(int32(binary.BigEndian.Uint32(s.buf[s.r+atBatchLength:])))
	if magic >= magicV2 || n < lengthOverhead+14 || n > maxOldMessage || s.fill(int(n)) != nil {
		return s.corrupt(why)
	}
	m := s.buf[s.r : s.r+int(n)]
	if crc32.ChecksumIEEE(m[atMagic:]) != binary.BigEndian.Uint32(m[lengthOverhead:]) {
		return s.corrupt(why)
	}
	return &CorruptError{Path: s.path, Pos: s.pos, Offset: s.next, cause: ErrOldFormat,
		Reason: fmt.Sprintf("a message of format %d, which Kafka wrote before 0.11; format 2 is read", magic)}
}

// torn returns the error for a source that ends where n bytes are needed.
func (s *scanner) torn(n int) error {
	return &CorruptError{Path: s.path, Pos: s.pos, Offset: s.next, cause: io.ErrUnexpectedEOF,
		Reason: fmt.Sprintf("%d bytes where at least %d are needed", s.w-s.r, n)}
}

func (s *scanner) readError(err error) error {
	if s.path == "" {
		return err
	}
	return fmt.Errorf("seglog: read %s at position %d, offset %d: %w", s.path, s.pos+int64(s.w-s.r), s.next, err)
}

// isZero reports whether b holds only zeros. It compares b with itself, shifted by one byte: a loop over the reserved end of
// a segment took a third of the time of an Open.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// wrapBatchError turns an error about the records of a batch into one that says where the batch is.
func wrapBatchError(err error, path string, pos, offset int64) error {
	if errors.Is(err, ErrCodec) || errors.Is(err, ErrInflated) || errors.Is(err, ErrInvalid) {
		if path == "" {
			path = "stream"
		}
		return fmt.Errorf("%w: %s at position %d, offset %d", err, path, pos, offset)
	}
	return &CorruptError{Path: path, Pos: pos, Offset: offset, Reason: err.Error(), cause: err}
}

// Decode returns the records in a stream of batches, as TransferTo and Section.WriteTo send it. The sequence ends with the
// stream. If the stream ends inside a batch, or holds anything but batches in the order of their offsets, it ends with a
// *CorruptError; if records can't be decompressed, with ErrCodec or ErrInflated. Control batches are skipped. A Record is
// valid until the next step. The sequence can be walked once.
//
// Memory is bounded by the largest batch that arrives: three times its size, 20 times that of a record's headers and, for
// a compressed batch, twice the size that it inflates to, which may be 256 MiB.
func Decode(r io.Reader) iter.Seq2[Record, error] { return decode(r, defaultMaxInflated) }

func decode(r io.Reader, limit int64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var s scanner
		s.init(r, "", 0, -1, -1)
		s.gaps = true
		d := recordReader{limit: limit}
		for {
			pos := s.pos
			b, err := s.scan()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Record{}, err)
				return
			}
			if more, _ := d.each(b, b.base(), "", pos, yield); !more {
				return
			}
		}
	}
}

// each yields the records of a batch with offsets from from on, and an error if the batch can't be decoded. It returns
// whether to go on, and whether it yielded an error.
func (d *recordReader) each(b batch, from int64, path string, pos int64, yield func(Record, error) bool) (more, failed bool) {
	if b.control() {
		return true, false
	}
	if err := d.reset(b); err != nil {
		yield(Record{}, wrapBatchError(err, path, pos, b.base()))
		return false, true
	}
	var r Record
	for {
		ok := d.next(&r)
		if d.why != "" {
			yield(Record{}, wrapBatchError(d.err(), path, pos, b.base()))
			return false, true
		}
		if !ok {
			return true, false
		}
		if r.Offset >= from {
			more := yield(r, nil)
			spoil(&r)
			if !more {
				return false, false
			}
		}
	}
}

// onlyZeros reports whether [pos, end) of f holds only zeros, as do blocks that are reserved behind the last batch.
func onlyZeros(f io.ReaderAt, pos, end int64) (bool, error) {
	buf := make([]byte, min(end-pos, scanChunk))
	for pos < end {
		p := buf[:min(int64(len(buf)), end-pos)]
		n, err := f.ReadAt(p, pos)
		if !isZero(p[:n]) {
			return false, nil
		}
		if err != nil && err != io.EOF {
			return false, err
		}
		if n == 0 {
			return true, nil
		}
		pos += int64(n)
	}
	return true, nil
}
