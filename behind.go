package seglog

import "sync"

// A reader far behind brings old bytes into the page cache, and what has to make room is the end of the log, which
// everybody else reads: beside a transfer of a log of 3 GiB in a process with 600 MiB, p99 of a Read of the end was 2.9 ms
// and is 30 us (bench row cold). So what lies further from the end than memory could hold is dropped from the page cache
// once it was sent or scanned. Nobody loses by it: of a range larger than the cache the first bytes are gone anyway when
// the next reader comes for them.
//
// It leaves alone the active segment, and the pages that are mapped, as those are that Read looked at. Sections of such a
// segment are looked up without its mapping.

const (
	// stretch is dropped at once, and aligned: the kernel keeps a large folio that lies only in part in what is dropped.
	stretch = 4 << 20
	// stretchLag stays: pages that a socket still refers to can't be dropped, and a second reader may be close behind.
	stretchLag = 16 << 20
)

// cachedEnd is how much of its end a log may expect to find in the page cache.
var cachedEnd = sync.OnceValue(func() int64 { return memoryLimit() / 2 })

// passed is told that a reader went over [from, to) of a segment.
func (l *Log) passed(s *segment, h *handle, from, to int64) {
	if from/stretch == to/stretch && from > 0 {
		return
	}
	if f := h.f.osFile(); f != nil && l.farBehind(s) {
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

// dropRest drops what the reader left of the segment before the one it left.
func (l *Log) dropRest(s *segment) {
	v := l.view.Load()
	i := v.find(s.base) - 2
	if i < 0 {
		return
	}
	if h := v.segs[i].h.Load(); h != nil && h.ref() {
		uncache(h.f.osFile(), 0, 0)
		_ = h.unref() // of a file that was only read
	}
}

// farBehind reports whether there is more behind an open segment than memory is expected to hold.
func (l *Log) farBehind(s *segment) bool {
	if s.written() {
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

// startPos is where segment i of a view begins in the stream of all segments' bytes. It is worked out once for each.
func (l *Log) startPos(v *view, i int) int64 {
	k := i
	for k > 0 && v.segs[k].startPos.Load() == 0 {
		k--
	}
	v.segs[k].startPos.CompareAndSwap(0, 1) // of the oldest; 0 stands for not known
	for ; k < i; k++ {
		v.segs[k+1].startPos.Store(v.segs[k].startPos.Load() + l.knownSize(v.segs[k]))
	}
	return v.segs[i].startPos.Load()
}

func (l *Log) knownSize(s *segment) int64 {
	size, err := l.size(s)
	if err != nil {
		return 0 // its readers are told
	}
	return size
}
