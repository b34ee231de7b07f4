package rows

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/seglog/seglog"
	_ "github.com/seglog/seglog/codecs" // for reads of compressed batches

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// compressedBytes is what the values of the logs of compressed batches come to.
func compressedBytes(e *Env) int64 { return pick(e, int64(16<<20), int64(128<<20)) }

func readNeighbours(e *Env) (*Result, error) {
	compressors, err := raw.Compressors()
	if err != nil {
		return nil, err
	}
	r := &Result{
		Guarantee: "the bytes returned were checked against their CRC; of Read the caller owns the copy, of Records it is lent",
		Unit:      "us/record", CPUUnit: "ns/record",
		Notes: []string{
			"all in the page cache, one caller; both begin at the same record in each round; the target is held against the difference of the two in the same round",
			"rate, CPU and allocations are of rounds without a clock, the percentiles of rounds beside them that take the time of each read",
		},
	}
	for _, s := range batchShapes(e) {
		if s.mixed {
			continue // steps through records of one size
		}
		fillPlain := func(log *peers.SeglogLog) error { return fillRecords(log, s.records(), s.perBatch, s.value) }
		if err := e.neighbourShape(r, s, s.String(), s.records(), fillPlain); err != nil {
			return nil, fmt.Errorf("%v: %w", s, err)
		}
	}
	for _, c := range compressors {
		for _, value := range []int{128, 1 << 10} {
			s := batchShape{value: value, perBatch: 100, duration: pick(e, 60*time.Millisecond, 400*time.Millisecond)}
			name, n := s.String()+", "+c.Name, compressedBytes(e)/int64(value)/100*100
			share := 0.0
			fillCompressed := func(log *peers.SeglogLog) (err error) {
				share, err = appendCompressed(log, c, n, s)
				return err
			}
			if err := e.neighbourShape(r, s, name, n, fillCompressed); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r.Notes = append(r.Notes, fmt.Sprintf("%s: compressed to %.0f %%", name, 100*share))
		}
	}
	return r, nil
}

// appendCompressed fills a log with n numbered records of words, in compressed batches, and says what share of the values' bytes
// it takes.
func appendCompressed(log *peers.SeglogLog, c raw.Compressor, n int64, s batchShape) (share float64, err error) {
	values := make([][]byte, s.perBatch)
	for i := int64(0); i < n; i += int64(s.perBatch) {
		for j := range values {
			values[j] = words(i+int64(j), s.value)
		}
		frame, err := c.Frame(values)
		if err != nil {
			return 0, err
		}
		if _, err := log.AppendBatch(frame); err != nil {
			return 0, err
		}
	}
	return float64(log.Stats().AppendedBytes) / float64(n*int64(s.value)), nil
}

// words is a value that carries its number and compresses as text does: words out of 256, in an order of its own.
func words(i int64, size int) []byte {
	rng := rand.New(rand.NewPCG(uint64(i), 11))
	v := make([]byte, 8, size+16)
	for len(v) < size {
		w := rng.Uint32() % 256
		v = fmt.Appendf(v, "%c%c%x ", 'a'+w%26, 'a'+w/16, w*w)
	}
	v = v[:size]
	number(i, v)
	return v
}

// neighbourShape reads a log of n records, which fillLog makes, one after another in both ways.
func (e *Env) neighbourShape(r *Result, s batchShape, name string, n int64, fillLog func(*peers.SeglogLog) error) (err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	log, err := peers.OpenSeglog(dir+"/seglog", seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return err
	}
	defer log.Close()
	if err := fillLog(log); err != nil {
		return err
	}
	if seen, err := stepThrough(log, 0, time.Hour, n, s.value, false); err != nil || seen != n { // and into the cache
		return fmt.Errorf("%d of %d records: %w", seen, n, err)
	}
	starts := func() func() int64 { // a subject's rounds begin where those of the other do
		rng := rand.New(rand.NewPCG(uint64(n), 13))
		return func() int64 { return rng.Int64N(n/2+1) / int64(s.perBatch) * int64(s.perBatch) }
	}
	readsFrom, stepsFrom, copiesFrom := starts(), starts(), starts()
	steps := func(from func() int64, own bool) func() (measure.Sample, error) {
		return func() (measure.Sample, error) {
			at := from()
			stop := measure.StartUsage()
			n, err := stepThrough(log, at, s.duration, n, s.value, own)
			return measure.Sample{Usage: stop(), Ops: n}, err
		}
	}
	series := measure.Interleave(e.Rounds, []measure.Subject{
		{Name: "Read", Round: func() (measure.Sample, error) {
			at := readsFrom()
			return clocked(s.duration, func() error {
				rec, err := log.Log.Read(at)
				if err == nil {
					err = isRecord(rec, at, s.value)
				}
				if at++; at == n {
					at = 0
				}
				return err
			})
		}},
		{Name: "Records", Round: steps(stepsFrom, false)},
		{Name: "Records and copies", Round: steps(copiesFrom, true)},
	})
	for i, what := range []string{"Read(i), Read(i+1), ...", "a step of Records", "a step of Records and a copy of the value"} {
		series[i].Name = what
		r.Lines = append(r.Lines, fill(Line{Name: what + ", " + name, CRC: "yes"}, &series[i], micros(series[i])))
	}
	r.Checks = append(r.Checks, atMost("us that Read takes more than a step of Records, "+name, 0.5, moreThan(series[0], series[1])),
		atMost("of which the copy does not explain, "+name, 0.5, moreThan(series[0], series[2])))
	return nil
}

// moreThan returns by how many microseconds an operation of a takes longer than one of b: the median over pairs of rounds.
func moreThan(a, b measure.Series) float64 {
	as, bs := micros(a), micros(b)
	more := make([]float64, min(len(as), len(bs)))
	for i := range more {
		more[i] = as[i] - bs[i]
	}
	return measure.Median(more)
}

// micros are the microseconds per operation of each round.
func micros(s measure.Series) []float64 {
	rates := s.Rates()
	for i, r := range rates {
		rates[i] = 1e6 / r
	}
	return rates
}

func isRecord(rec seglog.Record, offset int64, size int) error {
	if rec.Offset != offset || len(rec.Value) != size || numberOf(rec.Value) != offset {
		return errWrongRecord
	}
	return nil
}

// stepThrough runs over records for the duration, at most most of them, and begins again at the front at the end of the log.
// With own it copies each value, as a caller who keeps it must.
func stepThrough(log *peers.SeglogLog, from int64, d time.Duration, most int64, size int, own bool) (steps int64, err error) {
	for deadline := time.Now().Add(d); ; from = 0 {
		for rec, err := range log.Records(from) {
			if err == nil {
				err = isRecord(rec, from, size)
			}
			if err != nil {
				return steps, err
			}
			if own {
				runtime.KeepAlive(bytes.Clone(rec.Value))
			}
			from++
			steps++
			if steps == most || steps%256 == 0 && time.Now().After(deadline) {
				return steps, nil
			}
		}
		if from == 0 {
			return steps, errors.New("no records")
		}
	}
}
