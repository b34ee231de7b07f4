package seglog

// A reader far behind brings old bytes into the page cache, and these push out the end of the log, which everybody else
// reads: beside a transfer of a log of 3 GiB in a process with 600 MiB, p99 of a Read of the end was 2.9 ms, and is 48 us
// (docs/performance.md, "A reader far behind"). So bytes that lie further from the end than half of the memory are dropped
// from the page cache once they were sent or scanned. Nobody loses by it: of a range larger than the cache, the first bytes
// are gone anyway when the next reader comes for them.
//
// Segments that are not sealed are left alone, and so are pages that are mapped, such as those that Read has looked at. For
// sections of a segment that is far behind, batches are looked up without the mapping.

const (
	// Bytes are dropped in aligned pieces of stretch: the kernel keeps a large folio of which only a part is dropped.
	stretch = 4 << 20
	// The last stretchLag bytes stay: pages that a socket refers to can't be dropped, and a second reader may be close behind.
	stretchLag = 16 << 20
)

// passed is called when a reader has gone over [from, to) of a segment, and drops what is not needed any more.
func (l *Log) passed(s *segment, h *handle, from, to int64) {
	if from/stretch == to/stretch && from > 0 {
		return
	}
	if f := h.f.OSFile(); f != nil && l.farBehind(s) {
		for at := from - from%stretch - stretchLag; at+stretchLag+stretch <= to; at += stretch {
			if at >= 0 {
				uncache(f, at, stretch)
			}
		}
		if from == 0 {
			l.dropRest(s)
		}
	}
}

// dropRest drops the pages that are left of a segment that the reader has gone over: of the one two before s, since the last
// bytes of the one before s may still be on their way.
func (l *Log) dropRest(s *segment) {
	v := l.view.Load()
	i := v.find(s.base) - 2
	if i < 0 {
		return
	}
	if h := v.segs[i].h.Load(); h != nil && h.ref() {
		uncache(h.f.OSFile(), 0, 0)
		_ = h.unref() // of a file that was only read
	}
}

// farBehind reports whether more than l.cachedEnd bytes follow behind a sealed segment.
func (l *Log) farBehind(s *segment) bool {
	if !s.final() {
		return false
	}
	v := l.view.Load()
	i := v.find(s.base)
	if i < 0 || v.segs[i] != s {
		return false
	}
	last := len(v.segs) - 1
	end := l.startPos(v, last) + l.knownSize(v.segs[last])
	return end-l.startPos(v, i)-l.knownSize(s) > l.cachedEnd
}

// startPos returns the position of segment i of a view in the bytes of all segments put together. It is computed once for
// each segment.
func (l *Log) startPos(v *view, i int) int64 {
	k := i
	for k > 0 && v.segs[k].startPos.Load() == 0 {
		k--
	}
	v.segs[k].startPos.CompareAndSwap(0, 1) // the oldest one's; 0 stands for not known
	for ; k < i; k++ {
		v.segs[k+1].startPos.Store(v.segs[k].startPos.Load() + l.knownSize(v.segs[k]))
	}
	return v.segs[i].startPos.Load()
}

// knownSize is size, or 0 for a segment whose size can't be had.
func (l *Log) knownSize(s *segment) int64 {
	size, err := l.size(s)
	if err != nil {
		return 0 // the error is reported when the segment is read
	}
	return size
}
