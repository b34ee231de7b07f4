package seglog

import (
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
//   - good batches lead from it to a position where a batch is known to begin; or, if there is none, to another good batch.
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

	budget int64 // bytes that may be read to search on behind an answer
}

// resyncBudget is the budget as a multiple of the size of the file.
const resyncBudget = 4

// maxSlack bounds the zeros at the end of a batch, such as the headers count of a record without headers. A length that
// leads at most this far behind the last byte that is not zero counts as right.
const maxSlack = 64

// find returns the position of the next good batch behind pos, and its base offset. found is -1 if there is none.
func (r *resync) find(pos int64) (found, base int64, err error) {
	for {
		if r.bound >= 0 && pos >= r.bound {
			r.bound = -1 // no good batch is there any more: the writer has cut the file since
		}
		if pos, err = r.nextStart(pos); err != nil || pos < 0 {
			return -1, 0, err
		}
		if good, err := r.good(pos); good || err != nil {
			var h [headerLen]byte
			if err == nil {
				_, err = readUpTo(r.f, h[:], pos, r.size)
			}
			return pos, batch(h[:]).base(), err
		}
	}
}

// nextStart returns the next position behind pos at which a batch begins, which may be damaged, or -1 if there is none.
func (r *resync) nextStart(pos int64) (int64, error) {
	var h [headerLen]byte
	limit := r.zeros
	if r.bound >= 0 {
		limit = min(limit, r.bound)
	}
	n, err := readUpTo(r.f, h[:], pos, r.size)
	if err != nil {
		return -1, err
	}
	if n == headerLen {
		at, err := r.byLength(pos, h[:])
		if err != nil || at >= r.zeros {
			return -1, err
		}
		if at >= 0 {
			return at, nil
		}
		declared := pos + batch(h[:]).size()
		if declared >= r.zeros && declared <= r.zeros+maxSlack {
			return -1, nil
		}
		if declared > pos+headerLen && declared < r.zeros && (r.bound < 0 || declared <= r.bound) {
			if good, err := r.good(declared); good || err != nil {
				return declared, err
			}
		}
	}
	p := resyncPass{r: r, pos: pos, header: h[:n], at: pos + 1, best: -1, chains: map[int64]chain{}}
	return p.run(limit)
}

// maxBefore bounds the bytes that before searches, so that a walk past many damages costs each of them that much at most.
const maxBefore = 16 << 20

// before returns the position and base offset of the first good batch between the damage at pos and the batch at until,
// whose base offset is base and to which find led. If there is none, it returns until and base. A second damage cuts such a
// batch off from any position where a batch is known to begin, so find passes it over. It counts if headers lead from it
// to exactly until, over damaged batches too, and all offsets on the way are among those that would be lost otherwise.
//
// That is as safe as the rule for good batches that lead to a known position. Batches in the value of a record are followed
// by other bytes of the record or, where the second damage cuts the value, by a header that leads to a position inside the
// record, and never to the beginning of a batch of the log. For the same reason two joined batches do not count here by
// themselves, as they do where no position is known, nor if the second damage destroyed a header.
func (r *resync) before(pos, until, base int64) (int64, int64, error) {
	if until-pos > maxBefore {
		return until, base, nil
	}
	lost := resync{f: r.f, base: r.base, next: r.next, end: base, size: until, zeros: until, bound: -1, budget: resyncBudget * (until - pos)}
	for {
		at, first, err := lost.find(pos)
		if err != nil || at < 0 {
			return until, base, err
		}
		last, good := first-1, true
		for to := at; ; {
			if to == until {
				return at, first, nil
			}
			var h [headerLen]byte
			n, err := readUpTo(r.f, h[:], to, until)
			if err != nil {
				return until, base, err
			}
			if n < headerLen || !lost.plausible(h[:], to) || batch(h[:]).base() <= last {
				break
			}
			if good {
				if good, err = lost.good(to); err != nil {
					return until, base, err
				}
			}
			last = batch(h[:]).last()
			if to += batch(h[:]).size(); good {
				pos = to // the next search begins there
			}
		}
	}
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

// plausible reports whether b, which stands at pos, begins with the header of a batch that may be there.
func (r *resync) plausible(b []byte, pos int64) bool {
	h := batch(b[:headerLen])
	size, base, delta, count := h.size(), h.base(), h.lastDelta(), h.count()
	return h[atMagic] == magicV2 && size >= headerLen && size <= r.size-pos && delta >= 0 && count >= 0 && count <= delta+1 &&
		base >= r.next && base+delta-r.base <= math.MaxInt32 && (r.end < 0 || base+delta < r.end)
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

// readUpTo reads as much of b at pos as there is below end.
func readUpTo(f io.ReaderAt, b []byte, pos, end int64) (int, error) {
	n, err := f.ReadAt(b[:max(0, min(int64(len(b)), end-pos))], pos)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// sumRange adds [pos, end) of f to a CRC. Bytes that a writer has trimmed meanwhile count as zeros.
func sumRange(f io.ReaderAt, crc uint32, pos, end int64) (uint32, error) {
	buf := make([]byte, min(end-pos, scanChunk))
	for pos < end {
		p := buf[:min(int64(len(buf)), end-pos)]
		n, err := readUpTo(f, p, pos, end)
		if err != nil {
			return 0, err
		}
		clear(p[n:])
		crc = crc32.Update(crc, castagnoli, p)
		pos += int64(len(p))
	}
	return crc, nil
}
