package seglog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// crasher builds the states in which a crash at any point of a trace could leave the disk, opens the log in each, and checks it
// against the oracle of that moment. Then it uses the recovered log, and crashes that in turn.
type crasher struct {
	opts    Options
	mapped  bool
	wrap    func(*sim.FS) vfs.FS // nil: the simulated file system itself
	seed    uint64
	rng     *rand.Rand // decides how a recovered log is used
	singles int        // number of sim.SingleCuts to try at each point; -1: all
	randoms int        // number of random cuts to try at each point
	every   int        // one point in every is crashed, on average
	inner   int        // number of crashes of each recovery
	depth   int        // greatest depth of crashes of recoveries from crashes of recoveries
	uncut   bool       // a recovered log is not cut

	last     []*sim.Op           // the trace that led to the current state
	distinct map[uint64]struct{} // hashes of the opened states
	checked  map[uint64]struct{} // hashes of the opened states, each combined with the version of its oracle
	opens    int
	cuts     map[string]int // number of states by kind of cut
}

func newCrasher(opts Options, mapped bool, seed uint64) *crasher {
	opts.RetentionBytes, opts.RetentionAge = 0, 0
	return &crasher{
		opts: opts, mapped: mapped, seed: seed, rng: rand.New(rand.NewPCG(seed, 3)), every: 1, depth: 2,
		distinct: map[uint64]struct{}{}, checked: map[uint64]struct{}{}, cuts: map[string]int{},
	}
}

// simPatience bounds the time for one state, which usually takes less than a millisecond.
const simPatience = 20 * time.Second

// explore crashes at the points of a trace, from operation number from on. w and o are the disk and the oracle before the trace.
func (c *crasher) explore(w *sim.World, ops []*sim.Op, from int, o *oracle) error {
	w, o = w.Clone(), o.clone()
	version := uint64(c.rng.Uint64())
	changed := true
	points := c.source(0)
	for p := 0; p <= len(ops); p++ {
		// The oracle is strictest after all acknowledgments and before the next call.
		ends := p == len(ops) || ops[p].Kind != sim.Event || strings.HasPrefix(ops[p].Name, "begin") || strings.HasPrefix(ops[p].Name, "append")
		if p >= from && changed && ends && points.IntN(c.every) == 0 {
			changed = false
			c.last = ops[:p]
			if err := c.point(w, ops, p, o, version); err != nil {
				return fmt.Errorf("%w\ncrash at operation %d of %d:\n%s", err, p, len(ops), around(ops, p))
			}
		}
		if p == len(ops) {
			break
		}
		if op := ops[p]; op.Kind == sim.Event {
			op.Event.(func(*oracle))(o)
			version++
			changed = changed || !strings.HasPrefix(op.Name, "begin") && !strings.HasPrefix(op.Name, "append")
		} else {
			w.Apply(op)
			changed = true
		}
	}
	return nil
}

// around returns the operations before a crash, and a few after it, as text.
func around(ops []*sim.Op, p int) string {
	var s strings.Builder
	for i := max(0, p-400); i < min(len(ops), p+4); i++ {
		mark := "  "
		if i == p {
			mark = "* "
		}
		fmt.Fprintf(&s, "%s%4d %v\n", mark, i, ops[i])
	}
	return s.String()
}

// source returns the random source that decides where and how to crash. It depends on the seed alone, so that the timing of
// goroutines in the opened logs does not change the crashes.
func (c *crasher) source(n int) *rand.Rand { return rand.New(rand.NewPCG(c.seed, uint64(n)+1000)) }

// point tries crashes at one point of a trace.
func (c *crasher) point(w *sim.World, ops []*sim.Op, p int, o *oracle, version uint64) error {
	rng := c.source(1 + p)
	if err := c.killed(w, ops, p, o, version, rng); err != nil {
		return err
	}
	cuts := sim.WholeCuts()
	singles := sim.SingleCuts(w, rng)
	if c.singles >= 0 && len(singles) > c.singles {
		rng.Shuffle(len(singles), func(i, j int) { singles[i], singles[j] = singles[j], singles[i] })
		singles = singles[:c.singles]
	}
	cuts = append(cuts, singles...)
	for range c.randoms {
		cuts = append(cuts, sim.RandomCut(rng))
	}
	for i := range cuts {
		if err := c.visit(cuts[i].What, cuts[i].Apply(w), o, true, version, 0); err != nil {
			return err
		}
	}
	return nil
}

// killed tries crashes of the process alone, which the page cache survives. Of a store through a mapping, any part may be done;
// a system call is done or not.
func (c *crasher) killed(w *sim.World, ops []*sim.Op, p int, o *oracle, version uint64, rng *rand.Rand) error {
	if w.InWindow(ops[p:]) {
		w = w.Excused()
	}
	if err := c.visit("killed", w.Clone(), o, false, version, 0); err != nil {
		return err
	}
	if w.Unseen() {
		if err := c.visit("killed, and the cache was emptied", w.Evicted(), o, true, version, 0); err != nil {
			return err
		}
	}
	if p == len(ops) || ops[p].Kind != sim.Store {
		return nil
	}
	part := *ops[p]
	part.Data = slices.Clone(part.Data)
	old := w.Nodes[part.Node].Cache[part.Pos : part.Pos+int64(len(part.Data))]
	from, to := rng.IntN(len(old)), len(old)
	if rng.IntN(2) == 0 {
		from, to = 0, from
	}
	copy(part.Data[from:to], old[from:to])
	torn := w.Clone()
	torn.Apply(&part)
	return c.visit("killed in a store", torn, o, false, version, 0)
}

// visit checks a state, unless the same state has been checked against the same oracle.
func (c *crasher) visit(what string, state *sim.World, o *oracle, machine bool, version uint64, depth int) error {
	h := state.Hash()
	key := h*31 + version
	if !machine {
		key = ^key
	}
	if _, ok := c.checked[key]; ok {
		return nil
	}
	c.checked[key] = struct{}{}
	c.distinct[h] = struct{}{}
	c.cuts[strings.SplitN(what, " ", 2)[0]]++
	hangs := time.AfterFunc(simPatience/time.Duration(1+depth), func() {
		panic(fmt.Sprintf("hangs\nstate: %s, at depth %d\n%v%s", what, depth, state, around(c.last, len(c.last))))
	})
	defer hangs.Stop()
	if err := c.check(state, o, machine, depth); err != nil {
		return fmt.Errorf("%w\nstate: %s, at depth %d\n%v", err, what, depth, state)
	}
	return nil
}

func (c *crasher) fsys(s *sim.FS) vfs.FS {
	if c.wrap == nil {
		return s
	}
	return c.wrap(s)
}

// check opens a state, checks and uses the log, and opens it again. Then it crashes the recorded trace of that.
func (c *crasher) check(state *sim.World, o *oracle, machine bool, depth int) error {
	s := sim.NewFS(state.Clone(), c.mapped)
	u := &simUser{fsys: c.fsys(s), sim: s, dir: sim.Dir, opts: c.opts, rng: c.rng, id: c.rng.Int64N(1<<40) + 1<<40}
	c.opens++
	if o.judge != nil {
		if err := o.judge.checkCopies(state, c.mapped); err != nil {
			return err
		}
	}
	open := openFS
	if s.World.Unseen() {
		open = func(fsys vfs.FS, _ string, opts *Options) (*Log, error) { return openToldOf(fsys, s, opts) }
	}
	l, err := open(u.fsys, sim.Dir, &c.opts)
	if err != nil {
		return fmt.Errorf("refused to open: %w", err)
	}
	u.log = l
	got, err := readLog(l)
	if err == nil {
		err = o.check(got, machine)
	}
	if of := l.Offsets(); err == nil && c.opts.Flush == FlushSync && (of.RecoveryPoint != of.End || of.HighWatermark != of.End) {
		err = fmt.Errorf("opened with a tail that is not durable: %+v", of)
	}
	if err != nil {
		s.Kill()
		return errors.Join(err, ignore(l.Close()))
	}
	if o.judge != nil && o.judge.holes() {
		w := s.Kill()
		ignore(l.Close())
		return c.readOnly(w, got)
	}
	u.o = o.clone()
	u.event(fmt.Sprint("opened ", got.start, " to ", got.end), func(o *oracle) { o.opened(got) })
	err = c.goOn(u)
	after := s.Kill()
	ignore(l.Close())
	switch {
	case err != nil:
		return fmt.Errorf("after recovery: %w", err)
	case len(s.Misuse) > 0:
		return fmt.Errorf("misuse of the file system: %v", s.Misuse)
	}
	if err := c.again(after, u.o); err != nil {
		return fmt.Errorf("second open: %w", err)
	}
	if depth < c.depth {
		return c.inside(state, s.Ops, o, depth)
	}
	return nil
}

func ignore(error) error { return nil }

// goOn makes a few calls on a recovered log.
func (c *crasher) goOn(u *simUser) error {
	for range c.rng.IntN(4) {
		if err := u.append(1 + u.rng.IntN(2)); err != nil {
			return err
		}
	}
	if c.rng.IntN(4) == 0 && !c.uncut {
		end := u.end()
		if err := u.truncateTo(max(u.o.only().start, end-u.rng.Int64N(4))); err != nil {
			return err
		}
		if err := u.append(1); err != nil {
			return err
		}
	}
	if err := u.verify(); err != nil {
		return err
	}
	return u.wrong
}

// again opens a log that a killed process left, in which nothing may have changed.
func (c *crasher) again(w *sim.World, o *oracle) error {
	s := sim.NewFS(w.Clone(), c.mapped)
	u := &simUser{fsys: c.fsys(s), sim: s, dir: sim.Dir, opts: c.opts, rng: c.rng, o: o}
	c.opens++
	if err := u.open(); err != nil {
		return err
	}
	if end := o.only().end(); u.log.Offsets().End != end && u.wrong == nil {
		u.wrong = fmt.Errorf("the log ends at %d, not where its user left it", end)
	}
	if c.rng.IntN(4) > 0 {
		got, err := readLog(u.log)
		w := s.Kill()
		ignore(u.log.Close())
		if err = errors.Join(err, u.wrong); err != nil {
			return err
		}
		return c.readOnly(w, got)
	}
	if err := u.close(); err != nil {
		return err
	}
	if left := s.Left(); len(left) > 0 {
		return fmt.Errorf("not released: %v", left)
	}
	if err := u.open(); err != nil {
		return fmt.Errorf("after close: %w", err)
	}
	s.Kill()
	ignore(u.log.Close())
	return u.wrong
}

// readOnly opens what a killed process left as another one does that only reads: it must show what the log of the killed one did, under
// FlushSync as far as that had noted it.
func (c *crasher) readOnly(w *sim.World, want *content) error {
	s := sim.NewFS(w, c.mapped)
	opts := c.opts
	opts.ReadOnly, opts.OnSeal, opts.MayDelete = true, nil, nil
	l, err := openFS(s, sim.Dir, &opts)
	if err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	got, err := readLog(l)
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	if got.start != want.start || got.end > want.end || c.opts.Flush != FlushSync && got.end < want.end {
		return fmt.Errorf("read-only: [%d, %d), the writer had [%d, %d)", got.start, got.end, want.start, want.end)
	}
	n := 0
	for n < len(want.recs) && want.recs[n].Offset < got.end {
		n++
	}
	if n != len(got.recs) {
		return fmt.Errorf("read-only: %d records in [%d, %d), the writer had %d", len(got.recs), got.start, got.end, n)
	}
	return nil
}

// inside crashes a recovery, and the use of the log after it, at random points.
func (c *crasher) inside(state *sim.World, ops []*sim.Op, o *oracle, depth int) error {
	for range c.inner {
		w, o := state.Clone(), o.clone()
		p := c.rng.IntN(len(ops) + 1)
		for _, op := range ops[:p] {
			if op.Kind == sim.Event {
				op.Event.(func(*oracle))(o)
			} else {
				w.Apply(op)
			}
		}
		c.last = ops[:p]
		cut := sim.RandomCut(c.rng)
		if c.rng.IntN(3) == 0 {
			cut = sim.WholeCuts()[c.rng.IntN(5)]
		}
		if err := c.visit(cut.What, cut.Apply(w), o, true, c.rng.Uint64(), depth+1); err != nil {
			return fmt.Errorf("%w\ncrash in the recovery at operation %d of %d:\n%s", err, p, len(ops), around(ops, p))
		}
	}
	return nil
}

func init() { sim.NotesFailure = notesFailure }

// notesFailure reports whether op notes in seglog.state that a write or flush has failed.
func notesFailure(op *sim.Op) bool {
	var st state
	return op.Kind == sim.Write && op.Name == stateName && st.decode(op.Data) && st.failed
}

// openToldOf opens a log whose files have unreported errors. The first flush of such a file returns the error and fails the log,
// which notes the failure; the next Open then rewrites the records that it keeps.
func openToldOf(fsys vfs.FS, s *sim.FS, opts *Options) (*Log, error) {
	l, err := openFS(fsys, sim.Dir, opts)
	if err == nil {
		if err = l.Sync(); err == nil {
			s.ForgetErrors()
			return l, nil
		}
		err = errors.Join(err, l.Close())
	}
	if !errors.Is(err, syscall.EIO) {
		return nil, err
	}
	l, err = openFS(fsys, sim.Dir, opts)
	s.ForgetErrors()
	return l, err
}
