package measure

import (
	"sync"
	"sync/atomic"
	"time"
)

// Sample is what one round of one subject yielded.
type Sample struct {
	Ops     int64 // records, requests or transfers, as the row says
	Bytes   int64
	Usage   Usage
	Latency *Histogram // nil where the clock would cost more than the work
	Flushes int64      // of the disk, those for others included; 0 where they are not counted
}

// Subject is one side of a comparison. Round prepares, measures and cleans up; only what lies within its StartUsage counts.
type Subject struct {
	Name  string
	Round func() (Sample, error)
}

// Series holds the rounds of one subject.
type Series struct {
	Name    string
	Samples []Sample
	Err     error // of the round that failed; no further ones were run
}

// Interleave runs every subject once per round. The order turns by one each round, so that no subject always follows
// the same neighbour.
func Interleave(rounds int, subjects []Subject) []Series {
	series := make([]Series, len(subjects))
	for i, s := range subjects {
		series[i].Name = s.Name
	}
	for r := range rounds {
		for i := range subjects {
			at := (i + r) % len(subjects)
			if series[at].Err != nil {
				continue
			}
			sample, err := subjects[at].Round()
			if err != nil {
				series[at].Err = err
				continue
			}
			series[at].Samples = append(series[at].Samples, sample)
		}
	}
	return series
}

// Rates are the operations per second of each round.
func (s *Series) Rates() []float64 {
	return s.per(func(m Sample) float64 { return float64(m.Ops) / m.Usage.Elapsed.Seconds() })
}

// Throughputs are the bytes per second of each round.
func (s *Series) Throughputs() []float64 {
	return s.per(func(m Sample) float64 { return float64(m.Bytes) / m.Usage.Elapsed.Seconds() })
}

// CPUPerGB are the processor seconds per 10^9 bytes of each round.
func (s *Series) CPUPerGB() []float64 {
	return s.per(func(m Sample) float64 { return m.Usage.CPU.Seconds() / float64(m.Bytes) * 1e9 })
}

// Durations are the seconds of each round.
func (s *Series) Durations() []float64 {
	return s.per(func(m Sample) float64 { return m.Usage.Elapsed.Seconds() })
}

// CPUPerOp are the processor seconds per operation of each round.
func (s *Series) CPUPerOp() []float64 {
	return s.per(func(m Sample) float64 { return m.Usage.CPU.Seconds() / float64(m.Ops) })
}

// AllocsPerOp are the allocations per operation of each round.
func (s *Series) AllocsPerOp() []float64 {
	return s.per(func(m Sample) float64 { return float64(m.Usage.Mallocs) / float64(m.Ops) })
}

// FlushesPerOp are the flushes of the disk per operation of each round.
func (s *Series) FlushesPerOp() []float64 {
	return s.per(func(m Sample) float64 { return float64(m.Flushes) / float64(m.Ops) })
}

func (s *Series) per(f func(Sample) float64) []float64 {
	out := make([]float64, len(s.Samples))
	for i, m := range s.Samples {
		out[i] = f(m)
	}
	return out
}

// Latency is the histogram over all rounds, nil if none was kept.
func (s *Series) Latency() *Histogram {
	var all *Histogram
	for _, m := range s.Samples {
		if m.Latency == nil {
			continue
		}
		if all == nil {
			all = new(Histogram)
		}
		all.Merge(m.Latency)
	}
	return all
}

// Load says how Drive is to call an operation.
type Load struct {
	Callers  int
	Duration time.Duration
	MaxOps   int64 // per caller; 0 is no bound. It keeps the fast subjects from filling the disk.
	Latency  bool  // take the time of every call
}

// Drive has each caller repeat its operation until the time is up. op is asked once per caller for that caller's operation.
// The first error ends all of them.
func Drive(l Load, op func(caller int) func() error) (Sample, error) {
	ops := make([]func() error, l.Callers)
	var histograms []Histogram
	if l.Latency {
		histograms = make([]Histogram, l.Callers)
	}
	for i := range ops {
		ops[i] = op(i)
	}
	var (
		total  atomic.Int64
		failed atomic.Pointer[error]
		wg     sync.WaitGroup
	)
	stop := StartUsage()
	deadline := time.Now().Add(l.Duration)
	run := func(i int) {
		var n int64
		var err error
		if l.Latency {
			n, err = timed(ops[i], deadline, l.MaxOps, &histograms[i], &failed)
		} else {
			n, err = untimed(ops[i], deadline, l.MaxOps, &failed)
		}
		total.Add(n)
		if err != nil {
			failed.CompareAndSwap(nil, &err)
		}
	}
	if l.Callers == 1 {
		run(0)
	} else {
		for i := range ops {
			wg.Go(func() { run(i) })
		}
		wg.Wait()
	}
	s := Sample{Usage: stop(), Ops: total.Load()}
	if err := failed.Load(); err != nil {
		return s, *err
	}
	if l.Latency {
		s.Latency = &histograms[0]
		for i := 1; i < len(histograms); i++ {
			s.Latency.Merge(&histograms[i])
		}
	}
	return s, nil
}

// chunkTime is how long untimed works between two looks at the clock: long enough that the look does not show at ten
// million calls a second, short enough that the deadline holds.
const chunkTime = 100 * time.Microsecond

func untimed(op func() error, deadline time.Time, maxOps int64, failed *atomic.Pointer[error]) (int64, error) {
	var n int64
	chunk := int64(1)
	last := time.Now()
	for last.Before(deadline) && failed.Load() == nil && (maxOps == 0 || n < maxOps) {
		for range chunk {
			if err := op(); err != nil {
				return n, err
			}
		}
		n += chunk
		now := time.Now()
		if now.Sub(last) < chunkTime/2 {
			chunk *= 2
		}
		last = now
	}
	return n, nil
}

func timed(op func() error, deadline time.Time, maxOps int64, h *Histogram, failed *atomic.Pointer[error]) (int64, error) {
	var n int64
	for start := time.Now(); start.Before(deadline) && failed.Load() == nil && (maxOps == 0 || n < maxOps); {
		if err := op(); err != nil {
			return n, err
		}
		n++
		end := time.Now()
		h.Record(end.Sub(start))
		start = end
	}
	return n, nil
}
