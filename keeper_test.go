package seglog

import (
	"cmp"
	"log/slog"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// These tests take the keeper's rounds one by one, in place of its goroutine.

// withoutWorkers opens a log on a simulated disk and ends its keeper and its preparer. It also returns what the Logger is told.
func withoutWorkers(t *testing.T, s *sim.FS, o Options) (*Log, *warnings) {
	t.Helper()
	said := &warnings{Handler: slog.DiscardHandler}
	o.Logger = slog.New(said)
	o.SegmentBytes = cmp.Or(o.SegmentBytes, 64<<10)
	l, err := openFS(s, sim.Dir, &o)
	require.NoError(t, err)
	l.keeper.Close()
	l.preparer.Close()
	l.retention.Close()
	return l, said
}

// fails makes operations of one kind fail on the state file or, with logSuffix, on segments.
func fails(kind sim.Kind, name string, err error) func(sim.Kind, int, string) *sim.Fault {
	return func(k sim.Kind, _ int, path string) *sim.Fault {
		base := filepath.Base(path)
		if k == kind && (base == name || name == logSuffix && isLog(base)) {
			return &sim.Fault{Err: err}
		}
		return nil
	}
}

// rolled appends until n rolled segments wait for their seal.
func rolled(t *testing.T, l *Log, n int) {
	t.Helper()
	for len(l.writer.sealing) < n {
		appendNumbered(t, l)
	}
}

// requireError checks that the Logger was told of one error more, and that Stats counts it.
func requireError(t *testing.T, l *Log, said *warnings, what string, cause error) {
	t.Helper()
	require.NotEmpty(t, said.lines, what)
	last := said.lines[len(said.lines)-1]
	require.Contains(t, last, what)
	require.Contains(t, last, cause.Error())
	require.Contains(t, last, "dir="+l.dir)
	require.EqualValues(t, len(said.lines), l.Stats().Errors)
}

func TestNextDueTime(t *testing.T) {
	now := time.Now()
	var s dueTimes
	require.Zero(t, s.next(now))
	for _, due := range []*time.Time{&s.flush, &s.stateFile, &s.cool, &s.seal, &s.rest} {
		later := now.Add(time.Hour)
		s = dueTimes{flush: later, stateFile: later, cool: later, seal: later, rest: later}
		*due = now.Add(time.Minute)
		require.Equal(t, time.Minute, s.next(now), "the earliest of all")
		*due = now.Add(-time.Minute)
		require.Equal(t, time.Millisecond, s.next(now))
		s = dueTimes{}
		*due = now.Add(time.Minute)
		require.Equal(t, time.Minute, s.next(now), "the only one")
	}
}

// Under FlushAsync, the keeper must flush FlushInterval after the first append or once FlushBytes are not flushed, and no earlier.
func TestKeeperFlushes(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	o := Options{Flush: FlushAsync, FlushInterval: time.Hour, FlushBytes: 5000}
	l, said := withoutWorkers(t, s, o)
	var due dueTimes
	durable := func() bool { return l.Offsets().RecoveryPoint == l.Offsets().End }
	l.keep(&due)
	require.True(t, due.flush.IsZero())
	appendNumbered(t, l)
	l.keep(&due)
	require.False(t, durable())
	require.WithinDuration(t, time.Now().Add(time.Hour), due.flush, time.Minute)
	due.flush = time.Now()
	l.keep(&due)
	require.True(t, durable())
	require.True(t, due.flush.IsZero())
	for l.unflushed() < o.FlushBytes {
		require.True(t, l.unflushed() == 0 || !durable())
		appendNumbered(t, l)
	}
	l.keep(&due)
	require.True(t, durable())
	require.Empty(t, said.lines)
	require.Zero(t, l.Stats().Errors)

	// The first flush after a kill writes the records again. If there is no room for that, the error is told, and the keeper tries
	// again.
	appendNumbered(t, l)
	s = sim.NewFS(s.Kill(), false)
	ignore(l.Close())
	l, said = withoutWorkers(t, s, o)
	appendNumbered(t, l)
	s.SetFault(fails(sim.Write, logSuffix, syscall.ENOSPC))
	due = dueTimes{flush: time.Now()}
	l.keep(&due)
	requireError(t, l, said, "not flushed", syscall.ENOSPC)
	require.False(t, durable())
	s.SetFault(nil)
	due.flush = time.Now()
	require.NoError(t, l.Sync())
	require.Len(t, said.lines, 1)
	// A failure of the disk is told once, as that of the log.
	appendNumbered(t, l)
	s.SetFault(fails(sim.Flush, logSuffix, syscall.EIO))
	due.flush = time.Now()
	l.keep(&due)
	requireError(t, l, said, "log failed", syscall.EIO)
	require.Len(t, said.lines, 2)
	s.SetFault(nil)
	require.ErrorIs(t, l.Close(), ErrFailed)
}

// The keeper must flush the state file stateFlushInterval after its first change, once.
func TestKeeperFlushesTheState(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone})
	flushes := 0
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Flush && filepath.Base(path) == stateName {
			flushes++
		}
		return nil
	})
	l.stateDirty.Store(false)
	due := dueTimes{stateFile: time.Now()}
	require.Greater(t, l.keep(&due), restAfter/2, "there is no more to do but to rest")
	require.Zero(t, flushes)
	appendNumbered(t, l)
	require.NoError(t, l.Sync())
	next := l.keep(&due)
	require.Zero(t, flushes)
	require.InDelta(t, stateFlushInterval, next, float64(stateFlushInterval/2))
	due.stateFile = time.Now()
	l.keep(&due)
	require.Equal(t, 1, flushes)
	require.Greater(t, l.keep(&due), restAfter/2)
	require.Equal(t, 1, flushes)
	require.Empty(t, said.lines)

	appendNumbered(t, l)
	require.NoError(t, l.Sync())
	s.SetFault(fails(sim.Flush, stateName, syscall.EIO))
	due.stateFile = time.Now()
	l.keep(&due)
	requireError(t, l, said, "state file not flushed", syscall.EIO)
	s.SetFault(nil)
	require.NoError(t, l.Close())
}

// A log that rests must not keep the buffers of its largest flush.
func TestRestReleasesBuffers(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{})
	g := l.writer.tail.seg.gather
	_, err := l.Append(Record{Value: make([]byte, 20_000)})
	require.NoError(t, err)
	require.Greater(t, cap(g.buf)+cap(g.spare), 20_000)
	require.NoError(t, l.rest(false))
	require.Zero(t, cap(g.buf)+cap(g.spare))
	appendNumbered(t, l)
	require.NoError(t, l.Close())
}

// A round seals one segment, notes that everything in front of the next is durable, and leaves nothing due. If it fails, the error
// is told, and another attempt is due sealRetry later.
func TestKeeperSeals(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rolled(t, l, 3)
	var due dueTimes
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Create {
			return &sim.Fault{Err: syscall.ENOSPC}
		}
		return nil
	})
	l.keep(&due)
	requireError(t, l, said, "segment 0 not sealed", syscall.ENOSPC)
	require.WithinDuration(t, time.Now().Add(sealRetry), due.seal, sealRetry/2)
	s.SetFault(nil)
	for i := range int64(2) {
		l.keep(&due)
		require.Equal(t, i+1, l.Stats().Seals)
		require.True(t, due.seal.IsZero())
		st, ok, err := readState(s, filepath.Join(sim.Dir, stateName))
		require.NoError(t, err)
		require.True(t, ok)
		next := l.view.Load().segs[i+1].base
		require.Equal(t, next, st.scanOffset)
		require.Equal(t, next, st.recoveryPoint)
	}
	s.SetFault(fails(sim.Write, stateName, syscall.ENOSPC))
	l.keep(&due)
	requireError(t, l, said, "recovery point not noted", syscall.ENOSPC)
	require.EqualValues(t, 3, l.Stats().Seals)
	s.SetFault(nil)
	// A segment that a cut took while the keeper was about to seal it is left alone.
	rolled(t, l, 1)
	gone := l.writer.sealing[0]
	require.NoError(t, l.TruncateTo(1))
	require.NoError(t, l.seal(gone))
	require.True(t, gone.seg.mu.TryLock())
	gone.seg.mu.Unlock()
	require.EqualValues(t, 3, l.Stats().Seals)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
}

// A segment whose records could not be flushed must not be sealed: its seal tells the next Open that they are durable.
func TestKeeperSealsNothingInDoubt(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rolled(t, l, 1)
	failed := false
	s.SetFault(func(kind sim.Kind, n int, path string) *sim.Fault {
		f := fails(sim.Flush, logSuffix, syscall.EIO)(kind, n, path)
		if f == nil || failed {
			return nil
		}
		failed = true // the kernel reports the failure once
		return f
	})
	l.keep(new(dueTimes))
	require.Contains(t, said.lines[0], "log failed")
	requireError(t, l, said, "segment 0 not sealed", syscall.EIO)
	require.Zero(t, l.Stats().Seals)
	st, _, err := readState(s, filepath.Join(sim.Dir, stateName))
	require.NoError(t, err)
	require.Zero(t, st.recoveryPoint)
	require.Zero(t, st.scanBase)
	require.ErrorIs(t, l.Close(), ErrFailed)
}

// Segments that could not be deleted because they were not sealed are deleted by the keeper, and if that fails, it is told.
func TestKeeperDeletesBelowTheStart(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rolled(t, l, 2)
	require.NoError(t, l.DeleteBefore(l.Offsets().End))
	require.Equal(t, 4, l.Stats().Segments)
	s.SetFault(fails(sim.Remove, logSuffix, syscall.EACCES))
	l.keep(new(dueTimes))
	requireError(t, l, said, "segment not deleted", syscall.EACCES)
	s.SetFault(nil)
	l.keep(new(dueTimes))
	l.keep(new(dueTimes))
	require.Equal(t, 1, l.Stats().Segments)
	require.Len(t, said.lines, 1)
	require.NoError(t, l.Close())
}

// A deletion up to the end of the log must not roll the active segment while as many rolled ones as may be wait for their seal.
func TestDeletionBesideUnsealedSegments(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rolled(t, l, maxUnsealed)
	end := l.Offsets().End
	require.NoError(t, l.DeleteBefore(end))
	require.Equal(t, end, l.Offsets().Start)
	require.Len(t, l.writer.sealing, maxUnsealed)
	for range maxUnsealed + 2 { // the first deletion rolls the active segment, which is sealed and deleted last
		l.keep(new(dueTimes))
	}
	require.Equal(t, 1, l.Stats().Segments)
	appendNumbered(t, l)
	requireOffsets(t, l, end, end)
	require.Empty(t, said.lines)
	require.NoError(t, l.Close())
}

// What background work does before Open returns must not let OnSeal be called: it may use the variable that is assigned then.
func TestRetentionStartsNoHooks(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushNone})
	_, err := l.Append(Record{Time: time.UnixMilli(1)})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	l, _ = withoutWorkers(t, s, Options{Flush: FlushNone, OnSeal: func(SegmentInfo) {}})
	l.o.RetentionAge = time.Hour
	l.retainRound()
	require.Equal(t, 2, l.Stats().Segments, "retention has rolled the segment")
	require.False(t, l.hooks.started.Load())
	l.Offsets()
	require.True(t, l.hooks.started.Load())
	require.NoError(t, l.Close())
}

// While sealed segments are open, the keeper must forget from time to time which of their parts were in memory, and it must not
// wake up for that once none is.
func TestKeeperCoolsOpenSegments(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 4096})
	rolled(t, l, 1)
	var due dueTimes
	l.keep(&due)
	require.True(t, due.cool.IsZero())
	_, err := l.Read(0)
	require.NoError(t, err)
	require.Equal(t, 1, l.Stats().OpenSegments)
	l.keep(&due)
	require.WithinDuration(t, time.Now().Add(warmFor), due.cool, warmFor/2)
	parts := l.view.Load().segs[0].h.Load().warm.parts
	parts[0].Store(1)
	l.keep(&due)
	require.EqualValues(t, 1, parts[0].Load())
	due.cool = time.Now()
	l.keep(&due)
	require.Zero(t, parts[0].Load())
	require.WithinDuration(t, time.Now().Add(warmFor), due.cool, warmFor/2)
	require.NoError(t, l.DeleteBefore(l.view.Load().segs[1].base))
	l.keep(&due)
	require.True(t, due.cool.IsZero())
	require.NoError(t, l.Close())
}

// A segment expires once its greatest time is longer ago than RetentionAge or, without times, its last change. A time in the
// future is told once.
func TestExpired(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, said := withoutWorkers(t, s, Options{Flush: FlushNone})
	l.o.RetentionAge = time.Minute
	now := time.UnixMilli(1_700_000_000_000)
	expired := func(i SegmentInfo, now time.Time) bool {
		t.Helper()
		old, err := l.expired(i, now)
		require.NoError(t, err)
		return old
	}
	at := func(d time.Duration) SegmentInfo { return SegmentInfo{MaxTime: now.Add(d)} }
	require.False(t, expired(at(-time.Minute), now))
	require.True(t, expired(at(-time.Minute-time.Millisecond), now))
	require.False(t, expired(at(futureTolerance), now))
	require.Empty(t, said.lines)
	for range 2 {
		require.False(t, expired(at(futureTolerance+time.Millisecond), now))
		require.Len(t, said.lines, 1)
		require.Contains(t, said.lines[0], "future")
	}
	untimed := SegmentInfo{Path: l.path(0, logSuffix)}
	st, err := s.Stat(untimed.Path)
	require.NoError(t, err)
	require.False(t, expired(untimed, st.ModTime.Add(time.Minute)))
	require.True(t, expired(untimed, st.ModTime.Add(2*time.Minute)))
	require.True(t, expired(SegmentInfo{Path: l.path(7, logSuffix)}, now), "a file that somebody removed")
	s.SetFault(fails(sim.Stat, logSuffix, syscall.EIO))
	old, err := l.expired(untimed, now)
	require.ErrorIs(t, err, syscall.EIO)
	require.False(t, old)
	s.SetFault(nil)
	require.NoError(t, l.Close())
}

// A wall clock that jumps ahead must be believed only once it has stayed ahead for clockTrust, one that is put back at once.
func TestWallClock(t *testing.T) {
	start := time.Now()
	wall := func(d time.Duration) time.Time { return start.Add(d).Round(0) }
	ahead := func(by time.Duration) *wallClock { return &wallClock{since: start, base: wall(-by)} }
	require.Equal(t, wall(time.Minute), ahead(time.Second).now(start.Add(time.Minute)))
	require.Equal(t, wall(time.Minute), ahead(-2*time.Hour).now(start.Add(time.Minute)))
	w := ahead(2 * time.Hour)
	require.Equal(t, wall(time.Minute-2*time.Hour), w.now(start.Add(time.Minute)))
	require.Equal(t, wall(clockTrust-2*time.Hour), w.now(start.Add(clockTrust)))
	trusted := start.Add(time.Minute + clockTrust)
	require.Equal(t, trusted.Round(0), w.now(trusted))
	require.Equal(t, trusted.Add(time.Second).Round(0), w.now(trusted.Add(time.Second)))
	// Put back in between, it is believed, and another hour begins when it jumps again.
	w = ahead(2 * time.Hour)
	w.now(start.Add(time.Minute))
	w.base = wall(0)
	w.now(start.Add(2 * time.Minute))
	w.base = w.base.Add(-2 * time.Hour)
	require.Equal(t, wall(clockTrust+time.Minute-2*time.Hour), w.now(start.Add(clockTrust+time.Minute)))
}

// Retention must not take part of a segment away while the records at its end are not flushed, and so not shown yet.
func TestRetentionBesideAnAppend(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{})
	old := Record{Time: time.UnixMilli(1), Value: []byte("old")}
	_, err := l.Append(old)
	require.NoError(t, err)
	l.o.RetentionAge = time.Hour
	l.flushes.Lock()
	done := make(chan error)
	go func() {
		_, err := l.Append(old)
		done <- err
	}()
	require.Eventually(t, func() bool { return l.Offsets().End == 2 }, 10*time.Second, time.Millisecond)
	n, err := l.Retain()
	require.NoError(t, err)
	require.Zero(t, n)
	require.Zero(t, l.Offsets().Start)
	l.flushes.Unlock()
	require.NoError(t, <-done)
	_, err = l.Retain()
	require.NoError(t, err)
	require.EqualValues(t, 2, l.Offsets().Start)
	require.NoError(t, l.Close())
}

// The keepers and preparers of logs on another disk, which may hang, must not keep a log from sealing and preparing its segments.
func TestBackgroundWorkOfAnotherDisk(t *testing.T) {
	const other = 1 << 40
	busy := workOn(other)
	for range busy.Most {
		busy.Enter()
		defer busy.Leave()
	}
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes, Flush: FlushNone})
	require.NoError(t, err)
	for l.Stats().Rolls < 3*maxUnsealed {
		_, err = l.Append(Record{Value: make([]byte, 500)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
}
