package seglog

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// RepairOptions are the options of Repair. With the zero value, Repair changes nothing.
type RepairOptions struct {
	// Apply carries the repair out. Default: false, only report what would be done.
	Apply bool
	// KeepAfter keeps all good batches behind damage; readers then find offsets missing, which the format allows. Default:
	// false, the log ends where the first damage begins.
	KeepAfter bool
	// MaxInflatedBytes is as in Options: a compressed batch that inflates to more is kept, and its records are not checked.
	// Default: 256 MiB.
	MaxInflatedBytes int64
}

// Removal is a part of a log that Repair takes out, or that is missing already.
type Removal struct {
	Path   string `json:"path"`
	Pos    int64  `json:"pos"`
	Bytes  int64  `json:"bytes"`           // 0 if only offsets are missing
	Offset int64  `json:"offset"`          // the offsets [Offset, Next) can't be read afterwards
	Next   int64  `json:"next"`            // -1: all offsets up to the end of the file
	Good   int64  `json:"good,omitempty"`  // how many good batches go too, since they lie behind the damage
	Saved  string `json:"saved,omitempty"` // file that keeps the bytes; "" if there is none, as for zeros
	Reason string `json:"reason"`
}

// RepairReport says what Repair did or, without Apply, would do.
type RepairReport struct {
	Dir     string    `json:"dir"`
	Applied bool      `json:"applied"`
	Removed []Removal `json:"removed"`
	Changes []string  `json:"changes"` // to seglog.state, and to leader epochs that a flipped bit had changed
	// The log as it is afterwards.
	Start   int64 `json:"start"`
	End     int64 `json:"end"`
	Batches int64 `json:"batches"`
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"`
	Gaps    bool  `json:"gaps"` // offsets may be missing
}

// Sound reports whether there is nothing to repair.
func (r *RepairReport) Sound() bool { return len(r.Removed) == 0 && len(r.Changes) == 0 }

// Repair is the way back from damage for which Open or a read returns a *CorruptError. It reads every byte, as Verify does,
// to find the good batches. Then the log either ends where the first damage begins or, with KeepAfter, loses the bad bytes
// only and keeps all good batches. All bytes that Repair takes out, except zeros and index files, which are rebuilt, are
// kept beside the log in files named seglog.repair-<base offset>-<position>. Open and Kafka ignore these files; they may be
// deleted when they are not needed any more. A torn tail is treated like damage.
//
// Without Apply, Repair changes nothing. It locks the directory while it runs, and returns ErrLocked if the log is open. It
// may be killed at any point and run again.
func Repair(dir string, opts *RepairOptions) (*RepairReport, error) {
	return repairFS(osFS{}, dir, opts)
}

func repairFS(fsys fileSystem, dir string, opts *RepairOptions) (report *RepairReport, err error) {
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
	lock, err := fsys.lock(filepath.Join(abs, lockName))
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("seglog: repair %s: %w", abs, err)
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

// repair is one run of Repair.
type repair struct {
	e      env // fs and dir
	o      RepairOptions
	report *RepairReport

	ledger
	names map[string]bool // in the directory
	segs  []*repairSegment
	gap   bool // offsets are left out of what is kept
	next  state
	check recordCheck

	epochs epochs
	fixes  []epochAt // leader epochs to be set right
}

// repairSegment is one .log file, and what is to become of it.
type repairSegment struct {
	base, size int64
	spans      []span   // of good batches, in order
	lost       []damage // between and behind the spans
	zeros      int64    // from this position on there are only zeros
	next       int64    // offset after the last batch of spans
	atMark     bool     // the position where recovery starts to check lies between two batches, or not in this segment
	drop       bool     // the whole file goes
}

// span is a run of good batches of a file, with no bytes and no offsets missing between them.
type span struct {
	pos, end         int64
	base, next       int64
	batches, records int64
}

// rewrite reports whether the file has to be replaced, since less of it is kept.
func (s *repairSegment) rewrite() bool {
	return s.newSize() < min(s.size, s.zeros)
}

// newSize returns how many bytes of the file are kept.
func (s *repairSegment) newSize() (n int64) {
	for _, k := range s.spans {
		n += k.end - k.pos
	}
	return n
}

func (p *repair) run() error {
	if err := p.ledger.read(&p.e); err != nil {
		return err
	}
	names, err := p.e.fs.list(p.e.dir)
	if err != nil {
		return err
	}
	p.names = map[string]bool{}
	for _, name := range names {
		p.names[name] = true
	}
	if p.st.reset && p.st.cut >= 0 {
		p.report.Changes = append(p.report.Changes, fmt.Sprintf("none: a Reset to offset %d was interrupted, and the next Open finishes it", p.st.cut))
		return nil
	}
	foreign := p.foreign()
	p.epochs = newEpochs()
	for i, base := range p.dir.bases {
		following := int64(-1)
		if i+1 < len(p.dir.bases) {
			following = p.dir.bases[i+1]
		} else if info, err := p.e.fs.stat(p.e.path(base, logSuffix)); err == nil && p.st.clean && info.size <= p.st.endPos {
			following = p.st.end
		}
		s, err := p.examine(base, following)
		if err != nil {
			return err
		}
		p.segs = append(p.segs, s)
	}
	if foreign != nil {
		p.segs = append(p.segs, foreign)
		slices.SortFunc(p.segs, func(a, b *repairSegment) int { return int(min(1, max(-1, a.base-b.base))) })
	}
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

// foreign takes a segment off the list that the count and sum in the state file prove not to be of this log.
func (p *repair) foreign() *repairSegment {
	var n, sum int64
	for _, base := range p.dir.bases {
		if base <= p.st.scanBase {
			n++
			sum += base
		}
	}
	base := sum - p.st.baseSum
	i, ok := slices.BinarySearch(p.dir.bases, base)
	if !p.promised || n != p.st.segments+1 || !ok || base == p.st.first || base > p.st.scanBase {
		return nil
	}
	info, err := p.e.fs.stat(p.e.path(base, logSuffix))
	if err != nil {
		return nil
	}
	p.dir.bases = slices.Delete(slices.Clone(p.dir.bases), i, i+1)
	s := &repairSegment{base: base, size: info.size, zeros: info.size, drop: true}
	s.lost = []damage{{end: info.size, offset: -1, next: -1, cause: &CorruptError{Reason: "file does not belong to this log"}}}
	return s
}

// examine finds the good batches of a file.
func (p *repair) examine(base, following int64) (*repairSegment, error) {
	f, path, err := p.e.openLog(base, openRead)
	if err != nil {
		return nil, err
	}
	s, err := p.examineFile(f, path, base, following)
	return s, errors.Join(err, f.Close())
}

func (p *repair) examineFile(f file, path string, base, following int64) (*repairSegment, error) {
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	if p.belowStart(following) { // it stays unchanged until it is deleted
		return &repairSegment{base: base, size: size, zeros: size, next: following, atMark: true,
			spans: []span{{end: size, base: base, next: following}}}, nil
	}
	s := &repairSegment{base: base, size: size, atMark: base != p.st.scanBase || p.st.scanPos == 0}
	w := salvage{f: f, path: path, base: base, size: min(size, maxSegmentBytes), from: base, end: following, gaps: p.gaps()}
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
		if base == p.st.scanBase && pos+b.size() == p.st.scanPos && p.st.endOffset(base, p.st.scanPos, b.last()+1) == p.st.scanOffset {
			s.atMark = true
		}
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
	if w.zeros == w.size && size > w.size {
		s.zeros = size
		s.lost = append(s.lost, damage{pos: w.size, end: size, offset: w.next, next: -1, cause: &CorruptError{Reason: "file is larger than 2 GiB - 1"}})
	}
	s.next = base
	end := int64(0)
	if n := len(s.spans); n > 0 {
		s.next, end = s.spans[n-1].next, s.spans[n-1].end
	}
	if p.promised && base == p.dir.bases[len(p.dir.bases)-1] && len(s.lost) == 0 {
		s.next = p.st.endOffset(base, end, s.next)
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
