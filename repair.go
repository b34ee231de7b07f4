package seglog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/seglog/seglog/internal/vfs"
)

// Repair is the way back from damage for which Open or a read returns a *CorruptError. It reads every byte, as Verify does,
// to find the good batches. Then the log either ends where the first damage begins or, with KeepAfter, loses the bad bytes
// only and keeps all good batches. All bytes that Repair takes out, except zeros and index files, which are rebuilt, are
// kept beside the log in files named seglog.repair-<base offset>-<position>. Open and Kafka ignore these files; they may be
// deleted when they are not needed any more. A torn tail is treated like damage.
//
// Repair goes by seglog.state. A .log file that the state proves not to belong to this log is taken out whole: it is kept like
// other bytes, and its batches are neither checked nor counted. If seglog.state itself is of another log, Repair can't tell, and
// the next Open may end the log below RepairReport.End, or refuse it.
//
// Without Apply, Repair changes nothing. It locks the directory while it runs, and returns ErrLocked if the log is open; without
// Apply, it does so only where there is the file LOCK already. It may be killed at any point and run again.
func Repair(dir string, opts *RepairOptions) (*RepairReport, error) {
	return repairFS(osFS{}, dir, opts)
}

func repairFS(fsys vfs.FS, dir string, opts *RepairOptions) (report *RepairReport, err error) {
	if dir == "" {
		return nil, invalid("the name of the directory is empty")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("seglog: repair %s: %w", dir, err)
	}
	p := &repair{report: &RepairReport{Dir: abs, Removed: []Removal{}, Changes: []string{}}}
	p.e.fs, p.e.dir = fsys, abs
	if opts != nil {
		p.o = *opts
	}
	if p.o.MaxInflatedBytes < 0 {
		return nil, invalid("RepairOptions.MaxInflatedBytes is %d", p.o.MaxInflatedBytes)
	}
	p.check.d.limit = p.o.MaxInflatedBytes
	lock, failed := p.lock(filepath.Join(abs, lockName))
	if errors.Is(failed, ErrLocked) {
		return nil, failed
	}
	if failed != nil {
		return nil, fmt.Errorf("seglog: repair %s: %w", abs, failed)
	}
	defer func() {
		if e := lock.Close(); e != nil && err == nil {
			report, err = nil, fmt.Errorf("seglog: repair %s: %w", abs, e)
		}
	}()
	if err := p.run(); err != nil {
		return nil, fmt.Errorf("seglog: repair %s: %w", abs, err)
	}
	return p.report, nil
}

// lock locks the directory. A Repair that is not applied creates no file, and needs no right to write: the disk may be mounted read-only.
func (p *repair) lock(path string) (io.Closer, error) {
	if _, missing := p.e.fs.Stat(path); !p.o.Apply && errors.Is(missing, fs.ErrNotExist) {
		return noFile{}, nil
	}
	lock, err := p.e.fs.Lock(path)
	if err == nil || p.o.Apply || !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		return lock, err
	}
	f, err := p.e.fs.Open(path, vfs.OpenRead)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (p *repair) run() error {
	if err := p.ledger.read(&p.e); err != nil {
		return err
	}
	names, err := p.e.fs.List(p.e.dir)
	if err != nil {
		return err
	}
	p.names = map[string]bool{}
	for _, name := range names {
		p.names[name] = true
	}
	if p.st.reset && p.st.cut >= 0 { // the next Open finishes it
		p.report.Start, p.report.End, p.report.Gaps = p.st.cut, p.st.cut, p.st.gaps
		return nil
	}
	if p.void {
		p.st.cut = -1
	}
	p.epochs = newEpochs(p.promises())
	for i, base := range p.dir.bases {
		following := int64(-1)
		if i+1 < len(p.dir.bases) {
			following = p.dir.bases[i+1]
		} else if info, err := p.e.fs.Stat(p.e.path(base, logSuffix)); err == nil {
			following, _ = p.closedEnd(base, info.Size)
		}
		s, err := p.examine(base, following)
		if err != nil {
			return err
		}
		p.segs = append(p.segs, s)
	}
	for _, base := range p.foreign {
		s, err := p.takeOut(base)
		if err != nil {
			return err
		}
		p.segs = append(p.segs, s)
	}
	slices.SortFunc(p.segs, func(a, b *repairSegment) int { return cmp.Compare(a.base, b.base) })
	p.decide()
	p.plan()
	if p.o.Apply && !p.report.Sound() {
		if err := p.apply(); err != nil {
			return err
		}
	}
	p.report.Applied = p.o.Apply
	return nil
}

// takeOut is examine for a segment that does not belong to this log.
func (p *repair) takeOut(base int64) (*repairSegment, error) {
	info, err := p.e.fs.Stat(p.e.path(base, logSuffix))
	if err != nil {
		return nil, err
	}
	return &repairSegment{base: base, size: info.Size, zeros: info.Size, drop: true,
		lost: []damage{{end: info.Size, offset: -1, next: -1, cause: &CorruptError{Reason: notOfThisLog}}}}, nil
}

// examine finds the good batches of a file.
func (p *repair) examine(base, following int64) (*repairSegment, error) {
	f, path, err := p.e.openLog(base, vfs.OpenRead)
	if err != nil {
		return nil, err
	}
	s, err := p.examineFile(f, path, base, following)
	return s, errors.Join(err, f.Close())
}

func (p *repair) examineFile(f vfs.File, path string, base, following int64) (*repairSegment, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if p.cuts() && base > p.st.cutBase {
		return &repairSegment{base: base, size: size, zeros: size, next: base, atMark: true, beyond: true}, nil
	}
	if p.belowStart(following) { // it stays unchanged until it is deleted
		return &repairSegment{base: base, size: size, zeros: size, next: following, atMark: true, below: true,
			spans: []span{{end: size, base: base, next: following}}}, nil
	}
	s := &repairSegment{base: base, size: size, atMark: base != p.st.scanBase || p.st.scanPos == 0}
	w := salvage{e: &p.e, f: f, path: path, base: base, size: min(size, maxSegmentBytes), from: base, end: following, gaps: p.gaps(), epochs: &p.epochs}
	w.endPos, w.flushed = p.endPos(base, size), p.st.flushedEnd(base)
	if s.cut = p.cuts() && base == p.st.cutBase; s.cut {
		w.size, w.end, w.endPos = min(w.size, p.st.cutPos), p.cutLimit, p.st.cutPos
	} else if p.promised && base == p.dir.bases[len(p.dir.bases)-1] {
		w.leftOut, s.leftOut = p.st.endOffset, p.st.endOffset
	}
	w.batch = func(b batch, pos int64) (string, error) {
		if why := p.check.check(b); why != "" {
			return why, nil
		}
		s.add(b, pos, p.check.records)
		if wrong, right, ok := p.epochs.add(b, base, pos); ok {
			p.report.Changes = append(p.report.Changes, fmt.Sprintf("leader epoch of the batch at offset %d, position %d of segment %d: %d, was %d",
				wrong.offset, wrong.pos, wrong.base, right, wrong.epoch))
			wrong.epoch = right
			p.fixes = append(p.fixes, wrong)
		}
		s.atMark = s.atMark || p.st.endsAtMark(base, pos+b.size(), b.last()+1)
		return "", nil
	}
	w.damage = func(d damage) (bool, error) {
		var corrupt *CorruptError
		if !errors.As(d.cause, &corrupt) {
			return false, d.cause // a disk that can't be read at the moment is no reason to throw its data away
		}
		if n := len(s.lost); n > 0 && d.pos < d.end && s.lost[n-1].end == d.pos && s.lost[n-1].pos < d.pos {
			s.lost[n-1].end, s.lost[n-1].next = d.end, d.next
		} else {
			s.lost = append(s.lost, d)
		}
		return true, nil
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	s.zeros = w.zeros
	if n := len(s.lost); n > 0 && s.lost[n-1].end == w.zeros { // its last bytes may be zeros
		s.zeros = min(w.size, w.zeros+maxSlack)
		s.lost[n-1].end = s.zeros
	}
	if w.zeros == w.size && size > w.size && !s.cut {
		s.zeros = size
		s.lost = append(s.lost, damage{pos: w.size, end: size, offset: w.next, next: -1, cause: &CorruptError{Reason: "file is larger than 2 GiB - 1"}})
	}
	s.next = base
	end := int64(0)
	if n := len(s.spans); n > 0 {
		s.next, end = s.spans[n-1].next, s.spans[n-1].end
	}
	if p.promised && p.st.isSealed(base) && following >= 0 && !s.cut {
		if s.short, err = p.e.endsEarly(f, base, end, s.next, following); err != nil {
			return nil, err
		}
		if s.short && p.gaps() && len(s.lost) == 0 {
			s.lost = append(s.lost, damage{pos: end, end: end, offset: s.next, next: following, cause: &CorruptError{Reason: lostEnd}})
		}
	}
	if w.leftOut != nil {
		s.next = w.leftOut(base, end, s.next)
	}
	return s, nil
}

// add notes a good batch.
func (s *repairSegment) add(b batch, pos, records int64) {
	n := len(s.spans)
	if n == 0 || s.spans[n-1].end != pos || s.spans[n-1].next != b.base() {
		s.spans = append(s.spans, span{pos: pos, end: pos, base: b.base(), next: b.base()})
		n++
	}
	k := &s.spans[n-1]
	k.end, k.next = pos+b.size(), b.last()+1
	k.batches++
	if !b.control() {
		k.records += records
	}
}
