package seglog

import (
	"bytes"
	"hash/crc32"
	"slices"
)

// resyncPass is one pass over the bytes behind a damaged batch.
type resyncPass struct {
	r      *resync
	pos    int64  // of the damaged batch
	header batch  // its header, as far as it is there
	self   uint32 // CRC of [pos+1, pos+atAttributes)

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
		if p.best >= 0 && p.r.bound < 0 {
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
	if follows || joined || c.end >= p.r.zeros {
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
		return false, c.end == p.r.bound
	}
	if !p.r.plausible(h[:], c.end) {
		return false, c.end == p.r.bound
	}
	return batch(h[:]).base() == c.last+1, true
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

// rangeCRC returns the CRC of the last n bytes of a range, given the CRC of all of it and of the part before them. It works
// like zlib's crc32_combine: a CRC is shifted over n bytes by multiplying it with x^8n modulo the polynomial.
func rangeCRC(before, all uint32, n int64) uint32 {
	shift := uint32(1) << 31 // x^0
	for k := 3; n > 0; n, k = n>>1, k+1 {
		if n&1 != 0 {
			shift = multiplyCRC(crcPowers[k], shift)
		}
	}
	return all ^ multiplyCRC(shift, before)
}

// crcPowers are x^(2^k) modulo the polynomial.
var crcPowers = func() (p [3 + 32]uint32) {
	p[0] = 1 << 30 // x^1
	for k := range len(p) - 1 {
		p[k+1] = multiplyCRC(p[k], p[k])
	}
	return p
}()

// multiplyCRC multiplies two polynomials modulo that of CRC-32C; the highest bit is the coefficient of x^0.
func multiplyCRC(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
