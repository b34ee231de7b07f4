package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"runtime/debug"
)

// TruncateTo makes offset the end of the log: the records at and above it are gone, and their offsets are given out
// again. It is exact also inside a batch, whose first records are then stored anew, compressed as they were if a compressor
// is registered (RegisterCompressor). Everything below is flushed first, and when TruncateTo returns the cut is durable.
// Killed in the middle, the next Open finishes it.
//
// It costs three to five flushes and the files that are removed, however large the segment is. Sections that hold bytes
// from above keep them until they are closed; the segment is copied up to offset if one is open just then. Iterators that
// were past offset end with an *OffsetError, others go on below.
//
// Errors: an *OffsetError for an offset outside [Start, End]; ErrInvalid for one in a gap of more than 2^31 offsets; a
// *CorruptError or ErrCodec or ErrInflated for a batch around offset that can't be read, and a shortage of the operating
// system's, after which nothing has changed; a failure in the middle, which latches the log (ErrFailed), and Open finishes
// the cut.
func (l *Log) TruncateTo(offset int64) error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.o.Flush != FlushSync { // most of the flush, while appends go on
		if err := l.flushTo(l.moment()); err != nil {
			return err
		}
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if offset < l.start.Load() || offset > l.end.Load() {
		return &OffsetError{Offset: offset, Offsets: l.offsets()}
	}
	if offset == l.end.Load() {
		return nil
	}
	return l.cut(offset, false)
}

// Reset drops all records; the next one gets offset. It is what a follower does that starts over from a snapshot. As to
// durability, readers and errors it is like TruncateTo.
func (l *Log) Reset(offset int64) error {
	if offset < 0 {
		return invalid("Reset to offset %d", offset)
	}
	if err := l.writable(); err != nil { // before the lock, which Close holds while OnSeal, that may call this, is told
		return err
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	return l.cut(offset, true)
}

// cutPlan is what a TruncateTo leaves of the segment that holds its offset: the file up to pos, and rest behind it. It is
// made before anything changes, and noted in seglog.state, so that Open can finish by the same steps what was begun.
type cutPlan struct {
	f     file // of the segment, opened for writing; nil in recovery
	base  int64
	held  *heldSegment // nil in recovery
	pos   int64
	rest  batch         // what stays of the batch that holds the offset; nil if the cut lies between two batches
	whole found         // that batch, as long as the file is as it was; else empty
	done  bool          // the file begins with what is planned
	x     *indexBuilder // of what is left
	first int64         // timestamp of the first batch, as tail.firstTime
}

func (p *cutPlan) size() int64 { return p.pos + int64(len(p.rest)) }

// cut is TruncateTo, or with reset Reset. l.changing and l.mu are held.
//
// First it makes sure that it can be done, then the intent is durable, and only then files change: those of later segments
// are removed, and the segment that is cut is truncated in place. After a crash the file may have its old size, a gap of
// zeros, and old records behind it (ext4 and XFS leave that), so the intent stays until the file is flushed.
func (l *Log) cut(offset int64, reset bool) error {
	w := &l.writer
	if err := l.checkDirectory(); err != nil {
		return fmt.Errorf("seglog: cut at offset %d: %w", offset, err)
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	var plan cutPlan
	var err error
	if reset {
		// What waits for its flush is dropped, so there is none. The file of the new segment is made before it is needed.
		if w.next == nil {
			w.next, err = newTail(&l.env, rollName, nil)
		}
	} else {
		if err = l.flushOnce(math.MaxInt64); err != nil { // appends that wait for it get the error
			l.fail(err)
			return err
		}
		if plan, err = l.planCut(offset); err == nil {
			err = l.hold(&plan)
		}
	}
	if err == nil {
		err = l.state.putRest(plan.rest)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("seglog: cut at offset %d: %w", offset, err), l.giveUp(&plan))
	}
	err = l.state.commit(func(s *state) {
		s.cut, s.reset = offset, reset
		s.cutBase, s.cutPos, s.cutLen = plan.base, plan.pos, int64(len(plan.rest))
		s.cuts++
		s.lastCut = offset
		if reset {
			s.lastCut = -1
		}
		s.epoch = int64(w.epoch) // of what the cut removes, for the fence
	})
	if err != nil && isShortage(err) && inDoubt(err) == nil {
		return errors.Join(fmt.Errorf("seglog: cut at offset %d: %w", offset, err), l.giveUp(&plan))
	}
	if err == nil {
		l.beginCut()
		if reset {
			err = l.carryOutReset(offset)
		} else {
			err = l.carryOut(offset, &plan)
		}
		l.endCut(offset, reset)
		l.readers.wake()
		l.durableWaiters.wake()
	} else {
		err = errors.Join(err, l.giveUp(&plan))
	}
	if err != nil {
		err = fmt.Errorf("seglog: cut at offset %d: %w", offset, err)
		l.fail(err)
		return err
	}
	l.stats.truncations.Add(1)
	l.o.Logger.Info("seglog: cut", "dir", l.dir, "offset", offset, "reset", reset)
	return nil
}

// planCut finds where the segment that holds offset is to be cut, and makes the indexes of what is left.
func (l *Log) planCut(offset int64) (p cutPlan, err error) {
	// The segment of the last record that is kept; if none is, the one that the log starts in: those before it are about to
	// be deleted.
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(max(offset-1, l.start.Load()))]
	if offset-s.base > math.MaxInt32 { // more than a segment can tell of, unless the next one is to be empty
		if s = segs[(&view{segs}).find(offset)]; s.base != offset {
			return p, invalid("TruncateTo offset %d: it lies in a gap, more than 2^31 offsets above segment %d", offset, s.base)
		}
	}
	h, err := s.pin(&l.env)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, h.unref()) }()
	limit := s.stored.load()
	p.base, p.pos = s.base, limit.pos()
	var win window
	f, ok, err := s.locateWhole(&l.env, h, &win, offset, limit)
	if err != nil {
		return p, err
	}
	if ok {
		p.pos = f.pos
		if f.base < offset {
			p.whole = f
			if p.rest, err = restOf(h, f, offset, l.o.MaxInflatedBytes); err != nil {
				return p, err
			}
		}
	}
	if p.x, err = l.indexesBelow(s, h, p.pos, limit); err != nil {
		return p, err
	}
	if p.rest != nil {
		p.x.add(p.pos, uint32(p.rest.last()-s.base), p.rest.maxTimestamp())
	}
	if p.first, err = firstTime(h.f, p.pos, p.rest); err != nil {
		return p, err
	}
	// Last, and before the intent is noted: there may be no descriptor left.
	p.f, err = l.acquire(l.path(p.base, logSuffix), openWrite)
	return p, err
}

// heldSegment is a segment that is about to be cut, and that nobody can open meanwhile.
type heldSegment struct {
	s     *segment
	h     *handle // nil: it is not open
	alone bool    // nobody else in this process has a reference to h, and nobody can get one
	copy  file    // of what is left, where somebody has; nil: the file is cut in place
}

// hold takes the segment to be cut away from readers and the preparer, and makes the copy that is needed if one of them
// does not let go: after the intent is noted, no shortage may stop the cut.
func (l *Log) hold(p *cutPlan) error {
	segs := l.view.Load().segs
	s := segs[(&view{segs}).find(p.base)]
	if t := l.writer.tail; t.seg == s {
		t.bulk.Store(true) // no more zeros: the preparer comes to its end soon
	}
	l.preparing.Lock()
	s.mu.Lock()
	held := &heldSegment{s: s, h: s.h.Swap(nil)}
	held.alone = held.h == nil || held.h.seize()
	p.held = held
	if held.alone && !s.lent.Load() {
		return nil
	}
	var err error
	held.copy, err = l.copyBelow(p.f, p)
	return err
}

// letGo ends what hold began. Nobody opens the segment any more, which is gone.
func (l *Log) letGo(p *cutPlan) {
	if p.held != nil {
		p.held.s.mu.Unlock()
		l.preparing.Unlock()
		p.held = nil
	}
}

// giveUp puts everything back as it was before the plan.
func (l *Log) giveUp(p *cutPlan) (err error) {
	if held := p.held; held != nil {
		if held.h != nil {
			if held.alone {
				held.h.unseize()
			}
			held.s.h.Store(held.h)
		}
		if held.copy != nil {
			err = errors.Join(held.copy.Close(), l.fs.remove(filepath.Join(l.dir, cutName)))
		}
		l.letGo(p)
	}
	if p.f != nil {
		err = errors.Join(err, p.f.Close())
	}
	return err
}

// restOf is the batch at f without the records from offset on.
func restOf(h *handle, f found, offset, inflated int64) (rest batch, err error) {
	whole := make(batch, f.size)
	if _, err := h.f.ReadAt(whole, f.pos); err != nil {
		return nil, fmt.Errorf("seglog: read %s at position %d: %w", h.path, f.pos, err)
	}
	why := parseHeader(whole)
	if why == "" {
		why = whole.checkCRC()
	}
	if why != "" {
		return nil, &CorruptError{Path: h.path, Pos: f.pos, Offset: f.base, Reason: why}
	}
	if rest, err = cutBatch(whole, offset, inflated); err != nil {
		return nil, wrapBatchError(err, h.path, f.pos, offset)
	}
	return rest, nil
}

// firstTime is tail.firstTime of a segment of which size bytes, and rest behind them, are left.
func firstTime(f file, size int64, rest batch) (int64, error) {
	switch {
	case size > 0:
		var b [headerLen]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			return 0, err
		}
		return batch(b[:]).maxTimestamp(), nil
	case rest != nil:
		return rest.maxTimestamp(), nil
	}
	return noTimestamp, nil
}

// indexesBelow makes the indexes of a segment that ends at pos: the entries there are, up to the last one that points to a
// batch below, and what the batches behind that one add.
func (l *Log) indexesBelow(s *segment, h *handle, pos int64, limit mark) (x *indexBuilder, err error) {
	if !s.written() {
		// Its index files are checked when they are read, and rebuilt if need be.
		if err := h.readIndexes(func(*indexes) {}); err != nil {
			return nil, err
		}
	}
	x = newIndexBuilder(l.o.IndexBytes)
	from := hint{rel: -1}
	if err := h.readIndexes(func(have *indexes) { from = x.copyBelow(have, pos) }); err != nil {
		return nil, err
	}
	var w window
	w.reset(h, limit.pos())
	_, _, err = s.walkGuarded(&l.env, h, &w, from, limit, func(f found) bool {
		if f.pos >= pos {
			return true
		}
		if from.rel >= 0 && f.pos == from.pos {
			return false // has its entry
		}
		p, e := w.at(f.pos, headerLen)
		if e == nil {
			x.add(f.pos, uint32(f.last-s.base), batch(p).maxTimestamp())
		}
		return e != nil
	})
	if err == errIndex { // an entry that does not fit: without it
		x, _, err = s.buildIndexesBelow(&l.env, h, pos)
	}
	return x, err
}

func (s *segment) walkGuarded(e *env, h *handle, w *window, from hint, limit mark, stop func(found) bool) (f found, ok bool, err error) {
	defer h.catch(debug.SetPanicOnFault(true), &err)
	return s.walk(e, w, from, limit, stop)
}

// carryOut does what is planned. The intent is durable.
func (l *Log) carryOut(offset int64, p *cutPlan) error {
	segs := l.view.Load().segs
	i := (&view{segs}).find(p.base)
	for _, s := range segs[i:] {
		s.enter(phaseGone)
	}
	f, err := l.cutFiles(segs[i:], p)
	l.letGo(p)
	var t *tail
	if err == nil {
		if t, err = openTail(&l.env, f, l.path(p.base, logSuffix), p.base, p.x, p.size()); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil { // the next Open does the rest, so what lies above is gone all the same
		l.showBelow(segs[:i], segs[i:], offset, p)
		return err
	}
	t.firstTime = p.first
	t.seg.stored.store(markAt(offset-p.base, p.size()))
	t.seg.flushed.store(t.seg.stored.load())
	next := append(make([]*segment, 0, i+1), segs[:i]...)
	return l.settle(t, append(next, t.seg), offset, false)
}

// cutFiles removes the files of all segments but the first, from the end, and cuts that one. It returns its file.
func (l *Log) cutFiles(segs []*segment, p *cutPlan) (f file, err error) {
	removed, err := l.removeAbove(segs[1:], p.base)
	f, cutErr := l.cutSegment(p, err == nil)
	if err = errors.Join(err, cutErr); err != nil {
		return nil, err
	}
	if removed {
		if err := l.syncDir(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// removeAbove removes the files of segments, from the end, and the index files of the one at base that comes before them.
func (l *Log) removeAbove(segs []*segment, base int64) (removed bool, err error) {
	for k := len(segs) - 1; k >= 0; k-- {
		if err := l.removeSegmentFiles(segs[k].base); err != nil {
			return removed, err
		}
		if err := l.retire(segs[k]); err != nil {
			return removed, err
		}
		segs[k].deleted(l.stats)
		removed = true
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		err := l.fs.remove(l.path(base, suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed = removed || err == nil
	}
	return removed, nil
}

// cutSegment gives back what is held of a segment and, with goOn, cuts its file.
func (l *Log) cutSegment(p *cutPlan, goOn bool) (f file, err error) {
	held := p.held
	l.opened.drop(held.s)
	switch {
	case held.h == nil:
	case held.alone:
		err = held.h.release()
	default:
		err = held.h.unref()
	}
	held.s.deleted(l.stats)
	goOn = goOn && err == nil
	path := l.path(p.base, logSuffix)
	switch {
	case goOn && held.copy != nil:
		if err = p.f.Close(); err == nil { // which Windows would not rename over
			f, err = l.placeCopy(held.copy, path, p)
		} else {
			err = errors.Join(err, held.copy.Close())
		}
	case goOn:
		f, err = l.cutFile(p.f, path, p)
	default:
		err = errors.Join(err, p.f.Close())
		if held.copy != nil {
			err = errors.Join(err, held.copy.Close())
		}
	}
	if err != nil && f != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, err
}

// cutFile cuts f, the file at path, in place, flushed. If somebody else has a hold of it, as a reader in another process or
// a snapshot, it makes a file of its own of what is left, and puts it in the place of f. Either way it returns the file to go
// on with, and no other stays open.
func (e *env) cutFile(f file, path string, p *cutPlan) (file, error) {
	alone, err := f.alone()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !alone {
		out, err := e.copyBelow(f, p)
		if e := f.Close(); e != nil && err == nil { // which Windows would not rename over
			err = errors.Join(e, out.Close())
		}
		if err != nil {
			return nil, err
		}
		return e.placeCopy(out, path, p)
	}
	// What is left is written before the file is cut, into blocks that are there.
	if len(p.rest) > 0 {
		p.whole = found{}
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		p.done = true
		err = f.truncate(p.size())
	}
	if err == nil {
		if err = f.flush(); err != nil {
			err = &writeBackError{err}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyBelow makes a file of what is left of a segment, flushed. placeCopy puts it in the place of the segment's own.
func (e *env) copyBelow(src file, p *cutPlan) (f file, err error) {
	tmp := filepath.Join(e.dir, cutName)
	if f, err = e.create(tmp); err != nil {
		return nil, err
	}
	if err = copyRange(f, 0, src, 0, p.pos); err == nil && len(p.rest) > 0 {
		_, err = f.WriteAt(p.rest, p.pos)
	}
	if err == nil {
		err = f.flush()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), e.fs.remove(tmp))
	}
	return f, nil
}

func (e *env) placeCopy(f file, path string, p *cutPlan) (file, error) {
	err := e.fs.rename(filepath.Join(e.dir, cutName), path)
	if err == nil {
		p.done = true
		err = e.syncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// showBelow makes what lies safely below a cut that failed half-way the log that readers see: the segments before it, and
// of the one it cuts what comes before its position, and the batch there unless that was touched. The next Open has it all.
func (l *Log) showBelow(before, cut []*segment, offset int64, p *cutPlan) {
	end, next, pos := offset, offset, p.pos
	switch {
	case p.done:
		pos = p.size()
	case p.whole.size > 0:
		next, pos = p.whole.last+1, p.whole.end()
	case p.rest != nil:
		end, next = p.rest.base(), p.rest.base()
	}
	s := newSealed(p.base, next)
	s.stored.store(markAt(next-p.base, pos))
	s.flushed.store(s.stored.load())
	for _, c := range cut {
		_ = l.retire(c) // the log has failed, and says why
	}
	l.end.Store(end)
	l.durable.Store(min(l.durable.Load(), end))
	l.view.Store(&view{append(append([]*segment(nil), before...), s)})
}

// carryOutReset removes all segments and begins a new one at offset. The intent is durable.
func (l *Log) carryOutReset(offset int64) (err error) {
	segs := l.view.Load().segs
	for _, s := range segs {
		s.enter(phaseGone)
	}
	l.preparing.Lock()
	l.preparing.Unlock() //lint:ignore SA2001 the preparer has let go of the active segment
	for k := len(segs) - 1; k >= 0 && err == nil; k-- {
		err = errors.Join(l.removeSegmentFiles(segs[k].base), l.retire(segs[k]))
		segs[k].deleted(l.stats)
	}
	w := &l.writer
	if err == nil {
		err = w.next.activate(offset)
	}
	if err == nil {
		err = l.syncDir()
	}
	if err != nil {
		l.start.Store(offset)
		l.durable.Store(offset)
		l.end.Store(offset)
		return err
	}
	t := w.next
	w.next = nil
	return l.settle(t, []*segment{t.seg}, offset, true)
}

// settle makes the list of segments after a cut the log.
func (l *Log) settle(t *tail, segs []*segment, offset int64, reset bool) error {
	w := &l.writer
	sealing := w.sealing[:0:0]
	for _, s := range w.sealing {
		if !s.seg.is(phaseGone) {
			sealing = append(sealing, s)
		}
	}
	w.sealing, w.tail, w.prepareAt = sealing, t, 0
	w.sealed.Broadcast()
	if reset {
		l.start.Store(offset)
	}
	l.durable.Store(offset)
	l.end.Store(offset)
	l.view.Store(&view{segs})
	scan := w.unsealed()
	m := scan.flushed.load()
	err := l.state.commit(func(s *state) {
		s.cut, s.reset = -1, false
		s.start, s.first = l.start.Load(), segs[0].base
		s.recoveryPoint = offset
		s.end, s.endPos = offset, t.seg.stored.load().pos()
		s.scanFrom(scan.base, m)
		s.count(l.view.Load().bases())
		s.epoch = int64(w.epoch)
		s.told = min(s.told, t.seg.base)
		s.raiseFence(offset, w.epoch)
		w.fenceOffset, w.fenceEpoch = s.fenceOffset, int32(s.fenceEpoch)
	})
	if err == nil {
		l.state.dropRest()
	}
	return err
}

// finishChanges carries out a cut and a deletion that seglog.state tells of and that were interrupted.
func (r *recovery) finishChanges() error {
	l, st := r.l, &r.st
	for len(r.dir.bases) > 0 && r.dir.bases[0] < st.first {
		if err := l.removeSegmentFiles(r.dir.bases[0]); err != nil {
			return err
		}
		r.dir.bases = r.dir.bases[1:]
	}
	if st.cut < 0 {
		return nil
	}
	if st.reset {
		return r.finishReset()
	}
	plan, err := r.planCut()
	if err != nil || plan == nil {
		return err
	}
	return r.finishCut(plan)
}

func (r *recovery) finishReset() error {
	l, st := r.l, &r.st
	for k := len(r.dir.bases) - 1; k >= 0; k-- {
		if err := l.removeSegmentFiles(r.dir.bases[k]); err != nil {
			return err
		}
	}
	r.dir.bases = nil
	if err := l.removeSegmentFiles(st.cut); err != nil {
		return err
	}
	st.raiseFence(st.cut, int32(st.epoch))
	st.start, st.first, st.told = st.cut, st.cut, min(st.told, st.cut)
	st.recoveryPoint = st.cut
	st.scanFrom(st.cut, 0)
	st.segments, st.baseSum = 0, 0
	return l.syncDir()
}

// planCut is the plan of the cut that was interrupted; nil if it had not begun.
func (r *recovery) planCut() (*cutPlan, error) {
	l, st := r.l, &r.st
	if st.cutPos < 0 {
		return r.planByScan()
	}
	p := &cutPlan{base: st.cutBase, pos: st.cutPos}
	if st.cutLen == 0 {
		return p, nil
	}
	rest, err := l.state.rest(st.cutLen)
	if err != nil {
		return nil, err
	}
	if len(rest) < headerLen || parseHeader(rest) != "" || rest.size() != st.cutLen || rest.checkCRC() != "" || rest.last() != st.cut-1 {
		// The intent reached the disk without the batch that belongs to it, so its flush had not returned, and no file
		// was changed.
		st.cut, st.cuts = -1, st.cuts+1
		return nil, nil
	}
	p.rest = rest
	return p, nil
}

// planByScan plans a cut that was noted by version 1 of the state file, which tells the offset alone.
func (r *recovery) planByScan() (*cutPlan, error) {
	l, st := r.l, &r.st
	keep := 0
	for keep < len(r.dir.bases) && r.dir.bases[keep] < st.cut || keep == 0 && len(r.dir.bases) > 0 {
		keep++
	}
	if keep == 0 {
		return nil, &CorruptError{Path: l.path(st.first, logSuffix), Offset: st.first, Reason: fmt.Sprintf("no segment is left, and a cut at offset %d was under way", st.cut)}
	}
	p := &cutPlan{base: r.dir.bases[keep-1]}
	path := l.path(p.base, logSuffix)
	f, err := l.acquire(path, openRead)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	var c scanner
	c.init(&fileRange{f, 0, min(size, maxSegmentBytes)}, path, 0, p.base, -1)
	c.gaps = l.gaps.Load()
	for c.next < st.cut {
		p.pos = c.pos
		b, err := c.scan()
		if errors.Is(err, ErrCorrupt) {
			if zeroes, e := onlyZeros(f, c.pos, size); zeroes && e == nil {
				err = io.EOF
			}
		}
		if err == io.EOF || err == nil && b.base() >= st.cut {
			return p, nil // the offsets up to there are a gap, or the file was cut already
		}
		if err != nil {
			return nil, err
		}
		if b.last() >= st.cut {
			if p.rest, err = cutBatch(b, st.cut, l.o.MaxInflatedBytes); err != nil {
				return nil, wrapBatchError(err, path, p.pos, st.cut)
			}
			return p, nil
		}
	}
	p.pos = c.pos
	return p, nil
}

// finishCut carries out the plan: as cutFiles does, in a directory that nobody reads.
func (r *recovery) finishCut(p *cutPlan) error {
	l, st := r.l, &r.st
	if st.cutPos < 0 { // a crash in this run must find the same plan
		st.cutBase, st.cutPos, st.cutLen = p.base, p.pos, int64(len(p.rest))
		err := l.state.putRest(p.rest)
		if err == nil {
			err = l.state.commit(func(s *state) { s.cutBase, s.cutPos, s.cutLen = st.cutBase, st.cutPos, st.cutLen })
		}
		if err != nil {
			return err
		}
	}
	for k := len(r.dir.bases) - 1; k >= 0 && r.dir.bases[k] > p.base; k-- {
		if err := l.removeSegmentFiles(r.dir.bases[k]); err != nil {
			return err
		}
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		if err := l.removeFile(p.base, suffix); err != nil {
			return err
		}
	}
	path := l.path(p.base, logSuffix)
	f, err := l.acquire(path, openWrite)
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{Path: path, Offset: p.base, Reason: fmt.Sprintf("segment is missing, and a cut at offset %d was under way", st.cut), cause: err}
	}
	if err != nil {
		return err
	}
	size, err := f.size()
	if err == nil && size < p.pos {
		err = &CorruptError{Path: path, Pos: size, Offset: p.base, Reason: fmt.Sprintf("file has %d bytes, a cut at offset %d was to leave %d", size, st.cut, p.pos)}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if f, err = l.cutFile(f, path, p); err != nil {
		return err
	}
	if err := errors.Join(f.Close(), l.syncDir()); err != nil {
		return err
	}
	st.raiseFence(st.cut, int32(st.epoch))
	st.recoveryPoint = min(st.recoveryPoint, st.cut)
	st.told = min(st.told, p.base)
	st.clean = false
	st.end, st.endPos = st.cut, p.size()
	if err := r.relist(); err != nil {
		return err
	}
	if st.scanBase >= p.base { // else an older segment was not sealed yet, and recovery starts there
		st.scanFrom(p.base, 0)
		st.count(r.dir.bases)
	}
	return nil
}

func (r *recovery) relist() error {
	dir, err := r.l.list()
	if err == nil {
		r.dir = dir
	}
	return err
}
