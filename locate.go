package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// window reads parts of a segment: straight from the mapping, or through a small buffer where there is none. What it
// returns is valid until the next call.
type window struct {
	h   *handle
	end int64 // position that is not read past
	// unmapped: through the buffer all the same, since pages that are mapped stay in the page cache.
	unmapped bool
	buf      []byte
	lo       int64 // position of buf[0]
	n        int   // bytes of buf that are filled
}

func (w *window) reset(h *handle, end int64) { w.h, w.end, w.lo, w.n = h, end, 0, 0 }

// at returns [pos, pos+n), which lies below end.
func (w *window) at(pos, n int64) ([]byte, error) {
	if w.h.m != nil && !w.unmapped {
		w.h.warm.touch(w.h.m, pos, n, w.end)
		return w.h.m.b[pos : pos+n : pos+n], nil
	}
	if off := pos - w.lo; off >= 0 && off+n <= int64(w.n) {
		return w.buf[off : off+n], nil
	}
	size := min(max(n, firstChunk, int64(len(w.buf))), w.end-pos)
	if int64(len(w.buf)) < size {
		w.buf = make([]byte, size)
	}
	k, err := w.h.f.ReadAt(w.buf[:size], pos)
	w.lo, w.n = pos, k
	if int64(k) < n {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("seglog: read %s at position %d: %w", w.h.path, pos, err)
	}
	return w.buf[:n], nil
}

// warmth remembers which parts of a mapping were in memory a while ago. Parts that were not are brought in by
// mapping.load before they are touched, so that a reader of cold data waits in a system call and holds up nobody.
type warmth struct {
	parts []atomic.Uint32 // a bit each
}

const (
	// warmPart: one bit stands for that many bytes. Loading them costs a few microseconds if they are in memory.
	warmPart = 64 << 10
	// warmFor: what was not used for that long may have been evicted.
	warmFor = 10 * time.Second
)

func newWarmth(size int64) warmth {
	return warmth{parts: make([]atomic.Uint32, size/warmPart/32+1)}
}

func (w *warmth) touch(m *mapping, pos, n, end int64) {
	for part := pos / warmPart; part*warmPart < pos+n; part++ {
		word, bit := &w.parts[part/32], uint32(1)<<(part%32)
		if word.Load()&bit == 0 {
			m.load(part*warmPart, min(warmPart, end-part*warmPart))
			word.Or(bit)
		}
	}
}

// cool forgets what was warm; the log's keeper calls it from time to time.
func (w *warmth) cool() {
	for i := range w.parts {
		w.parts[i].Store(0)
	}
}

// fileRange reads [pos, end) of a file in order.
type fileRange struct {
	f        io.ReaderAt
	pos, end int64
}

func (r *fileRange) Read(p []byte) (int, error) {
	if r.pos >= r.end {
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-r.pos)], r.pos)
	r.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// found is a batch that locate came to: its position, size and offsets.
type found struct {
	pos, size  int64
	base, last int64
}

func (f found) end() int64 { return f.pos + f.size }

// errIndex: an entry points to a batch that it does not fit. The index is rebuilt and asked again.
var errIndex = errors.New("seglog: index does not fit the log")

// walk goes from batch to batch by their headers, from hint on, until stop says so, or limit is reached: ok is false
// then. Each batch must continue where the one before ended; where offsets are left out, which a flipped bit can look
// like, the batches walked over are checked whole.
func (s *segment) walk(e *env, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	pos, next := from.pos, s.base
	for pos < limit.pos() {
		b, err := s.headerAt(w, pos, limit, next)
		if err != nil {
			if from.rel >= 0 && pos == from.pos {
				return found{}, false, errIndex
			}
			return found{}, false, err
		}
		f = found{pos: pos, size: b.size(), base: b.base(), last: b.last()}
		switch {
		case from.rel >= 0 && pos == from.pos:
			if f.last != s.base+from.rel {
				return found{}, false, errIndex
			}
		case f.base < next:
			return found{}, false, &CorruptError{Path: w.h.path, Pos: pos, Offset: next, Reason: fmt.Sprintf("offsets go back: batch has %d to %d", f.base, f.last)}
		case f.base > next && !e.gaps.Load():
			return found{}, false, &CorruptError{Path: w.h.path, Pos: pos, Offset: next, Reason: fmt.Sprintf("offsets are missing: batch has %d to %d", f.base, f.last)}
		case f.base > next:
			if err := s.checkRange(w.h, from, limit, pos); err != nil {
				return found{}, false, err
			}
		}
		if stop(f) {
			return f, true, nil
		}
		pos, next = f.end(), f.last+1
	}
	return found{}, false, nil
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

// checkRange checks the batches from hint up to and with the one at pos, CRCs and successors included.
func (s *segment) checkRange(h *handle, from hint, limit mark, pos int64) error {
	var c scanner
	start := int64(-1)
	if from.rel < 0 {
		start = s.base
	}
	c.init(&fileRange{h.f, from.pos, limit.pos()}, h.path, from.pos, start, s.base+limit.rel())
	c.gaps = true
	for c.pos <= pos {
		if _, err := c.scan(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	return nil
}

// locate finds the batch that holds offset, or the first behind it; ok is false if there is none below limit.
func (s *segment) locate(e *env, h *handle, w *window, offset int64, limit mark) (f found, ok bool, err error) {
	w.reset(h, limit.pos())
	rel := uint32(max(0, offset-s.base))
	return s.throughIndex(e, h, func(x *indexes) (found, bool, error) {
		return s.walk(e, w, seekOffset(x.offsets.bytes(), rel), limit, func(f found) bool { return f.last >= offset })
	})
}

// boundary finds the last batch that ends at or below pos; ok is false if there is none.
func (s *segment) boundary(e *env, h *handle, w *window, pos int64, limit mark) (f found, ok bool, err error) {
	w.reset(h, limit.pos())
	return s.throughIndex(e, h, func(x *indexes) (best found, ok bool, err error) {
		offsets := x.offsets.bytes()
		i := seekPos(offsets, pos)
		for ; i >= -1 && !ok && err == nil; i-- { // an entry's own batch may end above pos
			_, _, err = s.walk(e, w, hintAt(offsets, i), limit, func(f found) bool {
				if f.end() > pos {
					return true
				}
				best, ok = f, true
				return false
			})
		}
		return best, ok, err
	})
}

// throughIndex does a look-up by the indexes of h, and once more with rebuilt ones should they prove wrong.
func (s *segment) throughIndex(e *env, h *handle, lookUp func(*indexes) (found, bool, error)) (f found, ok bool, err error) {
	f, ok, err = s.guardedLookUp(h, lookUp)
	if err != errIndex {
		return f, ok, err
	}
	if s.active.Load() {
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

// readIndexes looks into the indexes of h where that is no look-up.
func (h *handle) readIndexes(look func(*indexes)) (err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	look(h.x.Load())
	return nil
}

// loadIndexes gives a sealed segment's handle its indexes: from their files if these are plausible, else rebuilt.
func (s *segment) loadIndexes(e *env, h *handle) error {
	x := new(indexes)
	h.x.Store(x) // the handle releases what is mapped, whatever comes
	offsets, why, err := loadIndex(e, s.base, indexSuffix, x)
	if err != nil {
		return err
	}
	var times []byte
	if why == "" {
		if times, why, err = loadIndex(e, s.base, timeSuffix, x); err != nil {
			return err
		}
	}
	x.offsets, x.times = newTable(offsets), newTable(times)
	sizes := uint64(len(offsets))<<32 | uint64(len(times))<<1 | 1
	if why == "" && s.checked.Load() != sizes {
		if why = s.checkIndexes(e, h); why == "" {
			s.checked.Store(sizes)
		}
	}
	if why != "" {
		return s.rebuildLocked(e, h, why)
	}
	return nil
}

// mapIndexFrom: below, a read costs less than a mapping; from there on the indexes of thousands of segments are better left to
// the page cache.
const mapIndexFrom = 16 << 10

// loadIndex brings an index file into memory, mapped if it is large and that can be done; x releases the mapping. why
// says that it is missing or too large.
func loadIndex(e *env, base int64, suffix string, x *indexes) (b []byte, why string, err error) {
	path := e.path(base, suffix)
	f, err := e.openRead(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, suffix + " file is missing", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("seglog: open index of segment %d: %w", base, err)
	}
	defer f.Close()
	size, err := f.size()
	if err != nil {
		return nil, "", fmt.Errorf("seglog: open index of segment %d: %w", base, err)
	}
	if size > maxIndexBytes+timeEntryLen {
		return nil, fmt.Sprintf("%s file has %d bytes", suffix, size), nil
	}
	if x != nil && size >= mapIndexFrom {
		if m, err := f.mmap(size, false); err == nil {
			m.load(0, size)
			x.mapped = append(x.mapped, m)
			return m.b, "", nil
		}
	}
	b = make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, "", fmt.Errorf("seglog: read %s: %w", path, err)
	}
	return b[:n], "", nil
}

// readIndex reads an index file whole: it is 1/500 of its segment.
func readIndex(e *env, base int64, suffix string) (b []byte, why string, err error) {
	return loadIndex(e, base, suffix, nil)
}

// checkIndexes says why the indexes that h got from files are not to be used, or "". Besides the entries themselves it
// looks at the batch the last entry of each points to, and at all batches behind the last offset entry.
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
		if ms, err := s.maxTimeAt(e, h, &w, s.base+int64(rel), limit); err != nil || ms != lastTime {
			return "last time entry points to a batch that it does not fit"
		}
	}
	from := hintAt(offsets, len(offsets)/offsetEntryLen-1)
	late := ""
	_, _, err := s.guardedLookUp(h, func(*indexes) (found, bool, error) {
		return s.walk(e, &w, from, limit, func(f found) bool {
			p, err := w.at(f.pos, headerLen)
			switch {
			case err != nil:
				late = err.Error()
			case f.pos-from.pos > int64(e.o.IndexBytes):
				late = "offset index ends early"
			case batch(p).maxTimestamp() > lastTime:
				late = "time index ends early"
			}
			return late != ""
		})
	})
	if err == errIndex {
		return "last offset entry points to a batch that it does not fit"
	}
	return late // other damage of the log is for its readers to report
}

// maxTimeAt is the greatest timestamp of the batch with that last offset.
func (s *segment) maxTimeAt(e *env, h *handle, w *window, last int64, limit mark) (ms int64, err error) {
	w.reset(h, limit.pos())
	_, ok, err := s.guardedLookUp(h, func(x *indexes) (found, bool, error) {
		f, ok, err := s.walk(e, w, seekOffset(x.offsets.bytes(), uint32(last-s.base)), limit, func(f found) bool { return f.last >= last })
		if err != nil || !ok || f.last != last {
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

// rebuild makes the indexes of a sealed segment anew and, unless the log is read-only, writes them.
func (s *segment) rebuild(e *env, h *handle, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rebuildLocked(e, h, why)
}

func (s *segment) rebuildLocked(e *env, h *handle, why string) error {
	x, err := s.buildIndexes(e, h)
	if err != nil {
		return err
	}
	offsets, times := x.files()
	rebuilt := &indexes{offsets: newTable(offsets), times: newTable(times)}
	if old := h.x.Load(); old != nil {
		rebuilt.mapped = old.mapped // others may look into them still
	}
	h.x.Store(rebuilt)
	e.stats.indexRebuilds.Add(1)
	if e.o.ReadOnly || s.gone.Load() {
		return nil
	}
	e.o.Logger.Warn("seglog: index rebuilt", "dir", e.dir, "segment", s.base, "reason", why)
	if err := writeIndexes(e, s.base, x); err != nil {
		// The log is whole and the indexes are in memory; the next Open finds the same and tries again.
		e.stats.errors.Add(1)
		e.o.Logger.Error("seglog: rebuilt index not written", "dir", e.dir, "segment", s.base, "err", err)
	}
	return nil
}

// buildIndexes reads the segment through and checks every batch.
func (s *segment) buildIndexes(e *env, h *handle) (*indexBuilder, error) {
	limit := s.stored.load()
	x := newIndexBuilder(e.o.IndexBytes)
	var c scanner
	c.init(&fileRange{h.f, 0, limit.pos()}, h.path, 0, s.base, s.base+limit.rel())
	c.gaps = e.gaps.Load()
	for {
		pos := c.pos
		b, err := c.scan()
		if err == io.EOF {
			return x, nil
		}
		if err != nil {
			return nil, err
		}
		x.add(pos, uint32(b.last()-s.base), b.maxTimestamp())
	}
}

// writeIndexes puts both files in place whole, so that no crash leaves a half of one under its name.
func writeIndexes(e *env, base int64, x *indexBuilder) error {
	offsets, times := x.files()
	if err := replaceFile(e, e.path(base, indexSuffix), offsets); err != nil {
		return err
	}
	return replaceFile(e, e.path(base, timeSuffix), times)
}
