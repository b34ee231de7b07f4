package seglog

import (
	"sync/atomic"

	"github.com/seglog/seglog/internal/commit"
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

	// device is where flushes of this file may be shared with those of other logs, or nil. That is right for a range that lies
	// below settled: its blocks and the size of the file were flushed when they held zeros.
	device *commit.Device
	// quiet is flushed instead of the file, if not nil, when only such a range is to become durable. The flush of the file would also
	// wait for the zeros that the preparer writes further on.
	quiet commit.Flusher
	// settled and fill belong to the owner of Log.flushes. The first flush writes zeros up to fill, the end of the blocks that
	// were reserved when the segment was opened.
	settled, fill int64
	// The zeros in [zeroFrom, zeroTo) were flushed by the preparer. Guarded by zeros.
	zeros            sched.Mutex
	zeroFrom, zeroTo int64
}

// zeroed notes that the preparer has flushed zeros in [from, to). Should they not join those before, these are forgotten: ranges
// there are then flushed as if they had not been.
func (g *gather) zeroed(from, to int64) {
	g.zeros.Lock()
	defer g.zeros.Unlock()
	if from != g.zeroTo {
		g.zeroFrom = from
	}
	g.zeroTo = to
}

// maxShared bounds what one file adds to the duration of a flush that others share.
const maxShared = largeFlush

// flush flushes [from, to) of f, the file of an active or rolled segment, together with other files if possible. Only the owner
// of Log.flushes calls it.
func (g *gather) flush(f vfs.File, from, to int64) error {
	if g.device == nil {
		return f.Flush()
	}
	g.settle(g.settled)
	if to <= g.settled && to-from <= maxShared {
		return g.device.Flush(f, g.quiet, from, to-from)
	}
	end := to
	if g.fill > to && f.Zero(to, g.fill-to) == nil { // otherwise blocks without zeros will do
		end = g.fill
	}
	if err := f.Flush(); err != nil {
		return err
	}
	g.settle(end)
	return nil
}

// settle raises settled to pos, and beyond if the preparer has flushed zeros there.
func (g *gather) settle(pos int64) {
	g.zeros.Lock()
	defer g.zeros.Unlock()
	g.settled = max(g.settled, pos)
	if g.zeroFrom <= g.settled {
		g.settled = max(g.settled, g.zeroTo)
	}
}

// From largeFlush on, writing zeros ahead costs more disk time than the journaling that it avoids.
const largeFlush = 256 << 10

// maxSpare is the largest buffer that is kept for the next flush.
const maxSpare = 4 << 20

// minGather is the size of the first buffer.
const minGather = 512

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

// drop releases the buffers, unless there is something in them.
func (g *gather) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.buf) == 0 {
		g.buf, g.spare = nil, nil
	}
}

// write writes the gathered batches to the file of the segment whose mark is stored, from the position that it returns, and
// returns the mark up to which it is then written. Only the owner of Log.flushes calls it.
func (g *gather) write(stored *atomicMark, f vfs.File) (from int64, to mark, err error) {
	g.mu.Lock()
	b, at, m := g.buf, g.at, stored.load()
	g.buf, g.spare, g.at = g.spare[:0], nil, m.pos()
	g.mu.Unlock()
	if large := len(b) >= largeFlush; large != g.large.Load() {
		g.large.Store(large)
	}
	if len(b) > 0 {
		if _, err := f.WriteAt(b, at); err != nil {
			return 0, 0, err
		}
	}
	if cap(b) <= maxSpare {
		g.mu.Lock()
		g.spare = b
		g.mu.Unlock()
	}
	return at, m, nil
}
