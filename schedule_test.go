//go:build go1.25

package seglog

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	schedSeed  = flag.Uint64("schedule-seed", 0, "schedules: run the one of this seed alone")
	schedFirst = flag.Uint64("schedule-first", 1, "schedules: seed of the first one")
	schedCount = flag.Int("schedules", 0, "schedules: how many; 0 is as many as fit a test run")
	schedWith  = flag.String("schedule-with", "", "schedules: faults that are known and met nevertheless, with commas between them, or all")
	schedCrash = flag.Int("schedule-crashes", -1, "schedules: crash each at about so many points; -1 is some at many and most at one")
	schedOnly  = flag.String("schedule-only", "", "schedules: only those whose configuration says all of these, with commas between them")
	schedSteps = flag.Int("schedule-steps", 150, "schedules: how many steps of a failing one are shown")
	schedGoOn  = flag.Bool("schedule-all", false, "schedules: go on after a failing one, and tell of each by one line")
)

// watchdog ends the process if a schedule makes no step: the engine loops, or waits for something that the scheduler does not
// see.
func watchdog(r *schedRun) (stop func()) {
	done := make(chan struct{})
	var stopped atomic.Bool
	go func() {
		last, since := int64(-1), time.Now()
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
			}
			if n := r.s.count.Load(); n != last {
				last, since = n, time.Now()
			} else if time.Since(since) > time.Minute && !stopped.Load() {
				fmt.Fprintf(os.Stderr, "%v\nspins, or waits for a lock that is no mutex:\n%s\n%s", r.c, r.s.tail(100), bubbleStacks(r.bubble))
				os.Exit(2)
			}
		}
	}()
	return func() { stopped.Store(true); close(done) }
}

// schedule1 runs one schedule, and crashes what it recorded. The seed is an argument so that the trace of a panic in
// one of the engine's goroutines shows it.
//
//go:noinline
func schedule1(t *testing.T, seed uint64, plant schedPlant) (r *schedRun, err error) {
	c := newSchedConfig(seed)
	c.plant = plant
	r = &schedRun{c: c, s: newSched(seed)}
	r.s.verbose = *schedSeed != 0
	defer func() { schedule = nil }()
	defer watchdog(r)()
	func() {
		defer func() {
			if e := recover(); e != nil && r.err == nil { // the bubble panics if goroutines wait for ever
				r.err = fmt.Errorf("%v", e)
			}
		}()
		synctest.Test(t, func(*testing.T) { r.run() })
	}()
	schedule = nil
	if r.err != nil {
		return r, fmt.Errorf("%w\n%s", r.err, r.trace())
	}
	for i, w := range r.logs {
		opts := Options{Flush: FlushPolicy(seed % 3), SegmentBytes: c.segment}
		if opts.Flush == FlushAsync {
			opts.FlushInterval = time.Millisecond
		}
		x := newCrasher(opts, c.mapped, seed)
		x.uncut = c.uncut
		x.every, x.singles, x.randoms, x.inner, x.depth = max(1, len(w.sim.ops)/max(1, crashPoints(seed))), 2, 2, 1, 1
		if err := (histView{w.h, w.h.events}).checkCopies(w.sim.w, c.mapped); err != nil {
			return r, fmt.Errorf("log %d at the end: %w\n%s", i, err, r.trace())
		}
		o := newOracle(0)
		o.judge = histView{w.h, 0}
		if err := x.explore(c.world(), w.sim.ops, 0, o); err != nil {
			return r, fmt.Errorf("log %d: %w", i, err)
		}
	}
	return r, nil
}

// crashPoints returns the number of points at which a schedule is crashed. A crash costs more time than the schedule itself, and
// orders of goroutines find other faults than crashes do, so most schedules are crashed at one point.
func crashPoints(seed uint64) int {
	switch {
	case *schedCrash >= 0:
		return *schedCrash
	case seed%6 == 0:
		return 12
	}
	return 1
}

// schedPinned are the seeds that once found a fault of the engine, or that find one of torture/bugs soonest. A change of the
// engine changes the schedules that they make, so they are a little better than other seeds, but no proof.
var schedPinned = []struct {
	seed    uint64
	crashes int
	found   string
}{
	{72, 0, "a reader in another process took the blocks behind a segment that ends in a gap, of which less than a header is left, for damage"},
	{884, 1, "a snapshot of a log whose cut had failed half-way"},
	{1101, 12, "a snapshot that failed came back in a power cut"},
	{33, 12, "a snapshot that was killed opened read-only"},
	{183, 12, "the same, of a log that was cut meanwhile"},
	{127, 12, "the same, beside deletions"},
	{300027414, 0, "a full disk latched the log that could not write again what it had kept"},
	{300020144, 0, "a Section from the end of a log that is closed looked for its segment for ever"},
	{300016564, 0, "a snapshot by a reader in another process missed what a slot of the state told that can't be read"},
	{300042299, 0, "a snapshot by a reader in another process missed what a cut hid"},
	{300030032, 12, "a snapshot whose last flush failed opened read-only without one of its segments"},
	{300039752, 12, "what a Reset took away came back as seglog.next in the place of newer records"},
	{400009404, 12, "files of a snapshot that was tried twice and failed came back without its state file"},
	{400026631, 12, "a reader in another process did not see what was flushed while the state file was being written, until the next flush"},
	{400037048, 12, "a record that was cut came back after a fence was lifted for a leader's batches"},
	{400043211, 0, "DeleteBefore flushed for ever up to an offset that a TruncateTo beside it had taken away"},
	{400050609, 0, "a Reset below what a deletion had left behind made the next Open refuse the log"},
	{500000165, 0, "a reader in another process searched for ever, and without an end to its stack, behind a batch that a cut took away meanwhile"},
	{510023993, 0, "a snapshot by a reader in another process copied the log again and again, without a pause, while a cut was under way"},
	{510032577, 1, "a roll behind a gap succeeded, the batch met a full disk, and the next append got an offset below its segment"},
	{510048732, 12, "a batch that a kill tore at its front was taken for a proof that the one before it, behind a gap, is wrong"},
	{510109266, 12, "a segment whose name a power cut took away held blocks of a removed one, and recovery took that for the end of the one before"},
	{540026351, 1, "a file of a failed snapshot that could not be removed at once was left without the state file that keeps it from opening"},
	{300032686, 0, "a reader looked at a cut that was interrupted a thousand times a second"},
}

// pinned runs the schedules of schedPinned.
func pinned(t *testing.T) {
	crashes := *schedCrash
	defer func() { *schedCrash = crashes }()
	for _, p := range schedPinned {
		*schedCrash = p.crashes
		r, err := schedule1(t, p.seed, plantNothing)
		require.NoErrorf(t, err, "%v\nonce it found: %s\ngo test -run TestSchedule -schedule-seed %d -schedule-crashes %d", r.c, p.found, p.seed, p.crashes)
	}
}

// trace returns the last steps of the schedule as text.
func (r *schedRun) trace() string {
	s := "the last steps:\n" + r.s.tail(*schedSteps)
	for i, w := range r.logs {
		s += fmt.Sprintf("log %d, what changed and what its users saw:\n", i)
		for k := max(0, len(w.sim.ops)-*schedSteps); k < len(w.sim.ops); k++ {
			s += fmt.Sprintf("%6d %v\n", k, w.sim.ops[k])
		}
	}
	return s
}

// TestSchedule runs workloads of many goroutines, each in an order that a seed decides, and crashes them.
func TestSchedule(t *testing.T) {
	if *schedSeed != 0 {
		r, err := schedule1(t, *schedSeed, plantNothing)
		require.NoErrorf(t, err, "%v", r.c)
		t.Logf("%v: %d steps\n%s", r.c, len(r.s.steps), r.trace())
		return
	}
	count, until := *schedCount, time.Time{}
	if count == 0 {
		pinned(t)
		budget := 14 * time.Second
		if testing.Short() {
			budget = 8 * time.Second
		}
		count, until = 100_000, time.Now().Add(budget)
	}
	steps, ran := 0, 0
	for ; ran < count && (until.IsZero() || time.Now().Before(until)); ran++ {
		seed := *schedFirst + uint64(ran)
		if c := newSchedConfig(seed).String(); slices.ContainsFunc(strings.Split(*schedOnly, ","), func(part string) bool { return !strings.Contains(c, part) }) {
			continue
		}
		r, err := schedule1(t, seed, plantNothing)
		steps += len(r.s.steps)
		if err != nil {
			if *schedGoOn {
				first, _, _ := strings.Cut(err.Error(), "\n")
				fmt.Printf("seed %d: %s\n", seed, first)
				t.Fail()
				continue
			}
			t.Errorf("%v\n\n%v\n\ngo test -run TestSchedule -schedule-seed %d", r.c, err, seed)
			return
		}
	}
	t.Logf("%d schedules from seed %d on, %d steps", ran, *schedFirst, steps)
}

// The same seed makes the same schedule.
func TestScheduleRepeats(t *testing.T) {
	crashes := *schedCrash
	defer func() { *schedCrash = crashes }()
	*schedCrash = 0
	for seed := range uint64(60) {
		var steps [2][]string
		for i := range steps {
			r, err := schedule1(t, seed+1, plantNothing)
			require.NoErrorf(t, err, "%v", r.c)
			for _, st := range r.s.steps {
				steps[i] = append(steps[i], st.String())
			}
		}
		for i := range min(len(steps[0]), len(steps[1])) {
			require.Equalf(t, steps[0][i], steps[1][i], "seed %d, step %d, after %v", seed+1, i, steps[0][max(0, i-10):i])
		}
		require.Len(t, steps[1], len(steps[0]), "seed %d", seed+1)
	}
}

// Each bug that is planted between the engine and the file system is found by one of the first schedules.
func TestScheduleFindsPlantedBugs(t *testing.T) {
	for plant := plantNothing + 1; plant < plants; plant++ {
		var err error
		seed := uint64(0)
		for err == nil && seed < 300 {
			seed++
			_, err = schedule1(t, seed, plant)
		}
		require.Errorf(t, err, "plant %d", plant)
		first, _, _ := strings.Cut(err.Error(), "\n")
		t.Logf("plant %d: seed %d: %s", plant, seed, first)
	}
}
