package seglog

import (
	"errors"
	"fmt"
	"time"
)

// startBackground starts the goroutines of a log that may be written: one that keeps ahead of the appends, and one for all
// that has time.
func (l *Log) startBackground() {
	l.keeper.kick() // recovery may have left segments to seal
	l.background.Add(2)
	go l.runPreparer()
	go l.runKeeper()
}

func (l *Log) backgroundError(what string, err error) {
	l.stats.errors.Add(1)
	l.o.Logger.Error("seglog: "+what, "dir", l.dir, "err", err)
}

const (
	// stateFlushInterval: after a power cut, at most that much of what was durable is checked as if it were not.
	stateFlushInterval = time.Second
	// sealRetry: a seal that failed for want of space waits for somebody to make some.
	sealRetry = time.Second
)

// dueTimes is when the keeper's work is due. A zero time says that there is none of the kind.
type dueTimes struct {
	flush     time.Time // FlushAsync: FlushInterval after the first append since the last flush
	stateFile time.Time
	retention time.Time
	cool      time.Time
	seal      time.Time // a failed one is tried again
}

// next is how long the keeper may sleep.
func (s *dueTimes) next(now time.Time) time.Duration {
	next := time.Hour
	for _, due := range []time.Time{s.flush, s.stateFile, s.retention, s.cool, s.seal} {
		if !due.IsZero() {
			next = min(next, due.Sub(now))
		}
	}
	return max(next, time.Millisecond)
}

// await returns when there is work, or false once the log is closed. Of several reasons it takes them in this order, since
// a select would take any and no schedule of the tests could be repeated.
func (l *Log) await(work signal, timer <-chan time.Time) bool {
	select {
	case <-l.done:
		return false
	default:
	}
	select {
	case <-work:
	default:
		select {
		case <-work:
		case <-timer:
		case <-l.done:
			return false
		}
	}
	yield("work")
	return true
}

// runKeeper seals rolled segments, one at a turn so that nothing else starves behind them, flushes by time and size under
// FlushAsync, keeps the state file fresh, and applies retention.
func (l *Log) runKeeper() {
	defer l.background.Done()
	started("keeper")
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var s dueTimes
	retainEvery := min(max(l.o.RetentionAge/10, time.Second), 5*time.Minute)
	for l.await(l.keeper, timer.C) {
		sealed := l.keepSealing(&s)
		l.dropBelowStart()
		now := time.Now()
		if l.o.Flush == FlushAsync {
			l.keepFlushing(&s, now)
		}
		l.keepState(&s, now)
		if l.o.RetentionBytes > 0 || l.o.RetentionAge > 0 {
			if sealed || !now.Before(s.retention) {
				if l.o.RetentionAge > 0 {
					s.retention = now.Add(retainEvery)
				}
				if _, err := l.Retain(); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
					l.backgroundError("retention", err)
				}
			}
		}
		if l.opened.count() == 0 {
			s.cool = time.Time{}
		} else if s.cool.IsZero() {
			s.cool = now.Add(warmFor)
		} else if !now.Before(s.cool) {
			s.cool = now.Add(warmFor)
			l.opened.cool()
		}
		timer.Reset(s.next(time.Now()))
	}
}

// keepFlushing flushes if FlushInterval or FlushBytes ask for it.
func (l *Log) keepFlushing(s *dueTimes, now time.Time) {
	if !l.dirty.Load() {
		s.flush = time.Time{}
		return
	}
	if s.flush.IsZero() {
		s.flush = now.Add(l.o.FlushInterval)
	}
	if now.Before(s.flush) && l.unflushed() < l.o.FlushBytes {
		return
	}
	s.flush = time.Time{}
	if err := l.flushTo(l.moment()); err != nil && l.failed() == nil { // else the next call tells
		l.backgroundError("not flushed", err)
	}
}

// keepState makes what was noted in the state file durable from time to time.
func (l *Log) keepState(s *dueTimes, now time.Time) {
	switch {
	case !l.stateDirty.Load():
		s.stateFile = time.Time{}
	case s.stateFile.IsZero():
		s.stateFile = now.Add(stateFlushInterval)
	case !now.Before(s.stateFile):
		s.stateFile = time.Time{}
		l.stateDirty.Store(false)
		if err := l.state.flush(); err != nil {
			l.backgroundError("state file not flushed", err)
		}
	}
}

// keepSealing seals the oldest rolled segment. One that fails is tried again later: the log works without, it only takes
// more space and a longer recovery.
func (l *Log) keepSealing(s *dueTimes) (sealed bool) {
	l.mu.Lock()
	waiting := len(l.writer.sealing)
	var t *tail
	if waiting > 0 {
		t = l.writer.sealing[0]
		l.writer.sealsBegun++
	}
	l.mu.Unlock()
	s.seal = time.Time{}
	if t == nil || l.closed.Load() {
		return false
	}
	backgroundWork.enter()
	err := l.seal(t)
	backgroundWork.leave()
	l.mu.Lock()
	l.writer.sealErr = err
	l.writer.sealsEnded = l.writer.sealsBegun
	l.writer.sealed.Broadcast()
	l.mu.Unlock()
	if err != nil {
		s.seal = time.Now().Add(sealRetry)
		if !errors.Is(err, ErrFailed) {
			l.backgroundError(fmt.Sprintf("segment %d not sealed", t.seg.base), err)
		}
		return false
	}
	if waiting > 1 {
		l.keeper.kick()
	}
	return true
}

// dropBelowStart deletes segments that lay below the start already but were not sealed then.
func (l *Log) dropBelowStart() {
	cuts := l.settledCuts()
	start := l.start.Load()
	if segs := l.view.Load().segs; len(segs) < 2 || segs[1].base > start {
		return
	}
	_, err := l.moveStart(start, cuts)
	if err != nil && !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
		l.backgroundError("segment not deleted", err)
	}
}

// seal flushes and seals a rolled segment, unless it is about to be deleted, and takes it off the queue.
func (l *Log) seal(t *tail) error {
	if err := l.failed(); err != nil {
		return err
	}
	s := t.seg
	end := s.base + s.stored.load().rel()
	deleted := end <= l.start.Load()
	// Not the active segment: its pages, made ready and dirty, would be written and protected, and the appends to it
	// wait for that page by page.
	if !deleted && !s.is(phaseGone) && s.flushed.load() != s.stored.load() {
		if err := l.flushBelow(end); err != nil {
			return err
		}
	}
	s.mu.Lock() // its indexes are not rebuilt meanwhile, and it is not cut
	if s.is(phaseGone) {
		s.mu.Unlock()
		l.takeSealed(t)
		return nil
	}
	var err error
	if deleted {
		// The segment lies wholly below the start; deleting it frees space, so it gets no indexes, which would need some. The
		// state file is about to count its successor, so that one's name is made durable first.
		if err = t.trim(); err == nil {
			err = l.syncDir()
		}
		if err == nil {
			s.flushed.store(s.stored.load()) // no flush has anything to do there any more
		}
	} else {
		err = t.seal()
	}
	s.mu.Unlock()
	if err != nil {
		l.failUnlessShortage(inDoubt(err))
		return err
	}
	if !deleted {
		l.stats.seals.Add(1)
	}
	l.takeSealed(t)
	l.hooks.kick()
	return nil
}

// inDoubt is err if it says that stored bytes are in doubt, and else nil.
func inDoubt(err error) error {
	if err == nil {
		return nil
	}
	var doubt *writeBackError // on the heap
	if errors.As(err, &doubt) {
		return doubt
	}
	return nil
}

// flushBelow makes the segments that begin below limit durable.
func (l *Log) flushBelow(limit int64) error {
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if err := l.flushOnce(limit); err != nil {
		l.failUnlessShortage(err)
		return err
	}
	return nil
}

// takeSealed takes t off the queue and moves the point where recovery starts behind it. The segment is closed: the next
// reader opens it by its index files, and the writer's mapping and buffers go.
func (l *Log) takeSealed(t *tail) {
	l.mu.Lock()
	w := &l.writer
	if len(w.sealing) == 0 || w.sealing[0] != t { // TruncateTo took it
		l.mu.Unlock()
		return
	}
	w.sealing = append(w.sealing[:0:0], w.sealing[1:]...)
	cut := t.seg.is(phaseGone)
	if !cut {
		t.seg.enter(phaseSealed)
		segs := l.view.Load().segs
		next := segs[(&view{segs}).find(t.seg.base)+1]
		l.state.stage(func(s *state) {
			s.scanFrom(next.base, next.flushed.load())
			s.recoveryPoint = max(s.recoveryPoint, s.scanOffset) // may not be noted yet
			s.segments++
			s.baseSum += next.base
		})
	}
	l.mu.Unlock()
	if cut {
		return
	}
	if t.seg.gather != nil {
		t.seg.gather.drop()
	}
	if err := t.seg.close(); err != nil {
		l.backgroundError(fmt.Sprintf("sealed segment %d not closed", t.seg.base), err)
	}
	if err := l.state.note(); err != nil {
		l.backgroundError("recovery point not noted", err)
	}
	l.stateDirty.Store(true)
}
