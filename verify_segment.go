package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/seglog/seglog/internal/vfs"
)

// segmentCheck is Verify on one segment.
type segmentCheck struct {
	v         *verifier
	i         int
	base      int64
	following int64 // base offset of the next segment; -1 if this is the last
	sealed    bool

	r        SegmentReport
	problems []Problem
	missing  bool  // the file does not exist
	damaged  bool  // some of it is damaged
	open     bool  // it ends in damage, so it is not known at which offset
	atMark   bool  // a batch ends where the flushed ones do, by the state file
	end      int64 // position behind the last good batch
	minTime  int64
	maxTime  int64
	x        *indexCheck
}

func (c *segmentCheck) run() error {
	v := c.v
	c.sealed = v.ledger.sealed(c.i)
	c.r = SegmentReport{Base: c.base, Next: c.base, Sealed: c.sealed, Codecs: map[string]int64{}}
	c.minTime, c.maxTime = math.MaxInt64, noTimestamp
	f, path, err := v.e.openLog(c.base, vfs.OpenRead)
	c.r.Path = path
	if err != nil {
		c.missing = errors.Is(err, fs.ErrNotExist)
		c.fail(0, 0, c.base, "segment can't be opened: "+err.Error())
		return nil
	}
	err = func() (err error) {
		defer func() { err = errors.Join(err, f.Close()) }() // also if VerifyOptions.Progress or a decompressor panics
		return c.read(f)
	}()
	if err != nil {
		return err
	}
	c.joins()
	c.r.MinTime, c.r.MaxTime = timeOf(c.minTime), timeOf(c.maxTime)
	if c.minTime == math.MaxInt64 {
		c.r.MinTime = timeOf(noTimestamp)
	}
	return nil
}

func (c *segmentCheck) add(p Problem) {
	if st := &c.v.st; c.v.underCut() && (st.reset || p.Offset >= st.cut) {
		return // removed when the cut is finished
	}
	if c.v.belowStart(c.following) {
		return // waits for its deletion, and nobody reads it
	}
	c.problems = append(c.problems, p)
}

func (c *segmentCheck) fail(pos, n, offset int64, reason string) {
	c.damaged = true
	c.add(Problem{Path: c.r.Path, Pos: pos, Bytes: n, Offset: offset, Severity: SeverityError, Reason: reason})
}

func (c *segmentCheck) read(f vfs.File) error {
	v := c.v
	size, err := f.Size()
	if err != nil {
		c.fail(0, 0, c.base, err.Error())
		return nil
	}
	if size > maxSegmentBytes {
		c.fail(maxSegmentBytes, size-maxSegmentBytes, -1, "file is larger than 2 GiB - 1")
		size = maxSegmentBytes
	}
	cut := v.cuts() && c.base == v.st.cutBase
	if !cut && (c.sealed || !v.promised || v.st.clean && size == v.st.endPos) {
		c.openIndexes(size)
	}
	w := salvage{e: &v.e, f: &watchedFile{File: f, v: v}, path: c.r.Path, base: c.base, size: size, from: c.base, end: c.following, gaps: v.gaps(), epochs: &v.epochs, batch: c.batch, damage: c.damage}
	w.endPos, w.flushed = v.endPos(c.base, size), v.st.flushedEnd(c.base)
	if c.following < 0 {
		w.end, _ = v.closedEnd(c.base, size)
		if v.promised && !cut {
			w.leftOut = v.st.endOffset
		}
	}
	if cut {
		w.size, w.end, w.endPos = min(size, v.st.cutPos), v.cutLimit, v.st.cutPos
	}
	err = w.run()
	v.done += size
	if err != nil {
		return err
	}
	if cut {
		return c.endCut(size, w.next)
	}
	c.r.Next = w.next
	if !c.sealed {
		c.r.TailBytes = size - c.end
	}
	if w.zeros < size {
		switch {
		case c.sealed && v.promised:
			c.fail(w.zeros, size-w.zeros, w.next, "zeros behind the last batch of a sealed segment")
		case c.sealed:
			c.add(Problem{Path: c.r.Path, Pos: w.zeros, Bytes: size - w.zeros, Offset: w.next, Severity: SeverityWarning, Reason: "zeros behind the last batch"})
		}
	}
	if at := v.st.flushedEnd(c.base).pos; v.promised && at > 0 && !c.atMark && !c.damaged {
		c.fail(c.end, 0, w.next, fmt.Sprintf("batches are missing: no batch ends at position %d, offset %d, up to where they were durable", at, v.st.scanOffset))
	}
	if c.sealed && v.promised && !c.damaged && v.gaps() && endsEarly(f, c.x.offsets, c.x.times, c.base, size, w.next, c.following) {
		c.fail(c.end, 0, w.next, lostEnd)
	}
	if c.x != nil && !c.damaged && (c.sealed || c.r.TailBytes == 0) {
		c.x.finish(v.o.IndexBytes)
		for _, p := range c.x.problems {
			c.add(p)
		}
	}
	return nil
}

// endCut completes the check of the segment in which an interrupted TruncateTo ends the log: the batches that stay of its file, which
// has size bytes, end at offset next, and are followed by what the state file has.
func (c *segmentCheck) endCut(size, next int64) error {
	v := c.v
	lost := c.end < v.st.cutPos || !v.gaps() && next < v.cutLimit
	if !c.damaged && (size < v.st.cutPos || lost && next < v.st.recoveryPoint) {
		c.fail(c.end, 0, next, fmt.Sprintf("batches end here, a cut at offset %d was to leave %d bytes", v.st.cut, v.st.cutPos))
	}
	c.r.Next = v.st.cut
	if len(v.rest) == 0 {
		return nil
	}
	why, err := c.batch(v.rest, v.st.cutPos)
	if why != "" {
		c.fail(v.st.cutPos, v.rest.size(), v.rest.base(), why)
	}
	return err
}

func (c *segmentCheck) batch(b batch, pos int64) (string, error) {
	v := c.v
	if why := v.check.check(b); why != "" {
		return why, nil
	}
	if wrong, right, ok := v.epochs.add(b, c.base, pos); ok {
		p := Problem{Path: v.e.path(wrong.base, logSuffix), Pos: wrong.pos, Offset: wrong.offset, Severity: SeverityWarning,
			Reason: fmt.Sprintf("leader epoch %d must have been %d, from which it differs in one bit: followers may refuse the batches behind it; Repair sets it right", wrong.epoch, right)}
		if v.epochs.stale(wrong) && !v.st.trusts(wrong.base, wrong.pos) {
			p.Severity = SeverityError // Open takes the batch for one that a cut removed
		}
		c.add(p)
	}
	c.end = pos + b.size()
	c.atMark = c.atMark || v.st.endsAtMark(c.base, c.end, b.last()+1)
	c.r.Batches++
	c.r.Bytes += b.size()
	c.r.Codecs[b.codec().String()]++
	if v.check.undecoded {
		c.r.Undecoded++
	}
	if b.control() {
		c.r.ControlBatches++
	} else {
		c.r.Records += v.check.records
	}
	if v.check.records > 0 && v.check.maxTime >= 0 {
		c.minTime = min(c.minTime, max(0, v.check.minTime))
		c.maxTime = max(c.maxTime, v.check.maxTime)
	}
	if c.x != nil {
		c.x.add(pos, uint32(b.last()-c.base), b.maxTimestamp())
	}
	return "", nil
}

// damage decides whether bad bytes are a problem, or the end of what was flushed.
func (c *segmentCheck) damage(d damage) (bool, error) {
	v := c.v
	switch {
	case errors.Is(d.cause, ErrOldFormat):
		c.fail(d.pos, d.end-d.pos, d.offset, d.reason())
		c.open = d.next < 0
	case c.sealed, v.promised && d.offset < v.st.recoveryPoint, !v.promised && d.next >= 0:
		c.fail(d.pos, d.end-d.pos, d.offset, d.reason())
		c.open = d.next < 0
		return true, nil
	case !v.promised:
		c.add(Problem{Path: c.r.Path, Pos: d.pos, Bytes: d.end - d.pos, Offset: d.offset, Severity: SeverityNote,
			Reason: "torn tail, which the next Open cuts: " + d.reason()})
	}
	return false, nil
}

// joins checks that no offsets are missing before and behind the segment.
func (c *segmentCheck) joins() {
	v := c.v
	st := &v.st
	if v.promised && c.i == 0 && c.base != st.first && !v.underCut() {
		c.add(Problem{Path: v.e.path(st.first, logSuffix), Offset: st.first, Severity: SeverityError,
			Reason: "first segment is missing, the next one is " + fileName(c.base, logSuffix)})
	}
	switch {
	case c.open || c.missing:
	case c.following < 0:
		if v.promised && !v.underCut() && c.r.Next < max(st.recoveryPoint, st.start) {
			c.fail(c.r.Bytes, 0, c.r.Next, fmt.Sprintf("log ends at this offset, its recovery point is %d", st.recoveryPoint))
		}
	case c.r.Next < c.following && !v.gaps() && (c.sealed || c.r.Next < st.recoveryPoint):
		c.fail(c.r.Bytes, 0, c.r.Next, "segment ends at this offset, the next one is "+fileName(c.following, logSuffix))
	}
}

// openIndexes reads both index files, and reports those that are missing or bad.
func (c *segmentCheck) openIndexes(size int64) {
	v := c.v
	none := false
	c.x = &indexCheck{c: c, x: newIndexBuilder(defaultIndexBytes), hi: math.MaxInt64, lastTime: noTimestamp}
	if v.o.IndexBytes > 0 {
		c.x.x = newIndexBuilder(v.o.IndexBytes)
	}
	read := func(suffix string, entryLen int) (b []byte, ok bool) {
		b, why, err := readIndex(&v.e, c.base, suffix)
		none = none || !c.sealed && needsNoIndexes(&v.e, c.base, size, why)
		if none {
			return nil, false
		}
		if err != nil {
			why = err.Error()
		}
		if !v.promised && !c.sealed {
			for len(b) >= entryLen && isZero(b[len(b)-entryLen:]) {
				b = b[:len(b)-entryLen] // Kafka reserves 10 MiB for an index that it writes to
			}
		}
		if why == "" && len(b)%entryLen != 0 {
			why = fmt.Sprintf("%d bytes, not a whole number of entries", len(b))
		}
		switch {
		case why == "":
		case why == suffix+missingFile && !v.promised:
			v.bare++ // reported together
		default:
			c.x.problem(suffix, 0, SeverityWarning, why)
		}
		return b, why == ""
	}
	c.x.offsets, c.x.haveOffsets = read(indexSuffix, offsetEntryLen)
	c.x.times, c.x.haveTimes = read(timeSuffix, timeEntryLen)
	c.r.OffsetEntries, c.r.TimeEntries = len(c.x.offsets)/offsetEntryLen, len(c.x.times)/timeEntryLen
}

// indexCheck compares the two indexes of a segment with its batches, one after the other. An index depends only on the
// batches and the interval, but the interval is not known, and Kafka begins a new one whenever it starts. So each entry must
// be right, and the distances of the entries must fit one interval.
type indexCheck struct {
	c                      *segmentCheck
	offsets, times         []byte
	haveOffsets, haveTimes bool
	x                      *indexBuilder // the indexes that a rebuild would give

	nextOffset, nextTime int
	prevPos, lastPos     int64 // of the batch before, and of the one indexed last
	lo, hi               int64 // an interval of [lo, hi) explains the entries up to here
	lastTime             int64 // of the time entry before
	problems             []Problem
}

func (k *indexCheck) add(pos int64, rel uint32, ms int64) {
	grew := ms > k.x.maxTime
	k.x.add(pos, rel, ms)
	if k.haveTimes && grew && k.nextTime < len(k.times)/timeEntryLen {
		entryMS, entryRel := timeEntry(k.times, k.nextTime)
		switch {
		case entryMS == ms && entryRel == rel:
			k.nextTime++
			k.lastTime = ms
		case entryMS <= ms || entryRel <= rel:
			k.wrongTime(fmt.Sprintf("entry %d has time %d for relative offset %d, but no batch there raised the greatest time to it", k.nextTime, entryMS, entryRel))
		}
	}
	if k.haveOffsets && k.nextOffset < len(k.offsets)/offsetEntryLen {
		entryRel, entryPos := offsetEntry(k.offsets, k.nextOffset)
		switch {
		case int64(entryPos) == pos && entryRel == rel:
			k.nextOffset++
			k.lo, k.hi = max(k.lo, k.prevPos-k.lastPos), min(k.hi, pos-k.lastPos)
			k.lastPos = pos
			if k.haveTimes && k.x.maxTime > k.lastTime {
				k.wrongTime(fmt.Sprintf("no entry for time %d at relative offset %d", k.x.maxTime, k.x.maxRel))
			}
		case int64(entryPos) <= pos:
			k.wrongOffset(fmt.Sprintf("entry %d has relative offset %d at position %d, where no batch with that last offset begins", k.nextOffset, entryRel, entryPos))
		}
	}
	k.prevPos = pos
}

func (k *indexCheck) problem(suffix string, pos int, severity Severity, reason string) {
	k.problems = append(k.problems, Problem{Path: k.c.v.e.path(k.c.base, suffix), Pos: int64(pos), Offset: k.c.base, Severity: severity, Reason: reason})
}

func (k *indexCheck) wrongOffset(why string) {
	k.haveOffsets = false
	k.problem(indexSuffix, k.nextOffset*offsetEntryLen, SeverityWarning, why)
}

func (k *indexCheck) wrongTime(why string) {
	k.haveTimes = false
	k.problem(timeSuffix, k.nextTime*timeEntryLen, SeverityWarning, why)
}

// finish checks the end of the indexes. interval is the one that they must have, or 0 for any.
func (k *indexCheck) finish(interval int) {
	offsets, times := k.x.files()
	if k.haveTimes {
		switch {
		case k.nextTime < len(k.times)/timeEntryLen:
			k.wrongTime(fmt.Sprintf("entry %d points behind the last batch", k.nextTime))
		case k.x.maxTime > k.lastTime:
			k.wrongTime(fmt.Sprintf("ends early: no entry for time %d at relative offset %d", k.x.maxTime, k.x.maxRel))
		case interval > 0 && !bytes.Equal(times, k.times):
			k.wrongTime(fmt.Sprintf("is not what a rebuild with %d bytes an entry gives", interval))
		}
	}
	if !k.haveOffsets {
		return
	}
	k.lo = max(k.lo, k.prevPos-k.lastPos)
	same := bytes.Equal(offsets, k.offsets)
	switch {
	case k.nextOffset < len(k.offsets)/offsetEntryLen:
		k.wrongOffset(fmt.Sprintf("entry %d points behind the last batch", k.nextOffset))
	case same:
	case interval > 0:
		k.wrongOffset(fmt.Sprintf("is not what a rebuild with %d bytes an entry gives", interval))
	case k.lo > max(2*min(k.hi, math.MaxInt64/2), defaultIndexBytes) || k.hi == math.MaxInt64 && k.lo > defaultIndexBytes:
		k.wrongOffset(fmt.Sprintf("no entry for %d bytes", k.lo))
	case k.lo >= k.hi:
		severity := SeverityWarning
		if !k.c.v.promised {
			severity = SeverityNote // a restart of Kafka does this
		}
		k.problem(indexSuffix, 0, severity, fmt.Sprintf("entries are %d to %d bytes apart: the interval was changed, or some are missing", k.hi, k.lo))
	}
}

// watchedFile is a file that ends a scan when the Context does, and reports the progress.
type watchedFile struct {
	vfs.File
	v *verifier
}

func (f *watchedFile) ReadAt(p []byte, pos int64) (int, error) {
	if err := f.v.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := f.File.ReadAt(p, pos)
	if len(p) > headerLen {
		f.v.tell(f.v.done + pos + int64(n))
	}
	return n, err
}
