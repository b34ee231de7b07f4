// Package rows holds the pieces of work that are compared, one function each, and what they report.
package rows

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
)

// Env is what a row runs in.
type Env struct {
	Dir    string // on a disk file system
	Quick  bool   // shorter rounds and smaller logs, the same comparisons
	Rounds int
	Only   []string // names of the peers to measure; empty means all
	Log    func(format string, args ...any)
}

// pick returns the quick or the full value.
func pick[T any](e *Env, quick, full T) T {
	if e.Quick {
		return quick
	}
	return full
}

// Line is one subject of a row.
type Line struct {
	Name    string               `json:"name"`
	Version string               `json:"version,omitempty"`
	X       float64              `json:"x,omitempty"` // what the row varies: record size, callers, bytes; 0 if nothing
	Value   float64              `json:"value"`       // the median over the rounds, in the row's unit
	Spread  float64              `json:"spread"`      // half of greatest minus least, as a share of the median
	Rounds  []float64            `json:"rounds"`
	CPU     float64              `json:"cpu"`               // median processor seconds per operation
	Allocs  float64              `json:"allocs"`            // median allocations per operation
	Flushes float64              `json:"flushes,omitempty"` // median flushes of the disk per operation; 0 where they are not counted
	Latency *measure.Percentiles `json:"latency,omitempty"`

	Setup string `json:"setup,omitempty"`
	Kill  string `json:"kill,omitempty"`
	Power string `json:"power,omitempty"`
	CRC   string `json:"crc,omitempty"`
	Note  string `json:"note,omitempty"` // why there is no figure, or what to know about it
}

// Check holds one target against what was measured.
type Check struct {
	What    string  `json:"what"`
	Target  float64 `json:"target"`
	AtMost  bool    `json:"at_most"` // otherwise at least
	Result  float64 `json:"result"`
	Reached bool    `json:"reached"`
}

// Result is what a row found.
type Result struct {
	Row       string   `json:"row"`
	Work      string   `json:"work"`
	Guarantee string   `json:"guarantee"`
	Unit      string   `json:"unit"`
	CPUUnit   string   `json:"cpu_unit"`
	XName     string   `json:"x_name,omitempty"` // what the lines' X is, where it is a column
	Lines     []Line   `json:"lines"`
	Tables    []Table  `json:"tables,omitempty"`
	Checks    []Check  `json:"checks"`
	Others    float64  `json:"others"` // share of the processors that went to other processes meanwhile
	Notes     []string `json:"notes,omitempty"`
}

// Table is what a row tells beside its lines.
type Table struct {
	Head []string   `json:"head"`
	Rows [][]string `json:"rows"`
}

func atLeast(what string, target, result float64) Check {
	return Check{What: what, Target: target, Result: result, Reached: result >= target}.measured()
}

func atMost(what string, target, result float64) Check {
	return Check{What: what, Target: target, AtMost: true, Result: result, Reached: result <= target}.measured()
}

// measured marks a check one of whose sides failed: the ratio of nothing is no number, and JSON has none for it.
func (c Check) measured() Check {
	if math.IsNaN(c.Result) {
		c.What, c.Result = c.What+" (a side failed)", 0
	}
	return c
}

// Row is one piece of work.
type Row struct {
	ID   string
	Work string
	Run  func(e *Env) (*Result, error)
}

// All lists the rows in the order of the targets; the sweeps behind them feed the charts.
func All() []Row {
	return []Row{
		{"1", "append 128 B, one caller, no flush", appendSmall},
		{"2", "append 100 x 128 B per call", appendBatches},
		{"3", "append 16 KiB, one caller", appendLarge},
		{"4", "durable append 1 KiB, one caller", durableFor(1)},
		{"5", "durable append 1 KiB, 64 callers", durableFor(64)},
		{"6", "durable append 1 KiB, 256 callers", durableFor(256)},
		{"7", "random Read of 128 B in cache", readRandom},
		{"7b", "random Read in cache out of batches of 1, 100 and 1,000 records", readOutOfBatches},
		{"7c", "Read one after another, plain and compressed", readNeighbours},
		{"8", "scan with CRC", scanAll},
		{"9", "transfer over loopback TCP", transfer},
		{"10", "fetch round trips with a header", fetchTrips},
		{"11", "open, 10,000 sealed segments, clean", openClean},
		{"12", "open after kill -9, 128 MiB active", openCrashed},
		{"13", "append latency over a roll", rollLatency},
		{"14", "allocations", allocations},
		{"15", "growth", growth},
		{"16", "TruncateTo 5 records back, by size of the segment", truncateEnd},
		{"17", "durable append 1 KiB, by number of logs", manyLogs},
		{"17b", "durable append 1 KiB to 100 logs beside batches of 1 MiB to another", besideLargeBatches},
		{"index", "random Read and Append by Options.IndexBytes", indexDistance},
		{"sizes", "throughput by record size", sweepSizes},
		{"callers", "durable throughput by callers", sweepCallers},
		{"recycled", "durable append 1 KiB into the files of removed segments", recycledSegments},
		{"remapped", "append 128 B, no flush, into mapped files of removed segments", recycledMappings},
		{"inflight", "durable append 1 KiB, two flushes in flight", flushesInFlight},
		{"crowd", "1 to 4,096 readers and appenders", crowd},
		{"steps", "transfer in pieces of 16 KiB to 1 GiB", sendSteps},
		{"receive", "a follower stores what its leader sends", receive},
		{"cold", "a transfer from the start beside reads of the tail", coldReader},
	}
}

// candidate is a subject that appends.
type candidate struct {
	line  Line
	group bool // measured behind an external group commit
	open  func(dir string) (peers.Log, error)
	peer  *peers.Peer // nil for the machine's limits
}

func lineOf(p peers.Peer) Line {
	return Line{Name: p.Name, Version: p.Version(), Setup: p.Setup, Kill: p.Kill, Power: p.Power, CRC: p.CRC, Note: p.Absent}
}

func limit(name string, open func(dir string) (peers.Log, error)) candidate {
	return candidate{line: Line{Name: name, Setup: "the machine's limit"}, open: open}
}

// seglogCandidate is this project's log for the same work as the peers.
func seglogCandidate(s peers.Setup) candidate { return peerCandidate(peers.Seglog, s) }

func peerCandidate(p peers.Peer, s peers.Setup) candidate {
	return candidate{line: lineOf(p), peer: &p, open: func(dir string) (peers.Log, error) { return p.Open(dir, s) }}
}

// peers are the ones to measure.
func (e *Env) peers() []peers.Peer {
	return slices.DeleteFunc(peers.All(), func(p peers.Peer) bool {
		return len(e.Only) > 0 && !slices.Contains(e.Only, p.Name)
	})
}

// peerCandidates are the peers that can do the work; the ones that cannot be had at all come back as lines.
func (e *Env) peerCandidates(s peers.Setup) (can []candidate, absent []Line) {
	for _, p := range e.peers() {
		if p.Absent != "" {
			absent = append(absent, lineOf(p))
			continue
		}
		if s.Durable && !p.Durable || !s.Durable && !p.NonDurable {
			continue
		}
		can = append(can, peerCandidate(p, s))
	}
	return can, absent
}

// work is what each round of an append row does.
type work struct {
	callers   int
	perCall   int
	valueSize int
	duration  time.Duration
	latency   bool
}

// maxRoundBytes bounds what one round writes, well below what the kernel throttles writers at.
const maxRoundBytes = 1 << 30

// round opens the candidate afresh, appends for the duration and removes it.
func (e *Env) round(c candidate, w work) (measure.Sample, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return measure.Sample{}, err
	}
	if !w.latency { // those that wait for the disk use little
		if err := measure.TouchMemory(pick(e, int64(160<<20), int64(3<<29))); err != nil {
			return measure.Sample{}, err
		}
	}
	log, err := c.open(dir)
	if err != nil {
		return measure.Sample{}, fmt.Errorf("open: %w", err)
	}
	if c.group {
		log = peers.Group(log)
	}
	load := measure.Load{
		Callers: w.callers, Duration: w.duration, Latency: w.latency,
		MaxOps: max(1, maxRoundBytes/int64(w.perCall*w.valueSize*w.callers)),
	}
	s, err := measure.Drive(load, func(caller int) func() error {
		write := log.Appender()
		values := make([][]byte, w.perCall)
		for i := range values {
			values[i] = payload(int64(caller*w.perCall+i), w.valueSize)
		}
		return func() error { return write(values) }
	})
	closeErr := log.Close()
	if err := remove(); err != nil {
		return s, err
	}
	if err != nil {
		return s, err
	}
	s.Ops *= int64(w.perCall)
	s.Bytes = s.Ops * int64(w.valueSize)
	return s, closeErr
}

// compare runs the candidates against each other and returns a line for each, in their order.
func (e *Env) compare(candidates []candidate, w work) ([]Line, []measure.Series) {
	subjects := make([]measure.Subject, len(candidates))
	for i, c := range candidates {
		subjects[i] = measure.Subject{Name: c.line.Name, Round: func() (measure.Sample, error) { return e.round(c, w) }}
	}
	series := measure.Interleave(e.Rounds, subjects)
	lines := make([]Line, len(candidates))
	for i, c := range candidates {
		lines[i] = fill(c.line, &series[i], series[i].Rates())
	}
	return lines, series
}

// fill completes a line by what was measured.
func fill(l Line, s *measure.Series, rounds []float64) Line {
	if s.Err != nil {
		l.Note = "failed: " + s.Err.Error()
	}
	l.Rounds = rounds
	if len(s.Samples) == 0 {
		return l
	}
	l.Value, l.Spread = measure.Median(rounds), measure.Spread(rounds)
	l.CPU, l.Allocs, l.Flushes = measure.Median(s.CPUPerOp()), measure.Median(s.AllocsPerOp()), measure.Median(s.FlushesPerOp())
	if h := s.Latency(); h != nil {
		p := h.Percentiles()
		l.Latency = &p
	}
	return l
}

// best is the index of the greatest value among the lines that want accepts, -1 if there is none.
func best(lines []Line, want func(i int) bool) int {
	at := -1
	for i, l := range lines {
		if len(l.Rounds) > 0 && want(i) && (at < 0 || l.Value > lines[at].Value) {
			at = i
		}
	}
	return at
}

// ratio compares the rounds of two lines, round by round.
func ratio(a, b Line) float64 { return measure.MedianRatio(a.Rounds, b.Rounds) }

// payload is a value of the given size that carries its number; the rest is bytes that do not repeat within a cache line.
func payload(i int64, size int) []byte {
	v := make([]byte, size)
	x := uint64(size)*0x9e3779b97f4a7c15 + 1
	for at := range v {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		v[at] = byte(x)
	}
	number(i, v)
	return v
}

// number stamps a record's number into its value, by which a read proves that it found the right one.
func number(i int64, value []byte) []byte {
	binary.BigEndian.PutUint64(value, uint64(i))
	return value
}

func numberOf(value []byte) int64 { return int64(binary.BigEndian.Uint64(value)) }
