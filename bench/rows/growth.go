package rows

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// stage is one log of the growth row.
type stage struct {
	name     string
	group    string // "size" or "segments": what grows; the first of a group is what the others are held against
	x        float64
	sparse   int64 // bytes below the hot records
	segments int   // the hot records' segments; 0 leaves the default size
	open     int   // Options.MaxOpenSegments
	hot      int64 // bytes of real records, over which the reads go
}

func growthStages(e *Env) []stage {
	hot := pick(e, int64(64<<20), int64(1<<30))
	const gib = 1 << 30
	stages := []stage{
		{name: "1 GiB", group: "size", x: gib, sparse: gib, hot: hot},
	}
	if e.Quick {
		stages = append(stages, stage{name: "4 GiB", group: "size", x: 4 * gib, sparse: 4 * gib, hot: hot})
	} else {
		stages = append(stages, stage{name: "10 GiB", group: "size", x: 10 * gib, sparse: 10 * gib, hot: hot},
			stage{name: "100 GiB", group: "size", x: 100 * gib, sparse: 100 * gib, hot: hot})
	}
	stages = append(stages, stage{name: "1 segment", group: "segments", x: 1, segments: 1, hot: hot},
		stage{name: "500 segments", group: "segments", x: 500, segments: 500, hot: hot})
	if !e.Quick {
		stages = append(stages,
			stage{name: "10,000 segments", group: "segments", x: 10_000, segments: 10_000, open: 10_100, hot: hot},
			stage{name: "10,000 segments, 4,096 open", group: "segments", x: 10_000, segments: 10_000, open: 4096, hot: hot})
	}
	return stages
}

// grown is a log of a stage, ready to be read.
type grown struct {
	stage
	dir    string
	log    *seglog.Log
	first  int64 // offset of the first hot record
	count  int64
	opened time.Duration
}

func growth(e *Env) (*Result, error) {
	base, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	var logs []*grown
	defer func() {
		for _, g := range logs {
			g.log.Close()
		}
	}()
	for _, s := range growthStages(e) {
		began := time.Now()
		g, err := s.build(filepath.Join(base, s.name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		e.Log("  built %s in %v", s.name, time.Since(began).Round(time.Millisecond))
		logs = append(logs, g)
	}
	r := &Result{
		Guarantee: "as rows 1 and 7", Unit: "operations/s", CPUUnit: "ns/operation",
		Notes: []string{
			"below the hot records the large logs are sparse files of batches of 8 MiB: their sizes, offsets and segments are real, their bytes take no room",
			fmt.Sprintf("reads: random over %d MiB of single-record batches; appends: 128 B at the end", logs[0].hot>>20),
		},
	}
	for _, g := range logs {
		r.Notes = append(r.Notes, fmt.Sprintf("%s: reopened after a clean Close in %v", g.name, g.opened.Round(10*time.Microsecond)))
	}
	r.compareGrowth(e, logs, "read", pick(e, 50*time.Millisecond, 300*time.Millisecond), (*grown).reads)
	r.compareGrowth(e, logs, "append", pick(e, 30*time.Millisecond, 200*time.Millisecond), (*grown).appends)
	return r, nil
}

func (s stage) build(dir string) (*grown, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	g := &grown{stage: s, dir: dir}
	if s.sparse > 0 {
		if _, err := raw.SparseLog(dir, s.sparse); err != nil {
			return nil, err
		}
	}
	opts := seglog.Options{Flush: seglog.FlushNone}
	if s.segments > 0 {
		opts.SegmentBytes = s.hot / int64(s.segments)
	}
	log, err := peers.OpenSeglog(dir, opts)
	if err != nil {
		return nil, err
	}
	g.first = log.Offsets().End
	g.count = s.hot / frameBytes
	if err := fillLog(log, g.count, 1); err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	if have, err := countLogs(dir); err != nil || have < s.segments {
		return nil, fmt.Errorf("%d segments, want %d: %w", have, s.segments, err)
	}
	opts.SegmentBytes, opts.MaxOpenSegments = 0, s.open // appends as everywhere else
	began := time.Now()
	g.log, err = seglog.Open(dir, &opts)
	g.opened = time.Since(began)
	if err != nil {
		return nil, err
	}
	return g, g.warm()
}

// warm reads a record of every 64 KiB: what grows is measured once it is in cache, open and mapped, as far as Options let it.
func (g *grown) warm() error {
	for at := int64(0); at < g.count; at += 64 << 10 / frameBytes {
		if _, err := g.log.Read(g.first + at); err != nil {
			return err
		}
	}
	return nil
}

func (g *grown) reads() func() error {
	rng := rand.New(rand.NewPCG(uint64(g.count), 3))
	return func() error {
		at := rng.Int64N(g.count)
		rec, err := g.log.Read(g.first + at)
		if err == nil && numberOf(rec.Value) != at {
			err = errWrongRecord
		}
		return err
	}
}

func (g *grown) appends() func() error {
	rec := seglog.Record{Value: payload(0, 128)}
	return func() error {
		_, err := g.log.Append(rec)
		return err
	}
}

// compareGrowth measures one operation on all logs and holds each against the first of its group.
func (r *Result) compareGrowth(e *Env, logs []*grown, what string, d time.Duration, op func(*grown) func() error) {
	subjects := make([]measure.Subject, len(logs))
	for i, g := range logs {
		subjects[i] = measure.Subject{Name: g.name, Round: func() (measure.Sample, error) {
			return measure.Drive(measure.Load{Callers: 1, Duration: d}, func(int) func() error { return op(g) })
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	first := 0
	for i, g := range logs {
		l := fill(Line{Name: what + ", " + g.name, X: g.x}, &series[i], series[i].Rates())
		r.Lines = append(r.Lines, l)
		if logs[first].group != g.group {
			first = i
		}
		if i != first {
			base := r.Lines[len(r.Lines)-1-(i-first)]
			r.Checks = append(r.Checks, atMost(fmt.Sprintf("cost per %s at %s / at %s", what, g.name, logs[first].name), 1.2, ratio(base, l)))
		}
	}
}
