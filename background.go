package seglog

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"
)

// startBackground starts the goroutines of a log that may be written: one that flushes for those who wait, one that
// keeps ahead of the appends, and one for all that has time.
func (l *Log) startBackground() {
	l.flushing.Add(1)
	go l.runFlusher()
	l.keeper.kick() // recovery may have left segments to seal
	l.background.Add(2)
	go l.runPreparer()
	go l.runKeeper()
}

func (l *Log) backgroundError(what string, err error) {
	l.stats.errors.Add(1)
	l.o.Logger.Error("seglog: "+what, "dir", l.dir, "err", err)
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

// runPreparer reserves blocks ahead of the appends and makes the next segment ready. What it can't do, for want of
// space, the append that needs it tries again and reports.
func (l *Log) runPreparer() {
	defer l.background.Done()
	started("preparer")
	for l.await(l.preparer, nil) {
		if err := l.prepare(); err != nil && !isDiskFull(err) {
			l.backgroundError("blocks not reserved ahead", err)
		}
	}
}

func (l *Log) prepare() error {
	l.mu.Lock()
	t := l.tail
	needNext := l.next == nil && t.seg.stored.load().pos() >= l.o.SegmentBytes/2
	ok := t.h.ref()
	l.mu.Unlock()
	if !ok {
		return nil
	}
	defer t.h.unref()
	err := t.prepare()
	if needNext && err == nil {
		err = l.prepareNext(t)
	}
	l.mu.Lock()
	if l.tail == t {
		l.planPreparation()
	}
	l.mu.Unlock()
	return err
}

// planPreparation sets where the appends wake the preparer next. l.mu is held.
func (l *Log) planPreparation() {
	pos, reserved := l.tail.seg.stored.load().pos(), l.tail.reserved.Load()
	l.prepareAt = math.MaxInt64
	if l.tail.h.m != nil && reserved < l.o.SegmentBytes {
		l.prepareAt = pos + (reserved-pos)/2
	}
	if l.next == nil {
		l.prepareAt = min(l.prepareAt, max(l.o.SegmentBytes/2, pos+1))
	}
}

func (l *Log) prepareNext(before *tail) error {
	if err := l.nameLast(); err != nil {
		return err
	}
	next, err := newTail(&l.env, filepath.Join(l.dir, nextName), 0, before)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = next
	return nil
}

// runKeeper seals rolled segments, flushes by time and size under FlushAsync, keeps the state file fresh, and applies
// retention.
func (l *Log) runKeeper() {
	defer l.background.Done()
	started("keeper")
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var dirtySince, stateSince, retained time.Time
	cooled := time.Now()
	retainEvery := min(max(l.o.RetentionAge/10, time.Second), 5*time.Minute)
	for l.await(l.keeper, timer.C) {
		rolled := l.sealRolled()
		l.dropBelowStart()
		now := time.Now()
		if l.o.Flush == FlushAsync {
			dirtySince = l.flushDue(dirtySince, now)
		}
		if !l.stateDirty.Load() {
			stateSince = time.Time{}
		} else if stateSince.IsZero() {
			stateSince = now
		} else if now.Sub(stateSince) >= stateFlushInterval {
			l.stateDirty.Store(false)
			stateSince = time.Time{}
			if err := l.state.flush(); err != nil {
				l.backgroundError("state file not flushed", err)
			}
		}
		if l.o.RetentionBytes > 0 || l.o.RetentionAge > 0 {
			if rolled || now.Sub(retained) >= retainEvery {
				retained = now
				if _, err := l.Retain(); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
					l.backgroundError("retention", err)
				}
			}
		}
		if now.Sub(cooled) >= warmFor {
			cooled = now
			l.opened.cool()
		}
		next := time.Hour
		if l.opened.count() > 0 {
			next = warmFor
		}
		if l.o.RetentionAge > 0 {
			next = min(next, retainEvery)
		}
		if !dirtySince.IsZero() {
			next = min(next, l.o.FlushInterval-now.Sub(dirtySince))
		}
		if !stateSince.IsZero() {
			next = min(next, stateFlushInterval-now.Sub(stateSince))
		}
		if len(l.unsealed()) > 0 {
			next = min(next, sealRetry)
		}
		timer.Reset(max(next, time.Millisecond))
	}
}

const (
	// stateFlushInterval: after a power cut, at most that much of what was durable is checked as if it were not.
	stateFlushInterval = time.Second
	// sealRetry: a seal that failed for want of space waits for somebody to make some.
	sealRetry = time.Second
)

// flushDue flushes if FlushInterval or FlushBytes ask for it, and returns since when something is unflushed.
func (l *Log) flushDue(since, now time.Time) time.Time {
	if !l.dirty.Load() {
		return time.Time{}
	}
	if since.IsZero() {
		since = now
	}
	if now.Sub(since) < l.o.FlushInterval && l.unflushed() < l.o.FlushBytes {
		return since
	}
	if err := l.flushTo(l.end.Load()); err != nil && l.failed() == nil { // else the next call tells
		l.backgroundError("not flushed", err)
	}
	return time.Time{}
}

func (l *Log) unsealed() []*tail {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sealing
}

// sealRolled seals what was rolled, oldest first, and returns whether anything was. One that fails is tried again later:
// the log works without, it only takes more space and a longer recovery.
func (l *Log) sealRolled() (any bool) {
	for {
		rolled := l.unsealed()
		if len(rolled) == 0 || l.closed.Load() {
			return any
		}
		t := rolled[0]
		err := l.seal(t)
		if isDiskFull(err) && t.seg.base+t.seg.stored.load().rel() <= l.start.Load() {
			// It is to be deleted, which is what makes room. The state file will count the next one's name.
			if err = l.nameLast(); err == nil {
				err = l.fs.syncDir(l.dir)
			}
			if err == nil {
				l.sealed(t)
			}
		}
		if err != nil {
			if !errors.Is(err, ErrFailed) {
				l.backgroundError(fmt.Sprintf("segment %d not sealed", t.seg.base), err)
			}
			return any
		}
		any = true
	}
}

// dropBelowStart deletes segments that lay below the start already but were not sealed then.
func (l *Log) dropBelowStart() {
	start := l.start.Load()
	if segs := l.view.Load().segs; len(segs) < 2 || segs[1].base > start {
		return
	}
	dropped, err := l.moveStart(start)
	if err = errors.Join(err, l.drop(dropped)); err != nil && !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
		l.backgroundError("segment not deleted", err)
	}
}

func (l *Log) seal(t *tail) error {
	s := t.seg
	if err := l.nameLast(); err != nil { // once t is sealed, the name that follows is one that must be there
		return err
	}
	if !s.gone.Load() {
		// Not the active segment: its pages, made ready and dirty, would be written and protected, and the appends to it
		// wait for that page by page.
		end := s.base + s.stored.load().rel()
		if err := l.flushUpTo(end, end); err != nil {
			return err
		}
	}
	s.mu.Lock() // its indexes are not rebuilt meanwhile, and it is not cut
	if s.gone.Load() {
		s.mu.Unlock()
		l.sealed(t)
		return nil
	}
	err := t.seal()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.touched.Store(true)
	l.opened.add(s, l.o.MaxOpenSegments)
	l.stats.seals.Add(1)
	l.sealed(t)
	if l.o.OnSeal != nil {
		m := s.stored.load()
		l.o.OnSeal(SegmentInfo{Path: t.h.path, Base: s.base, Next: s.base + m.rel(), Bytes: m.pos(), MaxTime: timeOf(t.x.maxTime)})
	}
	return nil
}

// sealed takes t off the queue and moves the point where recovery starts behind it.
func (l *Log) sealed(t *tail) {
	if !l.takeSealed(t) {
		return
	}
	if err := l.state.note(); err != nil {
		l.backgroundError("recovery point not noted", err)
	}
	l.stateDirty.Store(true)
}

func (l *Log) takeSealed(t *tail) (moved bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sealing) == 0 || l.sealing[0] != t {
		return false // TruncateTo took it
	}
	l.sealing = l.sealing[1:]
	t.seg.active.Store(false)
	if t.seg.gone.Load() {
		return false
	}
	segs := l.view.Load().segs
	next := segs[(&view{segs}).find(t.seg.base)+1]
	m := next.flushed.load()
	l.state.stage(func(s *state) {
		s.scanBase, s.scanPos, s.scanOffset = next.base, m.pos(), next.base+m.rel()
		s.recoveryPoint = max(s.recoveryPoint, s.scanOffset) // may not be noted yet
		s.segments++
		s.baseSum += next.base
	})
	return true
}

// Close flushes what was appended, under every policy, writes the indexes and the clean mark, and releases everything.
// Calls that wait, read or transfer end with ErrClosed; a connection that a transfer was writing to is left with an
// expired deadline. Sections keep their bytes until they are closed. Close is idempotent: each call returns what
// the first did. The error of a log that has failed is ErrFailed.
func (l *Log) Close() error {
	l.closing.Lock()
	defer l.closing.Unlock()
	if l.isClosed {
		return l.closeErr
	}
	l.mu.Lock()
	l.closed.Store(true)
	l.mu.Unlock()
	l.readers.wake()
	l.durableWaiters.wake()
	l.transfers.interrupt()
	close(l.done)
	l.background.Wait()
	yield("background ended")
	var err error
	if !l.o.ReadOnly {
		err = l.finish()
		close(l.flush.quit) // no append waits for it any more
		l.flushing.Wait()
		yield("flusher ended")
	}
	l.closeErr = errors.Join(err, l.release())
	l.isClosed = true
	return l.closeErr
}

// finish leaves the directory as Kafka's clean shutdown would, and says so in the state file.
func (l *Log) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next != nil {
		path := l.next.h.path
		if err := errors.Join(l.next.seg.retire(), l.fs.remove(path)); err != nil {
			return fmt.Errorf("seglog: close: %w", err)
		}
		l.next = nil
	}
	if err := l.failed(); err != nil {
		return err
	}
	if err := l.nameLast(); err != nil {
		return err
	}
	if err := l.flushTo(l.end.Load()); err != nil {
		return err
	}
	for _, t := range append(l.sealing, l.tail) {
		if t.seg.gone.Load() {
			continue
		}
		if err := t.seal(); err != nil {
			return fmt.Errorf("seglog: close segment %d: %w", t.seg.base, err)
		}
	}
	segs := l.view.Load().segs
	var sum int64
	for _, s := range segs {
		sum += s.base
	}
	m := l.tail.seg.stored.load()
	err := l.state.commit(func(s *state) {
		s.clean = true
		s.end, s.endPos = l.end.Load(), m.pos()
		s.epoch = int64(l.epoch)
		s.recoveryPoint = s.end
		s.scanBase, s.scanPos, s.scanOffset = l.tail.seg.base, m.pos(), s.end
		s.segments, s.baseSum = int64(len(segs)), sum
	})
	if err != nil {
		return fmt.Errorf("seglog: close: %w", err)
	}
	return nil
}

// release gives back descriptors, mappings and the lock; also of a log that was not opened to the end.
func (l *Log) release() error {
	var errs []error
	if v := l.view.Load(); v != nil {
		for _, s := range v.segs {
			errs = append(errs, s.retire())
		}
	}
	if l.state != nil {
		errs = append(errs, l.state.f.Close())
	}
	if l.follow.state != nil {
		errs = append(errs, l.follow.state.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}
