package seglog

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/vfs"
)

// window reads parts of a segment: straight from the mapping, or through a small buffer where there is none. What it
// returns is valid until the next call.
type window struct {
	h   *handle
	end int64 // position that is not read past
	// unmapped: through the buffer all the same, since pages that are mapped stay in the page cache.
	unmapped bool
	buf      []byte
	lo       int64 // position of buf[0]
	n        int   // bytes of buf that are filled
	back     int64 // that many bytes before the ones asked for are wanted next, and read with them
	fetched  byte  // what prefetch read, kept so that the compiler can't leave it out
}

// windowChunk is the number of bytes that a window reads at least where there is no mapping: the headers of many small batches.
const windowChunk = 4 << 10

func (w *window) reset(h *handle, end int64) { w.h, w.end, w.lo, w.n, w.back = h, end, 0, 0, 0 }

// at returns [pos, pos+n), which lies below end.
func (w *window) at(pos, n int64) ([]byte, error) {
	if w.h.m != nil && !w.unmapped {
		w.h.warm.touch(w.h.m, pos, n, w.end)
		return w.h.m.Bytes[pos : pos+n : pos+n], nil
	}
	if off := pos - w.lo; off >= 0 && off+n <= int64(w.n) {
		return w.buf[off : off+n], nil
	}
	back := min(w.back, pos)
	size := min(max(back+n, windowChunk), back+w.end-pos)
	if int64(len(w.buf)) < size {
		w.buf = make([]byte, size)
	}
	k, err := w.h.f.ReadAt(w.buf[:size], pos-back)
	w.lo, w.n = pos-back, k
	if int64(k) < back+n {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("seglog: read %s at position %d: %w", w.h.path, pos, err)
	}
	return w.buf[back : back+n], nil
}

// prefetch has the processor begin to bring the byte at pos into its caches, if the segment is mapped, while it goes on with
// what does not depend on that.
func (w *window) prefetch(pos int64) {
	if w.h.m != nil && !w.unmapped && pos < w.end {
		w.h.warm.touch(w.h.m, pos, 1, w.end)
		w.fetched += w.h.m.Bytes[pos]
	}
}

// warmth remembers which parts of a mapping were in memory a while ago. Parts that were not are brought in by
// loadPages before they are touched, so that a reader of cold data waits in a system call and holds up nobody.
type warmth struct {
	parts []atomic.Uint32 // a bit each
}

const (
	// warmPart: one bit stands for that many bytes. Loading them costs a few microseconds if they are in memory.
	warmPart = 64 << 10
	// warmFor: what was not used for that long may have been evicted.
	warmFor = 10 * time.Second
)

func newWarmth(size int64) warmth {
	return warmth{parts: make([]atomic.Uint32, size/warmPart/32+1)}
}

func (w *warmth) touch(m *vfs.Mapping, pos, n, end int64) {
	for part := pos / warmPart; part*warmPart < pos+n; part++ {
		word, bit := &w.parts[part/32], uint32(1)<<(part%32)
		if word.Load()&bit == 0 {
			loadPages(m, part*warmPart, min(warmPart, end-part*warmPart))
			word.Or(bit)
		}
	}
}

// cool forgets what was warm; the log's keeper calls it from time to time.
func (w *warmth) cool() {
	for i := range w.parts {
		w.parts[i].Store(0)
	}
}

// fileRange reads [pos, end) of a file in order.
type fileRange struct {
	f        io.ReaderAt
	pos, end int64
}

func (r *fileRange) Read(p []byte) (int, error) {
	if r.pos >= r.end {
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-r.pos)], r.pos)
	r.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}
