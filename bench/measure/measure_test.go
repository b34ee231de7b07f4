package measure

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBucketsCoverTheRangeWithoutGapOrOverlap(t *testing.T) {
	next := uint64(0)
	for b := range len(Histogram{}.counts) {
		high := highestIn(b)
		require.Equal(t, b, bucketOf(next), "lowest value of bucket %d", b)
		require.Equal(t, b, bucketOf(high), "highest value of bucket %d", b)
		next = high + 1
	}
	require.Equal(t, uint64(1)<<maxBits, next)
	require.Equal(t, len(Histogram{}.counts)-1, bucketOf(math.MaxUint64))
}

func TestQuantilesAgreeWithSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	all := make([]float64, 100_000)
	for i := range all {
		d := time.Duration(math.Exp(rng.NormFloat64()*3) * 1e4)
		all[i] = float64(min(d, 1<<maxBits-1))
		h.Record(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 0.9999, 1} {
		want := all[int(math.Ceil(q*float64(len(all))))-1]
		require.InEpsilon(t, want, float64(h.Quantile(q)), 0.01, "quantile %g", q)
	}
	require.Equal(t, uint64(len(all)), h.Count())
}

func TestMergeCountsLikeOneHistogram(t *testing.T) {
	var a, b, both Histogram
	for i := range 1000 {
		d := time.Duration(i * i)
		both.Record(d)
		if i%3 == 0 {
			a.Record(d)
		} else {
			b.Record(d)
		}
	}
	a.Merge(&b)
	require.Equal(t, both, a)
	require.Equal(t, both.Percentiles(), a.Percentiles())
}

func TestEmptyHistogram(t *testing.T) {
	var h Histogram
	require.Zero(t, h.Quantile(0.99))
	require.Equal(t, Percentiles{}, h.Percentiles())
}

func TestMedianAndSpread(t *testing.T) {
	require.Equal(t, 3.0, Median([]float64{9, 1, 3}))
	require.Equal(t, 2.5, Median([]float64{4, 1, 3, 2}))
	require.True(t, math.IsNaN(Median(nil)))
	in := []float64{3, 1, 2}
	Median(in)
	require.Equal(t, []float64{3, 1, 2}, in, "Median must not reorder the rounds")
	require.Equal(t, 0.5, Spread([]float64{1, 2, 3}))
	require.Zero(t, Spread(nil))
}

func TestMedianRatioPairsRounds(t *testing.T) {
	// A machine that becomes ten times slower halfway through must not change the ratio.
	a := []float64{200, 210, 19, 20}
	b := []float64{100, 100, 10, 10}
	require.InDelta(t, 2.0, MedianRatio(a, b), 0.06)
	require.Equal(t, 2.0, MedianRatio([]float64{4, 5}, []float64{2}))
	require.True(t, math.IsNaN(MedianRatio([]float64{4}, []float64{0})))
}

func TestInterleaveRotatesTheOrderAndDropsFailures(t *testing.T) {
	var order []string
	subject := func(name string, failAt int) Subject {
		calls := 0
		return Subject{Name: name, Round: func() (Sample, error) {
			order = append(order, name)
			calls++
			if calls == failAt {
				return Sample{}, errors.New("no more")
			}
			return Sample{Ops: int64(calls)}, nil
		}}
	}
	series := Interleave(3, []Subject{subject("a", 0), subject("b", 2), subject("c", 0)})
	require.Equal(t, []string{"a", "b", "c", "b", "c", "a", "c", "a"}, order)
	require.Len(t, series[0].Samples, 3)
	require.Len(t, series[1].Samples, 1)
	require.Error(t, series[1].Err)
	require.NoError(t, series[2].Err)
}

func TestDriveCountsEveryCallAndStops(t *testing.T) {
	for _, callers := range []int{1, 4} {
		for _, latency := range []bool{false, true} {
			counts := make([]int64, callers)
			s, err := Drive(Load{Callers: callers, Duration: 20 * time.Millisecond, Latency: latency}, func(c int) func() error {
				return func() error {
					counts[c]++
					time.Sleep(100 * time.Microsecond)
					return nil
				}
			})
			require.NoError(t, err)
			var sum int64
			for _, c := range counts {
				require.Positive(t, c)
				sum += c
			}
			require.Equal(t, sum, s.Ops)
			require.GreaterOrEqual(t, s.Usage.Elapsed, 20*time.Millisecond)
			if latency {
				require.Equal(t, uint64(sum), s.Latency.Count())
				require.GreaterOrEqual(t, s.Latency.Quantile(0.5), 100*time.Microsecond)
			} else {
				require.Nil(t, s.Latency)
			}
		}
	}
}

func TestDriveEndsAtTheBoundAndAtTheFirstError(t *testing.T) {
	s, err := Drive(Load{Callers: 2, Duration: time.Minute, MaxOps: 1000}, func(int) func() error {
		return func() error { return nil }
	})
	require.NoError(t, err)
	require.Less(t, s.Usage.Elapsed, time.Minute)

	boom := errors.New("boom")
	_, err = Drive(Load{Callers: 3, Duration: time.Minute}, func(c int) func() error {
		return func() error {
			if c == 1 {
				return boom
			}
			time.Sleep(time.Millisecond)
			return nil
		}
	})
	require.ErrorIs(t, err, boom)
}

func TestUsageSeesWorkAndAllocations(t *testing.T) {
	stop := StartUsage()
	var sink [][]byte
	for range 1000 {
		sink = append(sink, make([]byte, 1000))
	}
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
	}
	u := stop()
	require.Len(t, sink, 1000)
	require.GreaterOrEqual(t, u.Mallocs, uint64(1000))
	require.GreaterOrEqual(t, u.Bytes, uint64(1_000_000))
	require.Greater(t, u.CPU, 5*time.Millisecond)
	require.GreaterOrEqual(t, u.Elapsed, 30*time.Millisecond)
}

func TestLapsLeaveOutTheTimeBetween(t *testing.T) {
	laps := NewLaps()
	boom := errors.New("boom")
	began := time.Now()
	for i := range 3 {
		time.Sleep(30 * time.Millisecond)
		err := laps.Time(func() error { time.Sleep(time.Millisecond); return boom })
		require.ErrorIs(t, err, boom, i)
	}
	whole := time.Since(began)
	s := laps.Sample()
	require.Equal(t, int64(3), s.Ops)
	require.Equal(t, uint64(3), s.Latency.Count())
	require.GreaterOrEqual(t, s.Usage.Elapsed, 3*time.Millisecond)
	require.LessOrEqual(t, s.Usage.Elapsed, whole-90*time.Millisecond)
}

func TestParseProcessors(t *testing.T) {
	busy, all, err := parseProcessors("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n")
	require.NoError(t, err)
	require.Equal(t, 1500*time.Millisecond, busy)
	require.Equal(t, 10*time.Second, all)
	_, _, err = parseProcessors("nothing")
	require.Error(t, err)
}

func TestOwnWorkIsNotANeighbours(t *testing.T) {
	share := StartNeighbours()
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
	}
	require.LessOrEqual(t, share(), 1.0)
	require.GreaterOrEqual(t, share(), 0.0)
}
