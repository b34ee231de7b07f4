package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// apply carries the plan out, so that a crash after any step leaves a log that is refused as before or that is what the
// plan wants, and a second run comes to the same end:
//
//  1. every byte that goes is copied, durably;
//  2. that offsets may be left out is noted before a file says so, since else Open would cut there;
//  3. files change one by one, newest first, each by a rename;
//  4. last, seglog.state promises what there is now. Until then it promises more than there is, and Open says so.
func (p *repair) apply() error {
	if base := p.dir.unnamed; base >= 0 {
		if err := p.e.fs.rename(filepath.Join(p.e.dir, nextName), p.e.path(base, logSuffix)); err != nil {
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

// setEpoch writes the leader epoch of a batch, in place: no CRC covers it, and it is right or wrong on its own.
func (p *repair) setEpoch(at epochAt) error {
	f, err := p.e.fs.open(p.e.path(at.base, logSuffix), openWrite)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(binary.BigEndian.AppendUint32(nil, uint32(at.epoch)), at.pos+atLeaderEpoch)
	if err == nil {
		err = f.flush()
	}
	return errors.Join(err, f.Close())
}

// saveName is where the bytes of d go. A file of an earlier repair keeps its name.
func (p *repair) saveName(s *repairSegment, d damage) string {
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s%020d-%d", repairPrefix, s.base, d.pos)
		if i > 1 {
			name += fmt.Sprintf("-%d", i)
		}
		path := filepath.Join(p.e.dir, name)
		if !p.names[name] || !s.drop && p.holds(path, s, d) {
			p.names[name] = true
			return path
		}
	}
}

// holds reports whether a run that was interrupted has saved the bytes of d to path.
func (p *repair) holds(path string, s *repairSegment, d damage) bool {
	saved, err := p.e.fs.open(path, openRead)
	if err != nil {
		return false
	}
	defer saved.Close()
	src, err := p.e.fs.open(p.e.path(s.base, logSuffix), openRead)
	if err != nil {
		return false
	}
	defer src.Close()
	if size, err := saved.size(); err != nil || size != d.end-d.pos {
		return false
	}
	a, b := make([]byte, scanChunk), make([]byte, scanChunk)
	for at := d.pos; at < d.end; {
		n := min(scanChunk, d.end-at)
		if readFull(saved, a[:n], at-d.pos) != nil || readFull(src, b[:n], at) != nil || !bytes.Equal(a[:n], b[:n]) {
			return false
		}
		at += n
	}
	return true
}

// save copies what is taken out of a file. One that goes as a whole is renamed instead.
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
		if err := p.e.fs.rename(p.temp(), d.saved); err != nil {
			return err
		}
	}
	return nil
}

func (p *repair) temp() string { return filepath.Join(p.e.dir, repairTemp) }

// build puts parts of a segment into the temporary file, flushed.
func (p *repair) build(s *repairSegment, parts []span) (err error) {
	src, err := p.e.fs.open(p.e.path(s.base, logSuffix), openRead)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := p.e.fs.open(p.temp(), openCreate)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, p.e.fs.remove(p.temp()))
		}
	}()
	at := int64(0)
	for _, k := range parts {
		if err := copyRange(out, at, src, k.pos, k.end-k.pos); err != nil {
			return err
		}
		at += k.end - k.pos
	}
	return out.flush()
}

// change brings one file to what is planned. Its indexes go first: they are made anew when it is next read.
func (p *repair) change(s *repairSegment) error {
	if !s.drop && !s.rewrite() {
		if s.zeros < s.size && p.trims(s) {
			return p.trim(s)
		}
		return nil
	}
	path := p.e.path(s.base, logSuffix)
	if !s.drop {
		if err := p.build(s, s.spans); err != nil {
			return err
		}
	}
	for _, suffix := range []string{timeSuffix, indexSuffix} {
		if err := p.e.removeFile(s.base, suffix); err != nil {
			return err
		}
	}
	switch {
	case !s.drop:
		return p.e.fs.rename(p.temp(), path)
	case len(s.lost) == 1 && s.lost[0].saved != "":
		return p.e.fs.rename(path, s.lost[0].saved)
	default: // nothing but zeros
		if err := p.e.fs.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

// trim takes zeros off the end of a segment.
func (p *repair) trim(s *repairSegment) error {
	f, err := p.e.fs.open(p.e.path(s.base, logSuffix), openWrite)
	if err != nil {
		return err
	}
	return errors.Join(f.truncate(s.zeros), f.flush(), f.Close())
}
