package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// Snapshot makes a copy of the log in dir, which must be empty or absent: the log as it is now, up to the high watermark.
// Appends go on meanwhile. The copy opens like a log that was closed. Where both directories lie on one file system, sealed
// segments and their indexes are linked rather than copied, which takes little time and space; the rest is copied and
// flushed. Afterwards the log and its copy are independent of each other, since no log writes into a sealed file. (Other
// programs may: for a copy that a Kafka broker is to use, copy the bytes.) Snapshot works on a read-only log, too.
//
// If Snapshot fails, it removes everything that it made, except the directory. If a removal fails too, the error says so. What
// is left then must be removed by hand before the directory can be used again; among it are LOCK and seglog.state, which keep
// Open from taking the rest for a log. If Snapshot is killed, it leaves a directory that Open refuses, or one without any file but
// LOCK, which Open takes for a new log. Errors: ErrInvalid for a directory that is not empty; a *CorruptError for damage in the bytes
// to copy; those of the operating system; ErrFailed if a cut has failed half-way; ErrBusy if the writer of a read-only log
// keeps cutting; ErrClosed.
func (l *Log) Snapshot(dir string) error {
	if dir == "" {
		return invalid("the name of the directory is empty")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("seglog: snapshot: %w", err)
	}
	if err = l.snapshot(dir); err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("seglog: snapshot to %s: %w", dir, err)
	}
	return err
}

// snapshotTries bounds the attempts of a snapshot, each of which a cut of the log may end. One of a log that another process
// writes, which can't be made to wait, goes on for maxCutWait at least.
const snapshotTries = 8

func (l *Log) snapshot(dir string) (err error) {
	if l.closed.Load() {
		return ErrClosed
	}
	s := &snapshot{l: l}
	s.to.fs, s.to.dir, s.to.o = l.fs, dir, l.o
	if err := s.prepare(); err != nil {
		return err
	}
	defer func() {
		if err != nil && l.closed.Load() && errors.Is(err, fs.ErrClosed) {
			err = ErrClosed // Close has closed the directory, or a segment, meanwhile
		}
		err = errors.Join(err, s.release(err != nil))
	}()
	began := time.Now()
	for try := 1; ; try++ {
		last := try >= snapshotTries && (l.readOnly == nil || time.Since(began) > maxCutWait)
		if err = s.try(last); !errors.Is(err, errGone) {
			return err
		}
		if last {
			return fmt.Errorf("%w: it is cut faster than it can be copied", ErrBusy)
		}
		if err = s.clear(); err != nil {
			return err
		}
		if try >= snapshotTries {
			pauseForCut(began) // which may be one that failed, and that the next Open finishes
		}
	}
}

// try makes an attempt. The last one makes the log's writer wait, so that it succeeds, unless that is in another process.
func (s *snapshot) try(last bool) error {
	l := s.l
	if l.readOnly != nil {
		if err := l.readOnly.refresh(); err != nil {
			return err
		}
		if err := l.readOnly.awaitCut(l.claimed() - 1); err != nil { // which hides records that stay
			return err
		}
	}
	l.mu.Lock() // keeps cuts, rolls and deletions out
	err := s.plan()
	if err == nil && l.claimed() > l.end.Load() {
		err = errGone
	}
	if err == nil && last && l.readOnly == nil {
		defer l.mu.Unlock()
		return s.copy()
	}
	l.mu.Unlock()
	if err == nil {
		err = s.copy()
	}
	return err
}

// prepare takes the directory over, with a state file that says that the copy is not finished.
func (s *snapshot) prepare() error {
	fsys := s.to.fs
	if err := fsys.MkdirAll(s.to.dir); err != nil {
		return err
	}
	names, err := fsys.List(s.to.dir)
	if err != nil {
		return err
	}
	// A new file system has a directory lost+found.
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" && s.to.isDir(name) })
	if len(names) > 0 {
		return invalid("directory is not empty: it holds %s", names[0])
	}
	if s.lock, err = fsys.Lock(filepath.Join(s.to.dir, lockName)); err != nil {
		return err
	}
	unfinished := state{cut: -1, manifest: unfinishedManifest}
	if s.file, err = openState(fsys, filepath.Join(s.to.dir, stateName), unfinished); err == nil {
		err = s.file.commit(func(*state) {})
	}
	if err == nil {
		err = fsys.SyncDir(s.to.dir)
	}
	if err != nil {
		err = errors.Join(err, s.release(true))
	}
	return err
}

// release closes everything and, after a failure, its own included, removes it.
func (s *snapshot) release(failed bool) error {
	var errs []error
	if !failed {
		err := errors.Join(s.file.close(), s.lock.Close())
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	// The state file goes last, and only once the segments are removed durably: without a state file they would be taken for
	// a log.
	err := s.clear()
	if err == nil && s.cleared {
		err = s.to.fs.SyncDir(s.to.dir)
	}
	cleared := err == nil
	errs = append(errs, err)
	remove := func(name string) {
		if err := s.to.fs.Remove(filepath.Join(s.to.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if failed && s.file != nil {
		errs = append(errs, s.file.close())
	}
	if cleared {
		remove(stateName)
	}
	if failed {
		errs = append(errs, s.lock.Close())
	}
	if cleared {
		remove(lockName)
	}
	return errors.Join(errs...)
}

// clear removes the segments made so far. Those that can't be removed stay in made.
func (s *snapshot) clear() error {
	var errs []error
	s.cleared = s.cleared || len(s.made) > 0
	s.made = slices.DeleteFunc(s.made, func(path string) bool {
		gone := true
		for _, path := range []string{path, filepath.Join(s.to.dir, tmpPrefix+filepath.Base(path))} {
			if err := s.to.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs, gone = append(errs, err), false
			}
		}
		return gone
	})
	return errors.Join(errs...)
}

// plan notes which segments and bounds there are to copy. l.mu is held.
func (s *snapshot) plan() error {
	l := s.l
	if l.closed.Load() {
		return ErrClosed
	}
	segs := l.view.Load().segs
	last := segs[len(segs)-1].base
	switch {
	case l.readOnly == nil:
		s.unsealed = l.writer.unsealed().base
		l.state.mu.Lock()
		s.st = l.state.cur
		l.state.unlock()
		if err := l.failed(); err != nil && s.st.cut >= 0 {
			return err // a cut failed half-way: until Open finishes it, the files are parts of two histories
		}
	case l.readOnly.promised:
		s.st, s.unsealed = l.readOnly.seen, min(l.readOnly.seen.scanBase, last)
	default:
		s.st, s.unsealed = state{cut: -1, lastCut: -1}, last
	}
	s.cuts = l.cuts.Load()
	s.start, s.end = l.start.Load(), l.highWatermark()
	s.segs = nil
	if s.start > s.end {
		return errGone // the writer in another process is deleting or cutting
	}
	if s.end > s.start {
		from := max(0, (&view{segs}).find(s.start)) // earlier segments wait for their deletion
		// With the one that begins at the end, since no segment before it need reach that far.
		s.segs = segs[from : (&view{segs}).find(s.end)+1]
	}
	return nil
}

// copy copies the segments from the newest to the oldest: if retention deletes some meanwhile, the copy only starts later.
func (s *snapshot) copy() error {
	l := s.l
	var size int64
	var bases []int64 // newest first
	if len(s.segs) == 0 {
		bases = []int64{s.end}
		if err := s.store(nil, newIndexBuilder(l.o.IndexBytes), s.end, 0); err != nil {
			return err
		}
	}
	for i := len(s.segs) - 1; i >= 0; i-- {
		if l.closed.Load() {
			return ErrClosed
		}
		seg, last := s.segs[i], i == len(s.segs)-1
		n := int64(0)
		var err error
		// The last segment becomes the copy's active one, which is written to, so it must be a file of its own.
		if last || seg.base >= s.unsealed {
			n, err = s.copyBatches(seg)
		} else {
			err = s.link(seg)
		}
		if errors.Is(err, errGone) && !last {
			if gone, cutErr := s.cut(); cutErr != nil || gone {
				return errors.Join(err, cutErr)
			}
			break // it was deleted, and so were all before it
		}
		if err != nil {
			return err
		}
		if last {
			size = n
		}
		bases = append(bases, seg.base)
	}
	if cut, err := s.cut(); err != nil {
		return err
	} else if cut {
		return errGone
	}
	if err := s.to.fs.SyncDir(s.to.dir); err != nil {
		return err
	}
	slices.Reverse(bases)
	return s.file.commit(func(st *state) {
		seq := st.seq
		*st = s.st
		st.seq, st.clean, st.gaps, st.cut, st.reset = seq, true, l.gaps.Load(), -1, false
		st.start = max(s.start, bases[0])
		st.recoveryPoint, st.end, st.endPos = s.end, s.end, size
		st.set(bases, bases[len(bases)-1], markAt(s.end-bases[len(bases)-1], size))
	})
}

// snapshot is one call of Snapshot.
type snapshot struct {
	l    *Log
	to   env
	lock io.Closer
	file *stateFile
	made []string // paths of the files in to, except lock and state file
	// cleared: files were removed, by this try or an earlier one, whose names a power cut may bring back.
	cleared bool

	// The log to be copied, all of one moment:
	st       state
	start    int64
	end      int64 // the high watermark
	segs     []*segment
	unsealed int64 // base offset of the first segment that is not sealed
	cuts     int64
}

// cut reports whether the log was cut since plan, so that the copied bytes may be of two histories.
func (s *snapshot) cut() (bool, error) {
	l := s.l
	if l.cuts.Load() != s.cuts {
		return true, nil
	}
	if l.readOnly == nil {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.readOnly.promised {
		return false, nil
	}
	st, err := l.readOnly.readWriterState()
	return st.cuts != s.st.cuts || st.cut >= 0, err
}

// copyBatches copies the batches of a segment that lie below the end of the snapshot, and builds their indexes.
func (s *snapshot) copyBatches(seg *segment) (size int64, err error) {
	h, err := seg.pin(&s.l.env)
	if errors.Is(err, fs.ErrNotExist) {
		if gone, e := s.gone(seg); e != nil || gone {
			err = errors.Join(errGone, e)
		}
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.unref()) }()
	limit := s.l.limit(seg)
	x := newIndexBuilder(s.l.o.IndexBytes)
	var c scanner
	c.init(&fileRange{h.f, 0, limit.pos()}, h.path, 0, seg.base, seg.base+limit.rel())
	c.gaps = s.l.gaps.Load()
	for c.next < s.end {
		b, err := c.scan()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		if b.last() >= s.end {
			break // the snapshot ends in a gap
		}
		x.add(size, uint32(b.last()-seg.base), b.maxTimestamp())
		s.st.epoch = max(s.st.epoch, int64(b.epoch()))
		size = c.pos
	}
	return size, s.store(h.f, x, seg.base, size)
}

// store makes a segment with its indexes from the first size bytes of src.
func (s *snapshot) store(src vfs.File, x *indexBuilder, base, size int64) error {
	path := s.to.path(base, logSuffix)
	s.made = append(s.made, path, s.to.path(base, indexSuffix), s.to.path(base, timeSuffix)) // an open that fails may have made it
	out, err := s.to.fs.Open(path, vfs.OpenCreate)
	if err != nil {
		return err
	}
	if err = vfs.CopyRange(out, 0, src, 0, size); err == nil {
		err = out.Flush()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return writeIndexes(&s.to, base, x, true)
}

// link links the files of a sealed segment into the copy, or copies them where they can't be linked.
func (s *snapshot) link(seg *segment) error {
	for _, suffix := range []string{logSuffix, indexSuffix, timeSuffix} {
		from, to := s.l.path(seg.base, suffix), s.to.path(seg.base, suffix)
		s.made = append(s.made, to)
		err := s.to.fs.Link(from, to)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = s.copyFile(from, to)
		}
		if errors.Is(err, fs.ErrNotExist) {
			gone, goneErr := s.gone(seg)
			switch {
			case goneErr != nil:
				err = goneErr
			case gone:
				err = errors.Join(errGone, s.to.removeSegmentFiles(seg.base))
			case suffix != logSuffix:
				err = nil // an index is rebuilt when the copy needs it
			default:
				err = &CorruptError{Path: from, Offset: seg.base, Reason: "segment is missing", cause: err}
				if moved := s.l.ours(); moved != nil { // or removed, and the segment with it
					err = moved
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return s.l.ours()
}

// gone reports whether the log has deleted or cut a segment, as opposed to having lost its file.
func (s *snapshot) gone(seg *segment) (bool, error) {
	l := s.l
	if seg.is(phaseGone) {
		return true, nil
	}
	if l.readOnly != nil {
		if err := l.readOnly.refresh(); err != nil {
			return false, err
		}
	}
	cut, err := s.cut()
	return cut || seg.base < l.view.Load().segs[0].base, err
}

// copyFile copies a file that does not change.
func (s *snapshot) copyFile(from, to string) (err error) {
	src, err := s.to.fs.Open(from, vfs.OpenRead)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	size, err := src.Size()
	if err != nil {
		return err
	}
	out, err := s.to.fs.Open(to, vfs.OpenCreate)
	if err != nil {
		return err
	}
	if err = vfs.CopyRange(out, 0, src, 0, size); err == nil {
		err = out.Flush()
	}
	return errors.Join(err, out.Close())
}
