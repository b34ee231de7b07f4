package seglog

// find returns the position of the next good batch behind pos, where the batch with offset next is damaged, and its base offset.
// found is -1 if there is none.
func (r *resync) find(pos int64) (found, base int64, err error) {
	bounded := r.bound >= 0
	found, base, err = r.search(pos, r.trail(pos))
	if found < 0 && err == nil && bounded && r.spent { // what leads to the bound does not count
		r.bound, r.until = -1, 0
		return r.search(pos, r.trail(pos))
	}
	return found, base, err
}

// trail returns the trail that begins where the batch with offset next is damaged.
func (r *resync) trail(pos int64) offsetTrail {
	return offsetTrail{f: r.f, size: r.size, zeros: r.zeros, end: r.end, endPos: r.endPos, mark: r.flushed, tail: r.tail, bound: r.bound, until: r.until, budget: &r.budget, pos: pos, next: r.next, least: r.next, disputed: -1}
}

// search is find with a trail that may know nothing of the offset at pos.
func (r *resync) search(pos int64, trail offsetTrail) (found, base int64, err error) {
	r.spent = false
	jump := r.dense && r.jump
	for here := jump; ; jump = false {
		if r.bound >= 0 && pos >= r.bound {
			r.bound = -1 // no good batch is there any more: the writer has cut the file since
		}
		if !here {
			if pos, err = r.nextStart(pos); err != nil || pos < 0 {
				return -1, 0, err
			}
		}
		good, base, behind, err := r.counts(pos, &trail, jump)
		if good || err != nil {
			return pos, base, err
		}
		if here = behind >= 0; here {
			pos = behind
		}
	}
}

// counts reports whether a good batch stands at pos that fits those around, and returns its base offset. If more batches than one
// are found not to fit, it also returns the position behind them, otherwise -1.
func (r *resync) counts(pos int64, trail *offsetTrail, jump bool) (good bool, base, behind int64, err error) {
	if good, err = r.good(pos); !good || err != nil {
		return false, 0, -1, err
	}
	var h [headerLen]byte
	if _, err = readUpTo(r.f, h[:], pos, r.size); err != nil || !r.dense {
		return true, batch(h[:]).base(), -1, err
	}
	good, sure, err := trail.fits(h[:], pos)
	behind = -1
	if good && !sure && err == nil {
		if behind, err = r.outvoted(pos, jump); behind >= 0 {
			good, trail.next, trail.disputed = false, -1, -1
		}
	}
	r.spent = r.spent || !good
	return good, batch(h[:]).base(), behind, err
}

// outvoted tells whether the good batch at pos, and those that join it, have come from elsewhere, in a log in which no offsets
// are missing: without them, more offsets behind can be kept in order. A write that went to a wrong place leaves that where it covers
// batches with later ones. With jump, no bytes are lost before pos, so that as many are enough. outvoted returns the position behind the
// misplaced batches, and -1 if they are not.
func (r *resync) outvoted(pos int64, jump bool) (int64, error) {
	if r.doubts <= 0 || pos == r.bound {
		return -1, nil
	}
	rest := *r
	rest.spent, rest.budget, rest.jump = true, r.doubts, false
	defer func() { r.doubts = rest.budget }()
	a, err := rest.run(pos, maxRun)
	switch {
	case err != nil || a.batches == maxRun || r.settles(a):
		return -1, err
	case r.bound >= 0 && a.end > r.bound:
		return r.bound, nil
	}
	runs := []run{a}
	for last := a; last.batches < a.batches+manyBatches && len(runs) < maxRuns && rest.budget > 0; {
		at, err := rest.goodFrom(last.end)
		if err != nil {
			return -1, err
		}
		if at < 0 {
			break
		}
		if last, err = rest.run(at, a.batches+manyBatches); err != nil {
			return -1, err
		}
		if runs = append(runs, last); r.settles(last) {
			if last.first < a.next {
				return a.end, nil
			}
			break
		}
	}
	with, without := inOrder(runs, true), inOrder(runs[1:], false)
	if with < without || jump && with == without {
		return a.end, nil
	}
	return -1, nil
}

// settles reports whether a run is known to be at its place by where it ends.
func (r *resync) settles(n run) bool {
	return n.end == r.bound || r.end >= 0 && n.end >= r.endPos && n.next == r.end
}

// inOrder returns how many offsets of runs can be kept so that they go up, at most. With first, the first run is kept.
func inOrder(runs []run, first bool) (most int64) {
	kept := make([]int64, len(runs)) // of the runs up to one that is kept; 0: it is not
	for i, n := range runs {
		if i == 0 || !first {
			kept[i] = n.next - n.first
		}
		for k, before := range runs[:i] {
			if kept[k] > 0 && before.next < n.next {
				kept[i] = max(kept[i], kept[k]+n.next-max(n.first, before.next))
			}
		}
		most = max(most, kept[i])
	}
	return most
}

// goodFrom returns the position of the first good batch from pos on, or -1.
func (r *resync) goodFrom(pos int64) (int64, error) {
	for {
		if good, err := r.good(pos); good || err != nil {
			return pos, err
		}
		if r.bound >= 0 && pos >= r.bound {
			return -1, nil
		}
		var err error
		if pos, err = r.nextStart(pos); err != nil || pos < 0 {
			return -1, err
		}
	}
}

// run is a number of batches that join, from offset first up to position end and offset next.
type run struct{ end, first, next, batches int64 }

const (
	maxRun      = 4096 // joined batches that are taken to be at their place, whatever follows
	maxRuns     = 16   // runs that are compared
	manyBatches = 64   // that a run must have more than the first one, so that those behind it don't matter
)

// run returns the run of at most most batches that begins with the good batch at pos, or with the position that is known to be
// the beginning of one. It goes by the headers, but a run that ends in a batch of which a part is missing does not have that one.
func (r *resync) run(pos, most int64) (run, error) {
	n := run{end: pos}
	last := n
	for n.batches < most && n.end != r.bound {
		var h [headerLen]byte
		k, err := readUpTo(r.f, h[:], n.end, r.size)
		if err != nil {
			return n, err
		}
		if k < headerLen || !r.plausible(h[:], n.end) || n.batches > 0 && batch(h[:]).base() != n.next {
			break
		}
		r.budget -= headerLen
		if last = n; n.batches == 0 {
			n.first = batch(h[:]).base()
		}
		n.end, n.next, n.batches = n.end+batch(h[:]).size(), batch(h[:]).last()+1, n.batches+1
	}
	if last.batches > 0 && n.batches < most && n.end != r.bound {
		r.budget -= n.end - last.end
		if good, err := r.good(last.end); !good || err != nil {
			return last, err
		}
	}
	return n, nil
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
	claims := false
	if n == headerLen {
		at, err := r.byLength(pos, h[:])
		if err != nil || at >= r.zeros {
			return -1, err
		}
		if at >= 0 {
			return at, nil
		}
		declared := pos + batch(h[:]).size()
		claims = declared >= r.zeros && declared <= r.zeros+maxSlack && (r.bound < 0 || declared <= r.bound)
		if declared >= pos+headerLen && declared < r.zeros && (r.bound < 0 || declared <= r.bound) {
			if good, err := r.good(declared); good || err != nil {
				return declared, err
			}
		}
	}
	p := resyncPass{r: r, pos: pos, header: h[:n], claims: claims, at: pos + 1, best: -1, chains: map[int64]chain{}}
	return p.run(limit)
}

// maxBefore bounds the bytes that before searches, so that a walk past many damages costs each of them that much at most.
const maxBefore = 16 << 20

// before returns the position and base offset of the first good batch between the damage at pos and the batch at until,
// whose base offset is base and to which find led. If there is none, it returns until and base. A second damage cuts such a
// batch off from any position where a batch is known to begin, so find passes it over. It counts if headers lead from it
// to exactly until, over damaged batches too, and all offsets on the way are among those that would be lost otherwise. Where
// no offsets are missing, they must be as many.
//
// That is as safe as the rule for good batches that lead to a known position. Batches in the value of a record are followed
// by other bytes of the record or, where the second damage cuts the value, by a header that leads to a position inside the
// record. They lead to the beginning of a batch of the log only if a value was made to end where its record does
// (docs/reliability.md, "Not shown"). For the same reason two joined batches do not count here by themselves, as they do where no
// position is known, nor if the second damage destroyed a header. But where no offsets are missing, manyJoined of them do, wherever they
// lead: a value that holds so many, with just the offsets that are lost, would have to be made for it.
func (r *resync) before(pos, until, base int64) (int64, int64, error) {
	size := min(until, pos+maxBefore)
	if size < until && !r.dense {
		return until, base, nil
	}
	lost := resync{f: r.f, base: r.base, next: r.next, end: base, size: size, zeros: size, bound: -1,
		dense: r.dense, endPos: until, budget: resyncBudget*(size-pos) + firstChunk}
	trail := lost.trail(pos)
	for {
		at, first, err := lost.search(pos, trail)
		trail.next = -1 // it is not known what the next search begins with
		if err != nil || at < 0 {
			return until, base, err
		}
		if r.dense {
			if many, err := lost.manyJoin(at, first); many || err != nil {
				return at, first, err
			}
		}
		last, good := first-1, true
		joins := first // the offset that joins all headers from at on; -1: not known
		for to := at; ; {
			if to == until {
				if r.dense && joins >= 0 && joins != base {
					break
				}
				return at, first, nil
			}
			var h [headerLen]byte
			n, err := readUpTo(r.f, h[:], to, until)
			if err != nil {
				return until, base, err
			}
			end, delta := to+batch(h[:]).size(), batch(h[:]).lastDelta()
			plausible := n == headerLen && lost.plausible(h[:], to)
			switch follows := batch(h[:]).base() > last; {
			case plausible && follows:
				if joins < 0 {
					joins = batch(h[:]).base()
				}
				if good {
					if good, err = lost.good(to); err == nil && !good {
						end, err = lost.orByLength(to, h[:])
					}
				}
				last, joins = batch(h[:]).last(), joins+delta+1
			case plausible && !r.dense:
				end = -1
			default:
				good = false
				end, err = lost.flawed(to, h[:n], joins)
				if last++; joins+delta >= base || delta < 0 {
					joins = -1
				} else if joins >= 0 {
					joins += delta + 1
				}
			}
			if end < 0 && err == nil {
				break
			}
			if err != nil {
				return until, base, err
			}
			if to = end; good {
				pos = to // the next search begins there
			}
		}
	}
}

// manyJoined is the number of joined batches that count although they do not lead to where a batch is known to begin.
const manyJoined = 8

// manyJoin reports whether manyJoined good batches stand one behind the other from at on, and none leaves out an offset behind first.
func (r *resync) manyJoin(at, first int64) (bool, error) {
	for range manyJoined {
		if good, err := r.good(at); !good || err != nil {
			return false, err
		}
		var h [headerLen]byte
		if _, err := readUpTo(r.f, h[:], at, r.size); err != nil || batch(h[:]).base() != first {
			return false, err
		}
		at, first = at+batch(h[:]).size(), batch(h[:]).last()+1
	}
	return true, nil
}

// orByLength returns the end of the damaged batch with header h at pos, whose length may be wrong.
func (r *resync) orByLength(pos int64, h []byte) (int64, error) {
	end, err := r.byLength(pos, h)
	if end < 0 {
		end = pos + batch(h).size()
	}
	return end, err
}

// goesOn returns the position and base offset of the next good batch behind the damage at pos, as find and before do; found is -1 if there
// is none. Readers, Repair and Verify all go by it, so that they find the same batches. The search is bounded by the next entry
// of offsets, the offset index, that leads to a good batch, or else by limit, if that is not -1: without a bound, two adjacent batches
// inside the value of a record would be taken for batches of the log. Where the flushed batches are said to end is no bound if nothing leads
// there and no good batch stands there: bytes were inserted before, or left out.
func (r *resync) goesOn(pos int64, offsets []byte, limit int64) (found, base int64, err error) {
	found, base, err = r.within(pos, offsets, limit)
	if m := &r.flushed; err == nil && !m.moved && m.pos > pos && (found < 0 || found > m.pos) {
		m.moved = true
		if at, first, e := r.within(pos, offsets, limit); at >= 0 || e != nil {
			found, base, err = at, first, e
		}
	}
	if found > pos && err == nil {
		return r.before(pos, found, base)
	}
	return found, base, err
}

// within is find up to the next position where a batch is known to begin.
func (r *resync) within(pos int64, offsets []byte, limit int64) (found, base int64, err error) {
	if r.bound, r.until = limit, 0; r.flushed.moved && limit == r.flushed.pos {
		r.bound = -1
	}
	r.boundBy(offsets, pos)
	return r.find(pos)
}

// boundBy makes the next entry of an offset index behind pos that leads to a good batch the bound of the search.
func (r *resync) boundBy(offsets []byte, pos int64) {
	for i := seekPos(offsets, pos) + 1; i < len(offsets)/offsetEntryLen; i++ {
		entry := hintAt(offsets, i)
		if r.bound >= 0 && entry.pos >= r.bound {
			return
		}
		if r.budget < 0 {
			return
		}
		if good, err := r.good(entry.pos); !good || err != nil {
			continue
		}
		var b [headerLen]byte
		if n, err := readUpTo(r.f, b[:], entry.pos, r.size); err == nil && n == headerLen && batch(b[:]).last() <= r.base+entry.rel {
			if r.bound = entry.pos; r.dense && batch(b[:]).last() == r.base+entry.rel {
				r.until = batch(b[:]).base()
			}
			return
		}
	}
}
