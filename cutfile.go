package seglog

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/seglog/seglog/internal/vfs"
)

// cutPlan describes the segment of the last record that a TruncateTo keeps, as it will be afterwards: the file up to pos,
// followed by rest. The plan is made before anything changes, and the state file notes pos and rest, so that Open can finish an
// interrupted cut by the same steps.
type cutPlan struct {
	f     vfs.File     // the segment's file, opened for writing; nil in recovery
	base  int64        // base offset of the segment
	held  *heldSegment // nil in recovery
	pos   int64
	rest  batch         // the remaining part of the batch that holds the offset; nil if the cut lies between two batches
	whole found         // the batch that rest replaces; empty if rest is nil, in recovery, and once the file is being changed in place
	done  bool          // the file begins with the planned contents
	x     *indexBuilder // the indexes of the planned contents
	first int64         // timestamp of the first batch, as tail.firstTime
	// For an active segment that loses at most maxZeroedCut bytes: its present end, and the position up to which it has blocks.
	// The bytes that are cut off are then overwritten by zeros, and the blocks stay for later appends. Otherwise both are 0, and the file
	// is truncated.
	end, reserved int64
}

// maxZeroedCut is the number of bytes up to which a cut overwrites them with zeros instead of truncating the file. A truncation
// also frees the blocks that the preparer has reserved ahead, up to 32 MiB: that takes ext4 2 to 20 ms, and later appends have
// to wait for new blocks.
const maxZeroedCut = 1 << 20

// size is the planned size of the file.
func (p *cutPlan) size() int64 { return p.pos + int64(len(p.rest)) }

// heldSegment is a segment that is about to be cut. Its lock is held, so nobody can open it meanwhile.
type heldSegment struct {
	s     *segment
	h     *handle  // nil if the segment is not open
	alone bool     // nobody else in this process has a reference to h or can get one
	copy  vfs.File // a copy of the part below the cut, if others use the file; nil if the file is cut in place
}

// carryOut carries out a TruncateTo by its plan. The intent is durable, so a failure leaves the rest to the next Open.
func (l *Log) carryOut(offset int64, p *cutPlan) error {
	segs := l.view.Load().segs
	i := (&view{segs}).find(p.base)
	for _, s := range segs[i:] {
		s.enter(phaseGone)
	}
	f, err := l.cutFiles(segs[i:], offset, p)
	l.letGo(p)
	var t *tail
	if err == nil {
		if t, err = openTail(&l.env, f, l.path(p.base, logSuffix), p.base, p.x, p.size()); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil { // the next Open will remove the records above the cut, so no reader may see them any more
		l.showBelow(segs[:i], segs[i:], offset, p)
		return err
	}
	t.firstTime = p.first
	if t.h.m != nil && p.reserved > t.reserved.Load() {
		t.reserved.Store(p.reserved)
	}
	t.seg.stored.store(markAt(offset-p.base, p.size()))
	t.seg.flushed.store(t.seg.stored.load())
	next := append(make([]*segment, 0, i+1), segs[:i]...)
	return l.settle(t, append(next, t.seg), offset, false)
}

// letGo releases the locks that hold took. After a cut nobody opens the segment even so, since its phase is phaseGone.
func (l *Log) letGo(p *cutPlan) {
	if p.held != nil {
		p.held.s.mu.Unlock()
		l.preparing.Unlock()
		p.held = nil
	}
}

// cutFiles removes the files of all segments but the first, newest first, then cuts the first, and returns its file. finishCut
// keeps the same order. At every moment the remaining segments join, even for a reader without a state file; if the first
// segment were cut before the later ones are removed, offsets would be missing between them. The removals also make room for a
// copy.
func (l *Log) cutFiles(segs []*segment, offset int64, p *cutPlan) (f vfs.File, err error) {
	removed, err := l.removeAbove(segs[1:], p.base)
	if err == nil {
		var more bool
		more, err = l.removeProducersAbove(l.producers, offset)
		removed = removed || more
	}
	f, cutErr := l.cutSegment(p, err == nil)
	if err = errors.Join(err, cutErr); err != nil {
		return nil, err
	}
	if removed {
		if err := l.syncDir(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// removeAbove removes the files of segs, newest first, and the index files of the segment at base, which comes before them.
func (l *Log) removeAbove(segs []*segment, base int64) (removed bool, err error) {
	for k := len(segs) - 1; k >= 0; k-- {
		if err := l.removeSegmentFiles(segs[k].base); err != nil {
			return removed, err
		}
		if err := l.retire(segs[k]); err != nil {
			return removed, err
		}
		segs[k].deleted(l.stats)
		removed = true
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		err := l.fs.Remove(l.path(base, suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed = removed || err == nil
	}
	return removed, nil
}

// cutSegment releases the handle that hold took and, with goOn, cuts the file. It returns the file that is the segment's now.
func (l *Log) cutSegment(p *cutPlan, goOn bool) (f vfs.File, err error) {
	held := p.held
	l.opened.drop(held.s)
	switch {
	case held.h == nil:
	case held.alone:
		err = held.h.release()
	default:
		err = held.h.unref()
	}
	held.s.deleted(l.stats)
	goOn = goOn && err == nil
	path := l.path(p.base, logSuffix)
	switch {
	case goOn && held.copy != nil:
		if err = p.f.Close(); err == nil { // closed first, since not every file system on Windows renames over an open file
			f, err = l.placeCopy(held.copy, path, p)
		} else {
			err = errors.Join(err, held.copy.Close())
		}
	case goOn:
		f, err = l.cutFile(p.f, path, p)
	default:
		err = errors.Join(err, p.f.Close())
		if held.copy != nil {
			err = errors.Join(err, held.copy.Close())
		}
	}
	if err != nil && f != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, err
}

// cutFile cuts f, the file at path, in place, and flushes it. If somebody else uses the file, such as a reader in another
// process or a snapshot with a hard link, it copies the part that stays and renames the copy to path. It returns the file that
// is at path then, and closes any other, also if it fails.
func (e *env) cutFile(f vfs.File, path string, p *cutPlan) (vfs.File, error) {
	alone, err := f.Alone()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !alone {
		p.reserved = 0
		out, err := e.copyBelow(f, p)
		if e := f.Close(); e != nil && err == nil { // closed first, as in cutSegment
			err = errors.Join(e, out.Close())
		}
		if err != nil {
			return nil, err
		}
		return e.placeCopy(out, path, p)
	}
	// rest is written before the file is truncated, so that it goes into blocks that the file has already.
	if len(p.rest) > 0 {
		p.whole = found{}
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		p.done = true
		if p.reserved > 0 {
			if err = f.Zero(p.size(), max(0, p.end-p.size())); isShortage(err) {
				p.reserved = 0 // a file system that shares blocks with a copy of the file needs new ones for the zeros
			}
		}
		if p.reserved == 0 {
			err = e.insist(func() error { return f.Truncate(p.size()) })
		}
	}
	if err == nil {
		if err = f.Flush(); err != nil {
			err = &writeBackError{err}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyBelow copies the part of a segment that stays to a new file, and flushes it. placeCopy then renames it to the segment's
// name.
func (e *env) copyBelow(src vfs.File, p *cutPlan) (f vfs.File, err error) {
	tmp := filepath.Join(e.dir, cutName)
	if f, err = e.create(tmp); err != nil {
		return nil, err
	}
	if err = vfs.CopyRange(f, 0, src, 0, p.pos); err == nil && len(p.rest) > 0 {
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		err = f.Flush()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), e.fs.Remove(tmp))
	}
	return f, nil
}

// placeCopy renames f, which copyBelow made, to path.
func (e *env) placeCopy(f vfs.File, path string, p *cutPlan) (vfs.File, error) {
	err := e.insist(func() error { return e.fs.Rename(filepath.Join(e.dir, cutName), path) })
	if err == nil {
		p.done = true
		err = e.syncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// insist makes a call again if it fails for a shortage. It is for steps of a cut that is noted already, where a failure latches the log.
// A full btrfs has no room to rename or truncate a file, until it commits that other files were removed.
func (e *env) insist(call func() error) error {
	err := call()
	for tries := 0; tries < 3 && isShortage(err) && e.syncDir() == nil; tries++ {
		err = call()
	}
	return err
}

// showBelow publishes a view for a cut that failed half-way, of the records that are certainly intact: all below the offset, but
// if the file was left half changed and the offset divides a batch, only those in front of that batch. The next Open finishes
// the cut and has all records below the offset.
func (l *Log) showBelow(before, cut []*segment, offset int64, p *cutPlan) {
	end, next, pos := offset, offset, p.pos
	switch {
	case p.done:
		pos = p.size()
	case p.whole.size > 0:
		next, pos = p.whole.last+1, p.whole.end()
	case p.rest != nil:
		end, next = p.rest.base(), p.rest.base()
	}
	s := newSealed(p.base, next)
	s.stored.store(markAt(next-p.base, pos))
	s.flushed.store(s.stored.load())
	for _, c := range cut {
		_ = l.retire(c) // the log has failed, and returns the first error
	}
	l.end.Store(end)
	l.durable.Store(min(l.durable.Load(), end))
	l.view.Store(&view{append(append([]*segment(nil), before...), s)})
}

// carryOutReset removes all segments and begins a new one at offset. The intent is durable, so a failure leaves the rest to
// the next Open.
func (l *Log) carryOutReset(offset int64) (err error) {
	segs := l.view.Load().segs
	for _, s := range segs {
		s.enter(phaseGone)
	}
	l.preparing.Lock()
	l.preparing.Unlock() //lint:ignore SA2001 waits until the preparer no longer works on the active segment
	for k := len(segs) - 1; k >= 0 && err == nil; k-- {
		err = errors.Join(l.removeSegmentFiles(segs[k].base), l.retire(segs[k]))
		segs[k].deleted(l.stats)
	}
	w := &l.writer
	if err == nil {
		_, err = l.removeProducersAbove(l.producers, offset)
	}
	if err == nil && !w.next.seg.is(phaseActive) {
		err = l.insist(func() error { return w.next.activate(offset) })
	}
	if err == nil {
		err = l.syncDir()
	}
	if err != nil {
		l.start.Store(offset)
		l.durable.Store(offset)
		l.end.Store(offset)
		return err
	}
	t := w.next
	w.next = nil
	return l.settle(t, []*segment{t.seg}, offset, true)
}

// settle makes segs, of which t is the active one, the segments of the log after a cut or a reset, and commits the state
// without the intent.
func (l *Log) settle(t *tail, segs []*segment, offset int64, reset bool) error {
	w := &l.writer
	var sealing []*tail // a new array, since the old one would keep the others
	for _, s := range w.sealing {
		if !s.seg.is(phaseGone) {
			sealing = append(sealing, s)
		}
	}
	w.sealing, w.tail, w.prepareAt = sealing, t, 0
	w.received = receivedLast{next: -1} // the last batch may be another one now
	w.sealed.Broadcast()
	if reset {
		l.start.Store(offset)
	}
	l.durable.Store(offset)
	l.end.Store(offset)
	l.view.Store(&view{segs})
	scan := w.unsealed()
	m := scan.flushed.load()
	err := l.state.commit(func(s *state) {
		s.cut, s.reset = -1, false
		s.start = l.start.Load()
		s.recoveryPoint = offset
		s.end, s.endPos = offset, t.seg.stored.load().pos()
		s.set(l.view.Load().bases(), scan.base, m)
		s.epoch = int64(w.epoch)
		s.told = min(s.told, t.seg.base)
		s.raiseFence(offset, w.epoch)
		w.fenceOffset, w.fenceEpoch = s.fenceOffset, int32(s.fenceEpoch)
	})
	if err == nil {
		l.state.dropRest()
	}
	return err
}
