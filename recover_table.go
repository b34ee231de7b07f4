package seglog

import "github.com/seglog/seglog/internal/vfs"

// ending tells how the batches of a segment end.
type ending int

const (
	endsWhole ending = iota // at the end of the file, or at zeros, right after a batch
	endsBad                 // at bytes that are no batch, or not the one that must follow
)

// finding is what recovery knows of one segment when it decides. It decides by nothing else.
type finding struct {
	promised bool   // seglog.state has a good slot
	clean    bool   // this is the last segment, the slot has the clean mark, and the file has the size that the slot notes
	sealed   bool   // the segment lies before the point where recovery starts to check
	last     bool   // no segment follows
	empty    bool   // the segment holds no batch
	joins    bool   // the next segment starts where this one ends, or after a gap that is known
	below    bool   // the good batches end below the recovery point, and the segment is the last one, ends badly, or does not join the next
	ends     ending // how its batches end
	behind   bool   // with endsBad: good batches follow behind the bad bytes; looked for only if last and not promised
}

// recoveryCase is a row of the decision table in docs/recovery.md.
type recoveryCase struct {
	id          byte
	finds, does string
	match       func(finding) bool
}

// recoveryCases is the decision table for the segments: for every finding the first row that matches decides
// (recover_test.go walks through all findings). The cases C, H and I of docs/recovery.md concern indexes, leftover files
// and the start offset, and are not decided here.
var recoveryCases = []recoveryCase{
	{'A', "clean mark, sizes as noted", "use it without a scan",
		func(f finding) bool { return f.clean }},
	{'B', "a sealed segment", "use it; its indexes are checked when it is first read, and rebuilt if need be (C)",
		func(f finding) bool { return f.sealed }},
	{'F', "below the recovery point: a bad batch, a gap, a missing segment", "ErrCorrupt; change nothing",
		func(f finding) bool { return f.below }},
	{'F', "nothing promised, a bad batch, and good batches or segments follow", "ErrCorrupt; change nothing",
		func(f finding) bool { return !f.promised && f.ends == endsBad && (f.behind || !f.last) }},
	{'E', "above the recovery point: a bad batch, or the next segment does not join", "cut there, drop later segments, flush, report",
		func(f finding) bool { return f.ends == endsBad || !f.last && !f.joins }},
	{'J', "nothing promised, whole batches", "keep every byte, take the directory over",
		func(f finding) bool { return !f.promised }},
	{'D', "above the recovery point: whole batches, and segments follow", "trim and seal it",
		func(f finding) bool { return !f.last }},
	{'G', "a last segment without a batch", "active, at its name's base offset",
		func(f finding) bool { return f.empty }},
	{'D', "above the recovery point: whole batches up to zeros or the end of the file", "active; trim the zeros",
		func(finding) bool { return true }},
}

func decide(f finding) recoveryCase {
	for _, c := range recoveryCases {
		if c.match(f) {
			return c
		}
	}
	panic("seglog: the last recovery case matches all")
}

// recovery is the work of one Open on the contents of a directory. It is idempotent: if it is killed at any point, the
// next one comes to the same end.
type recovery struct {
	l        *Log
	st       state
	promised bool
	dir      directory
	deleted  []int64 // base offsets of segments that a deletion left behind, ascending
	segs     []*segment
	scans    []*segmentScan // of the segments from where recovery starts to check, not acted upon yet
	tails    []*tail        // of those that were
	last     recoveryCase   // of the last segment
	gap      bool           // offsets are left out somewhere
	epoch    int32          // greatest leader epoch of all batches that were looked at
}

// segmentScan is what recovery finds out about one segment.
type segmentScan struct {
	r        *recovery
	f        vfs.File
	path     string
	number   int // in the directory
	base     int64
	size     int64
	next     int64 // base offset of the next segment; -1: there is none
	last     bool
	decision recoveryCase

	// The good batches end at position pos and at offset. Those below from were flushed by the previous process.
	x         *indexBuilder
	pos       int64
	offset    int64
	from      mark
	firstTime int64
	ends      ending
	behind    bool  // good batches follow behind the bad bytes
	zeroes    bool  // from pos on there are only zeros
	gap       bool  // offsets are left out somewhere
	why       error // why no good batch begins at pos; nil at the end of the file
}
