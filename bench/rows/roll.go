package rows

import (
	"errors"
	"fmt"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
)

// Appends of the roll row come at a fixed pace, as they do in a service: flat out, the rolls would follow each other faster
// than any disk seals segments, and the latency would be that of the disk.
const (
	paceEvery    = 10 * time.Microsecond // 100,000 appends a second
	rollingBytes = 1 << 20               // a roll about every 5,000 appends: within the 10,000 that p99.99 looks at
	warmUp       = 10_000                // appends before the clock, so that neither side shows what opening costs
)

func rollLatency(e *Env) (*Result, error) {
	duration := pick(e, 400*time.Millisecond, 2*time.Second)
	round := func(segmentBytes int64) func() (measure.Sample, error) {
		return func() (measure.Sample, error) {
			dir, remove, err := measure.Fresh(e.Dir)
			if err != nil {
				return measure.Sample{}, err
			}
			defer remove()
			log, err := peers.OpenSeglog(dir, seglog.Options{Flush: seglog.FlushNone, SegmentBytes: segmentBytes})
			if err != nil {
				return measure.Sample{}, err
			}
			s, err := paced(log.Appender(), duration)
			return s, errors.Join(err, log.Close())
		}
	}
	series := measure.Interleave(e.Rounds, []measure.Subject{
		{Name: "rolling every MiB", Round: round(rollingBytes)},
		{Name: "without a roll", Round: round(0)},
		{Name: "the pace alone, no append", Round: func() (measure.Sample, error) {
			return paced(func([][]byte) error { return nil }, duration)
		}},
	})
	r := &Result{
		Guarantee: killGuarantee, Unit: "appends/s (paced)", CPUUnit: "ns/append",
		Notes: []string{
			fmt.Sprintf("one append of 128 B every %v; the latency is that of the call", paceEvery),
			"the last line is what the machine does to a loop that appends nothing",
		},
	}
	for i := range series {
		l := fill(Line{Name: series[i].Name}, &series[i], series[i].Rates())
		if l.Latency == nil {
			return nil, series[i].Err
		}
		r.Lines = append(r.Lines, l)
	}
	p9999 := func(s measure.Series) []float64 {
		out := make([]float64, len(s.Samples))
		for i, m := range s.Samples {
			out[i] = float64(m.Latency.Quantile(0.9999))
		}
		return out
	}
	r.Checks = []Check{atMost("p99.99 with rolls / p99.99 without", 2, measure.MedianRatio(p9999(series[0]), p9999(series[1])))}
	return r, nil
}

// paced calls write at the fixed pace, by a loop that looks at the clock: a timer would be coarser than the pace.
func paced(write peers.Append, duration time.Duration) (measure.Sample, error) {
	h := new(measure.Histogram)
	values := [][]byte{payload(0, 128)}
	for range warmUp {
		if err := write(values); err != nil {
			return measure.Sample{}, err
		}
	}
	stop := measure.StartUsage()
	start := time.Now()
	n := int64(0)
	for due := time.Duration(0); due < duration; due += paceEvery {
		now := time.Since(start)
		for now < due {
			now = time.Since(start)
		}
		if err := write(values); err != nil {
			return measure.Sample{}, err
		}
		h.Record(time.Since(start) - now)
		n++
	}
	return measure.Sample{Usage: stop(), Ops: n, Bytes: n * 128, Latency: h}, nil
}
