package seglog

import (
	"fmt"
	"math"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// flusher is the state that flushes work on. It belongs to the owner of Log.flushes.
type flusher struct {
	rewrites    []rewrite
	namesSynced int64 // Log.names at the last flush of the directory
	ended       bool  // Close has flushed everything, and gives back the files
}

// Sync returns once everything appended so far is on stable storage. Errors: ErrFailed, also for a flush that fails in
// this call; ErrClosed; ErrReadOnly; a full disk on which the first flush after a crash can't write again what the recovery
// kept, after which Sync may be called again.
func (l *Log) Sync() error {
	if err := l.writable(); err != nil {
		return err
	}
	return l.flushTo(l.moment())
}

// flushTo returns once everything below the end of m is on stable storage, or was cut away, or the log has failed.
func (l *Log) flushTo(m moment) error {
	sched.Yield("flush")
	return l.flushes.To(m.end, func() (bool, error) {
		if l.durable.Load() >= m.end || l.cuts.Load() != m.cuts {
			return true, nil
		}
		return false, l.failed()
	})
}

// flushRound is one round of group commit. Afterwards its owner notes the new recovery point (noteRecoveryPoint), before it
// hands over the ownership of the flushes: a note made later could follow a cut, and promise records that are gone.
func (l *Log) flushRound() error {
	if l.flusher.ended { // the caller found before Close that it needs a flush, and comes late
		return ErrClosed
	}
	err := l.flushOnce(math.MaxInt64)
	l.failUnlessShortage(err)
	return err
}

// flushOnce makes durable what is stored when it starts: the data of the segments that begin below limit, oldest first,
// and the names of new segments. Only then does the recovery point move. The caller owns l.flushes.
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
	f := &l.flusher
	names := l.names.Load() // after the view, so that it counts the names of its segments
	first := len(segs) - 1
	for first > 0 && segs[first-1].written() { // a sealed segment is flushed, and so are all before it
		first--
	}
	var few [maxUnsealed + 1]mark
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
	if names != f.namesSynced {
		if err := l.syncDir(); err != nil {
			return fmt.Errorf("seglog: flush directory: %w", &writeBackError{err})
		}
		f.namesSynced = names
	}
	// The marks come last, since readers go by them: a record is not durable before the name of its segment is.
	for i, s := range segs[first:] {
		l.stats.flushedBytes.Add(marks[i].pos() - s.flushed.load().pos())
		s.flushed.store(marks[i])
	}
	raise(&l.durable, segs[len(segs)-1].base+marks[len(marks)-1].rel())
	if l.o.Flush == FlushSync {
		l.readers.wake()
	}
	l.durableWaiters.wake()
	return nil
}

// unflushed returns how many bytes are stored and not flushed.
func (l *Log) unflushed() (n int64) {
	segs := l.view.Load().segs
	for i := len(segs) - 1; i >= 0; i-- {
		if !segs[i].written() {
			break
		}
		stored, flushed := segs[i].stored.load(), segs[i].flushed.load()
		n += stored.pos() - flushed.pos()
	}
	return n
}

// flushSegment makes a segment durable up to m, or further if more was gathered since, and returns the mark it reached.
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
		// Otherwise write-back write-protects the pages one by one, each with a TLB shootdown on every processor.
		from := s.flushed.load().pos()
		unmapPages(h.m, from, m.pos()-from)
	}
	var from int64
	if s.gather != nil {
		if from, m, err = s.gather.write(&s.stored, h.f); err != nil {
			return m, fmt.Errorf("seglog: write segment %d: %w", s.base, &writeBackError{h.named(err)}) // the buffer was let go
		}
	}
	start := time.Now()
	if s.gather != nil {
		err = s.gather.flush(h.f, from, m.pos())
	} else {
		err = h.f.Flush()
	}
	if err != nil {
		return m, fmt.Errorf("seglog: flush segment %d: %w", s.base, &writeBackError{h.named(err)})
	}
	took := time.Since(start)
	l.stats.flushed(took)
	if took > slowFlush {
		l.o.Logger.Warn("seglog: slow flush", "dir", l.dir, "segment", s.base, "dur", took)
	}
	return m, nil
}

// slowFlush is the duration from which on a flush is reported to the Logger, as by etcd (warnSyncDuration).
const slowFlush = time.Second

// rewrite is a range of bytes that recovery kept of a log that was not closed. A flush that failed earlier may have marked
// their pages in the cache clean although they are not on the disk (ext4 and XFS do so), so the bytes are written again
// before their first flush. "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
type rewrite struct {
	seg      *segment
	pos, end int64
}

// writeAgain writes the bytes of s again that recovery kept.
func (l *Log) writeAgain(s *segment, h *handle) error {
	for i := range l.flusher.rewrites {
		r := &l.flusher.rewrites[i]
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

// noteRecoveryPoint writes the recovery point to the state file. It is a lower bound, so it need not be flushed at once, and
// if the write fails, the next recovery only has more to check.
func (l *Log) noteRecoveryPoint() {
	durable := l.durable.Load()
	segs := l.view.Load().segs
	last := segs[len(segs)-1]
	m := last.flushed.load()
	err := l.state.noteFlushed(durable, last.base, m)
	if err != nil {
		l.backgroundError("recovery point not noted", err)
	}
	l.stateChanged()
}

// stateChanged lets the keeper flush the state file, stateFlushInterval after the first change.
func (l *Log) stateChanged() {
	if !l.stateDirty.Swap(true) {
		l.keeper.Kick()
	}
}
