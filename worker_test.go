//go:build go1.25

package seglog

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
	w := newWorker("test", func() time.Duration {
		if inside.Add(1) != 1 {
			t.Error("two rounds at once")
		}
		n := asked.Load()
		runtime.Gosched()
		served.Store(n)
		inside.Add(-1)
		return 0
	})
	w.kick()
	runtime.Gosched()
	require.Zero(t, served.Load(), "a round before begin")
	w.begin()
	for range 20_000 {
		n := asked.Add(1)
		w.kick()
		if n%100 == 0 {
			for served.Load() != n { // or the test times out
				runtime.Gosched()
			}
		}
	}
	asked.Add(1)
	w.kick()
	w.close()
	require.Zero(t, inside.Load(), "close did not wait")
	n := served.Load()
	w.kick()
	runtime.Gosched()
	require.Equal(t, n, served.Load(), "a round after close")
}

// A round that says when the next is due must be followed by it then, once, and by none after close.
func TestWorkerRunsWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var rounds []time.Duration
		w := newWorker("test", func() time.Duration {
			rounds = append(rounds, time.Since(began))
			return []time.Duration{time.Second, time.Minute, 0, time.Hour, time.Hour}[len(rounds)-1]
		})
		w.begin()
		synctest.Wait()
		require.Empty(t, rounds)
		w.kick()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, []time.Duration{0, time.Second, 61 * time.Second}, rounds)
		w.kick()
		time.Sleep(time.Minute)
		w.kick() // before the time that the last round named
		synctest.Wait()
		require.Len(t, rounds, 5)
		w.close()
		time.Sleep(24 * time.Hour)
		require.Len(t, rounds, 5)
	})
}
