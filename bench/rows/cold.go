package rows

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

const (
	coldMemory       = 600 << 20
	coldTail         = 250 << 20
	coldRate         = 200e6 // of the transfers that are held back
	coldSegmentBytes = 64 << 20
	coldBatch        = 16
	coldValue        = 1000
)

// coldReader asks what a reader far behind does to those at the tail of the log, in a process that may keep a fifth of the
// log in memory.
func coldReader(e *Env) (*Result, error) {
	r := &Result{
		Guarantee: "the tail is read by Read, CRC checked; the transfer sends the same file bytes to a process of its own",
		Unit:      "bytes/s of the transfer", CPUUnit: "CPU s/GB of the transfer",
	}
	if err := coldPossible(); err != nil {
		r.Notes = []string{"skipped: " + strings.ReplaceAll(err.Error(), "\n", "; ")}
		return r, nil
	}
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	size := pick(e, int64(3<<29), int64(3<<30))
	if err := fillCold(dir, size); err != nil {
		return nil, err
	}
	shape := child.ColdRound{
		Dir: dir, SegmentBytes: coldSegmentBytes, Memory: coldMemory, Tail: coldTail,
		Duration: pick(e, 2500*time.Millisecond, 5*time.Second),
		Batch:    coldBatch, Value: coldValue, AppendEvery: coldBatch * coldValue * time.Second / 10e6,
		Readers: 2, ReadEvery: 200 * time.Microsecond,
	}
	subjects := coldSubjects(shape)
	runs := make([]measure.Subject, len(subjects))
	for i, s := range subjects {
		runs[i] = measure.Subject{Name: s.name, Round: s.round}
	}
	series := measure.Interleave(e.Rounds, runs)
	for i, s := range subjects {
		r.Lines = append(r.Lines, s.line(&series[i], subjects[0]))
	}
	r.Notes = append(r.Notes,
		fmt.Sprintf("%d MiB of batches of %d x %d B in segments of %d MiB, not in the cache; the process may have %d MiB, page cache included; its last %d MiB are read before the clock",
			size>>20, coldBatch, coldValue, coldSegmentBytes>>20, coldMemory>>20, coldTail>>20),
		fmt.Sprintf("beside the transfer, %d readers read a record of the tail at random every %v each, and a batch is appended every %v: 10 MB/s; the disk reads ahead %s",
			shape.Readers, shape.ReadEvery, shape.AppendEvery, readAhead(dir)),
		"latencies are those of the reads, medians of the rounds and the longest of all; CPU is what the process took more than without a transfer, allocations are per read",
		coldTable(subjects))
	return r, nil
}

// coldPossible tries what not every machine has: a memory group, and cachestat(2).
func coldPossible() error {
	g, err := child.NewMemoryGroup(coldMemory)
	if err != nil {
		return err
	}
	if err := g.Remove(); err != nil {
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	_, err = raw.Cached(self, 0, 1)
	return err
}

// fillCold writes the log.
func fillCold(dir string, size int64) error {
	log, err := peers.OpenSeglog(dir, seglog.Options{Flush: seglog.FlushNone, SegmentBytes: coldSegmentBytes})
	if err != nil {
		return err
	}
	values := make([][]byte, coldBatch)
	for i := range values {
		values[i] = payload(0, coldValue)
	}
	write := log.Appender()
	for next := int64(0); next*coldValue < size; {
		for _, v := range values {
			number(next, v)
			next++
		}
		if err := write(values); err != nil {
			return err
		}
	}
	return log.Close()
}

// coldSubject is one way at one rate, and what its rounds saw.
type coldSubject struct {
	name  string
	shape child.ColdRound
	seen  []child.ColdSeen
}

func coldSubjects(shape child.ColdRound) []*coldSubject {
	ways := []string{child.ColdSeglog}
	for _, w := range raw.ColdWays() {
		ways = append(ways, w.Name)
	}
	shape.Way = child.ColdNone
	subjects := []*coldSubject{{name: shape.Way, shape: shape}}
	for _, rate := range []int64{0, coldRate} {
		for _, way := range ways {
			shape.Way, shape.Rate = way, rate
			s := &coldSubject{name: way, shape: shape}
			if rate > 0 {
				s.name += fmt.Sprintf(", %d MB/s", rate/1e6)
			}
			subjects = append(subjects, s)
		}
	}
	return subjects
}

// round begins with nothing of the log in the cache: pages that are there count for whoever brought them.
func (s *coldSubject) round() (measure.Sample, error) {
	if err := raw.Evict(s.shape.Dir); err != nil {
		return measure.Sample{}, err
	}
	seen, err := child.RunCold(s.shape)
	if err != nil {
		return measure.Sample{}, err
	}
	s.seen = append(s.seen, seen)
	return measure.Sample{
		Ops: int64(seen.Reads.Count), Bytes: seen.Sent,
		Usage: measure.Usage{Elapsed: seen.Elapsed, CPU: seen.CPU, Mallocs: seen.Allocs},
	}, nil
}

// line states the transfer and the reads beside it; without is the subject that has no transfer.
func (s *coldSubject) line(series *measure.Series, without *coldSubject) Line {
	l := fill(Line{Name: s.name}, series, series.Throughputs())
	l.CPU = 0
	if len(s.seen) == 0 {
		return l
	}
	if s != without && len(without.seen) > 0 {
		idle := without.median(func(c child.ColdSeen) float64 { return c.CPU.Seconds() / c.Elapsed.Seconds() })
		l.CPU = s.median(func(c child.ColdSeen) float64 {
			return (c.CPU.Seconds() - idle*c.Elapsed.Seconds()) / float64(c.Sent) * 1e9
		})
	}
	p := s.percentiles(func(c child.ColdSeen) measure.Percentiles { return c.Reads })
	l.Latency = &p
	return l
}

func (s *coldSubject) median(of func(child.ColdSeen) float64) float64 {
	values := make([]float64, len(s.seen))
	for i, c := range s.seen {
		values[i] = of(c)
	}
	return measure.Median(values)
}

// percentiles are the medians over the rounds, but the longest of all.
func (s *coldSubject) percentiles(of func(child.ColdSeen) measure.Percentiles) (p measure.Percentiles) {
	median := func(q func(measure.Percentiles) time.Duration) time.Duration {
		return time.Duration(s.median(func(c child.ColdSeen) float64 { return float64(q(of(c))) }))
	}
	p.P50 = median(func(p measure.Percentiles) time.Duration { return p.P50 })
	p.P99 = median(func(p measure.Percentiles) time.Duration { return p.P99 })
	p.P999 = median(func(p measure.Percentiles) time.Duration { return p.P999 })
	p.P9999 = median(func(p measure.Percentiles) time.Duration { return p.P9999 })
	for _, c := range s.seen {
		p.Max = max(p.Max, of(c).Max)
		p.Count += of(c).Count
	}
	return p
}

// coldTable is what the columns of the other rows have no place for.
func coldTable(subjects []*coldSubject) string {
	var b strings.Builder
	head := []string{"beside", "reads/s", "reads > 1 ms", "readers' time in them", "major faults/s", "append p50", "p99", "p99.9", "max", "tail cached before", "after", "below it, MiB"}
	row(&b, head)
	row(&b, strings.Split(strings.Repeat("---,", len(head)-1)+"---", ","))
	for _, s := range subjects {
		if len(s.seen) == 0 {
			continue
		}
		rate := func(of func(child.ColdSeen) float64) string {
			return figure(s.median(func(c child.ColdSeen) float64 { return of(c) / c.Elapsed.Seconds() }))
		}
		part := func(of func(child.ColdSeen) float64) string { return fmt.Sprintf("%.3g %%", 100*s.median(of)) }
		a := s.percentiles(func(c child.ColdSeen) measure.Percentiles { return c.Appends })
		row(&b, []string{
			s.name,
			rate(func(c child.ColdSeen) float64 { return float64(c.Reads.Count) }),
			part(func(c child.ColdSeen) float64 { return float64(c.SlowReads) / float64(c.Reads.Count) }),
			part(func(c child.ColdSeen) float64 {
				return c.Stalled.Seconds() / c.Elapsed.Seconds() / float64(s.shape.Readers)
			}),
			rate(func(c child.ColdSeen) float64 { return float64(c.MajorFaults) }),
			short(a.P50), short(a.P99), short(a.P999), short(a.Max),
			part(func(c child.ColdSeen) float64 { return c.TailCachedFirst }),
			part(func(c child.ColdSeen) float64 { return c.TailCached }),
			figure(s.median(func(c child.ColdSeen) float64 { return float64(c.RestCached) / (1 << 20) })),
		})
	}
	b.WriteString("\nMedians of the rounds, the longest of all; the tail is the part of it that was there at the start of the round")
	return b.String()
}

// readAhead is how far the kernel reads ahead on the device of dir.
func readAhead(dir string) string {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return "an unknown distance"
	}
	b, err := os.ReadFile(filepath.Join("/sys/class/bdi", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), "read_ahead_kb"))
	if err != nil {
		return "an unknown distance"
	}
	return strings.TrimSpace(string(b)) + " KiB"
}
