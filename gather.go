package seglog

import (
	"sync/atomic"
)

// gather is where batches wait for their flush under FlushSync. One write of all of them and one fdatasync cost a quarter
// of what storing each through the mapping does: a flush write-protects every page, so that each store after it faults,
// one by one and under Log.mu (docs/performance.md has the figures). Nothing is lost by it, since what is not flushed
// was neither acknowledged nor shown to a reader.
type gather struct {
	mu mutex // from tail.begin to commit, and while the flusher takes the buffer
	// Guarded by mu:
	buf   []byte // batches from position at up to the end of what is stored
	spare []byte // the buffer written last
	at    int64

	large atomic.Bool // the last flush wrote largeFlush or more
}

// largeFlush: from here on, what a flush pays for blocks without zeros is less than what laying the zeros would take of
// the disk.
const largeFlush = 256 << 10

// maxSpare is the largest buffer that is kept for the next flush.
const maxSpare = 4 << 20

// begin returns room for n bytes and keeps the buffer locked until end.
func (g *gather) begin(n int64) []byte {
	g.mu.Lock()
	used := len(g.buf)
	if int64(cap(g.buf)-used) < n {
		grown := make([]byte, used, max(2*cap(g.buf), used+int(n), firstChunk))
		copy(grown, g.buf)
		g.buf = grown
	}
	return g.buf[used : used+int(n) : used+int(n)]
}

// end makes n bytes of what begin returned part of the buffer.
func (g *gather) end(n int) {
	g.buf = g.buf[:len(g.buf)+n]
	g.mu.Unlock()
}

// drop gives the buffers up: the segment is sealed, but lives on.
func (g *gather) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf, g.spare = nil, nil
}

// write puts what was gathered into the file and returns how far the segment is written then. Only the owner of
// flusher.busy calls it.
func (g *gather) write(s *segment, f file) (mark, error) {
	g.mu.Lock()
	b, at, m := g.buf, g.at, s.stored.load()
	g.buf, g.spare, g.at = g.spare[:0], nil, m.pos()
	g.mu.Unlock()
	if large := len(b) >= largeFlush; large != g.large.Load() {
		g.large.Store(large)
	}
	if len(b) > 0 {
		if _, err := f.WriteAt(b, at); err != nil {
			return 0, err
		}
	}
	if cap(b) <= maxSpare {
		g.mu.Lock()
		g.spare = b
		g.mu.Unlock()
	}
	return m, nil
}
