package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// DeleteBefore makes offset the start of the log: what is below is out of range from now on, also after a restart.
// Segments wholly below are deleted; readers and sections that hold one keep it until they let go. An offset at or below
// the start does nothing. Errors: an *OffsetError for one above the high watermark; the operating system's, which may
// leave files that the next Open removes.
func (l *Log) DeleteBefore(offset int64) error {
	if err := l.writable(); err != nil {
		return err
	}
	if offset <= l.start.Load() {
		return nil
	}
	if offset > l.highWatermark() {
		return &OffsetError{Offset: offset, Offsets: l.Offsets()}
	}
	// The start must not lie above what a power cut leaves.
	if err := l.flushTo(offset); err != nil {
		return err
	}
	dropped, err := l.moveStart(offset)
	return errors.Join(err, l.drop(dropped))
}

// moveStart makes offset the start and returns the segments that are to be dropped.
func (l *Log) moveStart(offset int64) ([]*segment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return nil, err
	}
	if offset > l.end.Load() { // TruncateTo was faster
		return nil, &OffsetError{Offset: offset, Offsets: l.Offsets()}
	}
	if offset < l.start.Load() {
		return nil, nil
	}
	if offset == l.end.Load() && l.tail.seg.stored.load().pos() > 0 {
		// So that the last segment goes too, once it is sealed.
		if err := l.roll(offset); err != nil {
			return nil, fmt.Errorf("seglog: roll at offset %d: %w", offset, err)
		}
	}
	segs := l.view.Load().segs
	unsealed := l.tail.seg.base
	if len(l.sealing) > 0 {
		unsealed = l.sealing[0].seg.base // from here on it goes once it is sealed
	}
	k := 0
	for k+1 < len(segs) && segs[k+1].base <= offset && segs[k].base < unsealed {
		k++
	}
	if k == 0 && offset == l.start.Load() {
		return nil, nil
	}
	var sum int64
	for _, s := range segs[:k] {
		sum += s.base
	}
	err := l.state.commit(func(s *state) {
		s.start, s.first = offset, segs[k].base
		s.segments -= int64(k)
		s.baseSum -= sum
	})
	if err != nil {
		return nil, fmt.Errorf("seglog: delete before offset %d: %w", offset, err)
	}
	l.start.Store(offset)
	if k > 0 {
		l.view.Store(&view{segs[k:]})
		l.o.Logger.Debug("seglog: deleted", "dir", l.dir, "offset", offset, "segments", k)
		l.stats.deletedSegments.Add(int64(k))
	}
	return segs[:k], nil
}

// drop unlinks segments that neither the state file nor the view counts any more, and gives them back.
func (l *Log) drop(segs []*segment) error {
	for _, s := range segs {
		s.mu.Lock() // a seal or a rebuild of its indexes ends first
		s.gone.Store(true)
		err := errors.Join(l.removeSegmentFiles(s.base), s.close())
		s.mu.Unlock()
		l.opened.drop(s)
		if err != nil {
			return err
		}
	}
	if len(segs) == 0 {
		return nil
	}
	return l.fs.syncDir(l.dir)
}

// Kafka keeps these beside a segment: the aborted transactions in it, and the producers' state at its start. They make no
// sense without it, and less beside a new one of the same base.
const (
	transactionSuffix = ".txnindex"
	producerSuffix    = ".snapshot"
)

// removeSegmentFiles removes the .log last, so that no crash leaves one whose indexes look lost.
func (e *env) removeSegmentFiles(base int64) error {
	for _, suffix := range []string{transactionSuffix, producerSuffix, timeSuffix, indexSuffix, logSuffix} {
		if err := e.removeFile(base, suffix); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) removeFile(base int64, suffix string) error {
	if err := e.fs.remove(e.path(base, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("seglog: delete segment %d: %w", base, err)
	}
	return nil
}

// Retain applies Options.RetentionBytes and RetentionAge now rather than in the background, and returns how many
// segments it deleted. Kafka's rules: whole segments, oldest first, up to the first that stays; by size while what is
// left without the segment is at least RetentionBytes; by age if its greatest record time (of a segment without times,
// the time of its last change) is longer ago than RetentionAge. A clock that jumps ahead does not count: time since Open
// is measured by the monotonic clock.
func (l *Log) Retain() (deleted int, err error) {
	if err := l.writable(); err != nil {
		return 0, err
	}
	segs := l.view.Load().segs
	var total int64
	if l.o.RetentionBytes > 0 {
		for _, s := range segs {
			size, err := l.size(s)
			if err != nil {
				return 0, err
			}
			total += size
		}
	}
	offset := l.start.Load()
	for i, s := range segs {
		last := i+1 == len(segs)
		size, err := l.size(s)
		if err != nil {
			return 0, err
		}
		bySize := l.o.RetentionBytes > 0 && !last && total-size >= l.o.RetentionBytes
		byAge, err := l.expired(s, size)
		if err != nil {
			return 0, err
		}
		if !bySize && !byAge {
			break
		}
		next := l.highWatermark()
		if !last {
			next = segs[i+1].base
		}
		if l.o.MayDelete != nil && !last && !l.o.MayDelete(l.info(s, next, size)) {
			break
		}
		if last {
			next = l.end.Load()
			if next != l.highWatermark() {
				break
			}
		}
		total -= size
		offset = next
		deleted++
	}
	if deleted == 0 {
		return 0, nil
	}
	return deleted, l.DeleteBefore(offset)
}

func (l *Log) info(s *segment, next, size int64) SegmentInfo {
	return SegmentInfo{Path: l.path(s.base, logSuffix), Base: s.base, Next: next, Bytes: size, MaxTime: timeOf(s.maxTime.Load())}
}

// size is the size of a segment's batches, without opening it; it is remembered.
func (l *Log) size(s *segment) (int64, error) {
	if pos := s.stored.load().pos(); pos != sizeUnknown {
		return pos, nil
	}
	st, err := l.fs.stat(l.path(s.base, logSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // deleted meanwhile
	}
	if err == nil && st.size <= maxSegmentBytes {
		m := s.stored.load()
		known := markAt(m.rel(), st.size)
		s.stored.v.CompareAndSwap(uint64(m), uint64(known))
		s.flushed.v.CompareAndSwap(uint64(m), uint64(known))
	}
	return st.size, err
}

// expired reports whether a segment is older than RetentionAge.
func (l *Log) expired(s *segment, size int64) (bool, error) {
	if l.o.RetentionAge == 0 || size == 0 {
		return false, nil
	}
	ms, err := l.maxTime(s)
	if err == errGone {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	newest := time.UnixMilli(ms)
	if ms < 0 {
		st, err := l.fs.stat(l.path(s.base, logSuffix))
		if err != nil {
			return false, err
		}
		newest = st.mtime
	}
	return l.now().Sub(newest) > l.o.RetentionAge, nil
}

// now is the wall clock, but not ahead of what has really passed since Open.
func (l *Log) now() time.Time {
	now := time.Now().Round(0)
	elapsed := l.openedAt.Round(0).Add(time.Since(l.openedAt))
	if elapsed.Before(now) {
		return elapsed
	}
	return now
}
