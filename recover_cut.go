package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/seglog/seglog/internal/vfs"
)

// setDeletedAside takes the segments that a deletion was to remove off the listing, which is in memory. Their files stay until the
// rest of the log was found sound: a state file that was copied from another log must not make Open delete segments.
func (r *recovery) setDeletedAside() {
	n, _ := slices.BinarySearch(r.dir.bases, r.st.first)
	r.deleted, r.dir.bases = r.dir.bases[:n], r.dir.bases[n:]
}

// finishDeletion removes the segments that a deletion was to remove, as noted in seglog.state.
func (r *recovery) finishDeletion() error {
	if len(r.deleted) == 0 {
		return nil
	}
	if err := r.secureIntent(); err != nil {
		return err
	}
	for len(r.deleted) > 0 {
		if err := r.removeSegment(r.deleted[0]); err != nil {
			return err
		}
		r.deleted = r.deleted[1:]
	}
	return nil
}

// secureIntent makes durable what the state file says is to be done, which may exist only in the page cache, before recovery
// acts on it.
func (r *recovery) secureIntent() error { return r.l.state.commit(func(*state) {}) }

// finishChanges finishes a cut that was interrupted, as noted in seglog.state, and before it a deletion, whose room the cut may
// need.
func (r *recovery) finishChanges() error {
	st := &r.st
	if st.cut < 0 {
		return nil
	}
	if err := r.secureIntent(); err != nil {
		return err
	}
	if err := r.finishDeletion(); err != nil {
		return err
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

// removeSegment removes the files of a segment that a change takes away. The power may have been lost before the name of the
// last one came to the disk, which is still seglog.next then: left there, the next Open would take it for a part of the log.
func (r *recovery) removeSegment(base int64) error {
	if base == r.dir.unnamed {
		if err := r.l.fs.Remove(filepath.Join(r.l.dir, nextName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("seglog: delete segment %d: %w", base, err)
		}
		r.dir.unnamed = -1
	}
	return r.l.removeSegmentFiles(base)
}

func (r *recovery) finishReset() error {
	l, st := r.l, &r.st
	for k := len(r.dir.bases) - 1; k >= 0; k-- {
		if err := r.removeSegment(r.dir.bases[k]); err != nil {
			return err
		}
	}
	r.dir.bases = nil
	if err := l.removeSegmentFiles(st.cut); err != nil {
		return err
	}
	st.raiseFence(st.cut, int32(st.epoch))
	st.start, st.recoveryPoint, st.told = st.cut, st.cut, min(st.told, st.cut)
	st.empty(st.cut)
	return l.syncDir()
}

// planCut returns the plan of the interrupted cut, or nil if the cut had not begun.
func (r *recovery) planCut() (*cutPlan, error) {
	l, st := r.l, &r.st
	if st.cutPos < 0 {
		return r.planByScan()
	}
	p := &cutPlan{base: st.cutBase, pos: st.cutPos}
	if st.cutLen == 0 {
		return p, nil
	}
	rest, err := readRest(l.state.f, st.cutLen)
	if err != nil {
		return nil, err
	}
	if !st.isRest(rest) {
		// The intent reached the disk without the batch that belongs to it, so its flush had not returned, and no file
		// was changed.
		st.cut, st.cuts = -1, st.cuts+1
		return nil, nil
	}
	p.rest = rest
	return p, nil
}

// planByScan plans a cut that was noted in version 1 of the state file, which holds only the offset.
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
	f, err := l.acquire(path, vfs.OpenRead)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
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

// finishCut carries out the plan by the steps of cutFiles, for a Log that has no readers yet. takeOver removes the producers'
// .snapshot files above the cut.
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
		if err := r.removeSegment(r.dir.bases[k]); err != nil {
			return err
		}
	}
	for _, suffix := range []string{transactionSuffix, timeSuffix, indexSuffix} {
		if err := l.removeFile(p.base, suffix); err != nil {
			return err
		}
	}
	path := l.path(p.base, logSuffix)
	f, err := l.acquire(path, vfs.OpenWrite)
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{Path: path, Offset: p.base, Reason: fmt.Sprintf("segment is missing, and a cut at offset %d was under way", st.cut), cause: err}
	}
	if err != nil {
		return err
	}
	size, err := f.Size()
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
		st.set(r.dir.bases, p.base, 0)
	}
	return nil
}

func (r *recovery) relist() error {
	dir, err := r.l.list()
	if err == nil {
		r.dir = dir
		r.dir.dropStale(&r.st) // only a state file notes what relist follows
	}
	return err
}
