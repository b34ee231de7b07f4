package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// readOnly keeps the view of a log that was opened with ReadOnly up to date with the writer, which may be in another process.
// A log that is written here has none. Log.mu guards it, except for fresh and cutting.
type readOnly struct {
	l *Log

	state    vfs.File // seglog.state; nil if the directory has none
	promised bool     // it has a good slot
	seen     state    // the state of the view
	// The file and the indexes of the last segment, as far as its batches were checked.
	f vfs.File
	x *indexBuilder

	began  time.Time     // when the log was opened
	opened time.Time     // when seglog.state was opened last
	looked time.Duration // when the last look at it began, since began
	listed time.Time     // when the directory was listed last, if it has no state file
	first  int64         // base offset of the first segment then
	fresh  atomic.Int64  // until then, in ns since began, known offsets are read without another look at the state file

	// cutting is the offset of a TruncateTo that is under way, or was interrupted; 0 if there is none. The view ends with the
	// last whole batch below it; the records from there up to cutting come back when the cut is done.
	cutting atomic.Int64
}

// catchUp brings the view of a read-only log up to date with the writer. It returns ErrClosed for a log that is closed.
func (l *Log) catchUp() error {
	if l.closed.Load() {
		return ErrClosed
	}
	if l.readOnly != nil {
		return l.readOnly.refresh()
	}
	return nil
}

// claimed returns the offset up to which there are records, including those that a cut hides for a moment.
func (l *Log) claimed() int64 {
	end := l.end.Load()
	if l.readOnly != nil {
		end = max(end, l.readOnly.cutting.Load())
	}
	return end
}

// awaitCut waits until no cut of the writer hides the record at offset. It returns ErrBusy if that takes too long.
func (ro *readOnly) awaitCut(offset int64) error {
	for began := time.Now(); offset >= ro.l.end.Load() && offset < ro.cutting.Load(); {
		if time.Since(began) > maxCutWait {
			return fmt.Errorf("%w: offset %d: %s", ErrBusy, offset, cutUnderWay)
		}
		pauseForCut(began)
		if err := ro.refresh(); err != nil {
			return err
		}
	}
	return nil
}

// pauseForCut waits before the next look at a cut of the writer: longer the longer it takes, since one that was interrupted
// may stay for hours.
func pauseForCut(began time.Time) {
	sched.Spin("cut of the writer", max(time.Millisecond, time.Since(began)/8))
}

const cutUnderWay = "a cut is under way, or was interrupted and is finished by the next Open"

// followEvery is how far a read-only log may be behind its writer: records that were deleted or cut may be read that much
// longer, and Offsets and Stats are at most that old. A reader that comes to the end always looks for new records.
const followEvery = 20 * time.Millisecond

// openReadOnly opens the directory as it is. It locks, writes and removes nothing.
func (l *Log) openReadOnly() error {
	info, err := l.fs.Stat(l.dir)
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if !info.IsDir {
		return fmt.Errorf("seglog: open %s: %w", l.dir, &fs.PathError{Op: "open", Path: l.dir, Err: errors.New("not a directory")})
	}
	ro := &readOnly{l: l, began: time.Now()}
	ro.seen.cut = -1
	l.readOnly = ro
	l.o.Flush = FlushNone // what the writer may show, refresh decides
	if l.dirH, err = l.fs.OpenDir(l.dir); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if err := ro.refresh(); err != nil || ro.promised {
		return err
	}
	return ro.lookBehindView()
}

// refreshFor brings the view up to date, if the record at offset is not in it or the last look is too long ago.
func (ro *readOnly) refreshFor(offset int64) error {
	l := ro.l
	if l.closed.Load() {
		return ErrClosed
	}
	known := func() bool { return offset >= l.start.Load() && offset < l.end.Load() }
	if known() && ro.isFresh() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Load() {
		return ErrClosed
	}
	if known() && ro.isFresh() {
		return nil
	}
	st, err := ro.readWriterState()
	if err != nil {
		return err
	}
	if known() && st.start == ro.seen.start && st.first == ro.seen.first && !ro.seen.cutSince(&st) && st.recoveryPoint == ro.seen.recoveryPoint {
		ro.setFresh()
		return nil
	}
	return ro.refreshLocked(st)
}

func (ro *readOnly) isFresh() bool { return int64(time.Since(ro.began)) < ro.fresh.Load() }

// setFresh declares the view up to date until followEvery after the state file was read, not after now: on a busy system the
// difference may be large.
func (ro *readOnly) setFresh() { ro.fresh.Store(int64(ro.looked + followEvery)) }

// refreshIfStale brings the bounds up to date for Offsets and Stats.
func (l *Log) refreshIfStale() {
	if ro := l.readOnly; ro != nil && !l.closed.Load() && !ro.isFresh() {
		_ = ro.refresh() // readers get the error
	}
}

func (ro *readOnly) refresh() error {
	l := ro.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Load() {
		return ErrClosed
	}
	st, err := ro.readWriterState()
	if err != nil {
		return err
	}
	return ro.refreshLocked(st)
}

// sealedByWriter returns the base offset below which the writer has sealed the segments. It fills, trims and flushes a
// segment for a while after it rolled to the next one. In a directory without a state file, such as one of Kafka's, all
// segments but the last count as sealed.
func (ro *readOnly) sealedByWriter() int64 {
	ro.l.mu.Lock()
	defer ro.l.mu.Unlock()
	if !ro.promised {
		return math.MaxInt64
	}
	return ro.seen.scanBase
}

// attempt counts the attempts of a reader of a read-only log, whose files may change while it reads.
type attempt struct {
	tries int       // how many were overtaken
	view  *view     // the view that this one began with
	began time.Time // when the first was overtaken
}

// try begins the next attempt.
func (l *Log) try(a *attempt) {
	if l.readOnly != nil {
		a.view = l.view.Load()
	}
}

// overtaken reports whether err may come from files that the writer has changed since the view was made. If so, the view is
// up to date by now, and the caller tries again. Otherwise the caller returns err, which is ErrBusy if a cut of the writer
// takes too long. ro may be nil.
func (ro *readOnly) overtaken(a *attempt, err *error) bool {
	var fault *fs.PathError // also a fault in a mapping of a file that was cut
	if ro == nil || !errors.Is(*err, ErrCorrupt) && !errors.Is(*err, io.ErrUnexpectedEOF) && !errors.As(*err, &fault) {
		return false
	}
	if a.tries++; a.tries == 1 {
		a.began = time.Now()
	}
	l := ro.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Load() {
		return false
	}
	ro.opened, ro.listed = time.Time{}, time.Time{}
	st, e := ro.readWriterState()
	if e != nil {
		*err = unexplained(e, *err)
		return false
	}
	// Another reader may have brought the view up to date before.
	changed := l.view.Load() != a.view || st.first != ro.seen.first || ro.seen.cutSince(&st)
	switch {
	case st.cut < 0 && (!changed || a.tries > maxOvertaken):
		return false
	case !changed && st.truncating() && l.inView(*err):
		return false // of a view that was made during the cut, which leaves these bytes as they are
	case st.cut >= 0 && time.Since(a.began) > maxCutWait:
		*err = fmt.Errorf("%w: %s: %w", ErrBusy, cutUnderWay, *err)
		return false
	case st.cut >= 0:
		pauseForCut(a.began)
	}
	if e := ro.refreshLocked(st); e != nil {
		*err = unexplained(e, *err)
		return false
	}
	return true
}

// inView reports whether err is damage below the end of the view.
func (l *Log) inView(err error) bool {
	var corrupt *CorruptError
	return errors.As(err, &corrupt) && corrupt.Offset >= 0 && corrupt.Offset < l.end.Load()
}

// unexplained combines met, the error of a read, with err, the reason why it could not be found out whether a change by the
// writer explains met: a segment that is missing may have been deleted.
func unexplained(err, met error) error {
	return fmt.Errorf("%w, after: %v", err, met)
}

const (
	// maxOvertaken bounds the attempts of one reader.
	maxOvertaken = 100
	// maxCutWait bounds the wait for a cut, which takes a few flushes; a busy disk does a few each second.
	maxCutWait = 2 * time.Second
)

// readWriterState reads seglog.state, which may appear, vanish and be replaced while the log is open. l.mu is held.
func (ro *readOnly) readWriterState() (state, error) {
	l := ro.l
	ro.looked = time.Since(ro.began)
	// As long as there is none, each look is a new one: once the writer has made it, the directory may change in ways that only the
	// state tells.
	if ro.state == nil || time.Since(ro.opened) >= followEvery {
		f, err := l.acquire(filepath.Join(l.dir, stateName), vfs.OpenRead)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return state{}, fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
		if notOurs := l.ours(); notOurs != nil {
			if err == nil {
				notOurs = errors.Join(notOurs, f.Close())
			}
			return state{}, notOurs
		}
		if ro.state != nil {
			_ = ro.state.Close() // of a file that was only read
		}
		ro.state, ro.opened = nil, time.Now()
		if err == nil {
			ro.state = f
		}
	}
	st, ok := state{}, false
	if ro.state != nil {
		// A slot that can't be read may hold what the writer noted last: without it, records would be missing in silence. A
		// log that was closed, though, is the same in both.
		var err error
		if st, ok, err = readEachSlot(ro.state); err != nil && !(ok && st.clean) {
			return state{}, fmt.Errorf("seglog: read %s: %w", stateName, err)
		}
	}
	if ro.promised = ok; !ok {
		return ro.unpromised()
	}
	if st.isUnfinished() {
		return state{}, &CorruptError{Path: filepath.Join(l.dir, stateName), Offset: -1, Reason: "the snapshot that made this directory was not finished"}
	}
	if st.gaps {
		l.gaps.Store(true) // noted before the first batch that leaves offsets out
	}
	return st, nil
}

// unpromised returns a state for a directory that has none: the log starts with its first segment.
func (ro *readOnly) unpromised() (state, error) {
	if time.Since(ro.listed) >= followEvery {
		dir, err := ro.l.list()
		if err != nil {
			return state{}, err
		}
		ro.listed, ro.first = time.Now(), 0
		if len(dir.bases) > 0 {
			ro.first = dir.bases[0]
		}
	}
	return state{cut: -1, start: ro.first, manifest: manifest{first: ro.first}}, nil
}

// pollFor is waitFor for a read-only log, whose writer is in another process and can't wake anybody here.
func (ro *readOnly) pollFor(ctx context.Context, offset, cuts int64, durable bool) error {
	l := ro.l
	pause := time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		if err := ro.refreshFor(offset); err != nil {
			return err
		}
		start := l.start.Load()
		if end := l.readable(durable); end > offset && (offset != Oldest || end > start) {
			if offset < start && offset != Oldest {
				return &OffsetError{Offset: offset, Offsets: l.Offsets()}
			}
			return nil
		}
		if cuts >= 0 && l.cuts.Load() != cuts && offset != Oldest && offset > l.lowestCut(cuts) {
			return &OffsetError{Offset: offset, Offsets: l.Offsets()}
		}
		select {
		case <-timer.C:
			sched.Yield("poll")
			pause = min(2*pause, maxPoll)
			timer.Reset(pause)
		case <-ctx.Done():
			return ctx.Err()
		case <-l.done:
			return ErrClosed
		}
	}
}

// maxPoll is the longest pause between two looks: too short for a person to notice, long enough for a thousand followers.
const maxPoll = 20 * time.Millisecond
