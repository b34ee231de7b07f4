package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime/debug"

	"github.com/seglog/seglog/internal/vfs"
)

// readIndexes calls look with the indexes of h, and turns a fault of their mapping into errIndex.
func (h *handle) readIndexes(look func(*indexes)) (err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	look(h.x.Load())
	return nil
}

// loadIndexes gives the handle of a sealed segment its indexes: those in the files if they are plausible, otherwise new ones.
func (s *segment) loadIndexes(e *env, h *handle) error {
	x := new(indexes)
	h.x.Store(x) // so that the handle releases the mappings also if this fails
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

// takeTime makes the greatest timestamp that of x.
func (s *segment) takeTime(x *indexBuilder) {
	s.unsure.Store(x.unsure)
	s.maxTime.Store(x.maxTime)
}

// lastTime returns the timestamp of the last entry of a segment's time index, and the offset where its batches end. ok is
// false if a batch behind the one that the entry points to has a greater timestamp.
func (s *segment) lastTime(e *env, h *handle) (ms, end int64, ok bool, err error) {
	from := hint{rel: -1}
	ms, end = noTimestamp, s.base
	var w window
	limit := s.stored.load()
	w.reset(h, limit.pos())
	_, greater, err := s.guardedLookUp(h, func(x *indexes) (found, bool, error) {
		if times := x.times.bytes(); len(times) > 0 {
			var rel uint32
			ms, rel = timeEntry(times, len(times)/timeEntryLen-1)
			from = seekOffset(x.offsets.bytes(), rel)
		}
		return s.walk(e, &w, from, limit, func(f found) bool {
			end = f.last + 1
			p, err := w.at(f.pos, headerLen)
			return err == nil && batch(p).maxTimestamp() > ms
		})
	})
	return ms, end, !greater, err
}

// resumeIndexes returns the indexes of the last segment of a log that was closed, for appends to go on with. It checks those in the
// files, and builds new ones if they do not fit.
func (s *segment) resumeIndexes(e *env, f vfs.File, path string) (*indexBuilder, error) {
	offsets, why, err := readIndex(e, s.base, indexSuffix)
	var times []byte
	if why == "" && err == nil {
		times, why, err = readIndex(e, s.base, timeSuffix)
	}
	if err != nil {
		return nil, err
	}
	h := newHandle(f, path, nil)
	if why == "" {
		h.x.Store(&indexes{offsets: newTable(offsets), times: newTable(times)})
		why = s.checkIndexes(e, h)
	}
	if why == "" { // a time index that is older than the offset index is no harm to readers, but appends must not go on with it
		switch _, _, ok, err := s.lastTime(e, h); {
		case err != nil && err != errIndex && !errors.Is(err, ErrCorrupt):
			return nil, err
		case err == nil && !ok || err == errIndex:
			why = "time index ends early"
		}
	}
	if why == "" {
		x := newIndexBuilder(e.o.IndexBytes)
		x.resume(offsets, times)
		o, t := x.files()
		// Close has not flushed the files of a small segment (tail.leave), which a seal must.
		x.saved = len(offsets) > 0 && bytes.Equal(o, offsets) && bytes.Equal(t, times)
		return x, nil
	}
	x, damage, err := s.buildIndexes(e, h) // the damage is reported when it is read
	if err != nil || needsNoIndexes(e, s.base, s.stored.load().pos(), why) {
		return x, err
	}
	e.stats.indexRebuilds.Add(1)
	e.o.Logger.Warn("seglog: index rebuilt", "dir", e.dir, "segment", s.base, "reason", why, "damage", damage)
	return x, nil
}

// mapIndexFrom is the size from which on an index file is mapped. Below it, reading costs less; above it, the indexes of
// thousands of segments are better left in the page cache.
const mapIndexFrom = 16 << 10

const missingFile = " file is missing"

// tinySegment is the size up to which the last segment of a closed log has no index files. By default its offset index would have no
// entry, and to read all of the batches takes no longer than to read the files, while these would be most of what a Close costs.
const tinySegment = defaultIndexBytes

// needsNoIndexes reports whether a segment of that size, whose indexes can't be had for the reason given, has none since it is tiny.
func needsNoIndexes(e *env, base, size int64, why string) bool {
	if size > tinySegment || why != indexSuffix+missingFile {
		return false
	}
	_, err := e.fs.Stat(e.path(base, timeSuffix))
	return errors.Is(err, fs.ErrNotExist)
}

// loadIndex reads an index file, or maps it if it is large; x then holds the mapping. why says that the file is missing, too
// large, or can't be read. err is an error that has nothing to do with the contents of the file.
func loadIndex(e *env, base int64, suffix string, x *indexes) (b []byte, why string, err error) {
	path := e.path(base, suffix)
	f, err := e.acquire(path, vfs.OpenRead)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, suffix + missingFile, nil
	}
	if errors.Is(err, errNotRegular) {
		return nil, suffix + " is " + errNotRegular.Error(), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("seglog: open index of segment %d: %w", base, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, "", fmt.Errorf("seglog: open index of segment %d: %w", base, err)
	}
	if size > maxIndexBytes+timeEntryLen {
		return nil, fmt.Sprintf("%s file has %d bytes", suffix, size), nil
	}
	if x != nil && size >= mapIndexFrom {
		if m, err := f.Mmap(size, false); err == nil {
			loadPages(m, 0, size)
			x.mapped = append(x.mapped, m)
			return m.Bytes, "", nil
		}
	}
	b = make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("seglog: read %s at position %d: %w", path, n, err)
		if isShortage(err) {
			return nil, "", err
		}
		return nil, err.Error(), nil // the disk has lost a part of the file, which can be rebuilt
	}
	return b[:n], "", nil
}

// readIndex reads a whole index file. It is about 1/500 as large as its segment.
func readIndex(e *env, base int64, suffix string) (b []byte, why string, err error) {
	return loadIndex(e, base, suffix, nil)
}

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

// removeIndexes removes the index files of a segment, if there are any.
func (e *env) removeIndexes(base int64) error {
	if err := e.ours(); err != nil {
		return err
	}
	if err := e.removeFile(base, timeSuffix); err != nil {
		return err
	}
	return e.removeFile(base, indexSuffix)
}

// removeFile removes a file of a segment, if there is one.
func (e *env) removeFile(base int64, suffix string) error {
	if err := e.fs.Remove(e.path(base, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("seglog: remove file of segment %d: %w", base, err)
	}
	return nil
}

// writeIndexes writes both index files and renames them into place, so that no kill leaves a part of one under its name, and with
// flush no power cut either, once the caller has synced the directory.
func writeIndexes(e *env, base int64, x *indexBuilder, flush bool) error {
	offsets, times := x.files()
	if err := replaceFile(e, e.path(base, indexSuffix), offsets, flush); err != nil {
		return err
	}
	return replaceFile(e, e.path(base, timeSuffix), times, flush)
}

// replaceFile writes a file under a temporary name, flushes it if asked to, and renames it to path. A new file without contents, such
// as the offset index of a small segment, has nothing to flush.
func replaceFile(e *env, path string, content []byte, flush bool) error {
	tmp := filepath.Join(e.dir, tmpPrefix+filepath.Base(path))
	f, err := e.create(tmp)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		_, err := f.WriteAt(content, 0)
		if err == nil && flush {
			err = f.Flush()
		}
		if err != nil {
			return errors.Join(err, f.Close(), e.fs.Remove(tmp))
		}
	}
	if err := f.Close(); err != nil {
		return errors.Join(fmt.Errorf("seglog: write %s: %w", path, err), e.fs.Remove(tmp))
	}
	if err := e.fs.Rename(tmp, path); err != nil {
		return errors.Join(err, e.fs.Remove(tmp))
	}
	return nil
}
