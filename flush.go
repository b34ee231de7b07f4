package seglog

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// flusher is group commit: while one flush runs, the appends that come gather, and the next flush serves them all.
//
// Whoever finds no flush running does one itself, so a lone appender pays one fdatasync and no change of goroutine. If
// others gathered meanwhile, it hands over to the log's flush goroutine, which goes on until nobody waits: the disk is
// kept busy, and no appender flushes for others for ever.
type flusher struct {
	mu mutex
	// Guarded by mu:
	busy    bool   // a flush runs, or is handed over
	round   uint   // number of that flush
	covers  int64  // it makes everything below durable
	waiting [2]int // goroutines that wait for this round and for the next, by parity
	// served[round%2] is signalled at the end of a round. Its Locker unlocks mu when the wait starts and does not lock
	// it again: hundreds of goroutines that wake at once have nothing to do under it.
	served [2]*sync.Cond

	handOver chan struct{} // to the flush goroutine, which then owns busy
	quit     chan struct{} // ends it
}

// oneWay is the Locker of flusher.served.
type oneWay struct{ mu *mutex }

func (o oneWay) Lock()   {}
func (o oneWay) Unlock() { o.mu.Unlock() }

func (f *flusher) init() {
	for i := range f.served {
		f.served[i] = sync.NewCond(oneWay{&f.mu})
	}
	f.handOver, f.quit = make(chan struct{}, 1), make(chan struct{})
}

// flushTo returns once everything below target is on stable storage, or the log has failed.
func (l *Log) flushTo(target int64) error { return l.flushUpTo(target, math.MaxInt64) }

// flushUpTo is flushTo that, if it comes to flush itself, leaves segments alone that begin at or above limit.
func (l *Log) flushUpTo(target, limit int64) error {
	yield("flush")
	cuts := l.cuts.Load()
	f := &l.flush
	for {
		if l.durable.Load() >= target {
			return nil
		}
		if l.cuts.Load() != cuts {
			return nil // TruncateTo flushed it before it cut it away
		}
		if err := l.failed(); err != nil {
			return err
		}
		if err := l.nameLast(); err != nil {
			if !isDiskFull(err) {
				l.fail(err)
			}
			return err
		}
		f.mu.Lock()
		if !f.busy {
			f.busy, f.covers = true, min(l.end.Load(), limit)
			f.mu.Unlock()
			if l.flushRound(limit) {
				f.handOver <- struct{}{}
			}
			continue
		}
		round := f.round
		if target > f.covers {
			round++
		}
		f.waiting[round%2]++
		f.served[round%2].Wait()
		yield("flushed")
	}
}

// flushRound does one flush for those who wait; the caller owns f.busy. It returns true if others wait already, and
// then the caller still owns it.
func (l *Log) flushRound(limit int64) (more bool) {
	f := &l.flush
	err := l.flushOnce(limit)
	if err != nil {
		l.fail(err)
	}
	f.mu.Lock()
	round := f.round % 2
	f.waiting[round] = 0
	f.round++
	more = f.waiting[f.round%2] > 0 && err == nil
	if more {
		f.covers = l.end.Load()
	} else {
		f.busy = false
		f.waiting[f.round%2] = 0
	}
	f.mu.Unlock()
	f.served[round].Broadcast()
	if !more {
		f.served[1-round].Broadcast() // nobody, or those whom a failed log can't serve
	}
	l.noteRecoveryPoint()
	return more
}

// lockFlush waits until no flush runs and keeps others from starting, until unlockFlush.
func (l *Log) lockFlush() {
	f := &l.flush
	for {
		f.mu.Lock()
		if !f.busy {
			f.busy, f.covers = true, 0
			f.mu.Unlock()
			return
		}
		round := (f.round + 1) % 2
		f.waiting[round]++ // a round of its own, so that the running one hands over at the latest after it
		f.served[round].Wait()
		yield("flushed")
	}
}

func (l *Log) unlockFlush() {
	f := &l.flush
	f.mu.Lock()
	round := f.round % 2
	f.waiting = [2]int{}
	f.round++
	f.busy = false
	f.mu.Unlock()
	f.served[round].Broadcast()
	f.served[1-round].Broadcast()
}

func (l *Log) runFlusher() {
	defer l.flushing.Done()
	started("flusher")
	for {
		select {
		case <-l.flush.handOver:
			yield("handed over")
			for l.flushRound(math.MaxInt64) {
			}
		case <-l.flush.quit:
			return
		}
	}
}

// flushOnce makes durable what is stored when it starts: the data of each segment below limit that has some, oldest
// first, and the names of new ones. Only then the recovery point moves. The caller owns f.busy.
func (l *Log) flushOnce(limit int64) error {
	if err := l.failed(); err != nil {
		return err
	}
	if limit == math.MaxInt64 {
		l.dirty.Store(false)
	}
	segs := l.view.Load().segs
	for n := len(segs) - 1; n > 0 && segs[n].base >= limit; n-- {
		segs = segs[:n]
	}
	if t := l.unnamed.Load(); t != nil && segs[len(segs)-1] == t.seg {
		segs = segs[:len(segs)-1] // without a name it would not be durable
	}
	names := l.names.Load() // after the view: covers the names of its segments
	first := len(segs) - 1
	for first > 0 && segs[first-1].flushed.load() != segs[first-1].stored.load() {
		first--
	}
	var few [4]mark
	marks := few[:0]
	for _, s := range segs[first:] {
		m := s.stored.load()
		if m != s.flushed.load() {
			var err error
			if m, err = l.flushSegment(s, m); err != nil {
				return err
			}
		}
		marks = append(marks, m)
	}
	if names != l.namesSynced {
		if err := l.fs.syncDir(l.dir); err != nil {
			return fmt.Errorf("seglog: flush directory: %w", err)
		}
		l.namesSynced = names
	}
	// Last, since readers go by the marks: a record is not durable before the name of its segment is.
	for i, s := range segs[first:] {
		l.stats.flushedBytes.Add(marks[i].pos() - s.flushed.load().pos())
		s.flushed.store(marks[i])
	}
	l.durable.Store(segs[len(segs)-1].base + marks[len(marks)-1].rel())
	if l.o.Flush == FlushSync {
		l.readers.wake()
	}
	l.durableWaiters.wake()
	return nil
}

// unflushed is how many bytes are stored and not flushed.
func (l *Log) unflushed() (n int64) {
	segs := l.view.Load().segs
	for i := len(segs) - 1; i >= 0; i-- {
		stored, flushed := segs[i].stored.load(), segs[i].flushed.load()
		if stored == flushed && i+1 < len(segs) {
			break
		}
		n += stored.pos() - flushed.pos()
	}
	return n
}

// flushSegment makes a segment durable up to m, and what was gathered since too; it returns how far.
func (l *Log) flushSegment(s *segment, m mark) (mark, error) {
	h, err := s.pin(&l.env)
	if err == errGone {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer h.unref()
	if err := l.writeAgain(s, h); err != nil {
		return m, err
	}
	if s.gather == nil && h.m != nil {
		// Else the system takes the right to write from each page by itself, and stops every processor for it.
		from := s.flushed.load().pos()
		h.m.unmapPages(from, m.pos()-from)
	}
	if s.gather != nil {
		if m, err = s.gather.write(s, h.f); err != nil {
			return m, fmt.Errorf("seglog: write segment %d: %w", s.base, h.named(err))
		}
	}
	start := time.Now()
	if err := h.f.flush(); err != nil {
		return m, fmt.Errorf("seglog: flush segment %d: %w", s.base, h.named(err))
	}
	took := time.Since(start)
	l.stats.flushed(took)
	if took > slowFlush {
		l.o.Logger.Warn("seglog: slow flush", "dir", l.dir, "segment", s.base, "dur", took)
	}
	return m, nil
}

// slowFlush is etcd's warnSyncDuration: an operator wants to know of a disk that takes this long.
const slowFlush = time.Second

// rewrite is a range of bytes that recovery kept of a log that was not closed. A flush that failed before may have left
// their pages in the cache as if they were on the disk (ext4 and XFS mark them clean), so they are written again before
// the first flush. "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
type rewrite struct {
	seg      *segment
	pos, end int64
}

func (l *Log) writeAgain(s *segment, h *handle) error {
	for i := range l.rewrites {
		r := &l.rewrites[i]
		if r.seg != s {
			continue
		}
		buf := make([]byte, min(r.end-r.pos, 1<<20))
		for r.pos < r.end {
			p := buf[:min(int64(len(buf)), r.end-r.pos)]
			if _, err := h.f.ReadAt(p, r.pos); err != nil {
				return fmt.Errorf("seglog: read segment %d at position %d: %w", s.base, r.pos, err)
			}
			if _, err := h.f.WriteAt(p, r.pos); err != nil {
				return fmt.Errorf("seglog: write segment %d again at position %d: %w", s.base, r.pos, err)
			}
			r.pos += int64(len(p))
		}
	}
	return nil
}

// noteRecoveryPoint writes down how far the log is durable. It is a lower bound, so it needs no flush of its own at once,
// and a failure to write it only makes the next recovery check more.
func (l *Log) noteRecoveryPoint() {
	if l.failed() != nil {
		return
	}
	durable := l.durable.Load()
	segs := l.view.Load().segs
	last := segs[len(segs)-1]
	m := last.flushed.load()
	err := l.state.noteFlushed(durable, last.base, m)
	if err != nil {
		l.backgroundError("recovery point not noted", err)
	}
	if !l.stateDirty.Swap(true) {
		l.keeper.kick()
	}
}
