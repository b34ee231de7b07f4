package seglog

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// backgroundWork holds a *sched.Limiter for each disk, by its number.
var backgroundWork sync.Map

// workOn returns what bounds how many preparers and keepers of all logs on a disk work at the same time. The bound follows the number
// of CPUs, since they compute as well as wait for the disk. Each disk has its own, so that logs do not wait for a disk that hangs
// and is not theirs.
func workOn(disk uint64) *sched.Limiter {
	if l, ok := backgroundWork.Load(disk); ok {
		return l.(*sched.Limiter)
	}
	l, _ := backgroundWork.LoadOrStore(disk, &sched.Limiter{Most: max(8, 2*runtime.NumCPU())})
	return l.(*sched.Limiter)
}

// startBackground lets the preparer work ahead of the appends, and the keeper do the work that can wait.
func (l *Log) startBackground() {
	if !l.atRest() {
		l.keeper.Kick() // recovery may have left segments to seal
	}
	l.preparer.Begin()
	l.keeper.Begin()
	l.retention.Begin()
	l.kickRetention()
}

func (l *Log) backgroundError(what string, err error) {
	l.stats.errors.Add(1)
	l.o.Logger.Error("seglog: "+what, "dir", l.dir, "err", err)
}

const (
	// stateFlushInterval bounds how old the recovery point is that a power cut leaves: records that became durable within
	// this time are checked as if they had not.
	stateFlushInterval = time.Second
	// sealRetry is the pause after a seal that failed, for want of space most often.
	sealRetry = time.Second
)

// dueTimes are the times at which the keeper's work is due. A zero time means that there is no work of that kind.
type dueTimes struct {
	flush     time.Time // FlushAsync: FlushInterval after the first append since the last flush
	stateFile time.Time // flush the state file
	cool      time.Time // forget which parts of the mappings are in memory
	seal      time.Time // try a failed seal again
	rest      time.Time // let the log rest unless something is appended

	appends int64 // the number of appends when rest was set
}

// next returns the time until the first of them, or 0 if there is no work.
func (s *dueTimes) next(now time.Time) time.Duration {
	var first time.Time
	for _, due := range []time.Time{s.flush, s.stateFile, s.cool, s.seal, s.rest} {
		if !due.IsZero() && (first.IsZero() || due.Before(first)) {
			first = due
		}
	}
	if first.IsZero() {
		return 0
	}
	return max(first.Sub(now), time.Millisecond)
}

// keep is a round of the keeper. It seals a rolled segment, one in each round so that the other work does not starve,
// flushes by time and size under FlushAsync, and flushes the state file.
func (l *Log) keep(s *dueTimes) time.Duration {
	if l.keepSealing(s) {
		l.kickRetention()
	}
	l.dropBelowStart()
	now := time.Now()
	if l.o.Flush == FlushAsync {
		l.keepFlushing(s, now)
	}
	l.keepState(s, now)
	if l.opened.count() == 0 {
		s.cool = time.Time{}
	} else if s.cool.IsZero() {
		s.cool = now.Add(warmFor)
	} else if !now.Before(s.cool) {
		s.cool = now.Add(warmFor)
		l.opened.cool(l.atRest())
	}
	l.keepResting(s, now)
	return s.next(time.Now())
}

// kickRetention asks for a look at what has expired: after Open, after a seal, and after a call of OnSeal, without which a segment
// stays.
func (l *Log) kickRetention() {
	if l.o.RetentionBytes > 0 || l.o.RetentionAge > 0 {
		l.retention.Kick()
	}
}

// retainRound applies retention. It has a worker of its own, since MayDelete may be slow, and seals and flushes must not wait for
// it.
func (l *Log) retainRound() time.Duration {
	if _, err := l.retain(); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
		l.backgroundError("retention", err)
	}
	if l.o.RetentionAge > 0 {
		return min(max(l.o.RetentionAge/10, time.Second), 5*time.Minute)
	}
	return 0
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
	if err := l.flushTo(l.moment()); err != nil && l.failed() == nil { // of a log that failed, the next call reports it
		l.backgroundError("not flushed", err)
	}
}

// keepState flushes the state file stateFlushInterval after it was first changed.
func (l *Log) keepState(s *dueTimes, now time.Time) {
	switch {
	case !l.stateDirty.Load():
		s.stateFile = time.Time{}
	case s.stateFile.IsZero():
		s.stateFile = now.Add(stateFlushInterval)
	case !now.Before(s.stateFile):
		s.stateFile = time.Time{}
		l.stateDirty.Store(false)
		var err error
		if l.state.missed.Load() != nil { // there was no descriptor for a note, which readers in other processes may wait for
			err = l.state.note()
			l.stateDirty.Store(true)
			s.stateFile = now.Add(stateFlushInterval)
		}
		err = errors.Join(err, l.state.flush())
		if err != nil {
			l.backgroundError("state file not flushed", err)
		}
	}
}

// keepSealing seals the oldest rolled segment. A seal that fails is tried again later; until then the log only takes more
// space, and longer to recover.
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
	l.background.Enter()
	err := l.seal(t)
	l.background.Leave()
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
		l.keeper.Kick()
	}
	return true
}

// dropBelowStart deletes segments that could not be deleted when they came to lie below the start, because they were not
// sealed.
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

// belowStart reports whether a rolled segment is about to be deleted. It lies below the start only if the next one begins there:
// a start in the gap behind a segment's batches leaves the segment in the log (planDeletion).
func (l *Log) belowStart(s *segment) bool {
	segs := l.view.Load().segs
	i := (&view{segs}).find(s.base) + 1
	return i < len(segs) && segs[i].base <= l.start.Load()
}

// seal flushes and seals a rolled segment, unless it is about to be deleted, and takes it off the queue.
func (l *Log) seal(t *tail) error {
	if err := l.failed(); err != nil {
		return err
	}
	giveWay()
	s := t.seg
	end := s.base + s.stored.load().rel()
	deleted := l.belowStart(s)
	// The active segment is not flushed too: its pages were made ready, so they are dirty. They would be written back and
	// write-protected, and appends would wait for them, page by page.
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
		// The segment lies wholly below the start. Deleting it frees space, so it gets no indexes, which would need some.
		// The state file is about to count the next segment, so the name of that one is made durable first.
		if err = t.trim(); err == nil {
			err = l.syncDir()
		}
		if err == nil {
			s.flushed.store(s.stored.load()) // no flush has to write it any more
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

// inDoubt returns the writeBackError in err, which says that stored bytes are in doubt, or nil.
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

// flushBelow makes the segments that begin below limit durable, and latches the log if that fails.
func (l *Log) flushBelow(limit int64) error {
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if err := l.flushOnce(limit); err != nil {
		l.failUnlessShortage(err)
		return err
	}
	return nil
}

// takeSealed takes t off the queue, marks its segment sealed, and notes that recovery may start at the next segment. It closes
// the segment, which releases the writer's mapping and buffers; the next reader opens it with its index files.
func (l *Log) takeSealed(t *tail) {
	l.mu.Lock()
	w := &l.writer
	if len(w.sealing) == 0 || w.sealing[0] != t { // TruncateTo has taken it off already
		l.mu.Unlock()
		return
	}
	w.sealing = append([]*tail(nil), w.sealing[1:]...) // the old array would keep t
	cut := t.seg.is(phaseGone)
	if !cut {
		t.seg.enter(phaseSealed)
		segs := l.view.Load().segs
		next := segs[(&view{segs}).find(t.seg.base)+1]
		l.state.stage(func(s *state) {
			s.sealed(next.base, next.flushed.load())
			s.recoveryPoint = max(s.recoveryPoint, s.scanOffset) // the flush of it may not be noted yet
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
	l.stateChanged()
}

// hooks calls Options.OnSeal and Options.MayDelete.
//
// OnSeal has a worker of its own, so that a slow hook holds up nobody. It is called for each sealed segment in order. The
// state file notes how far it was called, so that segments which were sealed by Close, by recovery or by another program
// are not forgotten: the hook is called for them after the next Open. The worker begins with the first call that appends,
// reads, deletes or asks for the offsets, and not with what background work does before Open returns, so that the hook may use the
// variable to which the result of Open is assigned.
type hooks struct {
	work     *sched.Worker
	attached bool // there is a hook to call
	started  atomic.Bool
	asking   sched.Mutex // held to ask MayDelete, and to delete what it agrees to; Close waits for it
}

func (h *hooks) init(l *Log) {
	h.work = sched.NewWorker("hooks", func() time.Duration {
		h.tellAll(l, l.done)
		return 0
	})
}

// attach lets h call OnSeal for the segments of l. Before that, and for a read-only log, kick and start do nothing.
func (h *hooks) attach(l *Log) {
	h.attached = l.o.OnSeal != nil
	h.kick() // segments may have been sealed since OnSeal was called last
}

func (h *hooks) kick() {
	if h.attached {
		h.work.Kick()
	}
}

// start is called by methods that the program calls, and not by background work.
func (h *hooks) start() {
	if h.attached && !h.started.Load() && !h.started.Swap(true) {
		h.work.Begin()
	}
}

// tellAll calls OnSeal for each sealed segment for which it was not called yet. It returns when there is none left, or early if
// stop is closed or a segment can't be read.
func (h *hooks) tellAll(l *Log, stop <-chan struct{}) {
	if l.o.OnSeal == nil {
		return
	}
	for {
		cuts := l.settledCuts()
		info, ok, err := h.untold(l)
		if err != nil {
			l.backgroundError("OnSeal not called for a sealed segment", err)
			return
		}
		if !ok {
			return
		}
		l.o.OnSeal(info)
		l.noteTold(info, cuts)
		if err := l.state.note(); err != nil { // after a restart OnSeal is called again
			l.backgroundError("call of OnSeal not noted", err)
		}
		l.stateChanged()
		l.kickRetention()
		select {
		case <-stop:
			return
		default:
		}
	}
}

// noteTold notes that OnSeal was called for a segment that was in the log when l.cuts had the value cuts. If the segment was cut
// since, others with its offsets may follow, for which it must be called as well.
func (l *Log) noteTold(info SegmentInfo, cuts int64) {
	for noted := false; !noted; {
		l.state.stage(func(s *state) {
			if noted = l.cuts.Load() == cuts; noted { // a cut that begins later lowers told again
				s.told = max(s.told, info.Next)
			}
		})
		if !noted && l.cutBelow(&cuts, info.Next) != nil {
			return
		}
	}
}

// told reports whether OnSeal was called for all segments that end at or below next, or there is no OnSeal.
func (h *hooks) told(l *Log, next int64) bool {
	if l.o.OnSeal == nil {
		return true
	}
	l.state.mu.Lock()
	defer l.state.unlock()
	return l.state.cur.told >= next
}

// untold returns the first sealed segment for which OnSeal was not called; ok is false if there is none.
func (h *hooks) untold(l *Log) (info SegmentInfo, ok bool, err error) {
	l.state.mu.Lock()
	told := l.state.cur.told
	l.state.unlock()
	segs := l.view.Load().segs
	for i := max(0, (&view{segs}).find(told)); i+1 < len(segs); i++ {
		s, next := segs[i], segs[i+1].base
		if next <= told || s.is(phaseGone) {
			continue
		}
		if !s.is(phaseSealed) {
			return SegmentInfo{}, false, nil
		}
		info, err = l.trueInfo(s, next)
		if err == errGone {
			continue
		}
		return info, err == nil, err
	}
	return SegmentInfo{}, false, nil
}
