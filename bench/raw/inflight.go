package raw

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// Overlap is what a log does while the flush of a group of appends runs.
type Overlap int

const (
	WriteMeanwhile Overlap = iota // the next group is written, and its write-back begins
	FlushMeanwhile                // the next group is written and flushed: two calls of fdatasync at a time
	SyncMeanwhile                 // the same, by a pwritev2 with RWF_DSYNC for each group, which waits for its own bytes only
	SyncAlone                     // nothing: RWF_DSYNC for one group after the other, to tell what is owed to the overlap
)

// Overlaps are all of them.
var Overlaps = []Overlap{WriteMeanwhile, FlushMeanwhile, SyncMeanwhile, SyncAlone}

func (o Overlap) String() string {
	return [...]string{"the next one written meanwhile", "two fdatasync at a time", "two RWF_DSYNC at a time", "one RWF_DSYNC at a time"}[o]
}

// InFlight is Durable behind a group commit of its own, in which two groups may be on their way to the disk at once. They are
// acknowledged in order.
func InFlight(dir string, layout Layout, overlap Overlap) (peers.Log, error) {
	log, err := Durable(dir, layout)
	if err != nil {
		return nil, err
	}
	f := &inFlight{durable: log.(*durable), overlap: overlap, next: newFlight(), staged: make(chan *flight)}
	f.work.L = &f.mu
	groups, flushers := 2, 2
	if overlap == SyncAlone {
		groups = 1
	}
	if groups == 1 || overlap == WriteMeanwhile {
		flushers = 1
	}
	f.buffers = make(chan []byte, groups)
	for range groups {
		f.buffers <- nil
	}
	f.done.Go(f.run)
	for range flushers {
		f.done.Go(f.flush)
	}
	return f, nil
}

type inFlight struct {
	*durable
	overlap Overlap
	buffers chan []byte  // one for each group that may be on its way
	staged  chan *flight // from run to flush
	done    sync.WaitGroup

	mu   sync.Mutex
	work sync.Cond
	next *flight // guarded by mu
	stop bool    // guarded by mu
}

// flight is one group. What ready does not guard belongs to run, and then to flush.
type flight struct {
	values [][]byte
	buf    []byte
	pos    int64
	before *flight
	failed error
	ready  chan struct{}
	err    error // set before ready is closed
}

func newFlight() *flight { return &flight{ready: make(chan struct{})} }

// run gathers for as long as no group may leave, gives each its place, and writes it where that is not left to its flush.
func (f *inFlight) run() {
	defer close(f.staged)
	last := newFlight()
	close(last.ready)
	var offset int64
	for {
		buf := <-f.buffers
		group := f.take()
		if group == nil {
			return
		}
		group.before, last = last, group
		group.buf = appendFrames(buf[:0], &offset, group.values)
		group.pos, group.failed = f.place(len(group.buf))
		if group.failed == nil && f.overlap <= FlushMeanwhile {
			_, group.failed = f.file.WriteAt(group.buf, group.pos)
		}
		if group.failed == nil && f.overlap == WriteMeanwhile {
			group.failed = unix.SyncFileRange(int(f.file.Fd()), group.pos, int64(len(group.buf)), unix.SYNC_FILE_RANGE_WRITE)
		}
		f.staged <- group
	}
}

// take waits for values. It returns nil when the log is closed and nothing is left.
func (f *inFlight) take() *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.next.values) == 0 && !f.stop {
		f.work.Wait()
	}
	group := f.next
	if len(group.values) == 0 {
		return nil
	}
	f.next = newFlight()
	return group
}

func (f *inFlight) flush() {
	for group := range f.staged {
		if group.failed == nil {
			group.failed = f.persist(group)
		}
		buf := group.buf
		before := group.before
		group.before = nil
		f.buffers <- buf
		<-before.ready
		group.err = group.failed
		if before.err != nil {
			group.err = before.err // what lies behind a gap is lost
		}
		close(group.ready)
	}
}

func (f *inFlight) persist(group *flight) error {
	if f.overlap <= FlushMeanwhile {
		return unix.Fdatasync(int(f.file.Fd()))
	}
	for b, pos := group.buf, group.pos; len(b) > 0; {
		n, err := unix.Pwritev2(int(f.file.Fd()), [][]byte{b}, pos, unix.RWF_DSYNC)
		if err != nil && err != unix.EINTR {
			return err
		}
		b, pos = b[max(n, 0):], pos+int64(max(n, 0))
	}
	return nil
}

func (f *inFlight) Appender() peers.Append {
	return func(values [][]byte) error {
		f.mu.Lock()
		group := f.next
		first := len(group.values) == 0
		group.values = append(group.values, values...)
		f.mu.Unlock()
		if first {
			f.work.Signal()
		}
		<-group.ready
		return group.err
	}
}

// Close appends what has gathered and closes the log.
func (f *inFlight) Close() error {
	f.mu.Lock()
	f.stop = true
	f.mu.Unlock()
	f.work.Signal()
	f.done.Wait()
	return f.durable.Close()
}
