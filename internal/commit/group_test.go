//go:build go1.25

package commit

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// store is the object that a group flushes in these tests: it counts the stored and the durable bytes.
type store struct {
	g               *Group
	stored, durable atomic.Int64
	flushes         atomic.Int64
	running         atomic.Int64
	took            time.Duration
	err             atomic.Pointer[error]
}

func newStore() *store {
	s := &store{took: time.Millisecond}
	s.g = New(s.flush, func() {}, s.stored.Load)
	return s
}

func (s *store) flush() error {
	if s.running.Add(1) != 1 {
		panic("two flushes at a time")
	}
	defer s.running.Add(-1)
	s.flushes.Add(1)
	end := s.stored.Load()
	time.Sleep(s.took)
	if err := s.err.Load(); err != nil {
		return *err
	}
	s.durable.Store(max(s.durable.Load(), end))
	return nil
}

func (s *store) to(target int64) error {
	return s.g.To(target, func() (bool, error) {
		if s.durable.Load() >= target {
			return true, nil
		}
		if err := s.err.Load(); err != nil {
			return false, *err
		}
		return false, nil
	})
}

func (s *store) idle(t *testing.T) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	require.False(t, s.g.owned)
	require.Zero(t, s.g.lockers)
	require.False(t, s.g.passed)
	require.Equal(t, [2]int{}, s.g.waiting)
}

func TestLoneCallerFlushesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		for i := int64(1); i <= 10; i++ {
			s.stored.Store(i)
			require.NoError(t, s.to(i))
			require.Equal(t, i, s.flushes.Load())
		}
		s.idle(t)
	})
}

func TestCallersShareFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		var wg sync.WaitGroup
		const callers, each = 100, 20
		for range callers {
			wg.Go(func() {
				for range each {
					target := s.stored.Add(1)
					if err := s.to(target); err != nil || s.durable.Load() < target {
						panic("returned before it was durable")
					}
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, s.flushes.Load(), int64(2*each+2), "a round must serve all callers that came before it")
		synctest.Wait() // until the goroutine that continued to flush has ended
		s.idle(t)
	})
}

// Callers that a flush has woken must get into the next one, even if all processors are busy and flushes never give one up.
func TestWokenCallersShareTheNextFlush(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const callers, each = 8, 100
	var stored, durable, flushes atomic.Int64
	var g *Group
	g = New(func() error {
		end := stored.Load()
		if flushes.Add(1) == 1 {
			for all := false; !all; runtime.Gosched() {
				g.mu.Lock()
				all = g.waiting[0]+g.waiting[1] == callers-1
				g.mu.Unlock()
			}
		}
		durable.Store(end)
		return nil
	}, func() {}, stored.Load)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				target := stored.Add(1)
				if err := g.To(target, func() (bool, error) { return durable.Load() >= target, nil }); err != nil {
					panic(err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, flushes.Load(), int64(callers*each/2))
}

// Lock must get its turn even if there are always callers that wait for a flush.
func TestLockIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		var stop atomic.Bool
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				for !stop.Load() {
					_ = s.to(s.stored.Add(1))
				}
			})
		}
		for range 5 {
			time.Sleep(time.Millisecond)
			begun := time.Now()
			s.g.Lock()
			require.LessOrEqual(t, time.Since(begun), 2*s.took)
			require.Zero(t, s.running.Load())
			time.Sleep(10 * time.Millisecond)
			require.Zero(t, s.running.Load(), "a flush ran while the group was locked")
			s.g.Unlock()
		}
		stop.Store(true)
		wg.Wait()
		synctest.Wait()
		s.idle(t)
	})
}

func TestLockersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		var wg sync.WaitGroup
		var inside atomic.Int64
		for range 20 {
			wg.Go(func() {
				s.g.Lock()
				if inside.Add(1) != 1 {
					panic("two owners")
				}
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				s.g.Unlock()
			})
			wg.Go(func() { _ = s.to(s.stored.Add(1)) })
		}
		wg.Wait()
		synctest.Wait()
		s.idle(t)
	})
}

// All callers must get the error of a failed flush, those of its round and those of the next.
func TestFailureReachesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		failure := errors.New("disk is gone")
		var wg sync.WaitGroup
		var failed atomic.Int64
		for i := range 10 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Microsecond)
				if err := s.to(s.stored.Add(1)); err != nil {
					failed.Add(1)
				}
			})
		}
		time.Sleep(600 * time.Microsecond)
		s.err.Store(&failure)
		wg.Wait()
		require.Equal(t, int64(10), failed.Load())
		require.ErrorIs(t, s.to(100), failure)
		s.idle(t)
	})
}

// A failed flush after which others succeed must fail only the caller that ran it, if one did, and no caller may wait forever.
func TestFailureThatPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		full := errors.New("disk is full")
		attempts := 0
		flush := s.g.flush
		s.g.flush = func() error {
			if attempts++; attempts <= 5 {
				time.Sleep(s.took)
				return full
			}
			return flush()
		}
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range 10 {
			wg.Go(func() {
				if err := s.to(s.stored.Add(1)); err != nil {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		// A flush that the group's own goroutine runs, for callers that came while one failed, fails nobody.
		require.LessOrEqual(t, failed.Load(), int64(5))
		require.Positive(t, failed.Load())
		require.Equal(t, int64(10), s.durable.Load())
		s.idle(t)
	})
}

func BenchmarkTo(b *testing.B) {
	s := newStore()
	s.took = 0
	b.ReportAllocs()
	for b.Loop() {
		if err := s.to(s.stored.Add(1)); err != nil {
			b.Fatal(err)
		}
	}
}
