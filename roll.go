package seglog

import (
	"errors"
	"fmt"
	"math"
)

// checkDirectory latches the log if its directory, or the file LOCK, is not where it was: before files are made, cut or
// removed by their names, which would be those of another log. l.mu is held.
func (l *Log) checkDirectory() error {
	err := l.lock.held()
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errReplaced): // nobody knows, and the call may be made again
		return fmt.Errorf("seglog: look at the lock: %w", err)
	}
	l.fail(fmt.Errorf("%w: %w", errNotOurs, err))
	return l.failed()
}

// roll makes a new active segment that starts at base; the keeper seals the old one. l.mu is held. Nothing has changed
// if it fails.
func (l *Log) roll(base int64) error {
	w := &l.writer
	if err := l.checkDirectory(); err != nil {
		return err
	}
	if end := l.end.Load(); base > end {
		if err := l.noteGap(end, base); err != nil {
			return err
		}
	}
	if w.tail.torn {
		if err := w.tail.cutTorn(w.tail.seg.stored.load().pos()); err != nil {
			return w.tail.h.named(err)
		}
	}
	if w.next == nil {
		next, err := newTail(&l.env, rollName, nil)
		if err != nil {
			return err
		}
		w.next = next
	}
	if err := w.next.activate(base); err != nil {
		return err
	}
	l.names.Add(1) // before the view: a flush that sees the segment makes its name durable
	old := w.tail
	old.seg.enter(phaseRolled)
	w.tail, w.next = w.next, nil
	l.planPreparation()
	l.view.Store(&view{append(l.view.Load().segs, w.tail.seg)})
	w.sealing = append(w.sealing, old)
	l.stats.rolls.Add(1)
	l.o.Logger.Debug("seglog: rolled", "dir", l.dir, "segment", base, "bytes", old.seg.stored.load().pos())
	l.hooks.startLocked()
	l.keeper.kick()
	return nil
}

// noteGap makes it known that the segment about to begin at base lies behind a gap. Recovery takes any other segment that
// does not join the one before for the sign of a lost end, so everything up to the gap is durable first. l.mu is held.
func (l *Log) noteGap(end, base int64) error {
	if err := l.flushTo(l.lastMoment()); err != nil {
		return err
	}
	err := l.state.commit(func(s *state) {
		s.gaps, s.gapTo = true, base
		s.recoveryPoint = max(s.recoveryPoint, end)
	})
	if err != nil {
		return fmt.Errorf("seglog: note a gap from offset %d to %d: %w", end, base, err)
	}
	return nil
}

// runPreparer reserves blocks ahead of the appends and makes the next segment ready. What it can't do, for want of
// space, the append that needs it tries again and reports.
func (l *Log) runPreparer() {
	defer l.background.Done()
	started("preparer")
	for l.await(l.preparer, nil) {
		backgroundWork.enter()
		err := l.prepare()
		backgroundWork.leave()
		if err == nil || isShortage(err) {
			continue
		}
		var doubt *writeBackError
		if errors.As(err, &doubt) {
			// The flusher, with a description of the file of its own, gets the error as well; this one may be first.
			l.fail(err)
			continue
		}
		l.backgroundError("blocks not reserved ahead", err)
	}
}

func (l *Log) prepare() error {
	l.mu.Lock()
	t := l.writer.tail
	needNext := l.writer.next == nil && t.seg.stored.load().pos() >= l.o.SegmentBytes/2
	l.mu.Unlock()
	err := l.prepareTail(t)
	var next *tail
	if needNext && err == nil {
		next, err = newTail(&l.env, nextName, t)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if next != nil {
		if l.writer.next != nil { // left by a roll that made one and failed
			err = errors.Join(err, next.discard())
		} else {
			l.writer.next = next
		}
	}
	if l.writer.tail == t {
		l.planPreparation()
	}
	return err
}

// prepareTail works ahead in the active segment. A cut, which marks the segment as gone first, waits for it to end.
func (l *Log) prepareTail(t *tail) error {
	l.preparing.Lock()
	defer l.preparing.Unlock()
	if t.seg.is(phaseGone) || !t.h.ref() {
		return nil
	}
	err := t.prepare()
	return errors.Join(err, t.h.unref())
}

// planPreparation sets where the appends wake the preparer next. l.mu is held.
func (l *Log) planPreparation() {
	w := &l.writer
	pos, reserved := w.tail.seg.stored.load().pos(), w.tail.reserved.Load()
	w.prepareAt = math.MaxInt64
	if w.tail.h.m != nil && reserved < l.o.SegmentBytes {
		w.prepareAt = pos + (reserved-pos)/2
	}
	if w.next == nil {
		w.prepareAt = min(w.prepareAt, max(l.o.SegmentBytes/2, pos+1))
	}
}
