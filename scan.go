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

// scanner is the one parser that walks batches: of files (recovery, iterators, Verify, index rebuilds) and of streams
// (Decode, TransferFrom). Each batch it returns has passed parseHeader, its CRC and the order of offsets.
//
// The buffer never grows past twice the bytes that really arrived, whatever a length field claims.
type scanner struct {
	src  io.Reader
	path string // of the file; "" for a stream
	buf  []byte
	r, w int   // buf[r:w] is read and not consumed
	pos  int64 // of buf[r]
	next int64 // offset that comes next: one above the last; -1 if any may
	end  int64 // offset that no batch may reach; -1 if not known
	most int   // largest batch accepted
	gaps bool  // offsets may be left out between batches
}

const (
	// scanChunk: one read call costs less than 1 % of copying and checking that many bytes, and the buffer still fits
	// the second-level cache.
	scanChunk = 256 << 10
	// firstChunk: short scans (a section of a few records) must not pay for a long one.
	firstChunk = 4 << 10
)

func (s *scanner) init(src io.Reader, path string, pos, next, end int64) {
	s.src, s.path, s.pos, s.next, s.end = src, path, pos, next, end
	s.r, s.w = 0, 0
	s.most = maxBatchSize
	s.gaps = false
}

// restart goes on at another position of the source, which the caller has moved there.
func (s *scanner) restart(pos, next int64) {
	s.pos, s.next = pos, next
	s.r, s.w = 0, 0
}

// skipTo goes on at a position that lies in the buffer; false if it does not.
func (s *scanner) skipTo(pos, next int64) bool {
	n := pos - s.pos
	if n < 0 || n > int64(s.w-s.r) {
		return false
	}
	s.r += int(n)
	s.pos, s.next = pos, next
	return true
}

// scan returns the next batch, valid until the next call; io.EOF at the end of a source that ends with a whole batch;
// else a *CorruptError, or the source's error.
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
		why = fmt.Sprintf("offsets run into what follows at %d: batch has %d to %d", s.end, base, last)
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
		if err := s.confirmGap(int(size), last); err != nil {
			return nil, err
		}
		b = batch(s.buf[s.r : s.r+int(size)])
	}
	s.r += int(size)
	s.pos += size
	s.next = last + 1
	return b, nil
}

// follows says why a batch can't stand where offset next comes next, or "". With gaps, offsets may be left out before it;
// next is -1 where any offset may come.
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

// collides says why b, the header that stands behind a batch whose last offset is last, proves that batch wrong, or "".
func (b batch) collides(last int64) string {
	if parseWalk(b) == "" && b.base() <= last {
		return fmt.Sprintf("its last offset %d collides with the next batch's %d", last, b.base())
	}
	return ""
}

// confirmGap looks at the batch behind one that leaves out offsets. The format allows gaps (compaction makes them), but
// the CRC does not cover the base offset: one that a bit flip raised collides with its successor.
func (s *scanner) confirmGap(size int, last int64) error {
	if s.path == "" && s.w-s.r < size+headerLen {
		return nil // the next batch of a stream may be long in coming
	}
	err := s.fill(size + headerLen)
	if err != nil || isZero(s.buf[s.r+size:s.r+size+headerLen]) {
		return nil // nothing follows that could tell
	}
	if why := batch(s.buf[s.r+size : s.r+size+headerLen]).collides(last); why != "" {
		return s.corrupt(why)
	}
	return nil
}

// fill makes n unread bytes available. io.EOF: there is not one.
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

// makeRoom moves the unread bytes to the front, and doubles a buffer that is full of them or still small.
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

// maxOldMessage bounds the messages of old formats that are looked for.
const maxOldMessage = 16 << 20

// headerError is the error for bytes that are no header of a batch. A message of format 0 or 1, which differs in what
// follows the length (crc of all behind it, magic, attributes), is told from damage by its own CRC.
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

// isZero compares b with itself, one byte on: a loop over the reserved end of a segment took a third of an Open.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// wrapBatchError turns an error about the inside of a batch into one that says where the batch is.
func wrapBatchError(err error, path string, pos, offset int64) error {
	if errors.Is(err, ErrCodec) || errors.Is(err, ErrInflated) {
		if path == "" {
			path = "stream"
		}
		return fmt.Errorf("%w: %s at position %d, offset %d", err, path, pos, offset)
	}
	return &CorruptError{Path: path, Pos: pos, Offset: offset, Reason: err.Error(), cause: err}
}

// Decode returns the records in a stream of batches, which is what TransferTo and Section.WriteTo send. It ends with
// the stream; a stream that ends inside a batch, or holds anything else than batches in the order of their offsets, ends
// with a *CorruptError, and one whose records can't be decompressed with ErrCodec or ErrInflated. Control batches are
// skipped. A Record is valid until the next step. The sequence can be walked once.
//
// Memory is bounded by the largest batch that really arrives: three times its size, 20 times that of a record's headers
// and, for a compressed batch, twice the size that it inflates to, which may be 256 MiB.
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

// each yields the records of a batch from offset from on, and an error if the batch can't be decoded. It returns whether
// to go on, and whether an error was yielded.
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
			poison(&r)
			if !more {
				return false, false
			}
		}
	}
}
