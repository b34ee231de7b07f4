package seglog

import (
	"fmt"
	"slices"
)

// manifest says which segments a log has, without a list of them: a count and a sum show a missing, doubled or foreign file
// before any is opened. It is part of the state, and every change of the segments goes through one of its methods, which keep
// its fields together.
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

// hold makes the manifest that of the segments with these base offsets, of which those before the one at scanBase are sealed,
// and that one is flushed up to the mark.
func (m *manifest) hold(bases []int64, scanBase int64, flushed mark) {
	m.scanFrom(scanBase, flushed)
	if len(bases) > 0 {
		m.first = bases[0]
	}
	m.segments, m.baseSum = m.tally(bases)
}

// empty makes the manifest that of a log without segments whose first one will begin at offset.
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

// trusts reports whether recovery takes the batch at pos of the segment at base for good without a check.
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

// foreign returns the index of the only segment that there is too many, if count and sum tell which; otherwise -1.
func (m *manifest) foreign(bases []int64) int {
	n, sum := m.tally(bases)
	base := sum - m.baseSum
	i, ok := slices.BinarySearch(bases, base)
	if !ok || n != m.segments+1 || base == m.first || base > m.scanBase {
		return -1
	}
	return i
}

// noManifest is that of a snapshot that is not finished. No log has such a sum, so every Open refuses it.
var noManifest = manifest{segments: 1, baseSum: -1}

// isUnfinished reports whether it is noManifest.
func (m *manifest) isUnfinished() bool { return m.baseSum < 0 }
