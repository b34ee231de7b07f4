package rows

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

const (
	besideLogs  = 100
	besideLarge = 1 << 20
	// The zeros of the raw file that takes large values, and the bytes of the log that does.
	besideZeros = 64 << 20
	besideKeep  = 1 << 30
)

// besideLargeBatches asks how fair logs are to each other: what small durable appends to many wait for when another log gets one
// large batch after the other.
func besideLargeBatches(e *Env) (_ *Result, err error) {
	r := &Result{
		Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record",
		Notes: []string{
			fmt.Sprintf("%d logs get records of %s, each by a caller of its own; beside them a caller appends batches of %s to one more log; all are durable, and the figures those of the small ones",
				besideLogs, BytesName(manyValue), BytesName(besideLarge)),
			"processor time and flushes are those of all, by small record",
		},
	}
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	logs, err := openLogs(filepath.Join(dir, "small"), besideLogs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, logs.close()) }()
	large, err := seglog.Open(filepath.Join(dir, "large"), &seglog.Options{RetentionBytes: besideKeep})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, large.Close()) }()
	limits := make([]int64, besideLogs+1)
	for i := range limits {
		limits[i] = manyZeros / besideLogs
	}
	limits[besideLogs] = besideZeros
	files, err := raw.OpenMany(dir, limits)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, files.Close()) }()

	var subjects []measure.Subject
	var rates [][]float64 // of the large batches
	for _, s := range []struct {
		name string
		call func(i int, value []byte) error
	}{
		{"seglog", func(i int, value []byte) error {
			if i < besideLogs {
				return logs.appends[0].call(i, value)
			}
			_, err := large.Append(seglog.Record{Value: value})
			return err
		}},
		{"raw files, an fdatasync each", files.Append},
		{"raw files" + manyShared, files.AppendShared},
	} {
		for _, beside := range []bool{false, true} {
			name := s.name + ", alone"
			if beside {
				name = s.name + ", beside large batches"
			}
			at := len(subjects)
			rates = append(rates, nil)
			r.Lines = append(r.Lines, Line{Name: name})
			subjects = append(subjects, measure.Subject{Name: name, Round: func() (measure.Sample, error) {
				end := func() (float64, error) { return 0, nil }
				if beside {
					end = repeat(func(value []byte) error { return s.call(besideLogs, value) })
				}
				sample, err := e.besideRound(s.call)
				rate, largeErr := end()
				rates[at] = append(rates[at], rate)
				return sample, errors.Join(err, largeErr)
			}})
		}
	}
	series := measure.Interleave(e.Rounds, subjects)
	largeOnes := Table{Head: []string{"subject", "large batches/s"}}
	for i := range r.Lines {
		r.Lines[i] = fill(r.Lines[i], &series[i], series[i].Rates())
		if i%2 == 1 {
			largeOnes.Rows = append(largeOnes.Rows, []string{r.Lines[i].Name, figure(measure.Median(rates[i]))})
		}
	}
	r.Tables = []Table{largeOnes}
	p99 := func(i int) []float64 {
		out := make([]float64, len(series[i].Samples))
		for k, s := range series[i].Samples {
			out[k] = s.Latency.Quantile(0.99).Seconds()
		}
		return out
	}
	r.Checks = []Check{
		atMost("p99 of the small ones: beside the large / alone", 3, measure.MedianRatio(p99(1), p99(0))),
		atMost("p99 of the small ones beside the large: seglog / raw, an fdatasync each", 1, measure.MedianRatio(p99(1), p99(3))),
		atMost("p99 of the small ones beside the large: seglog / raw"+manyShared, 1.5, measure.MedianRatio(p99(1), p99(5))),
		atLeast("large batches/s: seglog / raw, an fdatasync each", 0.8, measure.MedianRatio(rates[1], rates[3])),
	}
	return r, nil
}

// besideRound appends to the small logs, by a caller each.
func (e *Env) besideRound(call func(i int, value []byte) error) (measure.Sample, error) {
	load := measure.Load{Callers: besideLogs, Duration: pick(e, 300*time.Millisecond, 2*time.Second), Latency: true}
	flushes := measure.StartFlushes(e.Dir)
	s, err := measure.Drive(load, func(caller int) func() error {
		value := payload(int64(caller), manyValue)
		return func() error { return call(caller, value) }
	})
	s.Flushes = flushes()
	return s, err
}

// repeat calls with a large value until end is called, which returns how many calls there were in a second.
func repeat(call func(value []byte) error) (end func() (float64, error)) {
	var (
		wg    sync.WaitGroup
		n     int
		err   error
		done  = make(chan struct{})
		value = payload(0, besideLarge)
		start = time.Now()
	)
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err = call(value); err != nil {
				return
			}
			n++
		}
	})
	return func() (float64, error) {
		close(done)
		wg.Wait()
		return float64(n) / time.Since(start).Seconds(), err
	}
}
