package seglog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"slices"
)

// resync finds the next good batch behind bytes that are none. The difficulty is that the value of a record may hold whole
// batches, which look like batches of the log behind a damaged length. So a batch counts only if
//
//   - the CRC in the damaged header fits the bytes up to it: only the length was wrong; or
//   - the length in the damaged header leads to it; or
//   - good batches lead from it to a position where a batch is known to begin; or, if there is none, to another good batch, or
//     to one that continues its offsets and that the end of the file cuts off, or one that is damaged where no CRC covers it.
//
// Where no offsets are missing, its own must also fit those around (fits), and keep more of those behind it in order than would be without it (outvoted).
//
// The time is linear in the number of bytes, whatever they are: the CRCs of overlapping candidates are derived from sums over
// the whole range, and searching on behind a first answer is paid from a budget.
type resync struct {
	f     io.ReaderAt
	base  int64 // of the segment
	next  int64 // no good batch has an offset below next,
	end   int64 // and none has one from end on; -1 if that is not known
	size  int64 // position up to which the file is read
	zeros int64 // from this position on there are only zeros
	bound int64 // position where a batch is known to begin, or the batches to end; -1 if none is known
	until int64 // the offset of the batch at bound; 0 or less if it is not known

	dense   bool     // no offsets are missing between batches, so that base offsets can be checked (fits)
	jump    bool     // with dense: a good batch at the damaged position counts, if offsets are missing before it and not behind it
	endPos  int64    // position where the batches end, if end is the offset where they do
	flushed batchEnd // the boundary of two batches that is known, if any
	tail    bool     // the file ends at size, so that the last batch may be torn there

	budget int64 // bytes that may be read to search on behind an answer, or one that fits has refused
	spent  bool  // fits has refused one, so that each further pass is paid from the budget
	doubts int64 // bytes that may be read to find out whether batches are at their place (outvoted)
}

// resyncBudget is the budget as a multiple of the size of the file.
const resyncBudget = 4

// maxSlack bounds the zeros at the end of a batch, such as the headers count of a record without headers. A length that
// leads at most this far behind the last byte that is not zero counts as right.
const maxSlack = 64

// plausible reports whether b, which stands at pos, begins with the header of a batch that may be there.
func (r *resync) plausible(b []byte, pos int64) bool {
	h := batch(b[:headerLen])
	size, base, delta, count := h.size(), h.base(), h.lastDelta(), h.count()
	return h[atMagic] == magicV2 && size >= headerLen && size <= r.size-pos && delta >= 0 && count >= 0 && count <= delta+1 &&
		base >= r.next && base+delta-r.base <= math.MaxInt32 && (r.end < 0 || base+delta < r.end) &&
		(r.until <= 0 || pos >= r.bound || base+delta < r.until)
}

// good reports whether a whole batch stands at pos.
func (r *resync) good(pos int64) (bool, error) {
	var h [headerLen]byte
	if n, err := readUpTo(r.f, h[:], pos, r.size); n < headerLen || err != nil || !r.plausible(h[:], pos) {
		return false, err
	}
	crc, err := sumRange(r.f, 0, pos+atAttributes, pos+batch(h[:]).size())
	return err == nil && crc == batch(h[:]).crc(), err
}

// torn reports whether h, which stands at pos and may itself be cut off, begins with the header of a batch that the end of
// the file cuts off.
func (r *resync) torn(h batch, pos int64) bool {
	switch {
	case !r.tail || r.bound >= 0 || len(h) > atMagic && (h[atMagic] != magicV2 || h.size() < headerLen || h.size() <= r.size-pos):
		return false
	case len(h) < headerLen:
		return true
	}
	return parseHeader(h) == "" && h.last()-r.base <= math.MaxInt32 && (r.end < 0 || h.last() < r.end)
}

// flawed returns the end of a damaged batch that stands at pos behind offset next, if only one part of its header is not as it must
// be: the number of its records, or what no CRC covers, that is magic, base offset or a bit of the length. It returns -1 if h, as far as
// it is there, is not the header of one. With gaps, where only the batch behind tells that offsets are right, only a bit of the base
// offset may be wrong.
func (r *resync) flawed(pos int64, h batch, next int64) (int64, error) {
	if len(h) < headerLen {
		return -1, nil
	}
	flipped := h.base() ^ next
	if flipped != 0 && (h[atMagic] != magicV2 || !r.dense && flipped&(flipped-1) != 0) {
		return -1, nil
	}
	end, joins := pos+h.size(), h[atMagic] == magicV2 && flipped == 0
	fits := h.size() >= headerLen && end <= r.size
	if joins && fits && !r.plausible(h, pos) {
		return end, nil
	}
	if fits && r.budget >= h.size() {
		r.budget -= h.size()
		crc, err := sumRange(r.f, 0, pos+atAttributes, end)
		if err != nil || crc == h.crc() {
			return end, err
		}
	}
	if !joins {
		return -1, nil
	}
	r.budget -= 32 * headerLen
	return r.byLength(pos, h)
}

// byLength returns the end of the batch with header h at pos, if only one bit of its length is wrong, and otherwise -1.
func (r *resync) byLength(pos int64, h []byte) (int64, error) {
	var ends []int64
	for bit := range 32 {
		size := lengthOverhead + int64(int32(uint32(batch(h).size()-lengthOverhead)^1<<bit))
		end := pos + size
		if size < headerLen || end > r.size || r.bound >= 0 && end > r.bound {
			continue
		}
		var next [headerLen]byte
		n, err := readUpTo(r.f, next[:], end, r.size)
		if err != nil {
			return -1, err
		}
		if end >= r.zeros || n == headerLen && r.plausible(next[:], end) {
			ends = append(ends, end)
		}
	}
	slices.Sort(ends)
	crc, at := uint32(0), pos+atAttributes
	for _, end := range ends {
		if r.budget -= end - at; r.budget < 0 {
			return -1, nil
		}
		var err error
		if crc, err = sumRange(r.f, crc, at, end); err != nil {
			return -1, err
		}
		if at = end; crc == batch(h).crc() {
			return end, nil
		}
	}
	return -1, nil
}

// lastByte returns the position behind the last byte of [pos, end) of f that is not zero, or pos.
func lastByte(f io.ReaderAt, pos, end int64) (int64, error) {
	buf := make([]byte, min(end-pos, scanChunk))
	for end > pos {
		p := buf[:min(int64(len(buf)), end-pos)]
		n, err := f.ReadAt(p, end-int64(len(p)))
		if err != nil && err != io.EOF {
			return 0, err
		}
		clear(p[n:]) // a writer has trimmed the file meanwhile
		for i := len(p); i > 0; i-- {
			if p[i-1] != 0 {
				return end - int64(len(p)-i), nil
			}
		}
		end -= int64(len(p))
	}
	return pos, nil
}

// resyncPass is one pass over the bytes behind a damaged batch.
type resyncPass struct {
	r      *resync
	pos    int64  // of the damaged batch
	header batch  // its header, as far as it is there
	self   uint32 // CRC of [pos+1, pos+atAttributes)
	claims bool   // its length leads to the end of the bytes, so that batches in front of that may be those of a value

	b       []byte          // the piece at hand, [lo, lo+len(b)) of the file
	lo, at  int64           // crc is summed up to at
	crc     uint32          // of [pos+1, at)
	pending []candidate     // a heap, with the candidate that ends first in front
	chains  map[int64]chain // chains of good batches, by the position behind the last one
	best    int64           // start of the first chain that counts; -1 if there is none yet
}

// candidate is a plausible header of a batch whose end is not reached yet.
type candidate struct {
	pos, end   int64
	base, last int64
	crc        uint32 // in the header
	before     uint32 // CRC of [resyncPass.pos+1, pos+atAttributes)
}

// chain is a run of good batches, from position start to offset last.
type chain struct{ start, last int64 }

// maxPending bounds the candidates that wait for their ends. If there are more, the half that ends last is dropped.
const maxPending = 1 << 16

// run returns the position of a good batch that begins below limit, or -1 if there is none.
func (p *resyncPass) run(limit int64) (int64, error) {
	buf := make([]byte, firstChunk+headerLen)
	for p.lo = p.pos + 1; p.lo < limit || len(p.pending) > 0; {
		n, err := readUpTo(p.r.f, buf, p.lo, p.r.size)
		if err != nil {
			return -1, err
		}
		p.b = buf[:n]
		span := int64(n)
		if p.lo+int64(n) < p.r.size && n == len(buf) {
			span -= headerLen - 1 // headers that begin in the last bytes belong to the next piece
		}
		if at := p.piece(p.lo+span, limit); at >= 0 {
			return at, nil
		}
		if n < len(buf) {
			break
		}
		if p.r.spent || p.best >= 0 && p.r.bound < 0 {
			if p.r.budget -= span; p.r.budget < 0 {
				break
			}
		}
		p.lo += span
		if len(buf) < scanChunk {
			buf = make([]byte, 2*len(buf))
		}
	}
	if p.r.bound < 0 {
		return p.best, nil
	}
	if c, ok := p.chains[p.r.bound]; ok {
		return c.start, nil
	}
	if p.r.bound < p.r.size {
		return p.r.bound, nil
	}
	return p.best, nil
}

// piece looks at the headers that begin in the piece at hand, up to end. It returns the position of a header at which the CRC
// of the damaged batch fits, or -1 if there is none.
func (p *resyncPass) piece(end, limit int64) int64 {
	for i := int64(0); p.lo+i < min(end, limit) && i+headerLen <= int64(len(p.b)); i++ {
		k := bytes.IndexByte(p.b[i+atMagic:], magicV2)
		if k < 0 {
			break
		}
		i += int64(k)
		pos := p.lo + i
		if pos >= min(end, limit) || i+headerLen > int64(len(p.b)) {
			break
		}
		if !p.r.plausible(p.b[i:], pos) || p.r.bound >= 0 && pos+batch(p.b[i:]).size() > p.r.bound {
			continue
		}
		p.advance(pos)
		if len(p.header) == headerLen && pos >= p.pos+headerLen && rangeCRC(p.self, p.crc, pos-p.pos-atAttributes) == p.header.crc() {
			return pos
		}
		if _, follows := p.chains[pos]; p.best < 0 || follows || p.r.bound >= 0 {
			h := batch(p.b[i : i+headerLen])
			p.push(candidate{pos: pos, end: pos + h.size(), base: h.base(), last: h.last(), crc: h.crc(),
				before: crc32.Update(p.crc, castagnoli, h[:atAttributes])})
		}
	}
	p.advance(end)
	return -1
}

// advance sums up to a position in the piece at hand, and checks the candidates that end on the way.
func (p *resyncPass) advance(to int64) {
	for len(p.pending) > 0 && p.pending[0].end <= to {
		p.sum(p.pending[0].end)
		p.confirm(p.pop())
	}
	p.sum(to)
}

// sum moves at, and with it crc, up to a position in the piece at hand.
func (p *resyncPass) sum(to int64) {
	if mark := p.pos + atAttributes; p.at < mark && to >= mark {
		p.crc = crc32.Update(p.crc, castagnoli, p.b[p.at-p.lo:mark-p.lo])
		p.at, p.self = mark, p.crc
	}
	if to > p.at {
		p.crc = crc32.Update(p.crc, castagnoli, p.b[p.at-p.lo:to-p.lo])
		p.at = to
	}
}

// confirm checks the CRC of a candidate whose end is reached, and adds it to the chains if it is good.
func (p *resyncPass) confirm(c candidate) {
	if rangeCRC(c.before, p.crc, c.end-c.pos-atAttributes) != c.crc {
		return
	}
	of, follows := p.chains[c.pos]
	if follows = follows && of.last < c.base; follows {
		delete(p.chains, c.pos)
	} else {
		of.start = c.pos
	}
	of.last = c.last
	joined, open := p.behind(c)
	ends := c.end >= p.r.zeros
	if ends && (!p.claims || c.last+1 == p.r.end || c.last+1 == p.r.flushed.offset) || !p.claims && (follows || joined) {
		if p.best < 0 || of.start < p.best {
			p.best = of.start
		}
	}
	if other, ok := p.chains[c.end]; open && (!ok || of.start < other.start) {
		p.chains[c.end] = of
	}
}

// behind reports whether the header behind a good batch continues its offsets, and whether its chain may go on.
func (p *resyncPass) behind(c candidate) (joined, open bool) {
	var h [headerLen]byte
	if i := c.end - p.lo; i >= 0 && i+headerLen <= int64(len(p.b)) {
		copy(h[:], p.b[i:])
	} else if n, err := readUpTo(p.r.f, h[:], c.end, p.r.size); n < headerLen || err != nil {
		return err == nil && p.tornBehind(c, h[:n]), c.end == p.r.bound
	}
	plausible, base := p.r.plausible(h[:], c.end), batch(h[:]).base()
	if plausible && (base == c.last+1 || !p.r.dense) {
		return base == c.last+1, true
	}
	if joined = !plausible && p.tornBehind(c, h[:]); !joined && c.end < p.r.zeros {
		end, err := p.r.flawed(c.end, h[:], c.last+1)
		joined = end >= 0 && err == nil
	}
	return joined, plausible || c.end == p.r.bound
}

// tornBehind reports whether h is the header, as far as it is there, of a batch that continues the offsets of c and that the
// end of the file cuts off. If the damaged batch may itself be the one that is cut off, whatever its value holds is cut off too.
func (p *resyncPass) tornBehind(c candidate, h batch) bool {
	base := binary.BigEndian.AppendUint64(nil, uint64(c.last+1))
	k := min(len(h), len(base))
	return bytes.Equal(h[:k], base[:k]) && p.r.torn(h, c.end) && !p.r.torn(p.header, p.pos)
}

func (p *resyncPass) push(c candidate) {
	if len(p.pending) == maxPending {
		slices.SortFunc(p.pending, func(a, b candidate) int { return int(a.end - b.end) }) // a sorted slice is a heap
		p.pending = p.pending[:maxPending/2]
	}
	h := append(p.pending, c)
	for i := len(h) - 1; i > 0 && h[i].end < h[(i-1)/2].end; i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
	p.pending = h
}

func (p *resyncPass) pop() candidate {
	h := p.pending
	first, n := h[0], len(h)-1
	h[0] = h[n]
	h = h[:n]
	for i := 0; ; {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < n; k++ {
			if h[k].end < h[least].end {
				least = k
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	p.pending = h
	return first
}
