package seglog

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/seglog/seglog/internal/vfs"
)

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
	atMark     bool     // scanPos is a boundary between two batches of this segment, or lies in another segment
	drop       bool     // the whole file goes
	below      bool     // it lies wholly below the start, where the next segment begins
	cut        bool     // an interrupted TruncateTo ends the log in it; only what that keeps of it is in spans
	short      bool     // it has lost batches at its end, to which its index leads
	beyond     bool     // an interrupted TruncateTo removes it; nobody looked into it

	leftOut func(base, pos, next int64) int64 // see salvage.leftOut
}

// span is a run of good batches of a file, with no bytes and no offsets missing between them.
type span struct {
	pos, end         int64
	base, next       int64
	batches, records int64
}

// rewrite reports whether the file has to be replaced, since less of it is kept.
func (s *repairSegment) rewrite() bool {
	return len(s.lost) > 0 && s.newSize() < min(s.size, s.zeros)
}

// newSize returns how many bytes of the file are kept.
func (s *repairSegment) newSize() (n int64) {
	for _, k := range s.spans {
		n += k.end - k.pos
	}
	return n
}

// decide settles what becomes of each file. With KeepAfter all good batches stay, without it those before the first damage.
// Damage wholly below the start is taken out in either case, and does not end the log, since nobody reads there.
func (p *repair) decide() {
	at := int64(-1)
	expected := int64(-1)
	cutStays := false
	for i, s := range p.segs {
		switch {
		case s.drop, s.beyond && cutStays && at < 0:
			continue
		case at >= 0:
			p.dropBehind(s, fmt.Sprintf("segment lies behind the damage at offset %d", at))
			continue
		case s.beyond: // the next Open could not finish the cut
			p.dropBehind(s, fmt.Sprintf("a cut at offset %d was removing it", p.st.cut))
			continue
		case expected >= 0 && s.base > expected && s.size == 0 && p.promised && s.base > max(p.st.end, p.st.recoveryPoint, p.st.gapTo):
			s.drop = true // it was never a part of the log, and the next Open takes it away
			continue
		case expected >= 0 && s.base > expected && !(p.gaps() && p.st.knowsGap(s.base, p.promised)) && !p.o.KeepAfter:
			at = expected
			p.dropBehind(s, fmt.Sprintf("segment lies behind the damage at offset %d", at))
			continue
		}
		for k, d := range s.lost {
			if below := d.next >= 0 && d.next <= p.st.start; !below && !p.o.KeepAfter {
				at = d.offset
				s.cutAt(k)
				break
			}
		}
		if s.newSize() == 0 && s.size > 0 && s.zeros > 0 && p.o.KeepAfter && i+1 < len(p.segs) && !s.cut {
			whole := s.lost[0] // stands for all of them
			whole.pos, whole.end, whole.next = 0, min(s.size, s.zeros), -1
			s.lost, s.drop = []damage{whole}, true
			continue
		}
		expected = s.next
		cutStays = cutStays || s.cut
	}
	p.noteGaps()
}

// cutAt ends a segment where its k-th damage begins.
func (s *repairSegment) cutAt(k int) {
	d := s.lost[k]
	d.end, d.next = min(s.size, s.zeros), -1
	s.next = s.base
	for i, sp := range s.spans {
		if sp.pos >= d.pos {
			d.good = countBatches(s.spans[i:])
			s.spans = s.spans[:i]
			break
		}
		s.next = sp.next
	}
	if s.leftOut != nil {
		s.next = s.leftOut(s.base, d.pos, s.next)
	}
	s.lost = append(s.lost[:k:k], d)
}

func countBatches(spans []span) (n int64) {
	for _, k := range spans {
		n += k.batches
	}
	return n
}

// dropBehind drops a segment that lies behind the end of the log.
func (p *repair) dropBehind(s *repairSegment, why string) {
	s.lost = []damage{{end: min(s.size, s.zeros), offset: s.base, next: -1, good: countBatches(s.spans),
		cause: &CorruptError{Reason: why}}}
	s.spans, s.next, s.drop = nil, s.base, true
}

// noteGaps finds out whether offsets are missing between the batches that are kept.
func (p *repair) noteGaps() {
	expected := int64(-1)
	for _, s := range p.kept() {
		p.gap = p.gap || expected >= 0 && s.base > expected
		expected = s.base
		for _, k := range s.spans {
			p.gap = p.gap || k.base > expected
			expected = k.next
		}
	}
}

// plan completes the report, and the state that the log will have.
func (p *repair) plan() {
	r := p.report
	for _, s := range p.segs {
		for i, d := range s.lost {
			m := Removal{Path: p.e.path(s.base, logSuffix), Pos: d.pos, Bytes: d.end - d.pos, Offset: d.offset, Next: d.next, Good: d.good, Reason: d.reason()}
			if m.Bytes > 0 {
				m.Saved = p.saveName(s, d)
				s.lost[i].saved = m.Saved
			}
			if m.Bytes > 0 || s.short || !p.gaps() {
				r.Removed = append(r.Removed, m)
			}
		}
		if s.zeros < s.size && p.trims(s) {
			r.Removed = append(r.Removed, Removal{Path: p.e.path(s.base, logSuffix), Pos: s.zeros, Bytes: s.size - s.zeros, Offset: s.next, Next: s.next,
				Reason: "zeros behind the last batch of a sealed segment"})
		}
		for _, k := range s.spans {
			r.Batches += k.batches
			r.Records += k.records
			r.Bytes += k.end - k.pos
		}
	}
	kept := p.kept()
	p.next = p.st
	if p.promised {
		p.planState(kept)
	} else if len(kept) > 0 {
		p.next.start, p.next.end = kept[0].base, kept[len(kept)-1].next
	}
	p.planMissing(kept)
	if p.next.cut >= 0 && len(p.rest) > 0 {
		r.Batches++
		r.Records += p.rest.count()
		r.Bytes += p.rest.size()
	}
	r.Start, r.End, r.Gaps = p.next.start, p.next.end, p.gap || p.promised && p.st.gaps
}

// trims reports whether zeros behind the batches of s have to go, since it is sealed.
func (p *repair) trims(s *repairSegment) bool {
	return p.promised && !s.drop && !s.cut && p.st.isSealed(s.base) && s != p.segs[len(p.segs)-1] && !s.rewrite()
}

// kept returns the segments that the log will have.
func (p *repair) kept() (kept []*repairSegment) {
	for _, s := range p.segs {
		if !s.drop && !s.beyond {
			kept = append(kept, s)
		}
	}
	return kept
}

// planMissing reports offsets of which nothing is left: before the first segment, and between two.
func (p *repair) planMissing(kept []*repairSegment) {
	missing := func(offset, next int64, reason string) {
		p.report.Removed = append(p.report.Removed, Removal{Path: p.e.path(offset, logSuffix), Offset: offset, Next: next, Reason: reason})
	}
	limit := int64(math.MaxInt64) // what is missing behind it, the next Open would remove
	if p.next.cut >= 0 {
		limit = p.next.cutBase
	}
	if !p.promised || p.next.cut >= 0 && p.next.cutPos < 0 {
		return
	}
	if len(kept) > 0 && kept[0].base > p.st.first && kept[0].base <= limit {
		missing(p.st.first, kept[0].base, "first segment is missing")
	}
	if p.gaps() {
		return
	}
	for i := range kept[:max(0, len(kept)-1)] {
		if s, next := kept[i], kept[i+1].base; s.next < next && next <= limit && !s.endsLost() {
			missing(s.next, next, "nothing is left of these offsets")
		}
	}
}

// endsLost reports whether the loss behind the last good batch of s is in the report already.
func (s *repairSegment) endsLost() bool {
	n := len(s.lost)
	return n > 0 && s.lost[n-1].next < 0
}

// planState lowers the promises of the state file to what is kept.
func (p *repair) planState(kept []*repairSegment) {
	n := &p.next
	if p.keepsCut(kept) {
		n.end, n.gaps, n.gapTo = n.cut, n.gaps || p.gap, p.gapTo(kept)
		p.describe()
		return
	}
	start := n.start
	if len(kept) == 0 {
		at := max(n.start, n.recoveryPoint)
		if p.cuts() {
			at = n.cut
		}
		n.start, n.end, n.recoveryPoint = at, at, at
		n.empty(at)
	} else {
		last := kept[len(kept)-1]
		n.end, n.endPos = p.keepEnd(last), last.newSize()
		for i, s := range kept[1:] {
			if kept[i].below { // so that it still is, if the segment behind it goes
				n.start = max(n.start, s.base)
			}
		}
		start = max(n.start, kept[0].base)
		n.start = min(start, n.end)
		n.recoveryPoint = max(n.start, min(n.recoveryPoint, n.end))
		scan := last
		bases := make([]int64, len(kept))
		for i, s := range slices.Backward(kept) {
			bases[i] = s.base
			if !p.st.isSealed(s.base) {
				scan = s
			}
		}
		flushed := mark(0)
		if scan.base == p.st.scanBase && !scan.rewrite() && scan.atMark {
			flushed = markAt(p.st.scanOffset-scan.base, p.st.scanPos)
		}
		n.set(bases, scan.base, flushed)
	}
	n.gaps = n.gaps || p.gap
	n.gapTo = p.gapTo(kept)
	if n.cut >= 0 && (n.end <= n.cut && !p.cuts() || p.cuts() && !p.moveCut(kept)) {
		n.cut = -1
		n.raiseFence(n.end, int32(n.epoch))
	}
	if n.cut >= 0 && p.cuts() { // the log will end there, not behind the last batch that is kept of the files
		n.start = min(max(n.start, start), n.cut)
		n.recoveryPoint = max(n.recoveryPoint, n.start)
	}
	p.describe()
}

// keepEnd returns the offset at which the log ends, if last is the last segment. With KeepAfter that is where it ended before, as far as
// the state file knows: an offset whose record is lost is not given out again.
func (p *repair) keepEnd(last *repairSegment) int64 {
	known := p.st.recoveryPoint
	if p.st.clean {
		known = max(known, p.st.end)
	}
	if !p.o.KeepAfter || p.st.cut >= 0 || known <= last.next || known-last.base > math.MaxInt32 {
		return last.next
	}
	p.gap = true
	p.report.Changes = append(p.report.Changes, fmt.Sprintf("the log still ends at %d, and nothing is left from %d on", known, last.next))
	return known
}

// keepsCut reports whether a TruncateTo was interrupted and the next Open can finish it as noted.
func (p *repair) keepsCut(kept []*repairSegment) bool {
	if !p.cuts() || len(kept) == 0 || kept[0].base != p.st.first {
		return false
	}
	for _, s := range p.segs {
		if s.drop || len(s.lost) > 0 {
			return false
		}
	}
	joined := true // if not, a gap may be a missing segment, unless the cut has removed none and all are there
	for i, s := range kept[1:] {
		joined = joined && kept[i].next == s.base
	}
	last := kept[len(kept)-1]
	return last.cut && last.newSize() == p.st.cutPos && (joined || p.st.differs(p.dir.bases) == "")
}

// moveCut adapts the note of an interrupted TruncateTo to a file from which bytes are taken out, so that the next Open can
// finish the cut. It returns false if the segment that was being cut is gone.
func (p *repair) moveCut(kept []*repairSegment) bool {
	n := &p.next
	for _, s := range kept {
		if s.base != n.cutBase {
			continue
		}
		end, next := int64(0), s.base
		if k := len(s.spans); k > 0 {
			end, next = s.spans[k-1].end, s.spans[k-1].next
		}
		lost := len(s.lost) > 0 && s.lost[len(s.lost)-1].pos >= end
		if next < p.cutLimit && (lost || !p.st.gaps) { // the batches just below the cut
			n.gaps = true
			if n.cutLen == 0 && !p.o.KeepAfter { // else the offsets up to the cut are not given out again (keepEnd)
				n.cut = next
			}
		}
		n.cutPos = s.newSize()
		n.end = n.cut
		return true
	}
	return false
}

// gapTo returns the value of state.gapTo that makes the next Open keep the segments after gaps. Without it, Open takes a segment
// above the recovery point that does not join the one before it for the remains of a power cut, and removes it.
func (p *repair) gapTo(kept []*repairSegment) int64 {
	to := p.st.gapTo
	for i, behind := 1, 0; i < len(kept); i++ {
		if base := kept[i].base; base > kept[i-1].next && base > p.next.recoveryPoint {
			if behind++; behind > 1 {
				return untrackedGaps
			}
			to = base
		}
	}
	return to
}

// describe puts the changes to the state into words.
func (p *repair) describe() {
	was, n := &p.st, &p.next
	say := func(changed bool, format string, args ...any) {
		if changed {
			p.report.Changes = append(p.report.Changes, fmt.Sprintf(format, args...))
		}
	}
	say(was.recoveryPoint != n.recoveryPoint, "recovery point from %d to %d", was.recoveryPoint, n.recoveryPoint)
	say(was.start != n.start, "start from %d to %d", was.start, n.start)
	say(was.gaps != n.gaps, "offsets may be missing from now on")
	say(was.gapTo != n.gapTo, "segments behind missing offsets belong to the log")
	say(n.cut >= 0 && was.cut != n.cut, "an interrupted cut at offset %d goes down to %d, behind the last batch that is left", was.cut, n.cut)
	say(n.cut >= 0 && was.cutPos != n.cutPos, "an interrupted cut leaves %d bytes of segment %d, not %d", n.cutPos, n.cutBase, was.cutPos)
	say(n.cut < 0 && was.cut >= 0, "this completes an interrupted cut at offset %d", was.cut)
	say(was.first != n.first || was.segments != n.segments || was.baseSum != n.baseSum, "list of segments")
	say(was.scanBase != n.scanBase || was.scanPos != n.scanPos, "the next Open checks segment %d from position %d on", n.scanBase, n.scanPos)
}

// saveName returns the path of the file that keeps the bytes of d. It is not one that an earlier repair used, unless that was
// interrupted and saved the same bytes.
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

// holds reports whether the file at path has the bytes of d, saved by a run that was interrupted.
func (p *repair) holds(path string, s *repairSegment, d damage) bool {
	saved, err := p.e.fs.Open(path, vfs.OpenRead)
	if err != nil {
		return false
	}
	defer saved.Close()
	src, err := p.e.fs.Open(p.e.path(s.base, logSuffix), vfs.OpenRead)
	if err != nil {
		return false
	}
	defer src.Close()
	if size, err := saved.Size(); err != nil || size != d.end-d.pos {
		return false
	}
	a, b := make([]byte, scanChunk), make([]byte, scanChunk)
	for at := d.pos; at < d.end; {
		n := min(scanChunk, d.end-at)
		if vfs.ReadFull(saved, a[:n], at-d.pos) != nil || vfs.ReadFull(src, b[:n], at) != nil || !bytes.Equal(a[:n], b[:n]) {
			return false
		}
		at += n
	}
	return true
}
