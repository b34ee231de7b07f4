//go:build go1.25

package sched

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Each request must be followed by a whole round, also one that is made during a round, and rounds must not overlap.
func TestWorkerServesEachKick(t *testing.T) {
	var asked, served, inside atomic.Int64
	w := NewWorker("test", func() time.Duration {
		if inside.Add(1) != 1 {
			t.Error("two rounds at once")
		}
		n := asked.Load()
		runtime.Gosched()
		served.Store(n)
		inside.Add(-1)
		return 0
	})
	w.Kick()
	runtime.Gosched()
	require.Zero(t, served.Load(), "a round before Begin")
	w.Begin()
	for range 20_000 {
		n := asked.Add(1)
		w.Kick()
		if n%100 == 0 {
			for served.Load() != n { // or the test times out
				runtime.Gosched()
			}
		}
	}
	asked.Add(1)
	w.Kick()
	w.Close()
	require.Zero(t, inside.Load(), "Close did not wait")
	n := served.Load()
	w.Kick()
	runtime.Gosched()
	require.Equal(t, n, served.Load(), "a round after Close")
}

// A round that ends the goroutine, as a failing test in a hook does, must not keep Close waiting.
func TestWorkerWhoseRoundExits(t *testing.T) {
	rounds := make(chan bool, 2)
	w := NewWorker("test", func() time.Duration {
		rounds <- true
		runtime.Goexit()
		return 0
	})
	w.Begin()
	for range 2 {
		w.Kick()
		<-rounds
		time.Sleep(time.Millisecond)
	}
	w.Close()
}

// A round that says when the next is due must be followed by it then, once, and by none after Close.
func TestWorkerRunsWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var rounds []time.Duration
		w := NewWorker("test", func() time.Duration {
			rounds = append(rounds, time.Since(began))
			return []time.Duration{time.Second, time.Minute, 0, time.Hour, time.Hour}[len(rounds)-1]
		})
		w.Kick()
		synctest.Wait()
		require.Empty(t, rounds, "a round before Begin")
		w.Begin()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, []time.Duration{0, time.Second, 61 * time.Second}, rounds)
		w.Kick()
		time.Sleep(time.Minute)
		w.Kick() // before the time that the last round named
		synctest.Wait()
		require.Len(t, rounds, 5)
		w.Close()
		time.Sleep(24 * time.Hour)
		require.Len(t, rounds, 5)
	})
}
