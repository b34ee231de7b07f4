package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
)

// injected is one way in which an operation of one kind fails.
type injected struct {
	kind sim.Kind
	sim.Fault
}

func (i injected) String() string {
	s := fmt.Sprintf("%v: %v", i.kind, i.Err)
	if i.Short {
		s += " after half"
	}
	return s
}

var injections = []injected{
	{sim.Write, sim.Fault{Err: syscall.EIO}},
	{sim.Write, sim.Fault{Err: syscall.EIO, Short: true}},
	{sim.Write, sim.Fault{Err: syscall.ENOSPC}},
	{sim.Write, sim.Fault{Err: syscall.ENOSPC, Short: true}},
	{sim.Write, sim.Fault{Err: syscall.EINTR}},
	{sim.Store, sim.Fault{Err: syscall.EIO}},
	{sim.Store, sim.Fault{Err: syscall.EIO, Short: true}},
	{sim.Zero, sim.Fault{Err: syscall.ENOSPC}},
	{sim.Zero, sim.Fault{Err: syscall.EIO}},
	{sim.Reserve, sim.Fault{Err: syscall.ENOSPC}},
	{sim.Reserve, sim.Fault{Err: syscall.EIO}},
	{sim.Truncate, sim.Fault{Err: syscall.EIO}},
	{sim.Flush, sim.Fault{Err: syscall.EIO}},
	{sim.Flush, sim.Fault{Err: syscall.EIO, Keep: 7}},
	{sim.Flush, sim.Fault{Err: syscall.EINTR}},
	{sim.Create, sim.Fault{Err: syscall.EMFILE}},
	{sim.Create, sim.Fault{Err: syscall.ENOSPC}},
	{sim.Rename, sim.Fault{Err: syscall.EIO}},
	{sim.Link, sim.Fault{Err: syscall.EIO}},
	{sim.Remove, sim.Fault{Err: syscall.EIO}},
	{sim.SyncDir, sim.Fault{Err: syscall.EIO}},
	{sim.Open, sim.Fault{Err: syscall.EMFILE}},
	{sim.Read, sim.Fault{Err: syscall.EIO}},
	{sim.Stat, sim.Fault{Err: syscall.EIO}},
	{sim.List, sim.Fault{Err: syscall.EIO}},
	{sim.Map, sim.Fault{Err: syscall.ENOMEM}},
	{sim.Lock, sim.Fault{Err: syscall.EIO}},
	{sim.Mkdir, sim.Fault{Err: syscall.EIO}},
}

// injector runs one workload repeatedly, each time with a different operation that fails.
type injector struct {
	t      *testing.T
	opts   Options
	mapped bool
	what   string // for messages
	err    error  // the injected error
	u      *simUser
	s      *sim.FS
}

// script returns the calls of the workload, which together use every kind of operation.
func (in *injector) script() []func(u *simUser) error {
	one := func(u *simUser) error { return u.append(1) }
	three := func(u *simUser) error { return u.append(3) }
	var calls []func(u *simUser) error
	add := func(fs ...func(u *simUser) error) { calls = append(calls, fs...) }
	reopen := func(u *simUser) error {
		if err := u.close(); err != nil {
			return err
		}
		return u.open()
	}
	add(one, three, (*simUser).sync, one, one, three, one, three, (*simUser).verify)
	add(func(u *simUser) error { return u.transferFrom(2) })
	add(func(u *simUser) error { return u.truncateTo(u.end() - 1) }, one)
	add(func(u *simUser) error { return u.appendBatch(2) }, three, three, one, (*simUser).verify)
	add(func(u *simUser) error { return u.truncateTo(max(u.end()-9, u.o.only().start)) }, three)
	add(func(u *simUser) error { return u.deleteBefore(u.end() - 3) }, one, reopen, three, three, (*simUser).verify)
	add(func(u *simUser) error { return u.reset(u.end() + 5) }, one, three, one, three, reopen, (*simUser).verify)
	return calls
}

// run runs the workload with a failure of the nth operation of i's kind. It returns false if there was no such operation.
func (in *injector) run(i injected, nth int, rng *rand.Rand) bool {
	t := in.t
	in.what = fmt.Sprintf("%v, number %d, mapped %v, Flush %v", i, nth, in.mapped, in.opts.Flush)
	in.err = i.Err
	before := runtime.NumGoroutine()
	in.s = sim.NewFS(sim.NewWorld(), in.mapped)
	in.u = newSimUser(in.s, in.opts, 5)
	in.s.Fault = func(kind sim.Kind, n int, path string) *sim.Fault {
		if kind == i.kind && n == nth {
			return &i.Fault
		}
		return nil
	}
	u := in.u
	in.call(u.open)
	for _, step := range in.script() {
		if u.log == nil || len(u.o.lineages) > 1 {
			in.again()
		}
		in.call(func() error { return step(u) })
	}
	if u.log == nil || len(u.o.lineages) > 1 {
		in.again()
	}
	in.call(u.close)
	in.released(before)
	in.s.SetFault(nil)
	if u.log == nil {
		in.again()
		require.NoError(t, u.verify(), in.what)
		require.NoError(t, u.close(), in.what)
	}
	require.NoError(t, u.wrong, in.what)
	require.Empty(t, in.s.Misuse, in.what)
	in.released(before)
	if len(in.s.Faults) == 0 {
		return false
	}
	in.crash(rng)
	return true
}

// call makes one call of the workload. If the call fails, its error must name the failure, and the log must be consistent.
func (in *injector) call(f func() error) {
	t, u := in.t, in.u
	err := f()
	require.NoError(t, u.wrong, in.what)
	if err == nil {
		return
	}
	require.NotEmpty(t, in.s.Faults, "%s: failed without a fault: %v", in.what, err)
	require.ErrorIs(t, err, in.err, in.what)
	var named *fs.PathError
	require.ErrorAs(t, err, &named, in.what)
	require.NotEmpty(t, named.Op, in.what)
	require.Contains(t, err.Error(), sim.Dir, "%s: error does not name the log", in.what)
	require.NotEmpty(t, named.Path, "%s: error does not name the file: %v", in.what, err)
	if u.log == nil {
		return
	}
	if u.log.closed.Load() {
		u.log = nil
		return
	}
	got, rerr := readLog(u.log)
	removing := len(u.o.lineages) > 1 // in the middle of a cut, whose records may be gone
	if !removing || !errors.Is(rerr, ErrFailed) {
		require.NoError(t, rerr, "%s: reads after %v", in.what, err)
	}
	// A cut whose write failed has removed from the file also the part of a batch that it keeps; the next Open restores that.
	halfway := removing && len(in.s.Faults) > 0 && in.s.Faults[0].Op == sim.Write.String()
	if rerr == nil && (u.opts.Flush != FlushSync || removing) && !halfway {
		require.NoError(t, u.o.check(got, false), "%s: after %v", in.what, err)
	}
	if u.log.failed() != nil {
		in.latched(err)
	}
}

// latched checks that a failed log refuses each append with the cause, and that its bounds no longer move.
func (in *injector) latched(err error) {
	t, u := in.t, in.u
	was := u.log.Offsets()
	for range 2 {
		_, again := u.log.Append(Record{Value: []byte("x")})
		require.ErrorIs(t, again, ErrFailed, in.what)
		require.ErrorIs(t, again, in.err, in.what)
		require.ErrorIs(t, u.log.Sync(), ErrFailed, in.what)
	}
	require.Equal(t, was, u.log.Offsets(), "%s: after %v", in.what, err)
	ignore(u.log.Close())
	u.log = nil
}

// again closes the log, if it is open, and opens it. Close may return an earlier failure.
func (in *injector) again() {
	if in.u.log != nil {
		ignore(in.u.log.Close())
		in.u.log = nil
	}
	require.Empty(in.t, in.s.Left(), "%s: not released", in.what)
	err := in.u.open()
	if err != nil && errors.Is(err, in.err) {
		require.Empty(in.t, in.s.Left(), "%s: not released by Open", in.what)
		err = in.u.open() // the fault hit the first Open
	}
	require.NoError(in.t, err, in.what)
	require.NoError(in.t, in.u.wrong, in.what)
}

func (in *injector) released(goroutines int) {
	if in.u.log != nil {
		return
	}
	require.Empty(in.t, in.s.Left(), "%s: not released\n%s", in.what, around(in.s.Ops, len(in.s.Ops)))
	for range 200 {
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		time.Sleep(time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	require.Failf(in.t, "goroutines left", "%s\n%s", in.what, buf[:runtime.Stack(buf, true)])
}

// crash cuts the power at some points of the run with the fault.
func (in *injector) crash(rng *rand.Rand) {
	x := newCrasher(in.opts, in.mapped, rng.Uint64())
	x.every, x.singles, x.randoms = max(1, len(in.s.Ops)/3), 0, 1
	require.NoError(in.t, x.explore(sim.NewWorld(), in.s.Ops, 0, newOracle(0)), in.what)
}

// TestInject runs a workload many times, and in each run fails a different operation in one of the possible ways. Without
// -torture it samples the operations; with it, it fails all of them.
func TestInject(t *testing.T) {
	total, every := 0, 6
	switch {
	case *tortureStates > 0:
		every = 1
	case race.On:
		every = 30
	}
	byKind := map[string]int{}
	rng := rand.New(rand.NewPCG(1, 4))
	for _, mapped := range []bool{true, false} {
		for _, flush := range []FlushPolicy{FlushSync, FlushNone} {
			in := &injector{t: t, mapped: mapped, opts: Options{Flush: flush, SegmentBytes: 4096, IndexBytes: 300}}
			for _, i := range injections {
				for nth := 1; in.run(i, nth, rng); nth += 1 + rng.IntN(2*every-1) {
					total++
					byKind[i.kind.String()]++
				}
			}
		}
	}
	t.Logf("%d injections: %v", total, byKind)
}

// TestInjectAhead fails the reservation and zeroing of blocks ahead of the appends, which only happen in segments of several
// MiB.
func TestInjectAhead(t *testing.T) {
	step := 2
	switch {
	case *tortureStates > 0:
		step = 1
	case race.On:
		step = 10
	}
	big := make([]byte, 300<<10)
	for _, flush := range []FlushPolicy{FlushSync, FlushNone} {
		for _, i := range injections {
			if i.kind != sim.Zero && i.kind != sim.Reserve {
				continue
			}
			for nth := 1; ; nth += step {
				what := fmt.Sprintf("%v, number %d, Flush %v", i, nth, flush)
				s := sim.NewFS(sim.NewWorld(), true)
				s.Fault = func(kind sim.Kind, n int, path string) *sim.Fault {
					if kind == i.kind && n == nth {
						return &i.Fault
					}
					return nil
				}
				opts := &Options{Flush: flush, SegmentBytes: 5 << 20}
				l, err := openFS(s, sim.Dir, opts)
				if err != nil {
					require.ErrorIs(t, err, i.Err, what)
					l, err = openFS(s, sim.Dir, opts)
				}
				require.NoError(t, err, what)
				for at := int64(0); at < 24; at++ {
					base, err := l.Append(Record{Value: big})
					if err != nil {
						require.ErrorIs(t, err, i.Err, what)
						if errors.Is(l.failed(), ErrFailed) {
							ignore(l.Close())
							l, err = openFS(s, sim.Dir, opts)
							require.NoError(t, err, what)
						}
						base, err = l.Append(Record{Value: big})
					}
					require.NoError(t, err, what)
					require.Equal(t, at, base, what)
				}
				require.NoError(t, l.Close(), what)
				require.Empty(t, s.Left(), what)
				require.Empty(t, s.Misuse, what)
				if len(s.Faults) == 0 {
					break
				}
			}
		}
	}
}

// TestInjectDiskFull fills the disk for a while after each number of appends. The log must return the error, still show its
// records, and go on once there is room, without being opened again.
func TestInjectDiskFull(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		for _, flush := range []FlushPolicy{FlushSync, FlushAsync, FlushNone} {
			for from := 0; from < 40; from++ {
				what := fmt.Sprintf("mapped %v, Flush %v, full after %d appends", mapped, flush, from)
				s := sim.NewFS(sim.NewWorld(), mapped)
				u := newSimUser(s, Options{Flush: flush, SegmentBytes: 4096}, uint64(from))
				require.NoError(t, u.open(), what)
				for range from {
					require.NoError(t, u.append(1), what)
				}
				s.SetFault(func(kind sim.Kind, n int, path string) *sim.Fault {
					switch {
					case kind == sim.Write && mapped && isLog(filepath.Base(path)):
						return nil // the write goes to reserved blocks
					case kind == sim.Reserve, kind == sim.Zero, kind == sim.Create, kind == sim.Write:
						return &sim.Fault{Err: syscall.ENOSPC, Short: n%2 == 0}
					}
					return nil
				})
				failures := 0
				for tries := 0; failures < 3; tries++ {
					require.Less(t, tries, 200, what)
					if err := u.append(1 + tries%3); err != nil {
						require.ErrorIs(t, err, syscall.ENOSPC, what)
						require.NotErrorIs(t, err, ErrFailed, what)
						failures++
					}
					require.NoError(t, u.verify(), what)
				}
				s.SetFault(nil)
				for range 6 {
					require.NoError(t, u.append(1), what)
				}
				require.NoError(t, u.verify(), what)
				require.NoError(t, u.close(), what)
				require.NoError(t, u.open(), what)
				require.NoError(t, u.verify(), what)
				require.NoError(t, u.close(), what)
				require.NoError(t, u.wrong, what)
				require.Empty(t, s.Left(), what)
			}
		}
	}
}
