package seglog

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// checkDirectory latches the log if another directory, or another LOCK file, has taken the place of its own. It is called
// before files are created, cut or removed by their names, which may lead to another log's files. l.mu is held.
func (l *Log) checkDirectory() error {
	err := l.lock.Held()
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errReplaced): // it is not known, and the caller may try again
		return fmt.Errorf("seglog: check the lock: %w", err)
	}
	l.fail(fmt.Errorf("%w: %w", errNotOurs, err))
	return l.failed()
}

// roll makes a new active segment that starts at base; the keeper will seal the old one. If roll fails, nothing has
// changed. l.mu is held.
func (l *Log) roll(base int64) error {
	w := &l.writer
	if err := l.wake(); err != nil {
		return err
	}
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
		next, err := newTail(&l.env, rollName)
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
	// Behind a gap the log ends where the segment begins, as it does after a restart, even if the batch can't be stored then.
	l.end.Store(max(base, l.end.Load()))
	w.sealing = append(w.sealing, old)
	l.stats.rolls.Add(1)
	l.o.Logger.Debug("seglog: rolled", "dir", l.dir, "segment", base, "bytes", old.seg.stored.load().pos())
	l.keeper.Kick()
	return nil
}

// noteGap records in the state file that the segment about to begin at base lies behind a gap, after it has made
// everything up to the gap durable. If any other segment does not join the one before it, recovery concludes that the
// end of the earlier segment was lost. l.mu is held.
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

// prepareAhead is a round of the preparer: it reserves blocks ahead of the appends and makes the next segment ready. If there
// is no space for that, the append that needs it tries again and reports the error.
func (l *Log) prepareAhead() time.Duration {
	l.background.Enter()
	err := l.prepare()
	l.background.Leave()
	var doubt *writeBackError
	switch {
	case err == nil || isShortage(err):
	case errors.As(err, &doubt):
		// The flusher gets the error too, by its own open file description, but the preparer may be the first to see it.
		l.fail(err)
	default:
		l.backgroundError("blocks not reserved ahead", err)
	}
	return 0
}

func (l *Log) prepare() error {
	l.mu.Lock()
	t := l.writer.tail
	atRest := t.h == nil
	needNext := l.writer.next == nil && t.seg.stored.load().pos() >= t.half()
	l.mu.Unlock()
	if atRest {
		return nil
	}
	err := l.prepareTail(t)
	var next *tail
	if needNext && err == nil {
		next, err = prepareNext(&l.env, t)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if next != nil {
		if l.writer.next != nil || l.writer.tail.h == nil { // a roll made one, and then failed; or the log is at rest by now
			err = errors.Join(err, next.discard())
		} else {
			l.writer.next = next
		}
	}
	if l.writer.tail == t && t.h != nil {
		l.planPreparation()
	}
	return err
}

// prepareTail works ahead in the active segment. A cut waits until it has ended.
func (l *Log) prepareTail(t *tail) error {
	l.preparing.Lock()
	defer l.preparing.Unlock()
	if t.seg.is(phaseGone) || t.h == nil || !t.h.ref() {
		return nil
	}
	err := t.prepare()
	return errors.Join(err, t.h.unref())
}

// planPreparation sets the position from which on appends wake the preparer again. l.mu is held.
func (l *Log) planPreparation() {
	w := &l.writer
	pos, reserved := w.tail.seg.stored.load().pos(), w.tail.reserved.Load()
	w.prepareAt = math.MaxInt64
	if w.tail.h.m != nil && reserved < l.o.SegmentBytes {
		w.prepareAt = pos + (reserved-pos)/2
	}
	if w.next == nil {
		w.prepareAt = min(w.prepareAt, max(w.tail.half(), pos+1))
	}
}
