package rows

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// batchShape is one log of the rows that read out of batches.
type batchShape struct {
	bytes    int64 // of log, about
	value    int   // bytes of a record's value
	mixed    bool  // from 8 bytes to nearly twice as many, value in the mean
	perBatch int
	duration time.Duration // of a round
}

func (s batchShape) String() string {
	if s.mixed {
		return fmt.Sprintf("%d x %d to %d B per batch", s.perBatch, s.size(0), 2*s.value-s.size(0))
	}
	return fmt.Sprintf("%d x %s per batch", s.perBatch, BytesName(int64(s.value)))
}

// size returns the number of bytes of the value of record i.
func (s batchShape) size(i int64) int {
	if !s.mixed {
		return s.value
	}
	const number = 8
	mixed := uint64(i) * 0x9e3779b97f4a7c15
	return number + int((mixed^mixed>>32)%uint64(2*(s.value-number)+1))
}

// longest returns the number of bytes of the longest value.
func (s batchShape) longest() int {
	if s.mixed {
		return 2 * s.value
	}
	return s.value
}

// fill puts record i into a buffer of the longest size, and returns the part that is its value.
func (s batchShape) fill(i int64, value []byte) []byte { return number(i, value[:s.size(i)]) }

// records is how many of them there are: whole batches.
func (s batchShape) records() int64 {
	batch := int64(raw.FrameSize(s.perBatch, s.value))
	return max(1, s.bytes/batch) * int64(s.perBatch)
}

func batchShapes(e *Env) (shapes []batchShape) {
	for _, value := range []int{128, 1 << 10} {
		for _, perBatch := range []int{1, 100, 1000} {
			shapes = append(shapes, batchShape{
				bytes: pick(e, int64(128<<20), int64(1<<30)), value: value, perBatch: perBatch,
				duration: pick(e, 60*time.Millisecond, 400*time.Millisecond),
			})
		}
	}
	// Batches of one size lie at even distances, which a table or a search may be better at than at others.
	mixed := shapes[2]
	mixed.mixed = true
	return append(shapes, mixed)
}

const (
	// directoryStep is the records from one entry of the raw directory to the next: 25 bytes of memory for 1,000 records of
	// 100 bytes, and a walk of 8 records in the mean.
	directoryStep = 16
	// leastPerCall is what peers whose appends cost a flush or a transaction each are filled by: millions of those would take
	// hours. None of the two finds a record by the append it came with.
	leastPerCall = 100
)

func readOutOfBatches(e *Env) (*Result, error) {
	r := &Result{
		Guarantee: "the bytes returned were checked against their CRC where the table says so; the caller owns the copy",
		Unit:      "reads/s", CPUUnit: "ns/read",
		Notes: []string{
			fmt.Sprintf("about %d MiB of log in each shape, all in the page cache; one caller, offsets at random; every subject was filled by the same batches, but for %s and %s, which take %d records in a call at least",
				batchShapes(e)[0].bytes>>20, "hashicorp/raft-wal", boltName, leastPerCall),
			fmt.Sprintf("the raw walks are over a mapping with an index entry for 4 KiB and more of file; the directory is the position of every %dth record of each batch, 4 bytes an entry in memory", directoryStep),
			"rate, CPU and allocations are of rounds without a clock, the percentiles of rounds beside them that take the time of each read",
		},
	}
	for _, s := range batchShapes(e) {
		if err := e.readShape(r, s); err != nil {
			return nil, fmt.Errorf("%v: %w", s, err)
		}
	}
	return r, nil
}

func (e *Env) readShape(r *Result, s batchShape) (err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	n := s.records()
	log, err := peers.OpenSeglog(dir+"/seglog", seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return err
	}
	defer log.Close()
	if err := appendFilled(log, n, s.perBatch, s.longest(), s.fill); err != nil {
		return err
	}
	store, err := raw.BuildStore(dir, n, s.perBatch, s.longest(), s.fill)
	if err != nil {
		return err
	}
	defer store.Close()
	subjects := []readingPeer{
		{lineOf(peers.Seglog), log.Read},
		{Line{Name: "raw mapped walk + CRC + copy", CRC: "yes"}, func(i int64) ([]byte, error) { return store.ReadWalk(i, true, nil) }},
		{Line{Name: "raw mapped walk + copy", CRC: "no"}, func(i int64) ([]byte, error) { return store.ReadWalk(i, false, nil) }},
	}
	if s.perBatch > 1 {
		directory := store.BuildDirectory(int64(s.perBatch), directoryStep)
		subjects = append(subjects, readingPeer{Line{Name: "raw mapped walk from a directory + copy", CRC: "no"},
			func(i int64) ([]byte, error) { return store.ReadWalk(i, false, directory) }})
	}
	firstPeer := len(subjects)
	can, absent, closePeers, err := e.readingPeers(dir, n, s.longest(), s.fill, func(p peers.Peer) int {
		if !p.NonDurable || p.Name == boltName {
			return max(s.perBatch, leastPerCall)
		}
		return s.perBatch
	})
	defer closePeers()
	if err != nil {
		return err
	}
	lines, err := e.randomReads(append(subjects, can...), n, s)
	if err != nil {
		return err
	}
	r.checkReads(lines, firstPeer, s)
	for _, l := range lines {
		l.Name += ", " + s.String()
		r.Lines = append(r.Lines, l)
	}
	r.addAbsent(absent)
	return nil
}

// addAbsent adds a line for each that is not there yet.
func (r *Result) addAbsent(lines []Line) {
	for _, l := range lines {
		if !slices.ContainsFunc(r.Lines, func(have Line) bool { return have.Name == l.Name }) {
			r.Lines = append(r.Lines, l)
		}
	}
}

// checkReads holds the first line against the peers, which begin at firstPeer, and the raw walks before them.
func (r *Result) checkReads(lines []Line, firstPeer int, s batchShape) {
	if b := best(lines, func(i int) bool { return i >= firstPeer }); b >= 0 {
		r.Checks = append(r.Checks, atLeast(fmt.Sprintf("seglog / best peer (%s), %v", lines[b].Name, s), 3, ratio(lines[0], lines[b])))
	}
	if b := best(lines, func(i int) bool { return i >= firstPeer && lines[i].Name != boltName }); b >= 0 {
		r.Checks = append(r.Checks, atLeast(fmt.Sprintf("seglog / best log (%s), %v", lines[b].Name, s), 3, ratio(lines[0], lines[b])))
	}
	// What is read out of a batch of one record is that batch, checked.
	walk := lines[1]
	if s.perBatch > 1 {
		walk = lines[firstPeer-1]
	}
	r.Checks = append(r.Checks, atLeast(fmt.Sprintf("seglog / %s, %v", walk.Name, s), 0.8, ratio(lines[0], walk)))
}

// randomReads compares reads of n numbered records at random.
func (e *Env) randomReads(all []readingPeer, n int64, s batchShape) ([]Line, error) {
	subjects := make([]measure.Subject, len(all))
	lines := make([]Line, len(all))
	for i, one := range all {
		lines[i] = one.line
		// Once over all pages in order: the row is about reads in cache, and a mapping that was never touched is not that. A
		// record of 1 KiB in 16 is one of every 16 KiB, less than what a fault maps.
		for at := int64(0); at < n; at += 16 {
			if _, err := one.read(at); err != nil {
				return nil, fmt.Errorf("%s: record %d: %w", one.line.Name, at, err)
			}
		}
		subjects[i] = measure.Subject{Name: one.line.Name, Round: func() (measure.Sample, error) {
			rng := rand.New(rand.NewPCG(uint64(n), 7))
			return clocked(s.duration, func() error {
				at := rng.Int64N(n)
				v, err := one.read(at)
				if err == nil && (len(v) != s.size(at) || numberOf(v) != at) {
					err = errWrongRecord
				}
				return err
			})
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range lines {
		lines[i] = fill(lines[i], &series[i], series[i].Rates())
	}
	return lines, nil
}

// clocked has one caller repeat op for the duration without a clock, and then for a part of it with one, which adds some 50 ns
// to each call and yields the percentiles.
func clocked(d time.Duration, op func() error) (measure.Sample, error) {
	load := measure.Load{Callers: 1, Duration: d}
	s, err := measure.Drive(load, func(int) func() error { return op })
	if err != nil {
		return s, err
	}
	load.Duration, load.Latency = d/2, true
	timed, err := measure.Drive(load, func(int) func() error { return op })
	s.Latency = timed.Latency
	return s, err
}
