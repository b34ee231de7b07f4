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
