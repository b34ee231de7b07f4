//go:build go1.25

package seglog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/sim"
)

// schedConfig is the workload of a schedule. All of it follows from the seed.
type schedConfig struct {
	seed      uint64
	mapped    bool
	logs      int
	phases    int // number of times that each log is opened
	users     int // number of concurrent users of each log
	calls     int // number of calls of each user
	large     bool
	segment   int64
	transfers bool
	gaps      bool // offsets are missing between the batches of a transfer
	goesBack  bool // the recovery point may go back
	cuts      bool // TruncateTo and Reset
	deletions bool
	retention bool
	ages      bool // the times of records differ enough for segments to roll by age
	hooks     bool // OnSeal and MayDelete are set; they are slow or call the log
	future    bool // users wait for records that are not appended yet
	readOnly  bool // another process reads the log
	snapshots bool
	leaves    bool // one user closes the log while others use it
	fault     schedFault
	from, to  int  // the fault hits the to-from calls from number from/4 on, among those of its kinds
	ext4      bool // blocks whose first write failed stay bad, as on ext4; otherwise as on XFS
	hostile   bool // after a lost write, the disk shows the old contents of the block
	uncut     bool // a log recovered after a crash is not cut either
	plant     sim.Plant
}

// schedFault is a fault of the file system.
type schedFault struct {
	name   string
	err    error
	kinds  []sim.Kind
	latch  bool   // the log may fail for good
	passes bool   // it is a shortage, after which the log works again
	late   bool   // see sim.Fault
	page   string // if not empty, a page of the file of this name can't be read
}

var schedFaults = []schedFault{
	{name: "flush fails", err: syscall.EIO, kinds: []sim.Kind{sim.Flush}, latch: true},
	{name: "write-back fails", err: syscall.EIO, kinds: []sim.Kind{sim.Flush, sim.Write, sim.Zero, sim.Reserve}, latch: true, late: true},
	{name: "page of the state unreadable", err: syscall.EIO, page: stateName},
	{name: "write fails", err: syscall.EIO, kinds: []sim.Kind{sim.Write, sim.Store}, latch: true},
	{name: "names fail", err: syscall.EIO, kinds: []sim.Kind{sim.Rename, sim.Create, sim.Remove, sim.SyncDir}, latch: true},
	{name: "disk full", err: syscall.ENOSPC, kinds: []sim.Kind{sim.Create, sim.Reserve, sim.Zero, sim.Write, sim.Rename}, passes: true},
	{name: "no blocks", err: syscall.ENOSPC, kinds: []sim.Kind{sim.Reserve}, passes: true},
	{name: "quota", err: syscall.EDQUOT, kinds: []sim.Kind{sim.Create, sim.Reserve, sim.Zero, sim.Write}, passes: true},
	{name: "no descriptors", err: syscall.EMFILE, kinds: []sim.Kind{sim.Open, sim.Create}, passes: true},
	{name: "no descriptors in the system", err: syscall.ENFILE, kinds: []sim.Kind{sim.Open, sim.Create}, passes: true},
	{name: "no memory", err: syscall.ENOMEM, kinds: []sim.Kind{sim.Map, sim.Open, sim.Create}, passes: true},
	{name: "read fails", err: syscall.EIO, kinds: []sim.Kind{sim.Read}, latch: true},
}

// schedMoreFaults were added later. They are drawn separately, so that older seeds still give the same configurations.
var schedMoreFaults = []schedFault{
	{name: "interrupted", err: syscall.EINTR, latch: true, kinds: []sim.Kind{sim.Open, sim.Create, sim.Read, sim.Stat, sim.List, sim.Map, sim.Lock, sim.Mkdir, sim.Write, sim.Zero,
		sim.Reserve, sim.Truncate, sim.Rename, sim.Link, sim.Remove, sim.SyncDir}},
	{name: "trim fails", err: syscall.EIO, latch: true, kinds: []sim.Kind{sim.Truncate, sim.Stat, sim.List}},
	{name: "quota at each call", err: syscall.EDQUOT, passes: true, kinds: []sim.Kind{sim.Create, sim.Reserve, sim.Zero, sim.Write, sim.Rename, sim.Link}},
}

func newSchedConfig(seed uint64) *schedConfig {
	rng := rand.New(rand.NewPCG(seed, 12))
	one := func(n int) bool { return rng.IntN(n) == 0 }
	c := &schedConfig{seed: seed, mapped: !one(4), logs: 1, phases: 1 + rng.IntN(3), users: 1 + rng.IntN(6), calls: 2 + rng.IntN(14)}
	if one(8) {
		c.logs = 2
	}
	c.segment = []int64{4096, 5000, 8192, 20000}[rng.IntN(4)]
	if one(6) {
		c.large = true
		c.segment = []int64{100_000, 300_000, 1_200_000}[rng.IntN(3)]
	}
	c.transfers = one(2)
	c.gaps = c.transfers && one(3)
	c.cuts = one(2)
	c.deletions = one(2)
	// After a cut in the middle of a stream, the rest of the stream leaves a gap, so transfers by several users need gaps allowed
	// when there are cuts.
	c.transfers = c.transfers && (c.users == 1 || !c.cuts || c.gaps)
	c.retention = one(6)
	c.ages = one(4)
	c.hooks = one(4)
	c.future = one(2)
	c.readOnly = one(4)
	c.leaves = one(5)
	if one(3) {
		c.fault = schedFaults[rng.IntN(len(schedFaults))]
		c.from = rng.IntN(400)
		c.to = c.from + 1 + rng.IntN(4)*rng.IntN(40)
	}
	c.ext4, c.hostile = one(2), one(3)
	// Where offsets may be missing, a stale batch that the disk brings back can't be told from a batch of the leader.
	c.hostile = c.hostile && !c.gaps
	c.snapshots = one(4)
	if c.fault.name == "" && one(6) {
		c.fault = schedMoreFaults[rng.IntN(len(schedMoreFaults))]
		c.from = rng.IntN(1200)
		c.to = c.from + 1 + rng.IntN(60)
	}
	for _, k := range schedKnown {
		if !slices.Contains(strings.Split(*schedWith, ","), k.fault) && *schedWith != "all" {
			k.avoid(c)
		}
	}
	return c
}

func (c *schedConfig) String() string {
	fault := "no fault"
	if c.fault.name != "" {
		fault = fmt.Sprintf("%s, %v, at calls %d to %d", c.fault.name, c.fault.err, c.from, c.to)
	}
	var with []string
	for name, on := range map[string]bool{"mapped": c.mapped, "large": c.large, "transfers": c.transfers, "gaps": c.gaps, "cuts": c.cuts, "deletions": c.deletions, "retention": c.retention,
		"ages": c.ages, "hooks": c.hooks, "waits for the future": c.future, "read-only log": c.readOnly, "snapshots": c.snapshots, "close in the middle": c.leaves, "ext4": c.ext4, "hostile disk": c.hostile} {
		if on {
			with = append(with, name)
		}
	}
	slices.Sort(with)
	return fmt.Sprintf("seed %d: %d logs, %d phases, %d users with %d calls, SegmentBytes %d, with %v; %s",
		c.seed, c.logs, c.phases, c.users, c.calls, c.segment, with, fault)
}

// schedKnown lists the known faults of the engine that are not fixed yet, each with a function that keeps the workload away
// from the fault. The fix of a fault removes its entry.
var schedKnown = []struct {
	fault string
	avoid func(c *schedConfig)
}{}

// options returns the options of a phase.
func (c *schedConfig) options(rng *rand.Rand, w *schedLog) Options {
	o := Options{
		Flush:           FlushPolicy(rng.IntN(3)),
		SegmentBytes:    c.segment,
		IndexBytes:      []int{64, 300, 4096}[rng.IntN(3)],
		MaxOpenSegments: 1 + rng.IntN(4),
	}
	if o.Flush == FlushAsync {
		o.FlushInterval = time.Duration(1+rng.IntN(50)) * time.Millisecond
		o.FlushBytes = 500 + rng.Int64N(c.segment)
	}
	if c.ages {
		o.SegmentAge = time.Duration(1+rng.IntN(10)) * 100 * time.Millisecond
	}
	if c.retention {
		if rng.IntN(2) == 0 {
			o.RetentionBytes = c.segment + rng.Int64N(3*c.segment)
		} else {
			o.RetentionAge = time.Duration(1+rng.IntN(2000)) * time.Millisecond
		}
	}
	if c.hooks {
		c.addHooks(&o, w, rand.New(rand.NewPCG(c.seed, 14)))
	}
	return o
}

func (c *schedConfig) addHooks(o *Options, w *schedLog, rng *rand.Rand) {
	hook := func() {
		switch l := w.l; rng.IntN(4) {
		case 0:
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			sched.Yield("hook")
		case 1:
			if l != nil {
				l.Stats()
			}
		case 2:
			if l != nil {
				if _, err := l.Read(l.Offsets().Start); err != nil {
					w.fine("read in a hook", err, ErrClosed)
				}
			}
		}
	}
	o.OnSeal = func(SegmentInfo) { hook() }
	o.MayDelete = func(SegmentInfo) bool { hook(); return rng.IntN(4) > 0 }
}

// world returns an empty disk.
func (c *schedConfig) world() *sim.World {
	w := sim.NewWorld()
	w.Ext4, w.Hostile = c.ext4, c.hostile
	return w
}

func (c *schedConfig) maxBatch() int { return int(min(c.segment, 400_000)) }

// shape returns the number of records in a batch, and their size.
func (c *schedConfig) shape(rng *rand.Rand) (n, size int) {
	switch k := rng.IntN(10); {
	case k < 5:
		return 1, rng.IntN(60)
	case k < 7:
		return 1 + rng.IntN(6), rng.IntN(200)
	case k < 9:
		return 1 + rng.IntN(3), rng.IntN(1300)
	case c.large:
		return 1 + rng.IntN(2), rng.IntN(c.maxBatch())
	}
	return 1, rng.IntN(int(c.segment) - 200)
}

// age returns how far the time of a record lies above a fixed time, in milliseconds.
func (c *schedConfig) age(rng *rand.Rand) int64 {
	if c.ages {
		return rng.Int64N(3000)
	}
	return rng.Int64N(50)
}

// forgives reports whether the faults that the file system has shown so far allow a call to fail with err.
func (c *schedConfig) forgives(s *sim.FS, err error) bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	switch {
	case len(s.Faults) == 0:
		return false
	case errors.Is(err, ErrFailed):
		// Once a cut has noted its intent, a shortage latches the log. It may come from a write in place, on a file system that
		// allocates new blocks for it, from a copy made for a reader in another process, or from a new name.
		return c.fault.latch || c.fault.passes && strings.Contains(err.Error(), "cut at offset")
	}
	return errors.Is(err, c.fault.err)
}

// faults makes the file system of the first log fail as configured.
func (c *schedConfig) faults(s *sim.FS, number int) {
	if number > 0 {
		return
	}
	if c.fault.page != "" {
		s.Bad = map[string]int64{c.fault.page: int64(c.from % 2)}
	}
	calls, short := 0, rand.New(rand.NewPCG(c.seed, 13))
	s.Fault = func(kind sim.Kind, _ int, path string) *sim.Fault {
		if !slices.Contains(c.fault.kinds, kind) {
			return nil
		}
		if name := filepath.Base(path); c.fault.passes && kind == sim.Write && (c.mapped && (isLog(name) || tookPlace(s, name)) || name == stateName) {
			return nil // these blocks are allocated already
		}
		if c.fault.passes && kind == sim.Rename && filepath.Base(path) == cutName {
			return nil // the rename replaces a name that exists
		}
		if calls++; calls < c.from/4 || calls >= c.from/4+c.to-c.from {
			return nil
		}
		return &sim.Fault{Err: c.fault.err, Short: short.IntN(2) == 0, Keep: short.Uint64() * short.Uint64N(2), Late: c.fault.late}
	}
}

// tookPlace reports whether name was the name of a segment's copy that has been renamed to the segment's own name since. The
// caller holds s.mu.
func tookPlace(s *sim.FS, name string) bool {
	if name != cutName {
		return false
	}
	for other := range s.World.Names {
		if filepath.Base(other) == cutName {
			return false
		}
	}
	return true
}
