package seglog

import (
	"hash/crc32"
	"io"
)

// offsetTrail tells which base offset the batch at position pos must have, by the headers from the damage up to there. It is
// meant for logs without gaps.
type offsetTrail struct {
	f      io.ReaderAt
	size   int64 // as those of resync
	zeros  int64
	end    int64
	endPos int64
	mark   batchEnd
	tail   bool
	bound  int64
	until  int64
	budget *int64

	pos, next int64 // next is -1 once it is not known
	least     int64 // the offset at the damage
	// disputed is the end of a good batch that was passed over since the one behind it contradicts it; -1 if there is none.
	disputed int64
}

// batchEnd is a position at which a batch is known to end, and the offset behind it. Position 0 stands for none.
type batchEnd struct {
	pos, offset int64
	moved       bool // no batch ends at pos, nor does a good one begin there: bytes were inserted before, or left out
}

// marked reports whether the mark is at pos. One that was moved may still tell of the last batch of the file.
func (t *offsetTrail) marked(pos int64) bool {
	return t.mark.pos > 0 && pos == t.mark.pos && (!t.mark.moved || pos >= t.zeros)
}

// fits reports whether the good batch with header b at pos counts in a log in which no offsets are missing. No CRC covers a
// base offset, so a flipped bit in it would give the records the offsets of others. What tells is around the batch: the
// headers from the damage up to it, the two headers behind it, and the offset at which the batches are known to end, or up to which
// they were flushed. One that agrees is enough, since it takes two flipped bits to agree on a wrong offset. Without any, the batch
// counts unless one of them contradicts it. Of two good batches that contradict each other, neither counts if nothing else tells
// which is right.
//
// Batches that were written to a wrong place agree with each other. It is sure that the batch is at its own if what is before it
// or the end agrees.
func (t *offsetTrail) fits(b batch, pos int64) (good, sure bool, err error) {
	if err := t.follow(pos); err != nil {
		return false, false, err
	}
	if t.next == b.base() || t.marked(pos) && b.base() == t.mark.offset {
		return true, true, nil
	}
	contradicted := t.next >= 0 || t.disputed == pos || t.marked(pos)
	t.disputed = -1
	at, next := pos+b.size(), b.last()+1
	joined := next // what would join the batch just before at
	for i := range 2 {
		if at >= t.zeros && next == t.mark.offset {
			return true, true, nil // wherever that is now: bytes may have been inserted before it, or left out
		}
		if t.marked(at) {
			if next == t.mark.offset {
				return true, true, nil
			}
			contradicted = contradicted || i == 0
			break
		}
		if t.end >= 0 && at >= t.endPos {
			if next == t.end {
				return true, true, nil
			}
			// A file that lost its last batches ends early too, but then the batch behind the damage is seldom the last one.
			contradicted = contradicted || i == 0
			break
		}
		h, err := t.headerAt(at)
		whole := false
		if err == nil && h != nil && h.base() != next && (i == 0 || h.base() != joined) {
			h, whole, err = t.whole(at) // a writer may be about to store that batch: its header alone proves nothing
		}
		if err != nil {
			return false, false, err
		}
		if h == nil || t.until > 0 && at < t.bound && h.last() >= t.until {
			break
		}
		if h.base() == next {
			return true, false, nil
		}
		if whole || i > 0 && h.base() == joined {
			contradicted, t.disputed = true, pos+b.size()
		}
		at, next, joined = at+h.size(), next+h.lastDelta()+1, h.last()+1
	}
	if contradicted && t.next >= 0 { // the CRC covers the number of its offsets
		t.pos, t.next = pos+b.size(), t.next+b.lastDelta()+1
	}
	// The damage has taken an offset at least, unless it is a batch too many.
	return !contradicted && b.base() > t.least, false, nil
}

// follow moves the trail to pos. A header counts if it joins and each of its offsets has a record: damage that leaves it so is
// elsewhere in the batch. The first one also counts if its CRC fits the bytes up to pos, since magic, length and base offset
// are outside of it.
func (t *offsetTrail) follow(pos int64) error {
	for first := true; t.next >= 0 && t.pos < pos; first = false {
		var b [headerLen]byte
		n, err := readUpTo(t.f, b[:], t.pos, t.size)
		if err != nil {
			return err
		}
		h := batch(b[:])
		size, next := h.size(), t.next+h.lastDelta()+1
		if n < headerLen || h.lastDelta() < 0 || t.pos+headerLen > pos {
			break
		}
		joins := parseHeader(h) == "" && h.base() == t.next && h.count() == h.lastDelta()+1 && t.pos+size <= pos
		if first && (!joins || t.pos+size < pos) && *t.budget >= pos-t.pos {
			*t.budget -= pos - t.pos
			crc, err := sumRange(t.f, 0, t.pos+atAttributes, pos)
			if err != nil {
				return err
			}
			if crc == h.crc() {
				joins, size = true, pos-t.pos
			}
		}
		if !joins {
			break
		}
		t.pos, t.next = t.pos+size, next
	}
	if t.pos != pos {
		t.next = -1
	}
	return nil
}

// headerAt returns the header at pos, or nil if there is none whose batch the file can hold, but for one that its end tears.
func (t *offsetTrail) headerAt(pos int64) (batch, error) {
	var b [headerLen]byte
	n, err := readUpTo(t.f, b[:], pos, t.size)
	if err != nil || n < headerLen || parseHeader(b[:]) != "" || batch(b[:]).size() > t.size-pos && !t.tail {
		return nil, err
	}
	return b[:], nil
}

// whole returns the header at pos as headerAt does, and whether a batch that is whole begins there. It reads the header again.
func (t *offsetTrail) whole(pos int64) (h batch, good bool, err error) {
	if h, err = t.headerAt(pos); h == nil || err != nil || h.size() > t.size-pos {
		return h, false, err
	}
	if *t.budget -= h.size(); *t.budget < 0 {
		return h, false, nil
	}
	crc, err := sumRange(t.f, 0, pos+atAttributes, pos+h.size())
	return h, crc == h.crc(), err
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
