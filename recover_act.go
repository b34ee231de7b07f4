package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/seglog/seglog/internal/vfs"
)

// act carries out what was decided about a segment, and makes the segment part of the log.
func (r *recovery) act(c *segmentScan) error {
	l := r.l
	if c.decision.id == 'E' {
		if err := r.trimTorn(c); err != nil {
			return err
		}
		c.last = true
	}
	if !r.promised && !c.last {
		return r.adopt(c)
	}
	if path := l.path(c.base, logSuffix); c.path != path {
		if err := l.fs.Rename(c.path, path); err != nil { // takeOver makes it durable
			return fmt.Errorf("seglog: name segment %d: %w", c.base, err)
		}
		c.path = path
	}
	if r.st.failed && c.pos > 0 {
		if err := r.moveToNewFile(c); err != nil {
			return fmt.Errorf("seglog: copy segment %d after a failed flush: %w", c.base, err)
		}
	}
	if c.pos < c.size {
		// Zeros, or the torn tail. The blocks of the active segment are reserved anew, so that it holds no byte that was not
		// checked.
		if err := r.saveBehindRoll(c); err != nil {
			return err
		}
		err := c.f.Truncate(c.pos)
		if err == nil && !(c.last && c.zeroes) {
			if err = c.f.Flush(); err != nil {
				err = &writeBackError{err}
			}
		}
		if err != nil {
			return fmt.Errorf("seglog: trim segment %d: %w", c.base, err)
		}
	}
	var t *tail
	if !c.last {
		t = rolledTail(&l.env, c)
	} else {
		var err error
		if t, err = openTail(&l.env, c.f, c.path, c.base, c.x, c.pos); err != nil {
			return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
		}
	}
	t.firstTime = c.firstTime
	t.seg.stored.store(markAt(c.offset-c.base, c.pos))
	t.seg.flushed.store(c.from)
	if r.promised && c.offset <= r.st.recoveryPoint || r.st.failed {
		t.seg.flushed.store(t.seg.stored.load())
	}
	r.tails = append(r.tails, t)
	r.segs = append(r.segs, t.seg)
	if m := t.seg.flushed.load(); m.pos() < c.pos {
		l.flusher.rewrites = append(l.flusher.rewrites, rewrite{seg: t.seg, pos: m.pos(), end: c.pos})
	}
	return nil
}

// adopt makes a segment of a directory without a state file a sealed segment of the log: it is trimmed and flushed, and
// gets its indexes if one is missing, or if they lead behind its end: nothing tells whether it has lost batches or a broker cut it off, and
// from now on such an index would be proof of a loss.
func (r *recovery) adopt(c *segmentScan) error {
	l := r.l
	f, err := l.acquire(c.path, vfs.OpenWrite)
	if err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
	}
	if c.pos < c.size {
		err = f.Truncate(c.pos)
	}
	if err == nil {
		err = f.Flush()
	}
	anew := false
	if err == nil {
		anew, err = l.endsEarly(f, c.base, c.pos, c.offset, c.next)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
	}
	if anew {
		l.o.Logger.Warn("seglog: index leads behind the end of a segment, which may have lost batches", "dir", l.dir, "segment", c.base, "offset", c.offset)
	}
	for _, suffix := range []string{indexSuffix, timeSuffix} {
		_, err := l.fs.Stat(l.path(c.base, suffix))
		anew = anew || err != nil
	}
	if anew {
		if err := writeIndexes(&l.env, c.base, c.x, true); err != nil {
			return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
		}
		l.stats.indexRebuilds.Add(1)
	}
	s := new(segment)
	s.initSealed(c.base, c.next)
	s.takeTime(c.x)
	m := markAt(s.stored.load().rel(), c.pos)
	s.stored.store(m)
	s.flushed.store(m)
	r.segs = append(r.segs, s)
	return nil
}

// rolledTail returns the writer's side of a segment that was rolled and not sealed. The keeper will seal it.
func rolledTail(e *env, c *segmentScan) *tail {
	t := &tail{e: e, seg: &segment{base: c.base}, x: c.x}
	t.seg.enter(phaseRolled)
	t.seg.takeTime(c.x)
	t.h = newHandle(c.f, c.path, nil)
	t.h.x.Store(&c.x.indexes)
	t.seg.hold(e, t.h)
	return t
}

// moveToNewFile replaces a segment's file by a copy of its good bytes. The previous process saw a write or flush fail, and
// the kernel takes pages whose write-back failed for clean: ext4 does not write them even if the same bytes are stored
// again (docs/recovery.md). A new file has no such pages.
func (r *recovery) moveToNewFile(c *segmentScan) error {
	l := r.l
	plan := &cutPlan{pos: c.pos}
	f, err := l.copyBelow(c.f, plan)
	if err == nil {
		f, err = l.placeCopy(f, l.path(c.base, logSuffix), plan)
	}
	if err != nil {
		return err
	}
	old := c.f
	c.f, c.path, c.size = f, l.path(c.base, logSuffix), c.pos
	l.o.Logger.Warn("seglog: segment copied, since a write failed before the log was opened", "dir", l.dir, "segment", c.base, "bytes", c.pos)
	return old.Close()
}

// trimTorn takes a torn tail away: the bytes behind the good batches of this segment, and all later segments, newest
// first, so that no append can bring any of it back. All but zeros is kept in files beside the log, like the bytes that
// Repair takes out: it was never acknowledged, but the owner of the log may want to look at it.
func (r *recovery) trimTorn(c *segmentScan) error {
	l := r.l
	var saved []string
	dropped, behind := int64(0), r.dir.bases[c.number+1:]
	for k := len(behind) - 1; k >= 0; k-- {
		f, path, err := l.openLog(behind[k], vfs.OpenRead)
		if err != nil {
			return fmt.Errorf("seglog: open segment %d: %w", behind[k], err)
		}
		size, err := f.Size()
		if err == nil {
			dropped += size
			saved, err = r.saveTorn(saved, f, behind[k], 0, size)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := l.removeSegmentFiles(behind[k]); err != nil {
			return err
		}
		if filepath.Base(path) == nextName {
			if err := l.fs.Remove(path); err != nil {
				return fmt.Errorf("seglog: delete segment %d: %w", behind[k], err)
			}
		}
	}
	saved, err := r.saveTorn(saved, c.f, c.base, c.pos, c.size)
	if err != nil {
		return err
	}
	if len(behind)+len(saved) > 0 {
		if err := l.syncDir(); err != nil {
			return err
		}
	}
	r.st.raiseFence(c.offset, max(int32(r.st.epoch), r.epoch))
	l.o.Logger.Warn("seglog: torn tail cut", "dir", l.dir, "segment", c.base, "offset", c.offset, "pos", c.pos,
		"bytes", c.size-c.pos+dropped, "segments", len(behind), "saved", saved, "reason", c.why)
	return nil
}

// saveBehindRoll saves what a rolled segment holds behind the offset at which the next one begins. That is the rest of an append that
// failed before the roll, unless the name of the next one is wrong.
func (r *recovery) saveBehindRoll(c *segmentScan) error {
	if c.last || c.zeroes || c.next <= r.st.start { // nobody reads below the start
		return nil
	}
	saved, err := r.saveTorn(nil, c.f, c.base, c.pos, c.size)
	if err != nil || len(saved) == 0 {
		return err
	}
	r.l.o.Logger.Warn("seglog: bytes cut behind the offset at which the next segment begins", "dir", r.l.dir, "segment", c.base, "offset", c.offset,
		"pos", c.pos, "bytes", c.size-c.pos, "saved", saved)
	return r.l.syncDir()
}

// saveTorn copies [pos, end) of a segment's file to a file of its own, unless it holds only zeros, and adds the name of that
// file to saved. On a full disk it reports that it did not: a log must open, so that something can be deleted from it.
func (r *recovery) saveTorn(saved []string, f vfs.File, base, pos, end int64) ([]string, error) {
	l := r.l
	if zeros, err := onlyZeros(f, pos, end); zeros || err != nil {
		return saved, err
	}
	name := fmt.Sprintf("%s%020d-%d", repairPrefix, base, pos)
	for i := 2; ; i++ {
		if _, err := l.fs.Stat(filepath.Join(l.dir, name)); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return saved, err
		}
		name = fmt.Sprintf("%s%020d-%d-%d", repairPrefix, base, pos, i)
	}
	err := r.copyTorn(filepath.Join(l.dir, name), f, pos, end-pos)
	if isShortage(err) {
		l.o.Logger.Error("seglog: torn tail not saved", "dir", l.dir, "segment", base, "pos", pos, "bytes", end-pos, "err", err)
		return saved, nil
	}
	if err != nil {
		return saved, fmt.Errorf("seglog: save the torn tail of segment %d: %w", base, err)
	}
	return append(saved, name), nil
}

func (r *recovery) copyTorn(path string, f vfs.File, pos, n int64) error {
	l := r.l
	tmp := filepath.Join(l.dir, repairTemp)
	out, err := l.create(tmp)
	if err != nil {
		return err
	}
	if err = vfs.CopyRange(out, 0, f, pos, n); err == nil {
		err = out.Flush()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = l.fs.Rename(tmp, path)
	}
	if err != nil {
		err = errors.Join(err, l.fs.Remove(tmp))
	}
	return err
}

// create makes the first segment of an empty log.
func (r *recovery) create(base int64) error {
	l := r.l
	if r.promised {
		base = r.st.start
	}
	t, err := newTail(&l.env, rollName)
	if err == nil {
		if err = t.activate(base); err != nil {
			err = errors.Join(err, t.discard())
		}
	}
	if err != nil {
		return fmt.Errorf("seglog: create segment %d: %w", base, err)
	}
	r.tails, r.segs, r.last = []*tail{t}, []*segment{t.seg}, emptyLog
	if !r.promised {
		l.gaps.Store(false)
	}
	if err := l.syncDir(); err != nil {
		return err
	}
	return r.takeOver()
}

// emptyLog is the decision about a directory without segments.
var emptyLog = recoveryCase{id: 'G', finds: "no segment", does: "create the first"}

// takeOver makes the recovered segments the log, and notes them in seglog.state. The clean mark is removed on the way,
// before the first append.
func (r *recovery) takeOver() error {
	l := r.l
	w := &l.writer
	n := len(r.tails)
	w.tail = r.tails[n-1]
	for _, t := range r.tails[:n-1] {
		if t.seg.h.Load() != nil {
			w.sealing = append(w.sealing, t)
		}
	}
	l.view.Store(&view{r.segs})
	first, end := r.segs[0].base, w.tail.seg.base+w.tail.seg.stored.load().rel()
	start := first
	if r.promised {
		start = max(start, r.st.start)
	}
	if start > end {
		return &CorruptError{Path: w.tail.h.path, Pos: w.tail.seg.stored.load().pos(), Offset: end, Reason: fmt.Sprintf("log ends before its start offset %d", start)}
	}
	l.producers = r.dir.producers
	if _, err := l.removeProducersAbove(l.producers, end); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	// The state file is about to count these names, so they are made durable first: the previous process may have been
	// killed before it did. The same holds for the name of a new directory, which somebody may have created without a sync.
	if err := l.syncDir(); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if !r.promised {
		err := l.fs.SyncDir(filepath.Dir(l.dir))
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
	}
	if l.state == nil {
		var err error
		if l.state, err = openState(l.fs, filepath.Join(l.dir, stateName), r.st); err != nil {
			return fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
		l.state.open = l.reopenState
	}
	scan := w.unsealed()
	from := scan.flushed.load()
	durable := max(start, scan.base+from.rel())
	if r.promised {
		durable = max(durable, min(r.st.recoveryPoint, end))
	}
	w.epoch = max(int32(r.st.epoch), r.epoch)
	if r.st.fenceOffset == fenceLifted {
		r.st.fenceOffset = end
	}
	w.fenceOffset, w.fenceEpoch = r.st.fenceOffset, int32(r.st.fenceEpoch)
	l.start.Store(start)
	l.durable.Store(durable)
	l.end.Store(end)
	bases := l.view.Load().bases()
	err := l.state.commit(func(s *state) {
		*s = state{seq: s.seq, policy: l.o.Flush, gaps: l.gaps.Load(), start: start, recoveryPoint: durable,
			end: end, endPos: w.tail.seg.stored.load().pos(), cut: -1, cuts: max(s.cuts, r.st.cuts), lastCut: s.lastCut, epoch: int64(w.epoch),
			fenceOffset: r.st.fenceOffset, fenceEpoch: r.st.fenceEpoch, told: max(first, min(r.st.told, end)), gapTo: r.st.gapTo}
		s.set(bases, scan.base, from)
	})
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	l.state.dropRest()
	return l.syncDir()
}
