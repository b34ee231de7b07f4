package seglog

import (
	"fmt"
	"slices"
)

// manifest identifies the segments from first to scanBase by their number and the sum of their base offsets. That is enough to
// notice a missing, doubled or foreign file before any is opened. Later segments are not counted. It is part of the state, and
// every change of the segments goes through one of its methods, which keep its fields together.
type manifest struct {
	// first is the base offset of the first segment that is kept. Files of segments below are left from a deletion that was
	// interrupted.
	first int64
	// Recovery starts to check at position scanPos of the segment at scanBase, where the batch with scanOffset begins.
	// Everything before is flushed, and the segments before scanBase are trimmed and have their indexes.
	scanBase, scanPos, scanOffset int64
	// The number of segments from first to scanBase, both included, and the sum of their base offsets.
	segments int64
	baseSum  int64
}

// set makes m describe a log with these segments: those below scanBase are sealed, and the one at scanBase is flushed up to the
// mark.
func (m *manifest) set(bases []int64, scanBase int64, flushed mark) {
	m.scanFrom(scanBase, flushed)
	if len(bases) > 0 {
		m.first = bases[0]
	}
	m.segments, m.baseSum = m.tally(bases)
}

// empty makes m describe a log without segments, whose first one will begin at offset.
func (m *manifest) empty(offset int64) {
	*m = manifest{first: offset, scanBase: offset, scanOffset: offset}
}

// scanFrom moves the point where recovery starts to check within the segment at base.
func (m *manifest) scanFrom(base int64, flushed mark) {
	m.scanBase, m.scanPos, m.scanOffset = base, flushed.pos(), base+flushed.rel()
}

// sealed notes that the segment at scanBase is sealed, and the next one, which begins at base, is flushed up to the mark.
func (m *manifest) sealed(base int64, flushed mark) {
	m.scanFrom(base, flushed)
	m.segments++
	m.baseSum += base
}

// deleted notes that the segments with these base offsets, the first of the log, are deleted, and first is the next one.
func (m *manifest) deleted(bases []int64, first int64) {
	m.first = first
	for _, base := range bases {
		m.segments--
		m.baseSum -= base
	}
}

// isSealed reports whether the segment at base is sealed. The last segment of a log never is.
func (m *manifest) isSealed(base int64) bool { return base < m.scanBase }

// trusts reports whether recovery accepts the batch at pos of the segment at base without checking its CRC and leader epoch.
func (m *manifest) trusts(base, pos int64) bool {
	return m.isSealed(base) || base == m.scanBase && pos < m.scanPos
}

// tally counts the segments with these base offsets up to scanBase, and adds up the base offsets.
func (m *manifest) tally(bases []int64) (n, sum int64) {
	for _, base := range bases {
		if base <= m.scanBase {
			n++
			sum += base
		}
	}
	return n, sum
}

// differs says how the segments with these base offsets, ascending, differ from those of the manifest, or returns "".
func (m *manifest) differs(bases []int64) string {
	n, sum := m.tally(bases)
	if n == m.segments && sum == m.baseSum {
		return ""
	}
	return fmt.Sprintf("%d segments up to base offset %d, want %d", n, m.scanBase, m.segments)
}

// foreign returns the base offsets of segments that do not belong to the log: of the one that is surplus, if there is exactly one and the
// sum identifies it, and of those that begin inside the flushed part of the segment at scanBase.
func (m *manifest) foreign(bases []int64) (foreign []int64) {
	n, sum := m.tally(bases)
	surplus := sum - m.baseSum
	_, scanned := slices.BinarySearch(bases, m.scanBase)
	for _, base := range bases {
		if n == m.segments+1 && base == surplus && base != m.first && base <= m.scanBase || scanned && base > m.scanBase && base < m.scanOffset {
			foreign = append(foreign, base)
		}
	}
	return foreign
}

// unfinishedManifest marks a snapshot that is not complete. Base offsets are never negative, so no set of segments has its sum,
// and every Open refuses it.
var unfinishedManifest = manifest{segments: 1, baseSum: -1}

// isUnfinished reports whether m is unfinishedManifest. A negative sum alone does not tell: that of great offsets overflows.
func (m *manifest) isUnfinished() bool {
	return m.segments == unfinishedManifest.segments && m.baseSum == unfinishedManifest.baseSum
}
