package seglog

import (
	"errors"
	"io"
	"io/fs"

	"github.com/seglog/seglog/internal/vfs"
)

// snapshot is one call of Snapshot.
type snapshot struct {
	l    *Log
	to   env
	lock io.Closer
	file *stateFile
	made []string // paths of the files in to, except lock and state file
	// cleared: files were removed, by this try or an earlier one, whose names a power cut may bring back.
	cleared bool

	// The log to be copied, all of one moment:
	st       state
	start    int64
	end      int64 // the high watermark
	segs     []*segment
	unsealed int64 // base offset of the first segment that is not sealed
	cuts     int64
}

// cut reports whether the log was cut since plan, so that the copied bytes may be of two histories.
func (s *snapshot) cut() (bool, error) {
	l := s.l
	if l.cuts.Load() != s.cuts {
		return true, nil
	}
	if l.readOnly == nil {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.readOnly.promised {
		return false, nil
	}
	st, err := l.readOnly.readWriterState()
	return st.cuts != s.st.cuts || st.cut >= 0, err
}

// copyBatches copies the batches of a segment that lie below the end of the snapshot, and builds their indexes.
func (s *snapshot) copyBatches(seg *segment) (size int64, err error) {
	h, err := seg.pin(&s.l.env)
	if errors.Is(err, fs.ErrNotExist) {
		if gone, e := s.gone(seg); e != nil || gone {
			err = errors.Join(errGone, e)
		}
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.unref()) }()
	limit := s.l.limit(seg)
	x := newIndexBuilder(s.l.o.IndexBytes)
	var c scanner
	c.init(&fileRange{h.f, 0, limit.pos()}, h.path, 0, seg.base, seg.base+limit.rel())
	c.gaps = s.l.gaps.Load()
	for c.next < s.end {
		b, err := c.scan()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		if b.last() >= s.end {
			break // the snapshot ends in a gap
		}
		x.add(size, uint32(b.last()-seg.base), b.maxTimestamp())
		s.st.epoch = max(s.st.epoch, int64(b.epoch()))
		size = c.pos
	}
	return size, s.store(h.f, x, seg.base, size)
}

// store makes a segment with its indexes from the first size bytes of src.
func (s *snapshot) store(src vfs.File, x *indexBuilder, base, size int64) error {
	path := s.to.path(base, logSuffix)
	s.made = append(s.made, path, s.to.path(base, indexSuffix), s.to.path(base, timeSuffix)) // an open that fails may have made it
	out, err := s.to.fs.Open(path, vfs.OpenCreate)
	if err != nil {
		return err
	}
	if err = vfs.CopyRange(out, 0, src, 0, size); err == nil {
		err = out.Flush()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return writeIndexes(&s.to, base, x)
}

// link links the files of a sealed segment into the copy, or copies them where they can't be linked.
func (s *snapshot) link(seg *segment) error {
	for _, suffix := range []string{logSuffix, indexSuffix, timeSuffix} {
		from, to := s.l.path(seg.base, suffix), s.to.path(seg.base, suffix)
		s.made = append(s.made, to)
		err := s.to.fs.Link(from, to)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = s.copyFile(from, to)
		}
		if errors.Is(err, fs.ErrNotExist) {
			gone, goneErr := s.gone(seg)
			switch {
			case goneErr != nil:
				err = goneErr
			case gone:
				err = errors.Join(errGone, s.to.removeSegmentFiles(seg.base))
			case suffix != logSuffix:
				err = nil // an index is rebuilt when the copy needs it
			default:
				err = &CorruptError{Path: from, Offset: seg.base, Reason: "segment is missing", cause: err}
				if moved := s.l.ours(); moved != nil { // or removed, and the segment with it
					err = moved
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return s.l.ours()
}

// gone reports whether the log has deleted or cut a segment, as opposed to having lost its file.
func (s *snapshot) gone(seg *segment) (bool, error) {
	l := s.l
	if seg.is(phaseGone) {
		return true, nil
	}
	if l.readOnly != nil {
		if err := l.readOnly.refresh(); err != nil {
			return false, err
		}
	}
	cut, err := s.cut()
	return cut || seg.base < l.view.Load().segs[0].base, err
}

// copyFile copies a file that does not change.
func (s *snapshot) copyFile(from, to string) (err error) {
	src, err := s.to.fs.Open(from, vfs.OpenRead)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	size, err := src.Size()
	if err != nil {
		return err
	}
	out, err := s.to.fs.Open(to, vfs.OpenCreate)
	if err != nil {
		return err
	}
	if err = vfs.CopyRange(out, 0, src, 0, size); err == nil {
		err = out.Flush()
	}
	return errors.Join(err, out.Close())
}
