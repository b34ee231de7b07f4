package seglog

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"sync"
)

// TruncateTo makes offset the end of the log: the records at and above it are gone, and their offsets are given out
// again. It is exact also inside a batch, whose first records are then stored anew, compressed as they were if a
// compressor is registered (RegisterCompressor). Everything below is flushed first, and when TruncateTo returns the cut
// is durable. Killed in the middle, the next Open finishes it.
//
// Sections that hold bytes from above keep them until they are closed; iterators that were past offset end with an
// *OffsetError, others go on below. The segment that holds offset is copied up to there, so the cost is that of writing
// one segment. Errors: an *OffsetError for an offset outside [Start, End]; a failure in the middle latches the log
// (ErrFailed), and Open finishes the cut.
func (l *Log) TruncateTo(offset int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if offset < l.start.Load() || offset > l.end.Load() {
		return &OffsetError{Offset: offset, Offsets: l.Offsets()}
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	return l.cut(offset, true)
}

// cut is TruncateTo, or with reset Reset. l.mu is held.
//
// The intent is durable before the first file changes, and goes after the last: finishChanges does the rest of a cut that
// was interrupted, by the same steps. Files are removed from the end, so what is left is always contiguous, and the
// segment that is cut gets a new file by rename: old size with a gap of zeros and old records behind it is a state that
// ftruncate really leaves on ext4 and XFS.
func (l *Log) cut(offset int64, reset bool) error {
	l.lockFlush()
	defer l.unlockFlush()
	err := l.nameLast()
	if err == nil {
		err = l.flushOnce(math.MaxInt64)
	}
	if err != nil { // appends that wait for their flush get it
		l.fail(err)
		return err
	}
	err = l.state.commit(func(s *state) {
		s.cut, s.reset = offset, reset
		s.cuts++
		s.lastCut = offset
		if reset {
			s.lastCut = -1
		}
	})
	if err == nil {
		err = l.carryOut(offset, reset)
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

func (l *Log) carryOut(offset int64, reset bool) (err error) {
	segs := l.view.Load().segs
	i := 0
	if !reset {
		i = max(0, (&view{segs}).find(offset-1))
	}
	var kept int64
	renamed := false
	l.cuts.Add(1)
	defer func() {
		if err != nil { // the next Open does the rest, so what lies above is gone all the same
			if renamed && !reset { // whoever opens the segment now finds the file that was cut
				err = errors.Join(err, segs[i].close())
				segs[i].stored.store(markAt(offset-segs[i].base, kept))
				segs[i].flushed.store(segs[i].stored.load())
			}
			l.end.Store(offset)
			l.durable.Store(min(l.durable.Load(), offset))
			if reset {
				l.start.Store(offset)
				l.durable.Store(offset)
			}
		}
		l.cutLog.add(offset, reset)
		l.cuts.Add(1)
		l.readers.wake()
		l.durableWaiters.wake()
	}()
	var h *handle
	if !reset {
		if h, err = segs[i].pin(&l.env); err != nil { // before it is marked as gone
			return err
		}
		defer h.unref()
	}
	if !reset {
		kept, err = l.keepBelow(h.f, h.path, segs[i].base, segs[i].stored.load().pos(), offset)
		if err != nil {
			return err
		}
	}
	drop := segs[i+1:]
	if reset {
		drop = segs
	}
	for _, s := range drop {
		s.gone.Store(true)
	}
	for k := len(drop) - 1; k >= 0; k-- {
		if err := l.drop(drop[k : k+1]); err != nil {
			return err
		}
	}
	base := offset
	if !reset {
		base = segs[i].base
		if err := l.fs.syncDir(l.dir); err != nil {
			return err
		}
	}
	t, err := l.placeCut(base, reset, &renamed)
	if err != nil {
		return err
	}
	if !reset {
		l.opened.drop(segs[i])
		if err := segs[i].retire(); err != nil {
			return err
		}
		t.seg.stored.store(markAt(offset-base, kept))
		t.seg.flushed.store(t.seg.stored.load())
	}
	next := make([]*segment, 0, i+1)
	if !reset {
		next = append(next, segs[:i]...)
	}
	next = append(next, t.seg)
	return l.settle(t, next, offset, reset)
}

// settle makes the list of segments after a cut the log.
func (l *Log) settle(t *tail, segs []*segment, offset int64, reset bool) error {
	sealing := l.sealing[:0:0]
	for _, s := range l.sealing {
		if !s.seg.gone.Load() {
			sealing = append(sealing, s)
		}
	}
	l.sealing, l.tail, l.prepareAt = sealing, t, 0
	l.end.Store(offset)
	l.durable.Store(offset)
	if reset {
		l.start.Store(offset)
	}
	l.view.Store(&view{segs})
	scan := t.seg
	if len(sealing) > 0 {
		scan = sealing[0].seg
	}
	m := scan.flushed.load()
	var n, sum int64
	for _, s := range segs {
		if s.base <= scan.base {
			n++
			sum += s.base
		}
	}
	return l.state.commit(func(s *state) {
		s.cut, s.reset = -1, false
		s.start, s.first = l.start.Load(), segs[0].base
		s.recoveryPoint = offset
		s.scanBase, s.scanPos, s.scanOffset = scan.base, m.pos(), scan.base+m.rel()
		s.segments, s.baseSum = n, sum
		s.epoch = int64(l.epoch)
	})
}

// keepBelow copies what stays of a segment, of which size bytes may be batches, to a file of its own, flushed, and
// returns that one's size.
func (e *env) keepBelow(f file, path string, base, size, offset int64) (kept int64, err error) {
	out, err := e.acquire(filepath.Join(e.dir, cutName), openCreate)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var c scanner
	c.init(&fileRange{f, 0, size}, path, 0, base, -1)
	c.gaps = e.gaps.Load()
	for c.next < offset {
		b, err := c.scan()
		if errors.Is(err, ErrCorrupt) && e.gaps.Load() {
			if zeroes, e := onlyZeros(f, c.pos, size); zeroes && e == nil {
				err = io.EOF
			}
		}
		if err == io.EOF {
			break // the offsets up to there are a gap
		}
		if err != nil {
			return 0, err
		}
		if b.base() >= offset {
			break
		}
		if b.last() >= offset {
			if b, err = cutBatch(b, offset, e.o.MaxInflatedBytes); err != nil {
				return 0, wrapBatchError(err, path, c.pos, offset)
			}
		}
		if _, err := out.WriteAt(b, kept); err != nil {
			return 0, err
		}
		kept += int64(len(b))
	}
	return kept, out.flush()
}

// placeCut puts the file with what is kept, an empty one for a reset, in its place, and opens it as the active segment.
func (l *Log) placeCut(base int64, reset bool, renamed *bool) (*tail, error) {
	path, tmp := l.path(base, logSuffix), filepath.Join(l.dir, cutName)
	mode := openWrite
	if reset {
		mode = openCreate
	}
	f, err := l.acquire(tmp, mode)
	if err != nil {
		return nil, err
	}
	t, err := l.adoptCut(f, path, base)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		if err := l.removeFile(base, suffix); err != nil {
			return nil, errors.Join(err, t.seg.retire())
		}
	}
	err = l.fs.rename(tmp, path)
	if *renamed = err == nil; *renamed {
		err = l.fs.syncDir(l.dir)
	}
	if err != nil {
		return nil, errors.Join(err, t.seg.retire())
	}
	return t, nil
}

func (l *Log) adoptCut(f file, path string, base int64) (*tail, error) {
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	c := segmentScan{r: &recovery{l: l, st: state{scanBase: -1}}, f: f, path: path, base: base, size: size, next: -1}
	if err := c.scan(); err != nil {
		return nil, err
	}
	if c.ends != endsWhole || c.pos != size {
		return nil, c.why
	}
	t, err := openTail(&l.env, f, path, base, c.x, size)
	if err != nil {
		return nil, err
	}
	t.firstTime = c.firstTime
	return t, nil
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
	bases := r.dir.bases
	keep := 0
	if !st.reset {
		for keep < len(bases) && bases[keep] < st.cut || keep == 0 && len(bases) > 0 {
			keep++
		}
		if keep == 0 {
			return &CorruptError{Path: l.path(st.first, logSuffix), Offset: st.first, Reason: fmt.Sprintf("no segment is left, and a cut at offset %d was under way", st.cut)}
		}
	}
	for k := len(bases) - 1; k >= keep; k-- {
		if st.reset && bases[k] == st.cut {
			continue // may be the new, empty one; create empties it
		}
		if err := l.removeSegmentFiles(bases[k]); err != nil {
			return err
		}
	}
	r.dir.bases = bases[:keep]
	if st.reset {
		if err := l.removeSegmentFiles(st.cut); err != nil {
			return err
		}
		st.start, st.first, st.scanBase, st.segments, st.baseSum = st.cut, st.cut, st.cut, 0, 0
		st.recoveryPoint, st.scanPos, st.scanOffset = st.cut, 0, st.cut
		return l.fs.syncDir(l.dir)
	}
	return r.finishCut(bases[keep-1])
}

// finishCut cuts the last segment that is kept, unless that was done.
func (r *recovery) finishCut(base int64) error {
	l, st := r.l, &r.st
	if err := l.fs.syncDir(l.dir); err != nil {
		return err
	}
	path := l.path(base, logSuffix)
	info, err := l.fs.stat(path)
	if err != nil {
		return err
	}
	f, err := l.acquire(path, openRead)
	if err != nil {
		return err
	}
	_, err = l.keepBelow(f, path, base, min(info.size, maxSegmentBytes), st.cut)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		if err := l.removeFile(base, suffix); err != nil {
			return err
		}
	}
	if err := errors.Join(l.fs.rename(filepath.Join(l.dir, cutName), path), l.fs.syncDir(l.dir)); err != nil {
		return err
	}
	st.recoveryPoint = min(st.recoveryPoint, st.cut)
	st.clean = false
	if st.scanBase >= base { // else an older segment was not sealed yet, and recovery starts there
		st.scanBase, st.scanPos, st.scanOffset = base, 0, base
		st.segments, st.baseSum = 0, 0
		for _, b := range r.dir.bases {
			st.segments++
			st.baseSum += b
		}
	}
	return r.relist()
}

func (r *recovery) relist() error {
	dir, err := r.l.list()
	if err == nil {
		r.dir = dir
	}
	return err
}

// cutLog remembers where the log was cut lately, for iterators that come to it later.
type cutLog struct {
	mu      sync.Mutex
	dropped int64   // cuts that are not remembered any more
	last    []int64 // the offsets of those that are; -1 for a reset
}

// maxCuts: an iterator that slept over more of them ends, as after a reset.
const maxCuts = 1024

func (c *cutLog) add(offset int64, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reset {
		offset = -1
	}
	if len(c.last) == maxCuts {
		c.dropped += maxCuts / 2
		c.last = append(c.last[:0:0], c.last[maxCuts/2:]...)
	}
	c.last = append(c.last, offset)
}

// lowestCut is the lowest offset cut at since Log.cuts had that value.
func (l *Log) lowestCut(cuts int64) int64 {
	c := &l.cutLog
	c.mu.Lock()
	defer c.mu.Unlock()
	first := cuts/2 - c.dropped
	if first < 0 {
		return -1
	}
	lowest := l.end.Load()
	for _, offset := range c.last[min(first, int64(len(c.last))):] {
		lowest = min(lowest, offset)
	}
	return lowest
}
