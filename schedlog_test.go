//go:build go1.25

package seglog

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/sim"
)

// schedLog is a log in a schedule, with everything that its users have observed.
type schedLog struct {
	s    *sim.Scheduler
	sim  *sim.FS
	fs   *sim.ScheduledFS
	h    *history
	c    *schedConfig
	opts Options
	l    *Log

	leaving       bool // Close has begun, so that calls may fail with ErrClosed
	wrong         error
	bounds        Offsets // the greatest that Offsets has returned since a cut last began or ended
	cuts, cutting int     // the number of times that a cut began or ended, and of cuts that are running
	copies        int     // the number of snapshots begun
	gone          bool    // the log has just been closed and has no more users
}

func newSchedLog(s *sim.Scheduler, c *schedConfig) *schedLog {
	w := &schedLog{s: s, sim: sim.NewFS(c.world(), c.mapped), h: newHistory(), c: c}
	w.fs = &sim.ScheduledFS{FS: w.sim, Scheduler: s, Plant: c.plant}
	// A crash during a deletion may leave the old or the new start; only the next Open shows which.
	w.fs.OnWrite = func(name string, p []byte) {
		if st := (state{}); name == stateName && st.decode(p) {
			w.sim.Mu.Lock()
			defer w.sim.Mu.Unlock()
			w.h.retained = max(w.h.retained, st.start)
		}
	}
	w.h.gaps = c.gaps
	w.h.retention = c.retention
	return w
}

func (w *schedLog) bad(format string, args ...any) {
	if w.wrong == nil {
		w.wrong = fmt.Errorf(format, args...)
	}
}

// note changes the history, and records its new number of events in the trace.
func (w *schedLog) note(name string, change func(h *history)) (n int) {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	change(w.h)
	n = w.h.events
	if !w.sim.Dead {
		w.sim.Ops = append(w.sim.Ops, &sim.Op{Kind: sim.Event, Name: name, Event: func(o *oracle) { o.judge = histView{w.h, n} }})
	}
	return n
}

// cut notes that a call that may lower bounds begins (by is 1) or ends (by is -1).
func (w *schedLog) cut(by int) {
	w.cuts++
	w.cutting += by
	w.bounds = Offsets{}
}

// do makes a call, and notes its beginning, end and result in the history.
func (w *schedLog) do(c *histCall, name string, call func() error) error {
	c.policy = w.opts.Flush
	w.note("begin "+name, func(h *history) {
		h.begin(c)
		if c.kind == histCut {
			w.cut(1)
		}
	})
	err := call()
	failed := w.l.failed() != nil
	w.note(fmt.Sprintf("end %s: at %d, %v", name, c.offset, err), func(h *history) {
		c.err = err
		switch {
		case err == nil:
		case c.kind == histCut || c.kind == histDelete:
			c.none = errors.Is(err, ErrOutOfRange) || errors.Is(err, ErrInvalid)
		default:
			c.none = !failed && !errors.Is(err, ErrClosed)
		}
		c.doubt = err != nil && !c.none
		h.finish(c)
		if c.kind == histCut {
			w.cut(-1)
		}
	})
	w.fine(name, err)
	return err
}

// fine reports whether a call succeeded, and fails the run if err is not one that the call may return.
func (w *schedLog) fine(name string, err error, allowed ...error) bool {
	switch {
	case err == nil:
		return true
	case slices.ContainsFunc(allowed, func(a error) bool { return errors.Is(err, a) }):
	case errors.Is(err, ErrOutOfRange), errors.Is(err, ErrNotJoined):
	case w.leaving && errors.Is(err, ErrClosed):
	case w.c.forgives(w.sim, err):
	default:
		w.bad("%s: %w", name, err)
	}
	return false
}

// asked returns the event at which a read begins.
func (w *schedLog) asked() int {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	return w.h.events
}

// askedLate returns the event of which a reader in another process must be aware: such a reader may lag by 20 ms.
func (w *schedLog) askedLate() int {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	asked := w.h.events
	for _, c := range w.h.calls {
		if !c.at.IsZero() && time.Since(c.at) <= 20*time.Millisecond {
			asked = min(asked, c.end)
		}
	}
	return asked
}

// saw checks a record that was returned by a read that began at the event asked.
func (w *schedLog) saw(r *Record, asked int) {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	v := histView{w.h, w.h.events}
	base, _, calls := v.base()
	if _, err := v.checkRecord(r, base, calls, asked); err != nil {
		w.bad("read: %w", err)
	}
}

// missed checks that some call may have removed the record at offset that the append c acknowledged; why says how a read
// missed it.
func (w *schedLog) missed(c *histCall, offset int64, why any) {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	v := histView{w.h, w.h.events}
	if w.h.retention || w.l.failed() != nil { // a cut that failed halfway hides the batch that holds its offset
		return
	}
	if !slices.ContainsFunc(w.h.calls, func(x *histCall) bool { return v.removes(x, offset, c.begin) }) {
		w.bad("the record acknowledged at %d can't be read: %v", offset, why)
	}
}

// observe notes the bounds that the log reports, and checks them.
func (w *schedLog) observe() Offsets {
	l := w.l
	mark := &histCall{kind: histMark}
	cuts, before := 0, Offsets{}
	w.note("begin observe", func(h *history) { h.begin(mark); cuts, before = w.cuts, w.bounds })
	o := l.Offsets()
	w.note(fmt.Sprintf("claims %+v", o), func(h *history) {
		mark.offset = o.RecoveryPoint
		h.finish(mark)
		h.retained = max(h.retained, o.Start)
		if w.cuts != cuts || w.cutting > 0 {
			return
		}
		if w.c.goesBack {
			before.RecoveryPoint, before.HighWatermark = 0, 0
		}
		if o.Start < before.Start || o.RecoveryPoint < before.RecoveryPoint || o.HighWatermark < before.HighWatermark || o.End < before.End {
			w.bad("bounds went back without a cut: %+v, before %+v", o, before)
		}
		w.bounds = Offsets{max(o.Start, w.bounds.Start), max(o.RecoveryPoint, w.bounds.RecoveryPoint), max(o.HighWatermark, w.bounds.HighWatermark), max(o.End, w.bounds.End)}
	})
	if o.Start > o.RecoveryPoint || o.RecoveryPoint > o.HighWatermark || o.HighWatermark > o.End {
		w.bad("offsets out of order: %+v", o)
	}
	if w.opts.Flush == FlushSync && o.HighWatermark > o.RecoveryPoint {
		w.bad("shows records that are not durable: %+v", o)
	}
	return o
}

// open opens the log and reads all of it; the history then continues from these records.
func (w *schedLog) open(opts Options) error {
	w.opts, w.leaving, w.bounds = opts, false, Offsets{}
	l, err := openFS(w.fs, sim.Dir, &opts)
	if err != nil {
		return err
	}
	w.l = l
	got, err := readLog(l)
	for tries := 0; w.c.retention && errors.Is(err, ErrOutOfRange) && tries < 100; tries++ {
		got, err = readLog(l)
	}
	if err != nil {
		ignore(l.Close())
		return err
	}
	w.sim.Mu.Lock()
	w.h.retained = max(w.h.retained, got.start)
	err = histView{w.h, w.h.events}.check(got, false)
	w.sim.Mu.Unlock()
	if err != nil {
		w.bad("after open: %w", err)
	}
	w.note(fmt.Sprint("opened ", got.start, " to ", got.end), func(h *history) { h.begin(&histCall{kind: histOpened, got: got, offset: got.end}) })
	return nil
}

func (w *schedLog) close() error {
	w.leaving = true
	err := w.do(&histCall{kind: histMark, offset: math.MaxInt64}, "close", w.l.Close)
	w.sim.Mu.Lock()
	w.h.retained = max(w.h.retained, w.l.start.Load())
	w.sim.Mu.Unlock()
	return err
}

// schedUser is a user of a log, with a goroutine of its own.
type schedUser struct {
	w    *schedLog
	rng  *rand.Rand
	name string
	id   int64
}

// record makes a unique record of roughly the given size.
func (u *schedUser) record(size int) Record {
	u.id++
	id := []byte{byte(u.id >> 56), byte(u.id >> 48), byte(u.id >> 40), byte(u.id >> 32), byte(u.id >> 24), byte(u.id >> 16), byte(u.id >> 8), byte(u.id)}
	r := Record{Time: time.UnixMilli(1_700_000_000_000 + u.w.c.age(u.rng)).UTC(), Value: id}
	switch u.rng.IntN(12) {
	case 0:
		r.Key, r.Value = id, nil
		return r
	case 1:
		r.Value = append(r.Value, make([]byte, size)...)
		return r
	case 2:
		r.Headers = []Header{{Key: "h"}, {Key: "", Value: []byte{}}}
	}
	filler := make([]byte, size)
	for i := 0; i < len(filler); i += 7 {
		filler[i] = byte(u.rng.Uint32())
	}
	r.Value = append(r.Value, filler...)
	return r
}

// batch makes records that fit into one batch.
func (u *schedUser) batch() []Record {
	n, size := u.w.c.shape(u.rng)
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = u.record(size)
	}
	for len(encoded(recs, 0)) > u.w.c.maxBatch() {
		recs = recs[:len(recs)-1]
		if len(recs) == 0 {
			recs = []Record{u.record(10)}
		}
	}
	return recs
}

// schedRun is one schedule from beginning to end.
type schedRun struct {
	c      *schedConfig
	s      *sim.Scheduler
	logs   []*schedLog
	err    error
	bubble string // name of the bubble
}

func (r *schedRun) wrong() error {
	for _, w := range r.logs {
		if w.wrong != nil {
			return w.wrong
		}
	}
	return nil
}

// run runs the schedule. The caller is the first goroutine of a bubble.
func (r *schedRun) run() {
	sched.Simulation = r.s
	r.bubble = sim.Bubble()
	readers = sync.Pool{New: readers.New}
	backgroundWork.Delete(uint64(0)) // an earlier schedule may have got stuck
	flushCalls = sched.Limiter{Most: flushCalls.Most}
	r.s.Begin()
	for i := range r.c.logs {
		w := newSchedLog(r.s, r.c)
		r.c.faults(w.sim, i)
		r.logs = append(r.logs, w)
		r.s.Spawn(fmt.Sprint("log", i), func() { r.life(w, i) })
	}
	r.s.OnStep = func() error {
		if err := r.bounds(); err != nil {
			return err
		}
		return r.wrong()
	}
	r.err = r.s.Run()
	if r.err == nil {
		r.err = r.wrong()
	}
	if r.err != nil {
		return
	}
	synctest.Wait()
	if left := sim.BubbleStacks(r.bubble); strings.Contains(left, "seglog.(*Log)") {
		r.err = fmt.Errorf("goroutines left behind:\n%s", left)
		return
	}
	for _, w := range r.logs {
		if left := w.sim.Left(); len(left) > 0 {
			r.err = fmt.Errorf("not released: %v", left)
		}
		if len(w.sim.Misuse) > 0 {
			r.err = fmt.Errorf("misuse of the file system: %v", w.sim.Misuse)
		}
	}
}

// bounds returns an error if a log has too many descriptors, mappings, unsealed segments or bytes of memory, or goroutines
// after its Close. No task runs meanwhile.
func (r *schedRun) bounds() error {
	for i, w := range r.logs {
		// Each user holds a few segments: the segment that it reads, one whose indexes it builds, one of a section. A snapshot
		// holds two more.
		most := 2*maxUnsealed + 12 + 4*r.c.users
		files, mappings := w.sim.InUse()
		if files > most {
			return fmt.Errorf("log %d: %d files are open, want at most %d", i, files, most)
		}
		if mappings > most {
			return fmt.Errorf("log %d: %d mappings, want at most %d", i, mappings, most)
		}
		if w.l == nil {
			continue
		}
		if n := len(w.l.writer.sealing); n > maxUnsealed {
			return fmt.Errorf("log %d: %d segments wait to be sealed", i, n)
		}
		if err := boundedMemory(w.l, r.c); err != nil {
			return fmt.Errorf("log %d: %w", i, err)
		}
		if w.gone && len(r.logs) == 1 {
			w.gone = false
			if left := left(r.bubble); left != "" {
				return fmt.Errorf("goroutines left after Close:\n%s", left)
			}
		}
	}
	return nil
}

// boundedMemory returns an error if a structure that grows with use exceeds its bound: the buffers for the next flush, the
// remembered cuts, the read cache, the waiters, and the segments that could not be deleted.
func boundedMemory(l *Log, c *schedConfig) error {
	users := int64(c.users)
	// Each user has at most one batch in the buffers. There are two, and each doubles as it grows.
	if g := l.writer.tail.seg.gather; g != nil {
		if n := int64(cap(g.buf) + cap(g.spare)); n > 4*(users*int64(c.maxBatch())+minGather) {
			return fmt.Errorf("%d bytes of buffers for flushes", n)
		}
	}
	if n := len(l.cutLog.last); n > maxCuts {
		return fmt.Errorf("%d cuts are remembered", n)
	}
	if n, limit := l.reads.bytes.Load(), l.reads.limit.Load(); n > limit {
		return fmt.Errorf("%d bytes in the read cache, want at most %d", n, limit)
	}
	// Users, hooks and Close may wait. The bound allows two waits for each user.
	if n := l.readers.n.Load() + l.durableWaiters.n.Load(); n > 2*users+4 {
		return fmt.Errorf("%d goroutines wait for a bound", n)
	}
	if n := len(l.undeleted); n > 100 {
		return fmt.Errorf("%d deleted segments still have files", n)
	}
	return nil
}

// left returns the stacks of the background goroutines of logs in a bubble.
func left(bubble string) string {
	var b strings.Builder
	for g := range strings.SplitSeq(sim.BubbleStacks(bubble), "\n\n") {
		if strings.Contains(g, "seglog.(*Log)") && !strings.Contains(g, "seglog.(*schedRun)") {
			b.WriteString(g + "\n\n")
		}
	}
	return b.String()
}

// life opens, uses and closes the log several times, each time with new users.
func (r *schedRun) life(w *schedLog, number int) {
	for phase := range r.c.phases {
		if !r.phase(w, number, phase) {
			return
		}
	}
}
