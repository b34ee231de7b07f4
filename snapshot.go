package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// Snapshot makes a copy of the log in dir, which must be empty or absent: the log as it is now, up to the high watermark.
// Appends go on meanwhile. The copy opens like a log that was closed. Where both directories lie on one file system, sealed
// segments and their indexes are linked rather than copied, which takes little time and space; the rest is copied and
// flushed. Afterwards the log and its copy are independent of each other, since no log writes into a sealed file. (Other
// programs may: for a copy that a Kafka broker is to use, copy the bytes.) Snapshot works on a read-only log, too.
//
// If Snapshot fails, it removes everything that it made, except the directory. If a removal fails too, the error says so. What
// is left then must be removed by hand before the directory can be used again; among it are LOCK and seglog.state, which keep
// Open from taking the rest for a log. If Snapshot is killed, it leaves a directory that Open refuses, or one without any file,
// which Open takes for a new log. Errors: ErrInvalid for a directory that is not empty; a *CorruptError for damage in the bytes
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
	defer func() { err = errors.Join(err, s.release(err != nil)) }()
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
		s.segs = segs[from : (&view{segs}).find(s.end-1)+1]
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
