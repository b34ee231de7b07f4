package seglog

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/seglog/seglog/internal/vfs"
)

// apply carries the plan out. A crash after any step leaves a log that is refused as before or that is as planned, and a
// second run comes to the same end:
//
//  1. Every byte that goes is copied, durably.
//  2. The flag that offsets may be missing is set before any file has a gap, where Open would cut otherwise.
//  3. The files change one by one, newest first, each by a rename.
//  4. Last, seglog.state promises what there is now. Until then it promises more, and Open refuses the log.
func (p *repair) apply() error {
	if base := p.dir.unnamed; base >= 0 {
		if err := p.e.fs.Rename(filepath.Join(p.e.dir, nextName), p.e.path(base, logSuffix)); err != nil {
			return err
		}
	}
	for _, at := range p.fixes {
		if err := p.setEpoch(at); err != nil {
			return err
		}
	}
	for _, s := range p.segs {
		if err := p.save(s); err != nil {
			return err
		}
	}
	if err := p.e.syncDir(); err != nil {
		return err
	}
	var st *stateFile
	if p.promised {
		var err error
		if st, err = openState(p.e.fs, filepath.Join(p.e.dir, stateName), p.st); err != nil {
			return err
		}
		defer func() { _ = st.close() }() // all of it is flushed
		if p.gap && !p.st.gaps {
			if err := st.commit(func(s *state) { s.gaps = true }); err != nil {
				return err
			}
		}
	}
	for _, s := range slices.Backward(p.segs) {
		if err := p.change(s); err != nil {
			return err
		}
	}
	if err := p.e.syncDir(); err != nil {
		return err
	}
	if st == nil {
		return nil
	}
	return st.commit(func(s *state) {
		seq, cuts := s.seq, s.cuts
		*s = p.next
		// Read-only logs in other processes start over.
		s.seq, s.cuts, s.lastCut, s.clean = seq, cuts+1, -1, false
	})
}

// setEpoch writes the leader epoch of a batch in place: no CRC covers it, and nothing else depends on it.
func (p *repair) setEpoch(at epochAt) error {
	f, err := p.e.fs.Open(p.e.path(at.base, logSuffix), vfs.OpenWrite)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(binary.BigEndian.AppendUint32(nil, uint32(at.epoch)), at.pos+atLeaderEpoch)
	if err == nil {
		err = f.Flush()
	}
	return errors.Join(err, f.Close())
}

// save copies the bytes that are taken out of a file. A file that goes as a whole is renamed later instead.
func (p *repair) save(s *repairSegment) error {
	if s.drop {
		return nil
	}
	for _, d := range s.lost {
		if d.saved == "" {
			continue
		}
		if err := p.build(s, []span{{pos: d.pos, end: d.end}}); err != nil {
			return err
		}
		if err := p.e.fs.Rename(p.temp(), d.saved); err != nil {
			return err
		}
	}
	return nil
}

func (p *repair) temp() string { return filepath.Join(p.e.dir, repairTemp) }

// build copies parts of a segment into the temporary file, and flushes it.
func (p *repair) build(s *repairSegment, parts []span) (err error) {
	src, err := p.e.fs.Open(p.e.path(s.base, logSuffix), vfs.OpenRead)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := p.e.fs.Open(p.temp(), vfs.OpenCreate)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, p.e.fs.Remove(p.temp()))
		}
	}()
	at := int64(0)
	for _, k := range parts {
		if err := vfs.CopyRange(out, at, src, k.pos, k.end-k.pos); err != nil {
			return err
		}
		at += k.end - k.pos
	}
	return out.Flush()
}

// change does to one file what is planned. Its indexes are removed first, also if only these lead to batches that are lost; they are rebuilt
// when the segment is next read.
func (p *repair) change(s *repairSegment) error {
	stays := !s.drop && !s.rewrite()
	if stays && !s.short {
		return p.trim(s)
	}
	path := p.e.path(s.base, logSuffix)
	if !s.drop && !stays {
		if err := p.build(s, s.spans); err != nil {
			return err
		}
	}
	if err := p.e.removeIndexes(s.base); err != nil {
		return err
	}
	switch {
	case stays:
		return p.trim(s)
	case !s.drop:
		return p.e.fs.Rename(p.temp(), path)
	case len(s.lost) == 1 && s.lost[0].saved != "":
		return p.e.fs.Rename(path, s.lost[0].saved)
	default: // there are only zeros in it
		if err := p.e.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

// trim takes zeros off the end of a segment, if there are any that have to go.
func (p *repair) trim(s *repairSegment) error {
	if s.zeros == s.size || !p.trims(s) {
		return nil
	}
	f, err := p.e.fs.Open(p.e.path(s.base, logSuffix), vfs.OpenWrite)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(s.zeros), f.Flush(), f.Close())
}
