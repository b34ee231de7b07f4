package seglog

import (
	"sync/atomic"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// gather is the buffer in which batches wait for their flush under FlushSync. One write of all of them and one fdatasync
// cost a quarter of storing each through the mapping: a flush write-protects every page, so that the stores after it fault,
// one by one and under Log.mu (docs/performance.md has the figures). No promise depends on the buffer, since a batch that
// is not flushed was neither acknowledged nor shown to a reader.
type gather struct {
	mu sched.Mutex // held from tail.begin to tail.commit, and while the flusher takes the buffer
	// Guarded by mu:
	buf   []byte // the stored batches from position at on
	spare []byte // the buffer that was written last, to be used again
	at    int64

	large atomic.Bool // the last flush wrote largeFlush or more
}

// From largeFlush on, writing zeros ahead costs more disk time than the journaling that it avoids.
const largeFlush = 256 << 10

// maxSpare is the largest buffer that is kept for the next flush.
const maxSpare = 4 << 20

// minGather is the size of the first buffer.
const minGather = 4 << 10

// begin returns room for n bytes and keeps the buffer locked until end.
func (g *gather) begin(n int64) []byte {
	g.mu.Lock()
	used := len(g.buf)
	if int64(cap(g.buf)-used) < n {
		grown := make([]byte, used, max(2*cap(g.buf), used+int(n), minGather))
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

// drop releases the buffers of a segment that is sealed.
func (g *gather) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf, g.spare = nil, nil
}

// write writes the gathered batches to the file of the segment whose mark is stored, and returns the mark up to which it is
// then written. Only the owner of Log.flushes calls it.
func (g *gather) write(stored *atomicMark, f vfs.File) (mark, error) {
	g.mu.Lock()
	b, at, m := g.buf, g.at, stored.load()
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
