package seglog

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

var (
	tortureStates = flag.Int("torture", 0, "crash simulation: open at least this many distinct states; also fail every operation and damage every byte")
	tortureSeed   = flag.Uint64("torture-seed", 0, "crash simulation: seed of the first workload; 0 takes one from the clock with -torture, and 1 without")
)

// simConfig is a workload to record and crash. All of it follows from the seed.
type simConfig struct {
	seed   uint64
	opts   Options
	mapped bool
	steps  int
	// failFlush is the number of the flush that fails; 0: none. The log then latches, and is closed and opened again.
	failFlush int
}

func newSimConfig(seed uint64) simConfig {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := simConfig{seed: seed, mapped: seed%3 != 0, steps: 12 + rng.IntN(30)}
	c.opts = Options{
		Flush:        FlushPolicy(rng.IntN(3)),
		SegmentBytes: []int64{4096, 6000, 8192, 16384}[rng.IntN(4)],
		IndexBytes:   []int{64, 300, 4096}[rng.IntN(3)],
	}
	if c.opts.Flush == FlushAsync {
		c.opts.FlushInterval = time.Duration(1+rng.IntN(20)) * time.Millisecond / 10
		c.opts.FlushBytes = 500 + rng.Int64N(5000)
	}
	if rng.IntN(5) == 0 {
		c.opts.RetentionBytes = 2*c.opts.SegmentBytes + rng.Int64N(8192)
	}
	if rng.IntN(5) == 0 {
		c.failFlush = 1 + rng.IntN(40)
	}
	return c
}

func (c simConfig) String() string {
	return fmt.Sprintf("seed %d: Flush %v, SegmentBytes %d, IndexBytes %d, RetentionBytes %d, mapped %v, %d steps, failing flush %d",
		c.seed, c.opts.Flush, c.opts.SegmentBytes, c.opts.IndexBytes, c.opts.RetentionBytes, c.mapped, c.steps, c.failFlush)
}

// record runs the workload, closes the log, and returns its user with the trace.
func (c simConfig) record(wrap func(*sim.FS) vfs.FS) (*simUser, error) {
	s := sim.NewFS(sim.NewWorld(), c.mapped)
	u := newSimUser(s, c.opts, c.seed)
	if wrap != nil {
		u.fsys = wrap(s)
	}
	if c.failFlush > 0 {
		keep := u.rng.Uint64() * uint64(u.rng.IntN(2))
		s.Fault = func(kind sim.Kind, nth int, path string) *sim.Fault {
			if kind == sim.Flush && nth == c.failFlush {
				return &sim.Fault{Err: syscall.EIO, Keep: keep}
			}
			return nil
		}
	}
	if c.opts.RetentionBytes > 0 {
		u.event("retention", func(o *oracle) { o.retained = &u.retained })
	}
	err := u.open()
	if err != nil && len(s.Faults) > 0 {
		err = u.open()
	}
	if err != nil {
		return u, fmt.Errorf("open: %w", err)
	}
	for range c.steps {
		err := u.step()
		if err == nil {
			err = u.wrong
		}
		if err != nil && len(s.Faults) > 0 && errors.Is(err, syscall.EIO) {
			err = u.recover()
		}
		if err != nil {
			if u.log != nil {
				ignore(u.log.Close())
			}
			return u, errors.Join(err, u.wrong)
		}
	}
	if u.log == nil {
		return u, errors.Join(u.open(), u.close())
	}
	if err := u.close(); err != nil && !errors.Is(err, syscall.EIO) {
		return u, err
	}
	if left := s.Left(); len(left) > 0 {
		return u, fmt.Errorf("not released: %v", left)
	}
	if len(s.Misuse) > 0 {
		return u, fmt.Errorf("misuse of the file system: %v", s.Misuse)
	}
	return u, u.wrong
}

// recover closes a log that has failed, and opens it again.
func (u *simUser) recover() error {
	if u.log != nil {
		ignore(u.log.Close())
	}
	return u.open()
}

// crash records the workload and crashes it with a crasher that tune has adjusted.
func (c simConfig) crash(wrap func(*sim.FS) vfs.FS, tune func(*crasher)) (*crasher, error) {
	x := newCrasher(c.opts, c.mapped, c.seed)
	x.wrap = wrap
	tune(x)
	u, err := c.record(wrap)
	if err != nil {
		return x, fmt.Errorf("%w\nin the workload itself:\n%s", err, around(u.sim.Ops, len(u.sim.Ops)))
	}
	return x, x.explore(sim.NewWorld(), u.sim.Ops, 0, newOracle(0))
}

// TestCrash cuts the power, or kills the process, at points of random workloads, and again during the recoveries. With
// -torture=1000000, it does so at every point until at least that many distinct states have been opened.
func TestCrash(t *testing.T) {
	t.Parallel()
	seed, atLeast := uint64(1), 1500
	if race.On {
		atLeast = 400
	}
	tune := func(x *crasher) { x.every, x.singles, x.randoms, x.inner, x.depth = 6, 3, 2, 1, 1 }
	if *tortureStates > 0 {
		seed, atLeast = uint64(time.Now().UnixNano()), *tortureStates
		tune = func(x *crasher) { x.singles, x.randoms, x.inner = -1, 12, 1 }
	}
	if *tortureSeed != 0 {
		seed = *tortureSeed
	}
	distinct := map[uint64]struct{}{}
	cuts := map[string]int{}
	opens, workloads := 0, 0
	begun := time.Now()
	// It takes 18 workloads to meet all combinations of flush policies, with and without mappings and failing flushes.
	for ; len(distinct) < atLeast || workloads < 18; workloads++ {
		c := newSimConfig(seed + uint64(workloads))
		x, err := c.crash(nil, func(x *crasher) { tune(x); x.distinct = distinct })
		require.NoErrorf(t, err, "%v", c)
		opens += x.opens
		for what, n := range x.cuts {
			cuts[what] += n
		}
		if *tortureStates > 0 && workloads%20 == 0 {
			fmt.Printf("%d distinct states, %d opens, %d workloads, %v\n", len(distinct), opens, workloads+1, time.Since(begun).Round(time.Second))
		}
	}
	t.Logf("%d distinct states in %d workloads from seed %d on, %d opens, by cut: %v", len(distinct), workloads, seed, opens, cuts)
}
