package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// A log at rest holds two descriptors, of LOCK and of its directory, no mapping, no buffers and no timer, so that a process can
// have thousands of logs that are seldom used. There are two ways to come to rest. A log that was closed is at rest after Open,
// which changes nothing but the number of the process in LOCK, and nor does Close if nothing was appended. A log to which nothing was appended for restAfter
// closes its active segment and its state file, which need no other change for that; it does so earlier if the process runs out of
// descriptors. Reads open the last segment like a sealed
// one. The next append, roll or cut wakes the log.

// restAfter is how long nothing must have been appended to a log before it rests. The append that wakes it pays for an open, a
// stat and an mmap.
const restAfter = 2 * time.Second

// atRest reports whether the log is at rest.
func (l *Log) atRest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writer.tail.h == nil
}

// keepResting lets the log rest once nothing was appended for restAfter, or if other logs need its descriptors.
func (l *Log) keepResting(s *dueTimes, now time.Time) {
	l.mu.Lock()
	appends, resting := l.writer.appended.batches, l.writer.tail.h == nil
	l.mu.Unlock()
	short := l.restSoon.Swap(false)
	switch {
	case resting && !l.state.isOpen() || l.failed() != nil:
		s.rest = time.Time{}
	case !short && (s.rest.IsZero() || appends != s.appends):
		s.rest, s.appends = now.Add(restAfter), appends
	case short || !now.Before(s.rest):
		s.rest = now.Add(restAfter)
		if err := l.rest(short); err != nil && !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
			l.backgroundError("log not put to rest", err)
		}
		if l.atRest() && !l.state.isOpen() {
			s.rest = time.Time{}
		}
	}
}

// rest releases what a log that nobody appends to does not need. It does nothing if the log is in use. short says that the process is
// short of descriptors.
func (l *Log) rest(short bool) error {
	if err := l.writable(); err != nil {
		return err
	}
	if err := l.flushTo(l.moment()); err != nil { // under FlushNone; otherwise it is flushed already
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushes.Lock()
	defer l.flushes.Unlock()
	l.preparing.Lock()
	defer l.preparing.Unlock()
	return l.restLocked(short)
}

// restLocked is rest for a caller that holds l.mu, l.flushes and l.preparing, of a process that may be short of descriptors. It waits for
// no other lock that may be held while a file is opened.
func (l *Log) restLocked(short bool) error {
	if err := l.writable(); err != nil {
		return err
	}
	w := &l.writer
	if t := w.tail; t.h != nil {
		if len(w.sealing) > 0 || t.torn || t.seg.stored.load() != t.seg.flushed.load() || !t.seg.mu.TryLock() {
			return nil
		}
		defer t.seg.mu.Unlock()
		if next := w.next; next != nil {
			w.next = nil
			if err := next.discard(); err != nil {
				return fmt.Errorf("seglog: discard the next segment: %w", err)
			}
		}
		if err := t.rest(); err != nil {
			return err
		}
		l.flusher.rewrites = nil // all are done, since everything is flushed
	}
	return l.state.rest(short)
}

// appendWarmth tells how often the log was appended to lately. Each call halves the weight of the appends before it. awake is false for a
// log that holds nothing but the descriptors of one at rest.
func (l *Log) appendWarmth() (warmth int64, awake bool) {
	if !l.mu.TryLock() {
		return math.MaxInt64, true
	}
	defer l.mu.Unlock()
	w := &l.writer
	w.warmth = w.warmth/2 + (w.appended.batches-w.counted)<<8
	w.counted = w.appended.batches
	return w.warmth, (w.tail.h != nil || l.state.mayBeOpen()) && l.writable() == nil
}

// makeRest lets the log rest although somebody may append to it soon, unless it is in use at the moment. If something has to be flushed
// first, its keeper does that. It returns true if the log has come to rest, or is about to.
func (l *Log) makeRest() bool {
	if !l.mu.TryLock() {
		return false
	}
	defer l.mu.Unlock()
	w := &l.writer
	if s := w.tail.seg; w.tail.h != nil && s.stored.load() != s.flushed.load() {
		l.restSoon.Store(true) // a flush that fails has to be reported, and noted in a file
		l.keeper.Kick()
		return true
	}
	if !l.flushes.TryLock() {
		return false
	}
	defer l.flushes.Unlock()
	if !l.preparing.TryLock() {
		return false
	}
	defer l.preparing.Unlock()
	if err := l.restLocked(true); err != nil {
		l.stats.errors.Add(1) // not reported, since the caller has locks which a Logger may want
	}
	return w.tail.h == nil && !l.state.mayBeOpen()
}

// rest closes the file of an active segment that is flushed. Readers go on to use the indexes that t has in memory. t.seg.mu is held.
func (t *tail) rest() error {
	s := t.seg
	t.x.offsets.shrink()
	t.x.times.shrink()
	s.own.Store(&t.x.indexes)
	t.h, t.buf = nil, nil
	if s.gather != nil {
		s.gather.drop()
	}
	return s.close()
}

// wake makes a log at rest ready for an append, a roll or a cut. If it fails, the log is still at rest, and the next call tries
// again. l.mu is held.
func (l *Log) wake() error {
	t := l.writer.tail
	if t != nil && t.h != nil {
		return nil
	}
	if err := l.writable(); err != nil {
		return err
	}
	err := l.wakeTail(t)
	if err != nil {
		l.stats.errors.Add(1)
		l.failUnlessShortage(inDoubt(err))
		if failed := l.failed(); failed != nil {
			return failed
		}
	}
	return err
}

// wakeTail opens the active segment for writing. l.mu is held.
func (l *Log) wakeTail(t *tail) error {
	s, path := t.seg, l.path(t.seg.base, logSuffix)
	f, err := l.acquire(path, vfs.OpenWrite)
	if held := l.checkDirectory(); held != nil { // looked at when the file is open, since its name may lead elsewhere
		if err == nil {
			held = errors.Join(held, f.Close())
		}
		return held
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{Path: path, Offset: s.base, NextOffset: l.end.Load(), Reason: "segment is missing", cause: err}
	}
	if err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", s.base, err)
	}
	x, err := l.wakeFile(t, f, path)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	pos := s.stored.load().pos()
	m, err := t.reserveAndMap(f, pos)
	if err == nil && s.is(phaseClosed) {
		if err = l.noteWritten(); err != nil {
			t.reserved.Store(0)
			_ = f.Truncate(pos) // so that the next Open finds the log as it was closed; else it takes the zeros away
		}
	}
	if err != nil {
		if m != nil {
			err = errors.Join(err, m.Unmap())
		}
		return errors.Join(err, f.Close())
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	l.preparing.Lock()
	defer l.preparing.Unlock()
	s.mu.Lock()
	l.opened.drop(s)
	old := s.h.Load() // of a reader
	t.use(f, path, x, m, pos)
	s.own.Store(nil)
	s.enter(phaseActive)
	s.mu.Unlock()
	if old != nil {
		_ = old.unref() // of a file that was only read
	}
	t.populated, t.woke = pos, pos
	l.planPreparation()
	l.keeper.Kick() // which lets the log rest again
	return nil
}

// wakeFile checks that f, the file of the last segment, is as it was when the log came to rest, and returns its indexes.
func (l *Log) wakeFile(t *tail, f vfs.File, path string) (*indexBuilder, error) {
	s := t.seg
	pos := s.stored.load().pos()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("seglog: open segment %d: %w", s.base, err)
	}
	if size < pos {
		return nil, &CorruptError{Path: path, Pos: size, Offset: s.base, NextOffset: l.end.Load(), Reason: fmt.Sprintf("file has %d bytes, had %d", size, pos)}
	}
	if !s.is(phaseClosed) {
		t.reserved.Store(min(t.reserved.Load(), size))
		return t.x, nil
	}
	if size > pos { // blocks that an attempt to wake has reserved
		zeros, err := onlyZeros(f, pos, size)
		if err == nil && !zeros {
			err = &CorruptError{Path: path, Pos: pos, Offset: l.end.Load(), Reason: fmt.Sprintf("file has %d bytes, had %d", size, pos)}
		}
		if err == nil {
			err = f.Truncate(pos)
		}
		if err != nil {
			return nil, err
		}
	}
	x, err := s.resumeIndexes(&l.env, f, path)
	if err == nil {
		t.firstTime, err = firstTime(f, pos, nil)
	}
	return x, err
}

// noteWritten takes the clean mark out of the state file, before the first append to a log that was closed.
func (l *Log) noteWritten() error {
	w := &l.writer
	err := l.state.commit(func(st *state) {
		// The rest is as leaveClosed found it, except for what a deletion may be changing beside this.
		st.clean, st.policy = false, l.o.Flush
		st.fenceOffset, st.fenceEpoch = w.fenceOffset, int64(w.fenceEpoch)
	})
	if err != nil {
		err = fmt.Errorf("seglog: write to a closed log: %w", err)
	}
	return err
}

// reopenState opens the state file of a log at rest, which its name may not lead to any more.
func (l *Log) reopenState(atOnce bool) (f vfs.File, err error) {
	fsys := l.fs
	if r, ok := fsys.(roomFS); ok && atOnce {
		fsys = r.FS
	}
	f, err = lockState(fsys, filepath.Join(l.dir, stateName), vfs.OpenWrite)
	if err != nil {
		return nil, err
	}
	if err = l.ours(); err == nil {
		if err = l.lock.Held(); errors.Is(err, errReplaced) {
			err = fmt.Errorf("%w: %w", errNotOurs, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Unlock(), f.Close())
	}
	l.keeper.Kick() // which closes it after a while
	return f, nil
}

// untouched reports whether the log is as it was closed. l.mu is held.
func (l *Log) untouched() bool { return l.writer.tail.seg.is(phaseClosed) && l.failed() == nil }
