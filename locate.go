package seglog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"runtime/debug"

	"github.com/seglog/seglog/internal/vfs"
)

// found is a batch that locate came to: its position, size and offsets.
type found struct {
	pos, size  int64
	base, last int64
}

func (f found) end() int64 { return f.pos + f.size }

// changed says how the header of the batch differs from what it was when f was found, or "".
func (f found) changed(h batch) string {
	if h.size() == f.size && h.base() == f.base && h.last() == f.last {
		return ""
	}
	return fmt.Sprintf("batch of %d bytes with offsets %d to %d, which had %d bytes with offsets %d to %d", h.size(), h.base(), h.last(), f.size, f.base, f.last)
}

// errIndex: an entry points to a batch that it does not fit. The index is rebuilt and asked again.
var errIndex = errors.New("seglog: index does not fit the log")

// maxBack is the number of entries that walk goes back at most, past those that lead to a damaged header.
const maxBack = 4

// walk goes from batch to batch by their headers, from hint on, until stop says so, or limit is reached: ok is false
// then. Each batch must continue where the one before ended. Where offsets are left out, which a flipped bit can look
// like, more is checked: behind a wrong length the CRC of the batch before fails, and a base offset that was raised, which
// no CRC covers, collides with the batch that follows.
func (s *segment) walk(e *env, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	f, ok, err = s.walkFrom(e, w, from, limit, stop)
	if err != errIndex && !errors.Is(err, ErrCorrupt) || from.entry < 0 || from.entries == nil {
		return f, ok, err
	}
	// Is it the index that is wrong, or the batch that the entry leads to, or the one behind? The entry before leads to the
	// same place, if it is right, and the batches on the way tell which offset is next there. Damage on the way does so too, as
	// far as no offsets are missing: who looks for a batch goes on behind it.
	var over found
	before := errIndex
	for i := from.entry - 1; before == errIndex && i >= max(-1, from.entry-maxBack); i-- {
		over, ok, before = s.walkFrom(e, w, hintAt(from.entries, i), limit, func(f found) bool { return f.end() > from.pos })
		if e.gaps.Load() {
			break
		}
		if ok && before == nil && over.pos < from.pos {
			before = w.checkWhole(over)
		}
	}
	var corrupt *CorruptError
	if errors.As(before, &corrupt) && (corrupt.Pos == from.pos || corrupt.Pos < from.pos && err != errIndex && !e.gaps.Load()) {
		err = before
	}
	return found{}, false, err
}

func (s *segment) walkFrom(e *env, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	pos, next := from.pos, s.base+from.next
	gaps := e.gaps.Load()
	var before found
	for pos < limit.pos() {
		b, err := s.headerAt(w, pos, limit, next)
		if err != nil {
			if from.rel >= 0 && pos == from.pos {
				return found{}, false, errIndex
			}
			return found{}, false, w.blame(before, err)
		}
		f = found{pos: pos, size: b.size(), base: b.base(), last: b.last()}
		gap := false
		if from.rel >= 0 && pos == from.pos {
			// Kafka before 4.0 made one entry of all the batches of an append: the position of the first, the offset of the last.
			if f.last > s.base+from.rel {
				return found{}, false, errIndex
			}
		} else {
			if why := b.follows(next, gaps); why != "" {
				return found{}, false, w.blame(before, &CorruptError{Path: w.h.path, Pos: pos, Offset: next, Reason: why})
			}
			if gap = f.base > next; gap && before.size > 0 {
				if err := w.checkWhole(before); err != nil {
					return found{}, false, err
				}
			}
		}
		if stop(f) {
			if gap {
				err = w.checkBehind(f, next)
			}
			return f, err == nil, err
		}
		before = f
		pos, next = f.end(), f.last+1
		if w.back = 0; gaps && f.size <= windowChunk/4 {
			w.back = f.size // may be checked next
		}
	}
	if before.size > 0 && next < s.base+limit.rel() { // offsets are left out at the end, or the last batch is damaged
		return found{}, false, w.checkWhole(before)
	}
	return found{}, false, nil
}

// blame returns why what stands behind a batch is none: that one's length may be wrong.
func (w *window) blame(before found, err error) error {
	if before.size == 0 || !errors.Is(err, ErrCorrupt) {
		return err
	}
	if e := w.checkWhole(before); errors.Is(e, ErrCorrupt) {
		return e
	}
	return err
}

// checkBehind looks at the header behind a batch that leaves out offsets before it.
func (w *window) checkBehind(f found, next int64) error {
	if w.end-f.end() < headerLen {
		return nil
	}
	p, err := w.at(f.end(), headerLen)
	if err != nil {
		return err
	}
	if why := batch(p).collides(next, f.base, f.last); why != "" {
		return &CorruptError{Path: w.h.path, Pos: f.pos, Offset: next, Reason: why}
	}
	return nil
}

// checkWhole checks header and CRC of a batch that a walk came to, in pieces that the window holds anyway.
func (w *window) checkWhole(f found) error {
	piece := int64(max(len(w.buf), windowChunk))
	if w.h.m != nil && !w.unmapped {
		piece = f.size
	}
	p, err := w.at(f.pos, min(piece, f.size))
	if err != nil {
		return err
	}
	why := parseHeader(p)
	want, crc := batch(p).crc(), crc32.Checksum(p[atAttributes:], castagnoli)
	for at := f.pos + int64(len(p)); why == "" && at < f.end(); at += piece {
		if p, err = w.at(at, min(piece, f.end()-at)); err != nil {
			return err
		}
		crc = crc32.Update(crc, castagnoli, p)
	}
	if why == "" && crc != want {
		why = fmt.Sprintf("CRC is %08x, want %08x", crc, want)
	}
	if why != "" {
		return &CorruptError{Path: w.h.path, Pos: f.pos, Offset: f.base, Reason: why}
	}
	return nil
}

// headerAt is the start of the header of the batch at pos, checked, which lies below limit with all its offsets.
func (s *segment) headerAt(w *window, pos int64, limit mark, next int64) (batch, error) {
	why := ""
	if limit.pos()-pos < headerLen {
		why = fmt.Sprintf("%d bytes where a batch must be", limit.pos()-pos)
	} else {
		p, err := w.at(pos, walkLen)
		if err != nil {
			return nil, err
		}
		b := batch(p)
		if why = parseWalk(p); why == "" {
			if b.size() <= limit.pos()-pos && b.last() < s.base+limit.rel() {
				return b, nil
			}
			why = fmt.Sprintf("batch of %d bytes with offsets %d to %d, in a segment that ends at position %d, offset %d",
				b.size(), b.base(), b.last(), limit.pos(), s.base+limit.rel())
		}
	}
	return nil, &CorruptError{Path: w.h.path, Pos: pos, Offset: next, Reason: why}
}

// locate finds the batch that holds offset, or the first behind it; ok is false if there is none below limit. Damage on
// the way costs what it covers: the search goes on behind it.
func (s *segment) locate(e *env, h *handle, w *window, offset int64, limit mark) (f found, ok bool, err error) {
	f, _, ok, err = s.locateKnown(e, h, w, offset, limit, nil)
	return f, ok, err
}

// locateKnown is locate, but that a batch of known, if that is not nil, is found without a look at any header, and returned
// as it is known. If each batch has an entry, as batches of IndexBytes and more do, the one that holds offset is that of the
// entry above offset.
func (s *segment) locateKnown(e *env, h *handle, w *window, offset int64, limit mark, known *readCache) (f found, b *cachedBatch, ok bool, err error) {
	w.reset(h, limit.pos())
	rel := uint32(max(0, offset-s.base))
	holds := func(f found) bool { return f.last >= offset }
	f, ok, err = s.throughIndex(e, h, func(x *indexes) (found, bool, error) {
		entries := x.offsets.bytes()
		from := seekOffset(entries, rel)
		if pos := from.behind(entries); known != nil && pos >= 0 {
			if b = known.get(h.id, pos); b != nil && b.found().base <= offset && holds(b.found()) {
				return b.found(), true, nil
			}
			b = nil
		}
		return s.walk(e, w, from, limit, holds)
	})
	if err != nil {
		f, ok, err = s.locateBehind(e, h, w, err, offset, limit)
		return f, nil, ok, err
	}
	return f, b, ok, nil
}

// locateBehind is locate after damage, of the kind that err tells, unless offset lies in what is lost: err is returned then,
// completed by where reading can go on. A caller of locate also goes on with it if the batch that locate found fails its
// check: nobody can know then which offsets the batch has, and whether the wanted one is among them.
func (s *segment) locateBehind(e *env, h *handle, w *window, err error, offset int64, limit mark) (f found, ok bool, _ error) {
	for err != nil {
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.NextOffset > 0 || corrupt.Path != h.path {
			return found{}, false, err
		}
		pos := s.goesOn(e, h, corrupt, limit)
		if pos < 0 && corrupt.NextOffset == 0 || offset < corrupt.NextOffset {
			return found{}, false, err
		}
		if pos < 0 {
			return found{}, false, nil // the next segment has it
		}
		f, ok, err = s.guardedLookUp(h, func(*indexes) (found, bool, error) {
			return s.walk(e, w, hint{rel: -1, pos: pos, next: corrupt.NextOffset - s.base}, limit, func(f found) bool { return f.last >= offset })
		})
	}
	return f, ok, nil
}

// locateWhole is locate for a caller who takes the batch for the one that holds offset without reading all of it.
func (s *segment) locateWhole(e *env, h *handle, w *window, offset int64, limit mark) (f found, ok bool, err error) {
	f, ok, err = s.locate(e, h, w, offset, limit)
	for err == nil && ok && f.base < offset {
		if bad := s.checkGuarded(h, w, f); bad == nil {
			break
		} else {
			f, ok, err = s.locateBehind(e, h, w, bad, offset, limit)
		}
	}
	return f, ok, err
}

func (s *segment) checkGuarded(h *handle, w *window, f found) (err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	return w.checkWhole(f)
}

// goesOn finds where good batches go on behind damage, and notes the offset in the error. It returns the position, -1 if
// none follows in the segment.
func (s *segment) goesOn(e *env, h *handle, damage *CorruptError, limit mark) int64 {
	r := resync{f: h.f, base: s.base, next: damage.Offset, end: s.base + limit.rel(), size: limit.pos(), zeros: limit.pos(),
		dense: !e.gaps.Load(), jump: true, endPos: limit.pos(), budget: resyncBudget * limit.pos(), doubts: resyncBudget * limit.pos()}
	pos, base := int64(-1), int64(0)
	var err error
	if e := h.readIndexes(func(x *indexes) { pos, base, err = r.goesOn(damage.Pos, x.offsets.bytes(), limit.pos()) }); e != nil {
		err = e
	}
	if pos == damage.Pos && base <= damage.Offset && err == nil {
		pos, base, err = s.behindUndecoded(h, pos, limit)
	}
	switch {
	case err != nil:
		return -1 // the damage is what is reported
	case pos < 0:
		damage.NextOffset = max(s.base+limit.rel(), damage.Offset)
	default:
		damage.NextOffset = base
	}
	return pos
}

// behindUndecoded returns the position and offset behind the batch at pos, of which the CRC is right and the records can't be decoded: its
// writer damaged it. The position is -1 if the segment ends there.
func (s *segment) behindUndecoded(h *handle, pos int64, limit mark) (end, next int64, err error) {
	var head [headerLen]byte
	if err := vfs.ReadFull(h.f, head[:], pos); err != nil {
		return -1, 0, err
	}
	b := batch(head[:])
	if end, next = pos+b.size(), b.last()+1; end >= limit.pos() {
		end = -1
	}
	return end, next, nil
}

// behindDamage completes an error about this segment, if it is one, by where reading can go on.
func (s *segment) behindDamage(e *env, h *handle, err error, limit mark) error {
	var corrupt *CorruptError
	if errors.As(err, &corrupt) && corrupt.NextOffset == 0 && corrupt.Path == h.path {
		s.goesOn(e, h, corrupt, limit)
	}
	return err
}

// boundary finds the last batch that ends at or below pos; ok is false if there is none.
func (s *segment) boundary(e *env, h *handle, w *window, pos int64, limit mark) (f found, ok bool, err error) {
	return s.boundaryFrom(e, h, w, hint{rel: -1}, pos, limit)
}

// boundaryFrom is boundary for batches from start on. Where no entry leads to a batch behind start, it walks from there: before
// start there may be damage, which does not concern the caller.
func (s *segment) boundaryFrom(e *env, h *handle, w *window, start hint, pos int64, limit mark) (f found, ok bool, err error) {
	w.reset(h, limit.pos())
	return s.throughIndex(e, h, func(x *indexes) (best found, ok bool, err error) {
		offsets := x.offsets.bytes()
		from := hint{pos: pos}
		for i := seekPos(offsets, pos); from.pos > start.pos && !ok && (err == nil || errors.Is(err, ErrCorrupt)); i-- {
			// Once more if the entry's own batch ends above pos, or is damaged.
			if from = hintAt(offsets, i); from.pos <= start.pos {
				from = start
			}
			_, _, err = s.walk(e, w, from, limit, func(f found) bool {
				if f.end() > pos {
					return true
				}
				best, ok = f, true
				return false
			})
		}
		if ok && errors.Is(err, ErrCorrupt) {
			err = nil // there is one before the damage
		}
		return best, ok, err
	})
}

// overlapped reports whether the header behind f says that its batch begins below the end of f, so that one of the two is wrong.
func (s *segment) overlapped(h *handle, w *window, f found, limit mark) (yes bool, err error) {
	if limit.pos()-f.end() < headerLen {
		return false, nil
	}
	w.reset(h, limit.pos())
	_, yes, err = s.guardedLookUp(h, func(*indexes) (found, bool, error) {
		p, err := w.at(f.end(), headerLen)
		return found{}, err == nil && parseWalk(batch(p)) == "" && batch(p).base() <= f.last, err
	})
	return yes, err
}

// joins returns an error unless last is whole and the headers lead from first to it, without a word of the indexes.
func (s *segment) joins(e *env, h *handle, w *window, first, last found, limit mark) error {
	w.reset(h, limit.pos())
	f, ok, err := s.guardedLookUp(h, func(*indexes) (found, bool, error) {
		return s.walk(e, w, s.startAt(first), limit, func(f found) bool { return f.pos >= last.pos })
	})
	if err == nil && (!ok || f != last) {
		err = &CorruptError{Path: h.path, Pos: last.pos, Offset: last.base, Reason: "the batches before do not lead to this one"}
	}
	if err == nil {
		err = s.checkGuarded(h, w, last)
	}
	return err
}

// startAt returns a hint for a walk that begins with a batch that was found.
func (s *segment) startAt(f found) hint { return hint{rel: -1, pos: f.pos, next: f.base - s.base} }

// throughIndex does a look-up by the indexes of h, and once more with rebuilt ones should they prove wrong.
func (s *segment) throughIndex(e *env, h *handle, lookUp func(*indexes) (found, bool, error)) (f found, ok bool, err error) {
	f, ok, err = s.guardedLookUp(h, lookUp)
	if err != errIndex {
		return f, ok, err
	}
	if s.written() {
		// Its indexes are the writer's and in memory: it is the log that is damaged, and a walk from the start finds where.
		return s.guardedLookUp(h, func(*indexes) (found, bool, error) {
			return lookUp(&indexes{offsets: newTable(nil), times: newTable(nil)})
		})
	}
	if err = s.rebuild(e, h, "an entry points to a batch that it does not fit"); err == nil {
		f, ok, err = s.guardedLookUp(h, lookUp)
	}
	return f, ok, err
}

func (s *segment) guardedLookUp(h *handle, lookUp func(*indexes) (found, bool, error)) (f found, ok bool, err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	return lookUp(h.x.Load())
}
