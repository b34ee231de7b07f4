package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// act does to a segment what was decided, and makes it part of the log.
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
		if err := l.fs.rename(c.path, path); err != nil { // takeOver makes it durable
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
		// The zeros behind the last batch, or what was behind a cut. The active segment's blocks are reserved anew, so that
		// nothing in it was not checked.
		err := c.f.truncate(c.pos)
		if err == nil && !(c.last && c.zeroes) {
			if err = c.f.flush(); err != nil {
				err = &writeBackError{err}
			}
		}
		if err != nil {
			return fmt.Errorf("seglog: trim segment %d: %w", c.base, err)
		}
	}
	var t *tail
	if !c.last {
		t = sealedTail(&l.env, c)
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

// adopt makes a segment of a foreign directory a sealed one of the log: trimmed, flushed, and with its indexes, should
// one be missing.
func (r *recovery) adopt(c *segmentScan) error {
	l := r.l
	f, err := l.acquire(c.path, openWrite)
	if err != nil {
		return fmt.Errorf("seglog: open segment %d: %w", c.base, err)
	}
	if c.pos < c.size {
		err = f.truncate(c.pos)
	}
	if err == nil {
		err = f.flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
	}
	for _, suffix := range []string{indexSuffix, timeSuffix} {
		if _, err := l.fs.stat(l.path(c.base, suffix)); err != nil {
			if err := writeIndexes(&l.env, c.base, c.x); err != nil {
				return fmt.Errorf("seglog: adopt segment %d: %w", c.base, err)
			}
			l.stats.indexRebuilds.Add(1)
			break
		}
	}
	s := new(segment)
	s.initSealed(c.base, c.next)
	s.maxTime.Store(c.x.maxTime)
	m := markAt(s.stored.load().rel(), c.pos)
	s.stored.store(m)
	s.flushed.store(m)
	r.segs = append(r.segs, s)
	return nil
}

// sealedTail is for a segment that was rolled but not sealed: it has only that left to do.
func sealedTail(e *env, c *segmentScan) *tail {
	t := &tail{e: e, seg: &segment{base: c.base}, x: c.x}
	t.seg.enter(phaseRolled)
	t.seg.maxTime.Store(c.x.maxTime)
	t.h = newHandle(c.f, c.path, nil)
	t.h.x.Store(&c.x.indexes)
	t.seg.hold(e, t.h)
	return t
}

// moveToNewFile puts a copy of the good bytes of a segment in its place. The process before saw a write or flush fail, and
// the kernel takes pages of a file whose write-back failed for clean ones: ext4 does not write them even if the same bytes
// are stored again (docs/reliability.md). A new file has no such pages.
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

// trimTorn takes away what lies behind the good batches of this segment, and all segments behind it, newest first, so that
// no later append can bring any of it back. What is more than zeros is kept in files beside the log, as Repair keeps what it
// takes out: it was never acknowledged, but that is for its owner to judge.
func (r *recovery) trimTorn(c *segmentScan) error {
	l := r.l
	var saved []string
	dropped, behind := int64(0), r.dir.bases[c.number+1:]
	for k := len(behind) - 1; k >= 0; k-- {
		f, path, err := l.openLog(behind[k], openRead)
		if err != nil {
			return fmt.Errorf("seglog: open segment %d: %w", behind[k], err)
		}
		size, err := f.size()
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
			if err := l.fs.remove(path); err != nil {
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

// saveTorn copies [pos, end) of a segment's file to one of its own, unless there are only zeros, and adds its name to saved.
// On a full disk it does without: a log must open so that something can be deleted from it.
func (r *recovery) saveTorn(saved []string, f file, base, pos, end int64) ([]string, error) {
	l := r.l
	if zeros, err := onlyZeros(f, pos, end); zeros || err != nil {
		return saved, err
	}
	name := fmt.Sprintf("%s%020d-%d", repairPrefix, base, pos)
	for i := 2; ; i++ {
		if _, err := l.fs.stat(filepath.Join(l.dir, name)); errors.Is(err, fs.ErrNotExist) {
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

func (r *recovery) copyTorn(path string, f file, pos, n int64) error {
	l := r.l
	tmp := filepath.Join(l.dir, repairTemp)
	out, err := l.create(tmp)
	if err != nil {
		return err
	}
	if err = copyRange(out, 0, f, pos, n); err == nil {
		err = out.flush()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = l.fs.rename(tmp, path)
	}
	if err != nil {
		err = errors.Join(err, l.fs.remove(tmp))
	}
	return err
}

// create makes the first segment of an empty log.
func (r *recovery) create(base int64) error {
	l := r.l
	if r.promised {
		base = r.st.start
	}
	t, err := newTail(&l.env, rollName, nil)
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

// emptyLog stands for the decision on a directory without segments.
var emptyLog = recoveryCase{id: 'G', finds: "no segment", does: "create the first"}

// takeOver makes what was found the log, and notes it in seglog.state: the clean mark goes before the first append.
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
	// The state file counts these names, so they are durable first: a predecessor may have been killed before it synced
	// them. So is the name of the directory itself, which may have been made a moment ago by somebody who did not sync it.
	if err := l.syncDir(); err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	if !r.promised {
		err := l.withDescriptor(func() error { return l.fs.syncDir(filepath.Dir(l.dir)) })
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
	}
	if l.state == nil {
		err := l.withDescriptor(func() (err error) {
			l.state, err = openState(l.fs, filepath.Join(l.dir, stateName), r.st)
			return err
		})
		if err != nil {
			return fmt.Errorf("seglog: open %s: %w", l.dir, err)
		}
	}
	scan := w.unsealed()
	from := scan.flushed.load()
	durable := max(start, scan.base+from.rel())
	if r.promised {
		durable = max(durable, min(r.st.recoveryPoint, end))
	}
	w.epoch = max(int32(r.st.epoch), r.epoch)
	w.fenceOffset, w.fenceEpoch = r.st.fenceOffset, int32(r.st.fenceEpoch)
	l.start.Store(start)
	l.durable.Store(durable)
	l.end.Store(end)
	bases := l.view.Load().bases()
	err := l.state.commit(func(s *state) {
		*s = state{seq: s.seq, policy: l.o.Flush, gaps: l.gaps.Load(), start: start, first: first, recoveryPoint: durable,
			end: end, endPos: w.tail.seg.stored.load().pos(), cut: -1, cuts: max(s.cuts, r.st.cuts), lastCut: s.lastCut, epoch: int64(w.epoch),
			fenceOffset: r.st.fenceOffset, fenceEpoch: r.st.fenceEpoch, told: max(first, min(r.st.told, end)), gapTo: r.st.gapTo}
		s.scanFrom(scan.base, from)
		s.count(bases)
	})
	if err != nil {
		return fmt.Errorf("seglog: open %s: %w", l.dir, err)
	}
	l.state.dropRest()
	return l.syncDir()
}
