package seglog

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// openBudget bounds the descriptors that the segments of all logs of the process hold, whatever they are open for: the
// active and the prepared ones, those that wait for their seal, sealed ones that readers opened, those of read-only logs.
// Beyond it sealed segments are closed, least recently used first, whichever log they belong to.
//
// A log on a file system other than the system's own, which only tests have, has a budget to itself, so that what one log
// does never depends on others.
type openBudget struct {
	most   atomic.Int64
	open   atomic.Int64 // handles of segments, also of closed and deleted segments while somebody holds them
	sealed atomic.Int64 // segments in the rings of all logs

	mu      sched.Mutex
	logs    []*openSegments   // those with a segment in their ring
	hand    int               // the log whose ring is swept next
	writers map[*env]restable // logs that are open for writing

	// resting is held while logs are made to rest. Whoever waits for it may hold any lock, so its holder waits for no lock of a log.
	resting sched.Mutex
}

// restable is a Log that is open for writing.
type restable interface {
	appendWarmth() (warmth int64, awake bool)
	makeRest() bool
}

// processSegments is the budget of the logs on the operating system's files.
var processSegments openBudget

// minOpenSegments sealed segments stay open even where everything else takes up the whole budget: without them each read of
// a busy process would open a file.
const minOpenSegments = 16

// openBudgetOf returns the budget of a log that is opened on fsys. Half of the present limit of the process is for segments,
// the rest for the program and for the lock, the state file and the directory of each log.
func openBudgetOf(fsys vfs.FS) *openBudget {
	b := &processSegments
	if _, real := fsys.(osFS); !real {
		b = new(openBudget)
	}
	b.most.Store(int64(max(2*minOpenSegments, openFileLimit()/2)))
	return b
}

// opened counts a handle, and makes room for it.
func (b *openBudget) opened() {
	if b != nil {
		b.open.Add(1)
		b.makeRoom()
	}
}

func (b *openBudget) closed() {
	if b != nil {
		b.open.Add(-1)
	}
}

// makeRoom closes sealed segments while too many handles are open. It closes two at most: each handle that is added makes
// room, and closing a segment that a reader holds frees nothing yet.
func (b *openBudget) makeRoom() {
	for range 2 {
		if b.open.Load() <= b.most.Load() || b.sealed.Load() <= minOpenSegments || !b.closeOne() {
			return
		}
	}
}

// closeOne closes one segment by the clock algorithm, over the rings of all logs together. It goes round twice, since in the
// first round all segments may have been touched since the last sweep.
func (b *openBudget) closeOne() bool {
	b.mu.Lock()
	visits := 2*len(b.logs) + 1
	b.mu.Unlock()
	for range visits {
		b.mu.Lock()
		if len(b.logs) == 0 {
			b.mu.Unlock()
			return false
		}
		if b.hand >= len(b.logs) {
			b.hand = 0
		}
		o := b.logs[b.hand]
		b.mu.Unlock()
		// b.mu is not held, since closing takes system calls. If o's log is closed meanwhile, its ring is empty.
		if o.sweep() {
			return true
		}
		b.mu.Lock()
		if b.hand < len(b.logs) && b.logs[b.hand] == o { // else somebody else went on
			b.hand++
		}
		b.mu.Unlock()
	}
	return false
}

// closeHalf closes half of the sealed segments of each log, for a process that has fewer descriptors than the budget.
func (b *openBudget) closeHalf() {
	if b == nil {
		return
	}
	b.mu.Lock()
	logs := append([]*openSegments(nil), b.logs...)
	b.mu.Unlock()
	for _, o := range logs {
		o.closeHalf()
	}
}

// restLogs lets logs rest that are open for writing, other than that of caller, those first that were appended to least of late. It is
// for a process without a descriptor left: a log at rest holds two or three fewer. It returns false if all are at rest already;
// otherwise some may be in use at the moment, or have to be flushed first, so that it may help to call it again.
func (b *openBudget) restLogs(caller *env) bool {
	if b == nil {
		return false
	}
	b.resting.Lock()
	defer b.resting.Unlock()
	b.mu.Lock()
	logs := maps.Clone(b.writers)
	b.mu.Unlock()
	type awake struct {
		l      restable
		warmth int64
	}
	var all []awake
	for e, l := range logs {
		if warmth, ok := l.appendWarmth(); ok && e != caller {
			all = append(all, awake{l, warmth})
		}
	}
	slices.SortFunc(all, func(a, b awake) int { return cmp.Compare(a.warmth, b.warmth) })
	rest := 0
	for _, a := range all {
		if a.l.makeRest() {
			rest++
		}
		if rest > len(all)/8 { // the next ones who need a descriptor find one
			break
		}
	}
	return len(all) > 0
}

// writes and writesNoMore keep the list of logs that are open for writing.
func (b *openBudget) writes(e *env, l restable) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.writers == nil {
		b.writers = map[*env]restable{}
	}
	b.writers[e] = l
}

func (b *openBudget) writesNoMore(e *env) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.writers, e)
}

// join and leave keep the list of logs that have something to close. The ring's mutex is held.
func (b *openBudget) join(o *openSegments) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o.slot = len(b.logs)
	b.logs = append(b.logs, o)
}

func (b *openBudget) leave(o *openSegments) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.logs) - 1
	b.logs[o.slot] = b.logs[n]
	b.logs[o.slot].slot = o.slot
	b.logs[n] = nil
	b.logs = b.logs[:n]
}

// roomFS is the file system of a log. Calls that need a descriptor make room for it.
type roomFS struct {
	vfs.FS
	e *env
}

func (r roomFS) Open(path string, mode vfs.OpenMode) (f vfs.File, err error) {
	err = r.e.withDescriptor(func() error { f, err = r.FS.Open(path, mode); return err })
	return f, err
}

func (r roomFS) OpenDir(dir string) (d vfs.Directory, err error) {
	err = r.e.withDescriptor(func() error { d, err = r.FS.OpenDir(dir); return err })
	return d, err
}

func (r roomFS) Lock(path string) (l vfs.DirectoryLock, err error) {
	err = r.e.withDescriptor(func() error { l, err = r.FS.Lock(path); return err })
	return l, err
}

func (r roomFS) List(dir string) (names []string, err error) {
	err = r.e.withDescriptor(func() error { names, err = r.FS.List(dir); return err })
	return names, err
}

func (r roomFS) MkdirAll(dir string) error {
	return r.e.withDescriptor(func() error { return r.FS.MkdirAll(dir) })
}

func (r roomFS) SyncDir(dir string) error {
	return r.e.withDescriptor(func() error { return r.FS.SyncDir(dir) })
}

// withDescriptor makes a call that needs a descriptor. If the process has none left, it closes sealed segments of all logs
// and, if that is not enough, lets other logs rest, and makes the call again.
func (e *env) withDescriptor(call func() error) error {
	err := call()
	if noDescriptor(err) {
		e.opened.budget.closeHalf()
		err = call()
	}
	for tries := 0; tries < 20 && noDescriptor(err) && e.opened.budget.restLogs(e); tries++ {
		if tries > 0 {
			sched.Spin("descriptor", 5*time.Millisecond)
		}
		err = call()
	}
	return err
}

func noDescriptor(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// openSegments holds the sealed segments of one log that are open; Options.MaxOpenSegments bounds their number. It is a
// clock: a sweep closes a segment that was not touched since the sweep before, which approximates least recently used.
type openSegments struct {
	budget *openBudget // nil: counted nowhere
	limit  int
	slot   int    // in budget.logs; guarded by budget.mu
	first  func() // called when the first segment is opened; may be nil

	// mu is held while a segment is closed, so that once closeAll has returned nobody closes one any more.
	mu   sched.Mutex
	ring []*segment
	hand int
}

func (o *openSegments) add(s *segment) {
	o.mu.Lock()
	o.ring = append(o.ring, s)
	o.resized(1)
	if len(o.ring) == 1 && o.first != nil {
		o.first()
	}
	for tries := 0; len(o.ring) > o.limit && tries < 2*len(o.ring); tries++ {
		if o.hand >= len(o.ring) {
			o.hand = 0
		}
		if victim := o.ring[o.hand]; victim == s || victim.touched.Swap(false) {
			o.hand++
			continue
		}
		o.closeAt(o.hand)
	}
	o.mu.Unlock()
	if o.budget != nil {
		o.budget.makeRoom()
	}
}

// resized tells the budget that the ring has n segments more, or fewer. o.mu is held.
func (o *openSegments) resized(n int) {
	b := o.budget
	if b == nil || n == 0 {
		return
	}
	b.sealed.Add(int64(n))
	switch {
	case len(o.ring) == 0:
		b.leave(o)
	case len(o.ring) == n:
		b.join(o)
	}
}

// sweep goes on towards the end of the ring, and closes the first segment that was not touched. It returns false if there
// was none; the next sweep then begins at the front.
func (o *openSegments) sweep() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for ; o.hand < len(o.ring); o.hand++ {
		if !o.ring[o.hand].touched.Swap(false) {
			o.closeAt(o.hand)
			return true
		}
	}
	o.hand = 0
	return false
}

// closeAt closes segment i of the ring. o.mu is held.
func (o *openSegments) closeAt(i int) {
	_ = o.ring[i].close() // of a file that was only read
	o.removeAt(i)
}

func (o *openSegments) removeAt(i int) {
	n := len(o.ring) - 1
	o.ring[i] = o.ring[n]
	o.ring[n] = nil
	o.ring = o.ring[:n]
	o.resized(-1)
}

// closeHalf closes half of the segments, and at least one, whether they were touched or not.
func (o *openSegments) closeHalf() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shrink(len(o.ring) / 2)
}

// closeAll closes all segments, which ends the log's share of the budget.
func (o *openSegments) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shrink(0)
}

func (o *openSegments) shrink(keep int) {
	for _, s := range o.ring[keep:] {
		_ = s.close() // of a file that was only read
	}
	n := len(o.ring) - keep
	clear(o.ring[keep:])
	o.ring = o.ring[:keep]
	o.resized(-n)
}

// drop forgets a segment that was retired.
func (o *openSegments) drop(s *segment) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, x := range o.ring {
		if x == s {
			o.removeAt(i)
			return
		}
	}
}

// cool makes the next read of each segment look whether its bytes are still in memory. Of a log at rest it also closes the
// segments that were not read since the call before.
func (o *openSegments) cool(atRest bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.ring) - 1; i >= 0; i-- {
		s := o.ring[i]
		if atRest && !s.touched.Swap(false) {
			o.closeAt(i)
		} else if h := s.h.Load(); h != nil {
			h.warm.cool()
		}
	}
}

func (o *openSegments) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ring)
}
