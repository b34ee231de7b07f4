package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// DeleteBefore makes offset the start of the log: lower offsets are out of range from then on, also after a restart.
// Segments wholly below offset are deleted; readers and sections that hold one keep it until they let go. If offset is at
// or below the start already, DeleteBefore does nothing. Only seglog.state knows of a start inside a segment: if that file
// is lost, the log starts where its first segment does. Errors: an *OffsetError for an offset above the high watermark; those
// of Sync; those of the operating system, after which the start may have moved (Offsets tells), and files may be left behind that the
// next Open removes.
func (l *Log) DeleteBefore(offset int64) error {
	l.hooks.start()
	if err := l.writable(); err != nil {
		return err
	}
	if offset <= l.start.Load() {
		return nil
	}
	if offset > l.highWatermark() {
		return &OffsetError{Offset: offset, Offsets: l.offsets()}
	}
	_, err := l.deleteBefore(offset, anyHistory)
	return err
}

// anyHistory is for callers of moveStart that mean the offset, whichever records are there by now.
const anyHistory = -1

// deleteBefore is DeleteBefore for a caller that chose offset when l.cuts had the value cuts; it does nothing if the log was
// cut since. It returns how many segments it deleted.
func (l *Log) deleteBefore(offset, cuts int64) (deleted int, err error) {
	for {
		// The start must not lie above what a power cut leaves.
		if m := l.moment(); offset <= m.end { // else a TruncateTo came first, and no flush would ever reach offset
			if err := l.flushTo(moment{m.cuts, offset}); err != nil {
				return 0, err
			}
		}
		if deleted, err = l.moveStart(offset, cuts); err != errNotFlushed {
			return deleted, err
		}
	}
}

// errNotFlushed: after deleteBefore flushed, the log was cut and appended to, so records to be deleted are not flushed.
var errNotFlushed = errors.New("seglog: not flushed")

// moveStart makes offset the start, and deletes the segments wholly below, while appends go on. It does nothing if the log
// was cut since l.cuts had the value cuts.
func (l *Log) moveStart(offset, cuts int64) (deleted int, err error) {
	l.changing.Lock()
	defer l.changing.Unlock()
	if cuts != anyHistory && l.cuts.Load() != cuts {
		return 0, nil
	}
	dropped, rollErr, err := l.planDeletion(offset)
	if err != nil {
		return 0, err
	}
	if len(dropped) == 0 && offset <= l.start.Load() {
		return 0, rollErr
	}
	first := l.view.Load().segs[len(dropped)].base
	err = l.state.commit(func(s *state) {
		s.start = offset
		s.deleted((&view{dropped}).bases(), first)
		s.clean = false // an Open that finds the mark flushes nothing, so what comes with it must be durable already
	})
	if err != nil {
		return 0, fmt.Errorf("seglog: delete before offset %d: %w", offset, err)
	}
	l.mu.Lock()
	if len(dropped) > 0 {
		l.view.Store(&view{l.view.Load().segs[len(dropped):]})
	}
	raise(&l.start, offset) // last, so that a reader that sees the new start sees its view, too
	l.mu.Unlock()
	if len(dropped) > 0 {
		l.o.Logger.Debug("seglog: deleted", "dir", l.dir, "offset", offset, "segments", len(dropped))
		l.stats.deletedSegments.Add(int64(len(dropped)))
	}
	err = errors.Join(l.drop(dropped), rollErr)
	l.markClosed()
	return len(dropped), err
}

// markClosed sets the clean mark of a log again that is as it was closed, except for a deletion. If that fails, the next Open has more
// to do.
func (l *Log) markClosed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.untouched() {
		return
	}
	if err := l.state.commit(func(s *state) { s.clean = true }); err != nil {
		l.stats.errors.Add(1)
	}
}

// planDeletion returns the segments to delete when offset becomes the start. Those that wait for their seal are left to the
// keeper. If offset is the end of the log, the active segment is rolled, so that it can be deleted too; rollErr says why
// it could not be rolled, in which case the others are deleted all the same. l.changing is held.
func (l *Log) planDeletion(offset int64) (dropped []*segment, rollErr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return nil, nil, err
	}
	if offset > l.end.Load() { // a TruncateTo came first
		return nil, nil, &OffsetError{Offset: offset, Offsets: l.offsets()}
	}
	if offset < l.start.Load() {
		return nil, nil, nil
	}
	if offset > l.durable.Load() {
		return nil, nil, errNotFlushed
	}
	if err := l.checkDirectory(); err != nil {
		return nil, nil, fmt.Errorf("seglog: delete before offset %d: %w", offset, err)
	}
	w := &l.writer
	if offset == l.end.Load() && w.tail.seg.stored.load().pos() > 0 && len(w.sealing) < maxUnsealed {
		if err := l.roll(offset); err != nil {
			rollErr = fmt.Errorf("seglog: roll at offset %d: %w", offset, err)
		}
	}
	segs, unsealed := l.view.Load().segs, w.unsealed().base
	k := 0
	for k+1 < len(segs) && segs[k+1].base <= offset && segs[k].base < unsealed {
		k++
	}
	return segs[:k], rollErr, nil
}

// drop closes segments that are neither in the state file nor in the view any more, and removes their files. Files that it
// can't remove are left to the next Open.
func (l *Log) drop(segs []*segment) error {
	if len(segs) == 0 {
		return nil
	}
	var errs []error
	for i := len(segs) - 1; i >= 0; i-- {
		s := segs[i]
		s.mu.Lock() // waits for a seal, or a rebuild of its indexes, to end
		s.enter(phaseGone)
		err := l.removeSegmentFiles(s.base)
		if err != nil {
			l.undeleted = append(l.undeleted, s.base)
		}
		errs = append(errs, err, s.close())
		s.deleted(l.stats)
		s.mu.Unlock()
		l.opened.drop(s)
	}
	if err := l.syncDir(); err != nil {
		errs = append(errs, fmt.Errorf("seglog: flush directory after a deletion: %w", err))
	}
	return errors.Join(errs...)
}

// removeUndeleted removes the files that a deletion could not. The next Open knows them by their offsets below the start, which
// a Reset is about to move down. l.changing is held.
func (l *Log) removeUndeleted() error {
	for n := len(l.undeleted); n > 0; n-- {
		if err := l.removeSegmentFiles(l.undeleted[n-1]); err != nil {
			return err
		}
		l.undeleted = l.undeleted[:n-1]
	}
	return nil
}

// removeSegmentFiles removes the .log last, so that no crash leaves one whose indexes look lost.
func (e *env) removeSegmentFiles(base int64) error {
	for _, suffix := range []string{transactionSuffix, producerSuffix, timeSuffix, indexSuffix, logSuffix} {
		if err := e.removeFile(base, suffix); err != nil {
			return err
		}
	}
	return nil
}

// removeProducersAbove removes a broker's files on producers that are about offsets above a cut. These offsets are given out
// again, and by such a file the broker would refuse the producers' next batches, or take them for repetitions
// (ProducerStateManager.truncateAndReload removes the same files).
func (e *env) removeProducersAbove(producers []int64, offset int64) (removed bool, err error) {
	for _, at := range producers {
		if at <= offset {
			continue
		}
		if err := e.removeFile(at, producerSuffix); err != nil {
			return removed, err
		}
		removed = true
	}
	return removed, nil
}

// Retain applies Options.RetentionBytes and RetentionAge now rather than in the background. It returns how many segments it
// deleted, also beside an error, after which the next Open removes files that are left of them. A segment that waits for
// its seal is deleted, and counted, in the background.
//
// The rules are Kafka's. Whole segments go, oldest first, up to the first that stays: by size while the log keeps at least
// RetentionBytes without the segment; by age if the greatest time of its records is longer ago than RetentionAge (for a
// segment without times, or with damaged batches, the time of its last change counts). A segment stays until OnSeal was
// called for it and MayDelete agrees. An active segment that is too old is rolled: with OnSeal at once, to be deleted when
// that was called and MayDelete agrees; otherwise once MayDelete agrees.
// A clock that jumps ahead counts only once it has stayed ahead for an hour.
func (l *Log) Retain() (deleted int, err error) {
	l.hooks.start()
	return l.retain()
}

// retain is Retain without a start of the hooks, for the work in the background.
func (l *Log) retain() (deleted int, err error) {
	if l.o.MayDelete != nil {
		l.hooks.asking.Lock() // so that MayDelete is not asked about what another call is deleting
		defer l.hooks.asking.Unlock()
	}
	if err := l.writable(); err != nil {
		return 0, err
	}
	cuts := l.settledCuts()
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
	var rollErr error
	offset, now, expired := l.start.Load(), l.now(), 0
	for i, s := range segs {
		last := i+1 == len(segs)
		next := l.highWatermark()
		if !last {
			next = segs[i+1].base
		} else if next != l.end.Load() || next == s.base {
			break // records nobody may read yet; or none at all
		}
		size, err := l.size(s)
		if err != nil {
			return 0, err
		}
		bySize := l.o.RetentionBytes > 0 && !last && total-size >= l.o.RetentionBytes
		if !bySize && (l.o.RetentionAge == 0 || last && size == 0) {
			break
		}
		info, err := l.trueInfo(s, next)
		if err == errGone {
			break
		}
		if err != nil {
			return 0, err
		}
		if !bySize {
			if old, err := l.expired(info, now); err != nil || !old {
				if err != nil {
					return 0, err
				}
				break
			}
		}
		if last && l.o.OnSeal != nil {
			_, rollErr = l.rollAt(next) // it goes once it was sealed and OnSeal was called for it
			break
		}
		if !l.hooks.told(l, next) || l.o.MayDelete != nil && (l.closed.Load() || !l.o.MayDelete(info)) {
			break
		}
		if last {
			var rolled bool
			if rolled, rollErr = l.rollAt(next); !rolled {
				break
			}
		}
		total -= size
		offset = next
		expired++
	}
	if expired == 0 {
		return 0, rollErr
	}
	deleted, err = l.deleteBefore(offset, cuts)
	return deleted, errors.Join(err, rollErr)
}

// rollAt rolls the active segment if the log ends at offset and no more segments wait for their seal than may.
func (l *Log) rollAt(offset int64) (rolled bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return false, err
	}
	if l.end.Load() != offset || l.writer.tail.seg.stored.load().pos() == 0 || len(l.writer.sealing) >= maxUnsealed {
		return false, nil
	}
	if err := l.roll(offset); err != nil {
		return false, fmt.Errorf("seglog: roll at offset %d: %w", offset, err)
	}
	return true, nil
}

// expired reports whether a segment is older than RetentionAge.
func (l *Log) expired(info SegmentInfo, now time.Time) (bool, error) {
	newest := info.MaxTime
	if newest.IsZero() {
		st, err := l.fs.Stat(info.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil // nothing is left that could be kept
		}
		if err != nil {
			return false, err
		}
		newest = st.ModTime
	}
	if ahead := newest.Sub(now); ahead > futureTolerance && !l.wall.warned.Swap(true) {
		l.o.Logger.Warn("seglog: a record's time lies in the future, which keeps its segment and all later ones from expiring",
			"dir", l.dir, "segment", info.Base, "time", newest)
	}
	return now.Sub(newest) > l.o.RetentionAge, nil
}

const (
	// futureTolerance is Kafka's default for message.timestamp.after.max.ms.
	futureTolerance = time.Hour
	// clockTrust is how long the wall clock must have stayed ahead of the monotonic one before it is believed.
	clockTrust = time.Hour
)

// wallClock is the wall clock as far as retention believes it.
type wallClock struct {
	mu     sched.Mutex
	since  time.Time // when the wall clock was last believed, with a monotonic reading
	base   time.Time // what it said then
	ahead  time.Time // when it was first seen ahead of the time that has passed since; zero if it is not ahead
	warned atomic.Bool
}

// now returns the time of the wall clock, or, while that is ahead of the time that has passed since it was last believed,
// the latter. A wall clock that stays ahead for clockTrust is believed again: it was wrong before, and is right now.
func (w *wallClock) now(clock time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	wall := clock.Round(0)
	if w.since.IsZero() {
		w.since, w.base = clock, wall
	}
	elapsed := w.base.Add(clock.Sub(w.since))
	if wall.Sub(elapsed) <= time.Second { // clocks are adjusted a little all the time
		w.since, w.base, w.ahead = clock, wall, time.Time{}
		return wall
	}
	if w.ahead.IsZero() {
		w.ahead = clock
	}
	if clock.Sub(w.ahead) >= clockTrust {
		w.since, w.base, w.ahead = clock, wall, time.Time{}
		return wall
	}
	return elapsed
}

// now returns the present time, for retention.
func (l *Log) now() time.Time { return l.wall.now(time.Now()) }
