//go:build go1.25

package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/seglog/seglog/internal/sched"
)

// task is a goroutine that the scheduler controls. It is attached to its goroutine in place of the profiler labels, which
// child goroutines inherit; no other way to attach a value to a goroutine is as cheap.
type task struct {
	labels []string // must come first: a profile reads the labels of the goroutine here
	s      *Scheduler
	name   string
	kids   map[string]int
	actor  bool // a user of the log, not one of its goroutines
	prio   uint64
	goes   chan struct{}

	// Where the task waits:
	parked bool
	at     point
}

// point is a place where a task parks.
type point struct {
	kind  Kind         // the kind of file system call, or Kinds if the point is none
	where string       // the path, or the engine's name for the point
	lock  *sched.Mutex // if not nil, must be free before the task continues
	spins bool         // the task polls until another task has done something
}

// Step is one step of a run.
type Step struct {
	t *task
	point
	pause time.Duration // if not 0, the clock advanced by pause and no task ran
}

func (st Step) String() string {
	switch {
	case st.t == nil:
		return fmt.Sprintf("clock advances by %v", st.pause)
	case st.kind != Kinds:
		where := st.where
		if i := strings.LastIndexByte(where, '/'); i >= 0 {
			where = where[i+1:]
		}
		return fmt.Sprintf("%s: %v %s", st.t.name, st.kind, where)
	}
	return fmt.Sprintf("%s: %s", st.t.name, st.where)
}

//go:linkname runtimeLabels runtime/pprof.runtime_getProfLabel
func runtimeLabels() unsafe.Pointer

//go:linkname setRuntimeLabels runtime/pprof.runtime_setProfLabel
func setRuntimeLabels(unsafe.Pointer)

func current() *task { return (*task)(runtimeLabels()) }

// strategy decides how the next task is picked.
type strategy int

const (
	pickRandom strategy = iota // any task
	pickSticky                 // usually the last task again
	pickPCT                    // the task with the highest priority; a few random steps change a priority (probabilistic concurrency testing)
	pickKinds
)

// Scheduler is the scheduler of the simulation, a sched.Scheduler. Everything runs in a bubble of testing/synctest, whose clock advances only when
// all its goroutines wait. Every goroutine of the engine or its users parks at each file system call, each mutex and each
// yield. When all of them are parked or blocked, the first goroutine of the bubble picks one of the parked ones by the seed and
// lets it run to its next point. So one goroutine runs at a time, in an order that the seed decides.
type Scheduler struct {
	rng      *rand.Rand
	seed     uint64
	strategy strategy
	change   int // one step in change, on average, changes a priority
	pauses   int // at one step in pauses, on average, the clock advances although tasks could run; 0: never
	maxSteps int
	timers   *task // the parent of the goroutines that timers start
	Verbose  bool  // the trace shows which function takes each lock
	// OnStep, if not nil, is called between two steps, when no task runs.
	OnStep func() error

	mu     sync.Mutex
	parked []*task
	wake   chan struct{}
	actors int
	last   *task
	lowest uint64
	Steps  []Step
	Count  atomic.Int64 // for the watchdog
	moved  time.Time    // the time of the last step of an actor
}

// NewScheduler returns a scheduler whose decisions follow from seed.
func NewScheduler(seed uint64) *Scheduler {
	s := &Scheduler{seed: seed, rng: rand.New(rand.NewPCG(seed, 11)), maxSteps: 60_000, lowest: 1 << 62}
	s.timers = s.newTask("timers")
	s.strategy = strategy(s.rng.IntN(int(pickKinds)))
	s.change = 20 + s.rng.IntN(200)
	s.pauses = []int{0, 30, 100, 400}[s.rng.IntN(4)]
	return s
}

func (s *Scheduler) newTask(name string) *task {
	return &task{s: s, name: name, kids: map[string]int{}, prio: 1<<62 + rand.New(rand.NewPCG(s.seed, FNV(name))).Uint64N(1<<62), goes: make(chan struct{}, 1)}
}

// FNV returns a hash of s that is the same in each run.
func FNV(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// Begin is called first, by the first goroutine of the bubble: the clock advances only while all wait on channels of the bubble.
func (s *Scheduler) Begin() { s.wake = make(chan struct{}, 1) }

// Spawn starts an actor.
func (s *Scheduler) Spawn(name string, f func()) {
	t := s.newTask(name)
	t.actor = true
	s.mu.Lock()
	s.actors++
	s.mu.Unlock()
	go func() {
		setRuntimeLabels(unsafe.Pointer(t))
		defer func() {
			s.mu.Lock()
			s.actors--
			s.mu.Unlock()
			s.signal()
		}()
		t.park(point{kind: Kinds, where: "starts"})
		f()
	}()
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (t *task) park(p point) {
	s := t.s
	s.mu.Lock()
	if t.parked {
		panic("two goroutines run as task " + t.name + ": does one of them not call started?")
	}
	t.parked, t.at = true, p
	s.parked = append(s.parked, t)
	s.mu.Unlock()
	s.signal()
	<-t.goes
}

// The engine calls the following methods, those of sched.Scheduler, at its points.

func (s *Scheduler) Lock(m *sched.Mutex) bool {
	t := current()
	if t == nil {
		return false
	}
	where := "lock"
	if t.s.Verbose {
		where += " in " + caller()
	}
	for {
		t.park(point{kind: Kinds, where: where, lock: m})
		if m.TryLock() {
			return true
		}
	}
}

func (s *Scheduler) Started(name string) {
	parent := current()
	if parent == nil { // a timer started the goroutine
		parent = s.timers
	}
	s.mu.Lock()
	parent.kids[name]++
	name = fmt.Sprintf("%s's %s %d", parent.name, name, parent.kids[name])
	s.mu.Unlock()
	t := parent.s.newTask(name)
	setRuntimeLabels(unsafe.Pointer(t))
	t.park(point{kind: Kinds, where: "starts"})
}

func (s *Scheduler) Unique(name string) string {
	t := current()
	if t == nil {
		return name
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.kids["the name "+name]++
	return fmt.Sprintf("%s %d of %s", name, t.kids["the name "+name], t.name)
}

func (s *Scheduler) Yield(where string, spins bool) {
	if t := current(); t != nil {
		t.park(point{kind: Kinds, where: where, spins: spins})
	}
}

// caller returns the name of the engine's function that takes a lock.
func caller() string {
	var pcs [1]uintptr
	runtime.Callers(4, pcs[:])
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	return fmt.Sprintf("%s:%d", f.Function[strings.LastIndexByte(f.Function, '/')+1:], f.Line)
}

// call parks the task before a file system call.
func (s *Scheduler) call(kind Kind, path string) {
	if t := current(); t != nil {
		t.park(point{kind: kind, where: path})
	}
}

// stuckError reports a run that does not end.
type stuckError struct{ why, stacks string }

func (e *stuckError) Error() string { return e.why + "\n" + e.stacks }

// patience bounds the simulated time in which no actor makes a step. No call of an actor waits for more than a minute by
// design.
const patience = 10 * time.Minute

// Run picks tasks until all actors have returned.
func (s *Scheduler) Run() error {
	s.moved = time.Now()
	for {
		synctest.Wait()
		s.mu.Lock()
		left := s.actors
		ready := make([]*task, 0, 16)
		for _, t := range s.parked {
			if t.at.lock == nil || free(t.at.lock) {
				ready = append(ready, t)
			}
		}
		s.mu.Unlock()
		switch {
		case left == 0 && len(s.parked) == 0:
			return nil
		case time.Since(s.moved) > patience && left > 0:
			return &stuckError{fmt.Sprintf("no call made progress for %v", patience), s.waiting() + BubbleStacks(Bubble())}
		case len(s.Steps) > s.maxSteps:
			return &stuckError{fmt.Sprintf("endless loop: %d steps", len(s.Steps)), s.waiting() + BubbleStacks(Bubble())}
		}
		if s.OnStep != nil {
			if err := s.OnStep(); err != nil {
				return err
			}
		}
		if len(ready) == 0 {
			if left == 0 {
				return nil // the remaining tasks wait for a lock that nobody releases; the caller reports them
			}
			s.idle()
			continue
		}
		if s.pauses > 0 && s.rng.IntN(s.pauses) == 0 {
			d := []time.Duration{50 * time.Microsecond, time.Millisecond, 15 * time.Millisecond, 400 * time.Millisecond, 1100 * time.Millisecond}[s.rng.IntN(5)]
			s.Steps = append(s.Steps, Step{pause: d})
			time.Sleep(d)
			continue
		}
		slices.SortFunc(ready, func(a, b *task) int { return strings.Compare(a.name, b.name) })
		s.release(s.pick(ready))
	}
}

// free reports whether m is unlocked. No task runs meanwhile.
func free(m *sched.Mutex) bool {
	if !m.TryLock() {
		return false
	}
	m.Unlock()
	return true
}

// idle lets the clock advance until a task parks.
func (s *Scheduler) idle() {
	select {
	case <-s.wake:
		return
	default:
	}
	timer := time.NewTimer(patience / 4)
	defer timer.Stop()
	select {
	case <-s.wake:
	case <-timer.C:
	}
}

func (s *Scheduler) pick(ready []*task) *task {
	t := ready[s.rng.IntN(len(ready))]
	switch s.strategy {
	case pickSticky:
		if slices.Contains(ready, s.last) && s.rng.IntN(10) > 0 {
			t = s.last
		}
	case pickPCT:
		t = slices.MaxFunc(ready, func(a, b *task) int {
			switch {
			case a.prio > b.prio:
				return 1
			case a.prio < b.prio:
				return -1
			}
			return 0
		})
		if s.rng.IntN(s.change) == 0 || t.at.spins {
			s.lowest--
			t.prio = s.lowest
		}
	}
	if t.at.spins && s.rng.IntN(4) > 0 && len(ready) > 1 { // t waits for another task
		t = ready[s.rng.IntN(len(ready))]
	}
	return t
}

func (s *Scheduler) release(t *task) {
	s.mu.Lock()
	s.parked = slices.DeleteFunc(s.parked, func(p *task) bool { return p == t })
	t.parked = false
	s.mu.Unlock()
	s.Steps = append(s.Steps, Step{t: t, point: t.at})
	s.Count.Add(1)
	s.last = t
	if t.actor {
		s.moved = time.Now()
	}
	t.goes <- struct{}{}
}

func (s *Scheduler) waiting() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, t := range s.parked {
		fmt.Fprintf(&b, "parked: %v\n", Step{t: t, point: t.at})
	}
	return b.String()
}

// Tail returns the last n steps as text.
func (s *Scheduler) Tail(n int) string {
	var b strings.Builder
	from := max(0, len(s.Steps)-n)
	for i, st := range s.Steps[from:] {
		fmt.Fprintf(&b, "%6d %v\n", from+i, st)
	}
	return b.String()
}

// Bubble returns the name of the caller's bubble in stack traces.
func Bubble() string {
	buf := make([]byte, 200)
	header := string(buf[:runtime.Stack(buf, false)])
	from := strings.Index(header, "synctest bubble")
	return header[from:strings.Index(header, "]")] + "]"
}

// BubbleStacks returns the stacks of the goroutines in the named bubble.
func BubbleStacks(name string) string {
	buf := make([]byte, 1<<20)
	var b strings.Builder
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(strings.SplitN(g, "\n", 2)[0], name) {
			b.WriteString(g + "\n\n")
		}
	}
	return b.String()
}
