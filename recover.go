package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// open does the work of Open. If it fails, the caller releases the Log.
func (l *Log) open() error {
	start := time.Now()
	if l.o.ReadOnly {
		return l.openReadOnly()
	}
	err := l.fs.MkdirAll(l.dir)
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if l.lock, err = l.fs.Lock(filepath.Join(l.dir, lockName)); err != nil {
		if errors.Is(err, ErrLocked) {
			return err
		}
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	l.background = workOn(l.lock.Disk())
	if l.dirH, err = l.fs.OpenDir(l.dir); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	st, promised, err := l.takeState()
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	dir, err := l.list()
	if err != nil {
		return err
	}
	r := recovery{l: l, st: st, promised: promised, dir: dir}
	if err := r.run(); err != nil {
		if inDoubt(err) != nil && l.state != nil {
			err = errors.Join(err, l.state.noteFailed())
		}
		if l.view.Load() == nil {
			l.view.Store(&view{r.segs}) // for release
		}
		return err
	}
	if l.o.Flush == FlushSync || !promised {
		// Records that readers are shown from now on must not vanish.
		if err := l.flushTo(l.moment()); err != nil {
			return err
		}
	}
	l.wall.now(time.Now())
	l.hooks.attach(l)
	l.startBackground()
	l.opened.budget.writes(&l.env, l)
	o := l.offsets()
	l.o.Logger.Info("seglog: opened", "dir", l.dir, "found", r.last.finds, "offset", o.End, "start", o.Start,
		"segments", len(l.view.Load().segs), "dur", time.Since(start))
	return nil
}

// takeState opens and locks the state file, and returns what it promises. It leaves the file alone if it promises nothing.
func (l *Log) takeState() (st state, promised bool, err error) {
	path := filepath.Join(l.dir, stateName)
	f, err := lockState(l.fs, path, vfs.OpenWrite)
	if errors.Is(err, fs.ErrNotExist) {
		return st, false, nil
	}
	if err != nil {
		return st, false, err
	}
	if st, promised, err = readSlots(f); err != nil || !promised {
		return st, false, errors.Join(err, f.Unlock(), f.Close())
	}
	l.state = &stateFile{open: l.reopenState, f: f, cur: st}
	return st, true, nil
}

func (r *recovery) run() error {
	l := r.l
	if r.promised {
		l.gaps.Store(r.st.gaps)
		r.dir.dropStale(&r.st)
		if r.st.failed {
			if err := l.state.renew(&l.env); err != nil {
				return err
			}
		}
		r.setDeletedAside()
		if err := r.finishChanges(); err != nil {
			return err
		}
		if err := r.checkNames(); err != nil {
			return err
		}
		if r.leaveClosed() {
			return l.state.rest(false)
		}
	} else {
		l.gaps.Store(true)
		if err := l.unfinished(r.dir); err != nil {
			return err
		}
	}
	if err := r.examine(); err != nil {
		return errors.Join(err, r.closeScans())
	}
	if err := r.finishDeletion(); err != nil {
		return errors.Join(err, r.closeScans())
	}
	for _, name := range r.dir.leftover {
		// finishChanges may have removed it already.
		if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("seglog: remove leftover: %w", err), r.closeScans())
		}
	}
	if len(r.dir.bases) == 0 {
		return r.create(0)
	}
	for len(r.scans) > 0 {
		c := r.scans[0]
		r.scans = r.scans[1:]
		if err := r.act(c); err != nil {
			return errors.Join(err, c.f.Close(), r.closeScans())
		}
	}
	if !r.promised {
		l.gaps.Store(r.gap)
	}
	return r.takeOver()
}

// leaveClosed takes over a log that was closed without a change on the disk: it reads nothing but the names of the files, and the
// size of the last segment. It returns false if something has to be done first.
func (r *recovery) leaveClosed() bool {
	l, st, bases := r.l, &r.st, r.dir.bases
	n := len(bases)
	if !st.clean || st.failed || st.cut >= 0 || n == 0 || len(r.deleted)+len(r.dir.leftover) > 0 || r.dir.unnamed >= 0 {
		return false
	}
	last := bases[n-1]
	if st.scanBase != last || st.scanPos != st.endPos || st.scanOffset != st.end || st.recoveryPoint != st.end ||
		st.end < last || st.end-last > 1<<31 || st.start > st.end || st.endPos > maxSegmentBytes {
		return false
	}
	for _, at := range r.dir.producers {
		if at > st.end {
			return false
		}
	}
	if info, err := l.fs.Stat(l.path(last, logSuffix)); err != nil || info.IsDir || info.Size != st.endPos {
		return false
	}
	segs := make([]segment, n)
	r.segs = make([]*segment, n)
	for i, base := range bases[:n-1] {
		segs[i].initSealed(base, bases[i+1])
		r.segs[i] = &segs[i]
	}
	s := &segs[n-1]
	s.base, r.segs[n-1] = last, s
	s.enter(phaseClosed)
	s.maxTime.Store(unknownTime)
	s.stored.store(markAt(st.end-last, st.endPos))
	s.flushed.store(s.stored.load())
	r.last = decide(finding{promised: true, clean: true, last: true, joins: true})
	w := &l.writer
	w.tail = &tail{e: &l.env, seg: s}
	w.epoch, w.fenceOffset, w.fenceEpoch = int32(st.epoch), st.fenceOffset, int32(st.fenceEpoch)
	if w.fenceOffset == fenceLifted {
		w.fenceOffset = st.end
	}
	l.producers = r.dir.producers
	l.start.Store(max(bases[0], st.start))
	l.durable.Store(st.end)
	l.end.Store(st.end)
	l.view.Store(&view{r.segs})
	return true
}

func (r *recovery) closeScans() error {
	var errs []error
	for _, c := range r.scans {
		errs = append(errs, c.f.Close())
	}
	return errors.Join(errs...)
}

// checkNames compares the segments that there are with those that the state file counts.
func (r *recovery) checkNames() error {
	if wanted := r.st.differs(r.dir.bases); wanted != "" {
		return r.nameMissing(wanted)
	}
	return nil
}

// nameMissing returns an error that names the place where a segment is missing, or where one does not belong. It opens the
// segments to find it.
func (r *recovery) nameMissing(wanted string) error {
	l := r.l
	path := filepath.Join(l.dir, fileName(r.st.first, logSuffix))
	if i, ok := slices.BinarySearch(r.dir.bases, r.st.first); !ok {
		next := "none"
		if i < len(r.dir.bases) {
			next = fileName(r.dir.bases[i], logSuffix)
		}
		return &CorruptError{Path: path, Offset: r.st.first, Reason: "first segment is missing, the next one is " + next + ": " + wanted}
	}
	look := &env{fs: l.fs, dir: l.dir, o: l.o, stats: l.stats}
	look.opened.budget, look.opened.limit = l.opened.budget, l.opened.limit
	look.o.ReadOnly = true // a log that is refused is left as it was found
	look.gaps.Store(l.gaps.Load())
	for i, base := range r.dir.bases {
		if !r.st.isSealed(base) || i+1 == len(r.dir.bases) {
			break
		}
		next := r.dir.bases[i+1]
		s := newSealed(base, next)
		h, err := s.pin(look)
		if err != nil {
			return err
		}
		var w window
		f, ok, err := s.boundary(look, h, &w, s.stored.load().pos(), s.stored.load())
		h.unref()
		if err = errors.Join(err, look.retire(s)); err != nil {
			return err
		}
		if !ok || f.last+1 != next {
			return &CorruptError{Path: l.path(base, logSuffix), Pos: f.end(), Offset: f.last + 1,
				Reason: fmt.Sprintf("segment ends at offset %d, the next one is %s: %s", f.last+1, fileName(next, logSuffix), wanted)}
		}
	}
	return &CorruptError{Path: l.path(r.st.scanBase, logSuffix), Offset: r.st.scanBase, Reason: wanted}
}

// examine looks at all segments and decides about each by the table, before anything is changed: a log that is refused is
// left as it was found.
func (r *recovery) examine() error {
	l := r.l
	sealed := make([]segment, len(r.dir.bases))
	for i, base := range r.dir.bases {
		last := i+1 == len(r.dir.bases)
		if !last && r.promised && r.st.isSealed(base) {
			sealed[i].initSealed(base, r.dir.bases[i+1])
			r.segs = append(r.segs, &sealed[i])
			continue
		}
		c := &segmentScan{r: r, number: i, base: base, next: -1, last: last}
		if !last {
			c.next = r.dir.bases[i+1]
		}
		var err error
		if c.f, c.path, err = l.openLog(base, vfs.OpenWrite); err != nil {
			return fmt.Errorf("seglog: open segment %d: %w", base, err)
		}
		r.scans = append(r.scans, c)
		if err := r.examineSegment(c); err != nil {
			return err
		}
		if r.last = c.decision; r.last.id == 'E' {
			break
		}
		if !r.promised && !last { // there may be more of these than descriptors
			if err := c.f.Close(); err != nil {
				return err
			}
			c.f = noFile{}
		}
	}
	return nil
}

func (r *recovery) examineSegment(c *segmentScan) (err error) {
	st := &r.st
	if c.size, err = c.f.Size(); err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
	}
	clean := r.promised && st.clean && c.last && c.base == st.scanBase && c.size == st.endPos && c.size <= maxSegmentBytes
	if clean {
		err = c.trust()
	} else {
		err = c.scan()
	}
	if r.promised && c.next >= 0 && c.next <= st.start {
		err = c.forgive(err)
	}
	if err != nil {
		return err
	}
	if r.promised && c.offset == c.next {
		c.ends = endsWhole // the bytes behind are left from an append that failed before the roll
	}
	joins := c.offset == c.next || r.l.gaps.Load() && c.offset < c.next && r.st.knowsGap(c.next, r.promised)
	c.decision = decide(finding{promised: r.promised, clean: clean, last: c.last, empty: c.pos == 0, ends: c.ends, behind: c.behind, joins: joins,
		below: r.promised && c.offset < st.recoveryPoint && (c.last || c.ends == endsBad || !joins)})
	if c.decision.id == 'F' {
		return c.damage()
	}
	r.gap = r.gap || c.gap || !c.last && c.offset < c.next && c.decision.id != 'E'
	return nil
}
