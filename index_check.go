package seglog

import (
	"errors"
	"io"
)

// Whether index files fit the batches of their segment, what they tell of batches that are lost, and new ones made of the batches.

// checkIndexes returns why the indexes that h got from files must not be used, or "". Besides the entries themselves it
// checks the batch that the last entry of each index points to, and all batches behind the last offset entry.
func (s *segment) checkIndexes(e *env, h *handle) (why string) {
	err := h.readIndexes(func(x *indexes) { why = s.checkIndexesOf(e, h, x.offsets.bytes(), x.times.bytes()) })
	if err != nil {
		return "an index file is shorter than it was"
	}
	return why
}

func (s *segment) checkIndexesOf(e *env, h *handle, offsets, times []byte) (why string) {
	limit := s.stored.load()
	if why := checkEntries(offsets, times, limit.pos(), limit.rel()); why != "" {
		return why
	}
	var w window
	w.reset(h, limit.pos())
	lastTime := int64(noTimestamp)
	if n := len(times) / timeEntryLen; n > 0 {
		var rel uint32
		lastTime, rel = timeEntry(times, n-1)
		ms, err := s.maxTimeAt(e, h, &w, s.base+int64(rel), limit)
		if err != nil && !errors.Is(err, ErrCorrupt) || err == nil && ms != lastTime { // damage of the log is reported by reads
			return "last time entry does not match the batch that it points to"
		}
	}
	from := hintAt(offsets, len(offsets)/offsetEntryLen-1)
	late, most := "", int64(e.o.IndexBytes)
	_, _, err := s.guardedLookUp(h, func(*indexes) (found, bool, error) {
		return s.walk(e, &w, from, limit, func(f found) bool {
			p, err := w.at(f.pos, headerLen)
			switch {
			case err != nil:
				late = err.Error()
			case f.pos == from.pos && f.last < s.base+from.rel:
				most = max(most, maxAppend)
			case f.pos-from.pos > most:
				late = "offset index ends early"
			case batch(p).maxTimestamp() > lastTime:
				late = "time index ends early"
			}
			return late != ""
		})
	})
	if err == errIndex {
		return "last offset entry does not match the batch that it points to"
	}
	return late // damage of the log, as above
}

// maxAppend bounds an append of Kafka before 4.0, which made no entry inside of one; on a follower it is as large as
// replica.fetch.max.bytes. An entry that stands for several batches shows that the index is of that kind.
const maxAppend = 1 << 20

// maxTimeAt returns the greatest timestamp of the batch that holds the offset last. In a time index that is the last offset of
// the batch or, with some versions of Kafka, the offset of the record that has the timestamp.
func (s *segment) maxTimeAt(e *env, h *handle, w *window, last int64, limit mark) (ms int64, err error) {
	w.reset(h, limit.pos())
	_, ok, err := s.guardedLookUp(h, func(x *indexes) (found, bool, error) {
		f, ok, err := s.walk(e, w, seekOffset(x.offsets.bytes(), uint32(last-s.base)), limit, func(f found) bool { return f.last >= last })
		if err != nil || !ok || f.base > last {
			return f, false, err
		}
		p, err := w.at(f.pos, headerLen)
		if err == nil {
			ms = batch(p).maxTimestamp()
		}
		return f, true, err
	})
	if err == nil && !ok {
		err = errIndex
	}
	return ms, err
}

// rebuild builds the indexes of a sealed segment and, unless the log is read-only, writes them.
func (s *segment) rebuild(e *env, h *handle, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rebuildLocked(e, h, why)
}

func (s *segment) rebuildLocked(e *env, h *handle, why string) error {
	x, damage, err := s.buildIndexes(e, h)
	if err != nil {
		return err
	}
	offsets, times := x.files()
	rebuilt := &indexes{offsets: newTable(offsets), times: newTable(times)}
	if old := h.x.Load(); old != nil {
		rebuilt.mapped = old.mapped // other readers may still use them
	}
	h.x.Store(rebuilt)
	s.unsure.Store(x.unsure)
	if needsNoIndexes(e, s.base, s.stored.load().pos(), why) {
		return nil
	}
	e.stats.indexRebuilds.Add(1)
	if e.o.ReadOnly || s.is(phaseGone) || s.written() {
		return nil
	}
	if damage != nil {
		e.o.Logger.Warn("seglog: index rebuilt in memory, the log is damaged", "dir", e.dir, "segment", s.base, "reason", why, "err", damage)
		return nil // Repair will change the batches
	}
	e.o.Logger.Warn("seglog: index rebuilt", "dir", e.dir, "segment", s.base, "reason", why)
	if err := writeIndexes(e, s.base, x, true); err != nil {
		// The log is whole and the indexes are in memory; the next Open finds the same and tries again.
		e.stats.errors.Add(1)
		e.o.Logger.Error("seglog: rebuilt index not written", "dir", e.dir, "segment", s.base, "err", err)
	}
	return nil
}

// checkEnd returns a *CorruptError, and notes it for readers, if the segment, whose batches end at offset next, has lost some there.
func (s *segment) checkEnd(e *env, h *handle, next int64) error {
	size, err := h.f.Size()
	if err != nil {
		return nil
	}
	following := s.base + s.stored.load().rel()
	early, err := e.endsEarly(h.f, s.base, size, next, following)
	if err != nil || !early {
		return nil
	}
	h.short.Store(true)
	return &CorruptError{Path: h.path, Pos: size, Offset: next, NextOffset: following, Reason: lostEnd}
}

const lostEnd = "the segment ends here, and its index leads to batches behind"

// buildIndexes reads the whole segment and checks every batch. Damaged batches get no entry, so that those before and behind
// them can still be found. damage is the first damage.
func (s *segment) buildIndexes(e *env, h *handle) (x *indexBuilder, damage, err error) {
	return s.buildIndexesBelow(e, h, s.stored.load().pos())
}

// buildIndexesBelow is buildIndexes for the batches below end.
func (s *segment) buildIndexesBelow(e *env, h *handle, end int64) (x *indexBuilder, damage, err error) {
	x = newIndexBuilder(e.o.IndexBytes)
	src := &fileRange{h.f, 0, end}
	endOffset := s.base + s.stored.load().rel()
	r := resync{f: h.f, base: s.base, end: endOffset, size: end, zeros: end,
		dense: !e.gaps.Load(), jump: true, endPos: end, budget: resyncBudget * end, doubts: resyncBudget * end}
	var known []byte // the offset index that there was
	limit := int64(-1)
	var c scanner
	c.init(src, h.path, 0, s.base, endOffset)
	c.gaps = e.gaps.Load()
	for {
		pos := c.pos
		b, err := c.scan()
		if err == io.EOF {
			if damage == nil {
				damage = s.checkEnd(e, h, c.next)
			}
			x.unsure = damage != nil
			return x, damage, nil
		}
		if errors.Is(err, ErrCorrupt) {
			if damage == nil {
				damage = err
				var why string
				if known, why, err = readIndex(e, s.base, indexSuffix); err != nil {
					return nil, nil, err
				}
				if why == "" {
					limit = end
				}
			}
			r.next = c.next
			found, base, err := r.goesOn(pos, known, limit)
			if err != nil {
				return nil, nil, err
			}
			if found < 0 {
				x.unsure = true
				return x, damage, nil
			}
			if !c.skipTo(found, base) {
				src.pos = found
				c.restart(found, base)
			}
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		x.add(pos, uint32(b.last()-s.base), b.maxTimestamp())
	}
}

// endsEarly reports whether the index files of a sealed segment lead behind the end of its file f, which has size bytes and batches up
// to offset next: the file has lost batches. err is an error that has nothing to do with the contents of the index files.
func (e *env) endsEarly(f io.ReaderAt, base, size, next, following int64) (early bool, err error) {
	offsets, why, err := readIndex(e, base, indexSuffix)
	if why != "" || err != nil {
		return false, err
	}
	times, _, err := readIndex(e, base, timeSuffix)
	return err == nil && endsEarly(f, offsets, times, base, size, next, following), err
}

// endsEarly is env.endsEarly for given indexes. A segment is flushed before its indexes are written, and a cut removes them first. No
// single damage to an index looks like that, since both parts of the last offset entry must lead there, and the one before to a batch or,
// if all are behind the end, the last time entry there too.
func endsEarly(f io.ReaderAt, offsets, times []byte, base, size, next, following int64) bool {
	n := len(offsets) / offsetEntryLen
	k := seekPos(offsets, size-1)
	if k == n-1 || checkEntries(offsets, nil, maxSegmentBytes, following-base) != "" || base+hintAt(offsets, n-1).rel < next {
		return false
	}
	if k < 0 {
		if len(times) == 0 || checkEntries(offsets, times, maxSegmentBytes, following-base) != "" {
			return false
		}
		_, rel := timeEntry(times, len(times)/timeEntryLen-1)
		return base+int64(rel) >= next
	}
	var h [headerLen]byte
	known := hintAt(offsets, k)
	read, err := readUpTo(f, h[:], known.pos, size)
	return err == nil && read == headerLen && batch(h[:]).last() == base+known.rel
}
