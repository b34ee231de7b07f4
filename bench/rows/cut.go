package rows

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

const (
	cutRecords = 5
	cutValue   = 1 << 10
	// cutPause is long enough for what appends leave to the background to be done.
	cutPause = 20 * time.Millisecond
	// cutAhead is the zeros laid ahead that one of the raw limits drops with the records: the file system has blocks to give
	// back then, which takes long where it tells the disk at once (mount option discard).
	cutAhead = 1 << 20
	// leastCutFlushes is what a cut takes at least: it is noted, done, and noted as done.
	leastCutFlushes = 3
)

// cutWork is how much of the row is done.
type cutWork struct {
	bytes    int64         // of the active segment
	laps     int           // cuts of a round
	duration time.Duration // of a round, at most
	flushes  int           // that a cut of seglog makes
}

func truncateEnd(e *Env) (*Result, error) {
	r := &Result{
		XName:     "bytes",
		Guarantee: "the records are gone, and stay gone after a power cut, when the call returns", Unit: "s", CPUUnit: "CPU us/call",
		Notes: []string{
			fmt.Sprintf("%d records of %s are cut off; as many, each a durable append of its own, come before the next cut, and are timed as well, all %[1]d together; the figure of a round is its median call", cutRecords, BytesName(cutValue)),
			fmt.Sprintf("seglog holds the bytes in one segment, filled record by record and reopened; the cut comes at once behind the appends, or %v later; inside a batch: the first %d of %d records stay", cutPause, cutRecords, 2*cutRecords),
			"the peers were filled by 1,000 records in a call, and hold the bytes in the segments they have by default; this release of raft-wal can't open a log again that it has cut inside of its active segment",
		},
	}
	w := cutWork{laps: 40, duration: pick(e, 400*time.Millisecond, 2*time.Second)}
	counted, err := e.cutFlushes(r)
	if err != nil {
		return nil, err
	}
	w.flushes = counted
	for _, mib := range pick(e, []int64{1, 16, 64}, []int64{1, 16, 64, 256, 1024}) {
		w.bytes = mib << 20
		if err := e.cutSize(r, w); err != nil {
			return nil, fmt.Errorf("%s: %w", BytesName(w.bytes), err)
		}
	}
	return r, nil
}

// cutFlushes counts the flushes of a cut, and says how in the notes.
func (e *Env) cutFlushes(r *Result) (n int, err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	c, err := child.CountCutFlushes(dir, 16<<20, 20)
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("flushes not counted (%v); the raw price is that of %d, the least", err, leastCutFlushes))
		return leastCutFlushes, nil
	}
	n = int(math.Round(c.Flushes))
	r.Notes = append(r.Notes, fmt.Sprintf("flushes of a cut of seglog, by strace, the mean of 20 at once behind appends: %.2g fsync and fdatasync, %.2g sync_file_range", c.Flushes, c.Ranges))
	r.Checks = append(r.Checks, atMost("flushes of a cut of seglog", 5, c.Flushes))
	return n, nil
}

// cutter is a log that is cut again and again: append, one call for each of five records, and cut.
type cutter struct {
	line   Line
	append func() error // five records, each an append of its own
	cut    func() error // takes them away again
	// Not timed; nil if there is nothing.
	before func() error // right before the cut
	after  func() error // right behind it
}

// newCutter cuts a log that holds n records, and writes its own behind.
func newCutter(line Line, log peers.Log, n int64) cutter {
	write := log.Appender()
	values := [][]byte{payload(0, cutValue)}
	return cutter{
		line: line,
		append: func() error {
			for range cutRecords {
				if err := write(values); err != nil {
					return err
				}
			}
			return nil
		},
		cut: func() error { return log.(peers.Truncater).Truncate(n) },
	}
}

// insideBatch is a cutter that leaves the first half of a batch.
func insideBatch(line Line, log *peers.SeglogLog, n int64) cutter {
	write := log.Appender()
	values := make([][]byte, 2*cutRecords)
	for i := range values {
		values[i] = payload(int64(i), cutValue)
	}
	return cutter{
		line:   line,
		append: func() error { return write(values) },
		cut:    func() error { return log.Truncate(n + cutRecords) },
		after:  func() error { return log.Truncate(n) },
	}
}

func (e *Env) cutSize(r *Result, w cutWork) (err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	cutters, absent, closeAll, err := e.cutters(dir, w)
	defer func() { err = errors.Join(err, closeAll()) }()
	if err != nil {
		return err
	}
	if err := measure.Settle(e.Dir); err != nil {
		return err
	}
	behind := make([]measure.Series, len(cutters)) // the appends behind the cuts
	subjects := make([]measure.Subject, len(cutters))
	for i, c := range cutters {
		subjects[i] = measure.Subject{Name: c.line.Name, Round: func() (measure.Sample, error) {
			cuts, appends, err := c.round(w)
			if err == nil {
				behind[i].Samples = append(behind[i].Samples, appends)
			}
			return cuts, err
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	lines := make([]Line, len(cutters))
	for i, c := range cutters {
		lines[i] = c.line
		lines[i].X = float64(w.bytes)
		lines[i] = fill(lines[i], &series[i], medians(series[i]))
	}
	r.Lines = append(r.Lines, lines...)
	for i, c := range cutters {
		if c.before == nil && c.after == nil {
			name := fmt.Sprintf("the next %d appends: %s", cutRecords, c.line.Name)
			r.Lines = append(r.Lines, fill(Line{Name: name, X: float64(w.bytes)}, &behind[i], medians(behind[i])))
		}
	}
	r.addAbsent(absent)
	for i, l := range lines {
		if l.Name == "hashicorp/raft-wal" && len(l.Rounds) > 0 {
			r.Checks = append(r.Checks, atMost("seglog / raft-wal, "+BytesName(w.bytes), 1.5, ratio(lines[0], lines[i])))
		}
	}
	return nil
}

// medians are the seconds that half of the calls of each round took at most. A disk that others use too makes the mean that
// of a few calls.
func medians(s measure.Series) []float64 {
	out := make([]float64, len(s.Samples))
	for i, m := range s.Samples {
		out[i] = m.Latency.Quantile(0.5).Seconds()
	}
	return out
}

// round cuts until the work is done. The records that the first cut takes are there before the clock runs.
func (c cutter) round(w cutWork) (cuts, appends measure.Sample, err error) {
	if err := c.append(); err != nil {
		return cuts, appends, err
	}
	cutLaps, appendLaps := measure.NewLaps(), measure.NewLaps()
	deadline := time.Now().Add(w.duration)
	for lap := 0; lap < w.laps && (lap == 0 || time.Now().Before(deadline)); lap++ {
		if c.before != nil {
			if err := c.before(); err != nil {
				return cuts, appends, err
			}
		}
		if err := cutLaps.Time(c.cut); err != nil {
			return cuts, appends, err
		}
		if c.after != nil {
			if err := c.after(); err != nil {
				return cuts, appends, err
			}
		}
		if err := appendLaps.Time(c.append); err != nil {
			return cuts, appends, err
		}
	}
	if err := c.cut(); err != nil { // another cutter goes on with the same log
		return cuts, appends, err
	}
	if c.after != nil {
		err = c.after()
	}
	return cutLaps.Sample(), appendLaps.Sample(), err
}

// cutters are seglog in three ways, over one log, the raw limits, and the peers.
func (e *Env) cutters(dir string, w cutWork) (all []cutter, absent []Line, closeAll func() error, err error) {
	var logs []peers.Log
	closeAll = func() (err error) {
		for _, l := range logs {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	n := w.bytes / cutValue
	log, err := cutLog(dir+"/seglog", n)
	if err != nil {
		return nil, nil, closeAll, err
	}
	logs = append(logs, log)
	line := func(more string) Line {
		l := lineOf(peers.Seglog)
		l.Name += more
		return l
	}
	later := newCutter(line(fmt.Sprintf(", %v later", cutPause)), log, n)
	later.before = func() error { time.Sleep(cutPause); return nil }
	all = append(all, newCutter(lineOf(peers.Seglog), log, n), later, insideBatch(line(", inside a batch"), log, n))
	for _, limit := range []struct {
		name    string
		inPlace int
		ahead   int64
	}{
		{fmt.Sprintf("raw, %d x (pwrite 4 KiB + fdatasync) in place", w.flushes), w.flushes, 0},
		{"raw, note + truncate + note, a fdatasync each", 0, 0},
		{"raw, the same with " + BytesName(cutAhead) + " of zeros behind the end", 0, cutAhead},
	} {
		sub, _, err := measure.Fresh(dir)
		if err != nil {
			return nil, nil, closeAll, err
		}
		file, err := raw.NewCutter(sub, n, cutValue, limit.inPlace)
		if err != nil {
			return nil, nil, closeAll, err
		}
		logs = append(logs, file)
		c := newCutter(Line{Name: limit.name}, file, n)
		if limit.ahead > 0 {
			c.before = func() error { return file.LayAhead(limit.ahead) }
		}
		all = append(all, c)
	}
	for _, p := range e.peers() {
		if p.Absent != "" {
			absent = append(absent, lineOf(p))
			continue
		}
		opened, err := e.cutPeer(dir, p, n)
		if err != nil {
			return nil, nil, closeAll, fmt.Errorf("%s: %w", p.Name, err)
		}
		if opened != nil {
			logs = append(logs, opened)
			all = append(all, newCutter(lineOf(p), opened, n))
		}
	}
	return all, absent, closeAll, nil
}

// cutLog is a durable log of n records in one segment, reopened, so that its indexes are those of every day: it was filled
// record by record.
func cutLog(dir string, n int64) (*peers.SeglogLog, error) {
	opts := seglog.Options{Flush: seglog.FlushNone, SegmentBytes: math.MaxInt32}
	log, err := peers.OpenSeglog(dir, opts)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fillRecords(log, n, 1, cutValue), log.Close()); err != nil {
		return nil, err
	}
	opts.Flush = seglog.FlushSync
	return peers.OpenSeglog(dir, opts)
}

// cutPeer is a peer that holds n records, open for durable work; nil if it has no way to drop the last ones.
func (e *Env) cutPeer(dir string, p peers.Peer, n int64) (peers.Log, error) {
	if !p.Durable {
		return nil, nil
	}
	sub, _, err := measure.Fresh(dir)
	if err != nil {
		return nil, err
	}
	log, err := p.Open(sub, peers.Setup{Durable: !p.NonDurable, Callers: 1})
	if err != nil {
		return nil, err
	}
	if _, ok := log.(peers.Truncater); !ok {
		return nil, log.Close()
	}
	e.Log("  filling %s", p.Name)
	err = fillRecords(log, n, 1000, cutValue)
	if !p.NonDurable || err != nil {
		if err != nil {
			err = errors.Join(err, log.Close())
		}
		return log, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	return p.Open(sub, peers.Setup{Durable: true, Callers: 1})
}
