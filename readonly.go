package seglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"time"
)

// readOnly is what a log opened with ReadOnly knows of the writer beside it. Log.mu guards it.
type readOnly struct {
	state    file // seglog.state; nil for a directory that has none
	promised bool
	seen     state
	// The last segment, as far as its batches were checked.
	f file
	x *indexBuilder
}

// cutSince reports whether a cut began since the view was made, or ended that ran then.
func (ro *readOnly) cutSince(st state) bool {
	return st.cuts != ro.seen.cuts || ro.seen.cut >= 0 && st.cut < 0
}

// openReadOnly takes the directory as it is. Nothing is locked, written or removed.
func (l *Log) openReadOnly() error {
	info, err := l.fs.stat(l.dir)
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if !info.isDir {
		return fmt.Errorf("seglog: open %s: %w", l.dir, &fs.PathError{Op: "open", Path: l.dir, Err: errors.New("not a directory")})
	}
	ro := &l.follow
	ro.seen.cut = -1
	ro.state, err = l.fs.open(filepath.Join(l.dir, stateName), openRead)
	if errors.Is(err, fs.ErrNotExist) {
		ro.state, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	return l.refresh()
}

// refreshFor looks for what the writer did since, if the record at offset depends on it.
func (l *Log) refreshFor(offset int64) error {
	if l.closed.Load() {
		return ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st, err := l.readWriterState()
	if err != nil {
		return err
	}
	ro := &l.follow
	if offset < l.end.Load() && st.start == ro.seen.start && !ro.cutSince(st) {
		return nil
	}
	return l.refreshLocked(st)
}

func (l *Log) refresh() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, err := l.readWriterState()
	if err != nil {
		return err
	}
	return l.refreshLocked(st)
}

// overtaken reports whether an error comes from looking at the files of a view that the writer has changed meanwhile. The
// view is up to date then, and the caller looks again, up to maxOvertaken times.
func (l *Log) overtaken(err error, tries int) bool {
	var fault *fs.PathError // a mapping that was cut, too
	if !l.o.ReadOnly || tries >= maxOvertaken || !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &fault) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st, e := l.readWriterState()
	seen := l.follow.seen
	if e != nil || st.cut < 0 && st.first == seen.first && !l.follow.cutSince(st) {
		return false
	}
	if st.cut >= 0 {
		spin("cut of the writer", time.Millisecond) // which is under way
	}
	return l.refreshLocked(st) == nil
}

const maxOvertaken = 100

func (l *Log) readWriterState() (state, error) {
	ro := &l.follow
	if ro.state == nil {
		return state{cut: -1}, nil
	}
	st, ok, err := readSlots(ro.state)
	if err != nil {
		return state{}, fmt.Errorf("seglog: read %s: %w", stateName, err)
	}
	ro.promised = ok
	if !ok {
		st = state{cut: -1}
	}
	return st, nil
}

// refreshLocked brings the view up to what the directory holds. It starts over while the writer changes what it looks
// at; a writer that died in the middle of a cut leaves the log as it was before, as far as it is whole.
func (l *Log) refreshLocked(st state) error {
	ro := &l.follow
	for try := 0; ; try++ {
		var err error
		v := l.view.Load()
		if v == nil || ro.cutSince(st) || v.segs[len(v.segs)-1].base < st.first {
			err = l.rebuildView(st)
		}
		if err == nil {
			err = l.extendView(st)
		}
		after, stateErr := l.readWriterState()
		if stateErr != nil {
			return stateErr
		}
		if st.cuts == after.cuts && st.cut == after.cut && st.first == after.first && (err == nil || try > 100) {
			l.dropDeleted(after)
			ro.seen = after
			return err
		}
		if try > 1000 {
			return errors.Join(err, fmt.Errorf("%w: the writer changes %s faster than it can be read", ErrBusy, l.dir))
		}
		st = after
		spin("writer", time.Millisecond)
	}
}

// rebuildView lists the directory anew: at first, and after a cut.
func (l *Log) rebuildView(st state) error {
	ro := &l.follow
	dir, err := l.list()
	if err != nil {
		return err
	}
	l.gaps.Store(st.gaps || !ro.promised)
	for len(dir.bases) > 0 && dir.bases[0] < st.first {
		dir.bases = dir.bases[1:]
	}
	old := l.view.Load()
	if len(dir.bases) == 0 {
		if ro.promised && st.segments > 0 && st.cut < 0 {
			return &CorruptError{Path: l.path(st.first, logSuffix), Offset: st.first, Reason: "segment is missing"}
		}
		dir.bases = []int64{max(0, st.start)}
	}
	n := len(dir.bases)
	if ro.promised {
		// What is not sealed yet may end in zeros; extendView goes through it batch by batch.
		for n > 1 && dir.bases[n-1] > st.scanBase {
			n--
		}
	}
	segs := make([]*segment, n)
	for i, base := range dir.bases[:n-1] {
		segs[i] = newSealed(base, dir.bases[i+1])
	}
	last, err := l.followSegment(dir.bases[n-1])
	if err != nil {
		return err
	}
	segs[n-1] = last
	if old != nil && ro.cutSince(st) {
		l.cuts.Add(1)
		defer l.cuts.Add(1)
		lowest := st.lastCut
		if st.cuts-ro.seen.cuts > 1 {
			lowest = -1 // several, and only the last is known
		}
		l.cutLog.add(lowest, lowest < 0)
	}
	ro.seen.cuts, ro.seen.cut = st.cuts, st.cut
	l.start.Store(max(st.start, segs[0].base))
	l.end.Store(last.base)
	l.durable.Store(last.base)
	l.view.Store(&view{segs})
	if old != nil {
		for _, s := range old.segs {
			l.opened.drop(s)
			_ = s.retire()
		}
	}
	return nil
}

// followSegment opens the segment that the writer appends to; one that does not exist (yet) is an empty one.
func (l *Log) followSegment(base int64) (*segment, error) {
	ro := &l.follow
	s := &segment{base: base}
	s.maxTime.Store(noTimestamp)
	f, path, err := l.openLog(base, openRead)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = noFile{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("seglog: open segment %d: %w", base, err)
	}
	h := newHandle(f, path, nil)
	ro.f, ro.x = f, newIndexBuilder(l.o.IndexBytes)
	h.x.Store(&ro.x.indexes)
	s.h.Store(h)
	return s, nil
}

// extendView checks what was appended to the last segment, and goes on to the ones that follow it.
func (l *Log) extendView(st state) error {
	for {
		if err := l.extendLast(st); err != nil {
			return err
		}
		segs := l.view.Load().segs
		last, end := segs[len(segs)-1], l.end.Load()
		next := end
		if last.base == end || !l.exists(next) {
			if _, none := l.follow.f.(noFile); none && l.exists(last.base) {
				l.view.Store(nil)
				return l.rebuildView(st)
			}
			if st.scanBase <= last.base || last.base == end {
				return nil
			}
			// The writer is past this segment, which ends in a gap.
			dir, err := l.list()
			if err != nil {
				return err
			}
			if next = dir.after(last.base); next < 0 {
				return nil
			}
		}
		last.stored.store(markAt(next-last.base, last.stored.load().pos()))
		last.flushed.store(last.stored.load())
		s, err := l.followSegment(next)
		if err != nil {
			return err
		}
		l.end.Store(next)
		l.view.Store(&view{append(segs, s)})
	}
}

func (l *Log) exists(base int64) bool {
	if _, err := l.fs.stat(l.path(base, logSuffix)); err == nil {
		return true
	}
	at, ok, err := l.unnamedBase()
	return err == nil && ok && at == base
}

// after is the base that follows base; -1 if none does.
func (d directory) after(base int64) int64 {
	for _, b := range d.bases {
		if b > base {
			return b
		}
	}
	return -1
}

// extendLast moves the mark of the last segment over the batches that are whole by now and that the writer's own readers
// may see. Under FlushSync these are the ones below the recovery point.
func (l *Log) extendLast(st state) error {
	ro := &l.follow
	segs := l.view.Load().segs
	s := segs[len(segs)-1]
	m := s.stored.load()
	size, err := ro.f.size()
	if err != nil {
		return fmt.Errorf("seglog: read segment %d: %w", s.base, err)
	}
	path := l.path(s.base, logSuffix)
	var c scanner
	c.init(&fileRange{ro.f, m.pos(), min(size, maxSegmentBytes)}, path, m.pos(), s.base+m.rel(), -1)
	c.gaps = l.gaps.Load()
	for {
		if ro.promised && st.policy == FlushSync && c.next >= st.recoveryPoint {
			break
		}
		pos := c.pos
		b, err := c.scan()
		if err != nil {
			if ro.promised && st.cut < 0 && c.next < st.recoveryPoint && errors.Is(err, ErrCorrupt) && st.scanBase <= s.base && !l.exists(c.next) {
				return err
			}
			break // not written yet, or not whole yet
		}
		if b.last()-s.base > math.MaxInt32 {
			return &CorruptError{Path: path, Pos: pos, Offset: s.base + s.stored.load().rel(), Reason: fmt.Sprintf("offset %d in a segment with base %d", b.last(), s.base)}
		}
		ro.x.add(pos, uint32(b.last()-s.base), b.maxTimestamp())
		s.maxTime.Store(ro.x.maxTime)
		s.stored.store(markAt(b.last()+1-s.base, c.pos))
		s.flushed.store(s.stored.load())
		l.end.Store(b.last() + 1)
	}
	l.durable.Store(max(l.start.Load(), min(st.recoveryPoint, l.end.Load())))
	return nil
}

// dropDeleted follows the writer's start.
func (l *Log) dropDeleted(st state) {
	l.start.Store(max(l.start.Load(), min(st.start, l.end.Load())))
	segs := l.view.Load().segs
	k := 0
	for k+1 < len(segs) && segs[k].base < st.first {
		k++
	}
	if k == 0 {
		return
	}
	l.view.Store(&view{segs[k:]})
	for _, s := range segs[:k] {
		l.opened.drop(s)
		_ = s.retire()
	}
}

// pollFor is waitFor of a read-only log: the writer is in another process and can't wake anybody here.
func (l *Log) pollFor(ctx context.Context, offset, cuts int64) error {
	pause := time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		if err := l.refreshFor(offset); err != nil {
			return err
		}
		if l.end.Load() > offset {
			if offset < l.start.Load() {
				return &OffsetError{Offset: offset, Offsets: l.Offsets()}
			}
			return nil
		}
		if cuts >= 0 && l.cuts.Load() != cuts && offset > l.lowestCut(cuts) {
			return &OffsetError{Offset: offset, Offsets: l.Offsets()}
		}
		select {
		case <-timer.C:
			yield("poll")
			pause = min(2*pause, maxPoll)
			timer.Reset(pause)
		case <-ctx.Done():
			return ctx.Err()
		case <-l.done:
			return ErrClosed
		}
	}
}

// maxPoll: a person does not notice it, and a thousand followers that poll so are not noticed either.
const maxPoll = 20 * time.Millisecond

// noFile stands for a segment that is not there: it is empty, and nothing is read of it.
type noFile struct{ file }

func (noFile) size() (int64, error) { return 0, nil }
func (noFile) Close() error         { return nil }
