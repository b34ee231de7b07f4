package rows

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
)

// crowd asks what an operation costs when up to 4,096 goroutines do it at once: more than there are processors can't be
// faster, and must not be slower.
func crowd(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	log, err := peers.OpenSeglog(dir, seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n := pick(e, int64(64<<20), int64(256<<20)) / frameBytes
	if err := fillLog(log, n, 1); err != nil {
		return nil, err
	}
	r := &Result{
		XName: "goroutines", Guarantee: "as rows 1 and 7", Unit: "operations/s", CPUUnit: "ns/operation",
		Notes: []string{"all on one log; reads are random over what was there before, appends are of 128 B"},
	}
	ops := []struct {
		name string
		op   func(caller int) func() error
	}{
		{"Read", func(caller int) func() error {
			rng := rand.New(rand.NewPCG(uint64(caller), 9))
			return func() error {
				at := rng.Int64N(n)
				v, err := log.Read(at)
				if err == nil && numberOf(v) != at {
					err = errWrongRecord
				}
				return err
			}
		}},
		{"Append", func(int) func() error {
			write, values := log.Appender(), [][]byte{payload(0, 128)}
			return func() error { return write(values) }
		}},
	}
	for _, o := range ops {
		var lines []Line
		crowds := []int{1, 2, 16, 256, 4096}
		subjects := make([]measure.Subject, len(crowds))
		for i, callers := range crowds {
			lines = append(lines, Line{Name: fmt.Sprintf("%s, %d goroutines", o.name, callers), X: float64(callers)})
			subjects[i] = measure.Subject{Round: func() (measure.Sample, error) {
				return measure.Drive(measure.Load{Callers: callers, Duration: pick(e, 30*time.Millisecond, 100*time.Millisecond)}, o.op)
			}}
		}
		series := measure.Interleave(e.Rounds, subjects)
		for i := range lines {
			lines[i] = fill(lines[i], &series[i], series[i].Rates())
		}
		for _, l := range lines[2:] {
			r.Checks = append(r.Checks, atMost("cost per "+o.name+" by "+l.Name[len(o.name)+2:]+" / by 2", 1.2, ratio(lines[1], l)))
		}
		r.Lines = append(r.Lines, lines...)
	}
	return r, nil
}
