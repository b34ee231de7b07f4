package seglog

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// carryOut does what is planned. The intent is durable.
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
	if err != nil { // the next Open does the rest, so what lies above is gone all the same
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

// cutFiles removes the files of all segments but the first, from the end, and cuts that one. It returns its file.
func (l *Log) cutFiles(segs []*segment, offset int64, p *cutPlan) (f file, err error) {
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

// removeAbove removes the files of segments, from the end, and the index files of the one at base that comes before them.
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
		err := l.fs.remove(l.path(base, suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed = removed || err == nil
	}
	return removed, nil
}

// cutSegment gives back what is held of a segment and, with goOn, cuts its file.
func (l *Log) cutSegment(p *cutPlan, goOn bool) (f file, err error) {
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
		if err = p.f.Close(); err == nil { // which Windows would not rename over
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

// cutFile cuts f, the file at path, in place, flushed. If somebody else has a hold of it, as a reader in another process or
// a snapshot, it makes a file of its own of what is left, and puts it in the place of f. Either way it returns the file to go
// on with, and no other stays open.
func (e *env) cutFile(f file, path string, p *cutPlan) (file, error) {
	alone, err := f.alone()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !alone {
		p.reserved = 0
		out, err := e.copyBelow(f, p)
		if e := f.Close(); e != nil && err == nil { // which Windows would not rename over
			err = errors.Join(e, out.Close())
		}
		if err != nil {
			return nil, err
		}
		return e.placeCopy(out, path, p)
	}
	// What is left is written before the file is cut, into blocks that are there.
	if len(p.rest) > 0 {
		p.whole = found{}
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		p.done = true
		if p.reserved > 0 {
			if err = f.zero(p.size(), max(0, p.end-p.size())); isShortage(err) {
				p.reserved = 0 // blocks that are shared with a copy of the file are written anew, which takes room
			}
		}
		if p.reserved == 0 {
			err = f.truncate(p.size())
		}
	}
	if err == nil {
		if err = f.flush(); err != nil {
			err = &writeBackError{err}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyBelow makes a file of what is left of a segment, flushed. placeCopy puts it in the place of the segment's own.
func (e *env) copyBelow(src file, p *cutPlan) (f file, err error) {
	tmp := filepath.Join(e.dir, cutName)
	if f, err = e.create(tmp); err != nil {
		return nil, err
	}
	if err = copyRange(f, 0, src, 0, p.pos); err == nil && len(p.rest) > 0 {
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		err = f.flush()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), e.fs.remove(tmp))
	}
	return f, nil
}

func (e *env) placeCopy(f file, path string, p *cutPlan) (file, error) {
	err := e.fs.rename(filepath.Join(e.dir, cutName), path)
	if err == nil {
		p.done = true
		err = e.syncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// showBelow makes what lies safely below a cut that failed half-way the log that readers see: the segments before it, and
// of the one it cuts what comes before its position, and the batch there unless that was touched. The next Open has it all.
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
		_ = l.retire(c) // the log has failed, and says why
	}
	l.end.Store(end)
	l.durable.Store(min(l.durable.Load(), end))
	l.view.Store(&view{append(append([]*segment(nil), before...), s)})
}

// carryOutReset removes all segments and begins a new one at offset. The intent is durable.
func (l *Log) carryOutReset(offset int64) (err error) {
	segs := l.view.Load().segs
	for _, s := range segs {
		s.enter(phaseGone)
	}
	l.preparing.Lock()
	l.preparing.Unlock() //lint:ignore SA2001 the preparer has let go of the active segment
	for k := len(segs) - 1; k >= 0 && err == nil; k-- {
		err = errors.Join(l.removeSegmentFiles(segs[k].base), l.retire(segs[k]))
		segs[k].deleted(l.stats)
	}
	w := &l.writer
	if err == nil {
		_, err = l.removeProducersAbove(l.producers, offset)
	}
	if err == nil {
		err = w.next.activate(offset)
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

// settle makes the list of segments after a cut the log.
func (l *Log) settle(t *tail, segs []*segment, offset int64, reset bool) error {
	w := &l.writer
	sealing := w.sealing[:0:0]
	for _, s := range w.sealing {
		if !s.seg.is(phaseGone) {
			sealing = append(sealing, s)
		}
	}
	w.sealing, w.tail, w.prepareAt = sealing, t, 0
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
		s.start, s.first = l.start.Load(), segs[0].base
		s.recoveryPoint = offset
		s.end, s.endPos = offset, t.seg.stored.load().pos()
		s.scanFrom(scan.base, m)
		s.count(l.view.Load().bases())
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
