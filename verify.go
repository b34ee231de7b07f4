package seglog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// Verify reads every byte of the log in dir and checks it against all that is known about it: CRCs, records (compressed ones
// if a decompressor is registered), the order of offsets within and between segments, both indexes entry by entry, and the
// promises in seglog.state. It writes and locks nothing.
//
// Verify may run beside a writer: a batch that is half written, reserved blocks, and a segment that is deleted or cut
// meanwhile are no problems. Zeros behind the last batch of a sealed segment are an error, although Open and readers of single
// records pass over them: a Section ends with them, so a follower refuses what it is sent, and so does a broker that loads the
// file. In a directory without seglog.state they are a warning, since Open takes them off. Verify also verifies a directory of
// Kafka. Everything that it finds is in the report; the error is for what keeps it from looking, such as a directory that can't
// be read, or for the Context.
func Verify(dir string, opts *VerifyOptions) (*Report, error) { return verifyFS(osFS{}, dir, opts) }

func verifyFS(fsys vfs.FS, dir string, opts *VerifyOptions) (*Report, error) {
	began := time.Now()
	v := &verifier{ctx: context.Background(), report: &Report{Segments: []SegmentReport{}, Problems: []Problem{}}}
	if opts != nil {
		v.o = *opts
	}
	if v.o.Context != nil {
		v.ctx = v.o.Context
	}
	if v.o.IndexBytes < 0 {
		return nil, invalid("VerifyOptions.IndexBytes is %d", v.o.IndexBytes)
	}
	if v.o.MaxInflatedBytes < 0 {
		return nil, invalid("VerifyOptions.MaxInflatedBytes is %d", v.o.MaxInflatedBytes)
	}
	if dir == "" {
		return nil, invalid("the name of the directory is empty")
	}
	v.check.d.limit = v.o.MaxInflatedBytes
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("seglog: verify %s: %w", dir, err)
	}
	v.e.fs, v.e.dir, v.report.Dir = fsys, abs, abs
	if err := v.run(); err != nil {
		return nil, err
	}
	v.report.Duration = time.Since(began)
	return v.report, nil
}

func (v *verifier) run() error {
	info, err := v.e.fs.Stat(v.e.dir)
	if err == nil && !info.IsDir {
		err = &fs.PathError{Op: "verify", Path: v.e.dir, Err: errors.New("not a directory")}
	}
	if err != nil {
		return fmt.Errorf("seglog: verify %s: %w", v.e.dir, err)
	}
	if err := v.look(); err != nil {
		return err
	}
	for _, name := range v.dir.swaps {
		if base, _ := parseFileName(name, swapSuffix); !v.promised {
			v.problem(Problem{Path: filepath.Join(v.e.dir, name), Offset: base, Severity: SeverityError,
				Reason: "a compaction by Kafka was interrupted: this file holds records, and a broker puts it in place when it starts"})
		}
	}
	for _, name := range v.dir.cleaned {
		v.problem(Problem{Path: filepath.Join(v.e.dir, name), Offset: -1, Severity: SeverityNote,
			Reason: "a compaction by Kafka was interrupted before it changed the log; a broker removes this file when it starts"})
	}
	v.measure()
	first := v.ledger
	if err := v.segments(); err != nil {
		return err
	}
	for _, base := range v.foreign {
		if v.underCut() && v.st.reset {
			break // the next Open finishes the Reset, and removes it unless it is the new segment
		}
		p := Problem{Path: v.e.path(base, logSuffix), Offset: base, Severity: SeverityError, Reason: notOfThisLog}
		if n := len(v.dir.bases); base > v.st.scanBase && n > 0 && v.dir.bases[n-1] == v.st.scanBase && v.st.recoveryPoint <= v.st.scanOffset {
			p.Severity, p.Reason = SeverityWarning, notOfThisLog+", and the next Open takes it away"
		}
		v.problem(p)
	}
	if err := v.leftovers(first.dir.leftover); err != nil {
		return err
	}
	v.sum()
	v.tell(v.total)
	return nil
}

// measure adds up how many bytes there are to read.
func (v *verifier) measure() {
	v.total = 0
	for _, base := range v.dir.bases {
		path := v.e.path(base, logSuffix)
		if base == v.dir.unnamed {
			path = filepath.Join(v.e.dir, nextName)
		}
		if info, err := v.e.fs.Stat(path); err == nil {
			v.total += info.Size
		}
	}
}

// maxRestarts bounds how often one segment is begun again because the log was cut meanwhile.
const maxRestarts = 20

// segments checks the segments one by one. A problem counts only if no deletion or cut explains it.
func (v *verifier) segments() error {
	restarts := 0
	v.epochs = newEpochs(v.promises())
	for i := 0; i < len(v.dir.bases); {
		base := v.dir.bases[i]
		if v.underCut() && (base >= v.st.cut || v.st.reset) && i > 0 {
			break // removed when the cut is finished
		}
		c := segmentCheck{v: v, i: i, base: base, following: -1}
		if i+1 < len(v.dir.bases) {
			c.following = v.dir.bases[i+1]
		}
		before := v.done
		if err := c.run(); err != nil {
			return err
		}
		now, _, err := readState(v.e.fs, filepath.Join(v.e.dir, stateName))
		if err != nil {
			return fmt.Errorf("seglog: verify %s: %w", v.e.dir, err)
		}
		if len(c.problems) > 0 && v.promised && (now.cuts != v.st.cuts || now.cut != v.st.cut || now.fenceOffset != v.st.fenceOffset) {
			restarts++
			if restarts <= maxRestarts {
				v.done = before
				if i, err = v.again(base); err != nil {
					return err
				}
				continue
			}
			c.problems = nil
		}
		deleted := v.promised && now.first > base || !v.promised && c.missing
		if !deleted {
			v.report.Segments = append(v.report.Segments, c.r)
			v.report.Problems = append(v.report.Problems, c.problems...)
		}
		restarts = 0
		i++
	}
	return v.names()
}

// again looks at the directory anew after a cut, and returns the index of the segment to go on with.
func (v *verifier) again(base int64) (int, error) {
	v.report.Changed = true
	v.epochs = newEpochs(v.promises())
	if err := v.look(); err != nil {
		return 0, err
	}
	if n := len(v.dir.bases); n > 0 {
		last := v.dir.bases[n-1]
		v.report.Segments = slices.DeleteFunc(v.report.Segments, func(s SegmentReport) bool { return s.Base > last })
	}
	i, _ := slices.BinarySearch(v.dir.bases, base)
	return i, nil
}

// names compares the segments that there are with those that the state file counts.
func (v *verifier) names() error {
	if v.underCut() {
		v.problem(Problem{Path: filepath.Join(v.e.dir, stateName), Offset: v.st.cut, Severity: SeverityNote,
			Reason: "a cut at this offset is under way, or was interrupted and is finished by the next Open"})
		return nil
	}
	for range 2 {
		why := ""
		if v.promised {
			why = v.st.differs(v.dir.bases)
		}
		if why == "" {
			return nil
		}
		seen := v.ledger
		if err := v.look(); err != nil { // the directory may have changed since the last look
			return err
		}
		if seen.st.sameSegments(&v.st) && seen.st.scanBase == v.st.scanBase {
			v.problem(Problem{Path: v.e.dir, Offset: v.st.first, Severity: SeverityError, Reason: why + ": one is missing, or does not belong to this log"})
			return nil
		}
	}
	return nil // a writer keeps changing the directory; the segments that were there were checked
}

func (v *verifier) problem(p Problem) { v.report.Problems = append(v.report.Problems, p) }

// leftoverAge is the age from which on a temporary file counts as left behind: no change takes that long.
const leftoverAge = time.Minute

// leftovers reports files that the next Open removes. Those of a running writer come and go.
func (v *verifier) leftovers(names []string) error {
	var now ledger
	if err := now.read(&v.e); err != nil {
		return err
	}
	for _, name := range now.dir.leftover {
		path := filepath.Join(v.e.dir, name)
		if name == nextName || !slices.Contains(names, name) {
			continue
		}
		if info, err := v.e.fs.Stat(path); err == nil && time.Since(info.ModTime) > leftoverAge {
			v.problem(Problem{Path: path, Offset: -1, Severity: SeverityNote,
				Reason: "left behind by a change that was interrupted; the next Open removes it"})
		}
	}
	if now.torn > 0 {
		p := Problem{Path: filepath.Join(v.e.dir, stateName), Offset: -1, Severity: SeverityNote, Reason: "one of its two slots is damaged; the other is good"}
		if !now.promised {
			p.Severity, p.Reason = SeverityWarning, "both slots are damaged: nothing is known of the recovery point, and the next Open checks every byte"
		}
		v.problem(p)
	}
	return nil
}

// sum completes the report.
func (v *verifier) sum() {
	r := v.report
	if v.bare > 0 {
		v.problem(Problem{Path: v.e.dir, Offset: -1, Severity: SeverityWarning,
			Reason: fmt.Sprintf("%d index files are missing; they are built when a segment is first read, or the log is opened for writing", v.bare)})
	}
	r.State = "none"
	if v.promised {
		r.State = "not closed"
		if v.st.clean {
			r.State = "closed"
		}
	}
	r.Start, r.Recovery = v.st.start, v.st.recoveryPoint
	r.End = v.st.start
	for i, s := range r.Segments {
		if i == 0 {
			r.Start = max(r.Start, s.Base)
		}
		r.Batches += s.Batches
		r.Records += s.Records
		r.Bytes += s.Bytes
		r.End = max(r.End, s.Next)
	}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return cmp.Compare(b.Severity, a.Severity) })
}
