package child

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

// ColdRound is a log in use by a process with little memory: an appender and readers of its tail, and beside them one
// transfer of it from its start.
type ColdRound struct {
	Dir          string // of a log that is not in the cache, whose values begin with their offset
	SegmentBytes int64
	Memory       int64 // limit of the group that the pages count for
	Tail         int64 // bytes at the end of the log that the readers read
	Way          string
	Rate         int64 // of the transfer, bytes/s; 0 is as fast as it goes
	Duration     time.Duration

	Batch, Value int // records in an append, bytes in each
	AppendEvery  time.Duration
	Readers      int
	ReadEvery    time.Duration // each of the readers
}

const (
	ColdSeglog = "seglog"
	ColdNone   = "no cold reader"
	// slowRead is what no read from memory takes.
	slowRead = time.Millisecond
)

// ColdSeen is what came of it.
type ColdSeen struct {
	Elapsed, CPU    time.Duration
	Sent            int64
	Allocs          uint64
	Reads, Appends  measure.Percentiles
	SlowReads       uint64        // took longer than slowRead
	Stalled         time.Duration // of the readers, in slow reads
	MajorFaults     int64
	TailCachedFirst float64 // share of the tail that was in the cache at the start
	TailCached      float64 // and at the end
	RestCached      int64   // bytes below the tail that were, at the end
	Err             string
}

// RunCold has a child do one round.
func RunCold(r ColdRound) (ColdSeen, error) {
	group, err := NewMemoryGroup(r.Memory)
	if err != nil {
		return ColdSeen{}, err
	}
	seen, err := runCold(r, group)
	return seen, errors.Join(err, group.Remove())
}

func runCold(r ColdRound, group *MemoryGroup) (ColdSeen, error) {
	p, err := start("cold", group.dir)
	if err != nil {
		return ColdSeen{}, err
	}
	err = json.NewEncoder(p.in).Encode(r)
	var seen ColdSeen
	if err == nil {
		err = json.NewDecoder(p.out).Decode(&seen)
	}
	if seen.Err != "" {
		err = errors.New(seen.Err)
	}
	return seen, errors.Join(err, p.stop())
}

func cold(args []string) error {
	var r ColdRound
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return err
	}
	seen, err := r.run(args[0])
	if err != nil {
		seen.Err = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

func (r ColdRound) run(group string) (seen ColdSeen, err error) {
	to, err := StartReceiver() // outside of the group: its memory is another machine's
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := joinMemoryGroup(group); err != nil {
		return seen, err
	}
	log, err := seglog.Open(r.Dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: r.SegmentBytes})
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	spans, err := openSpans(log)
	if err != nil {
		return seen, err
	}
	defer func() {
		for _, s := range spans {
			s.file.Close()
		}
	}()
	// Opening a segment brought what lies around its last batch along, as much as the disk reads ahead.
	if err := raw.Evict(r.Dir); err != nil {
		return seen, err
	}
	cached, size, err := cachedOf(spans)
	if err != nil {
		return seen, err
	}
	if cached > size/10 {
		return seen, fmt.Errorf("%d of %d bytes of the log are in the cache already", cached, size)
	}
	tail := lastBytes(spans, r.Tail)
	offsets := [2]int64{tail[0].offset, spans[len(spans)-1].next}
	// Twice, since what was touched once is what the kernel lets go first.
	for range 2 {
		for at := offsets[0]; at < offsets[1]; at += int64(r.Batch) / 2 {
			if err := readOne(log, at); err != nil {
				return seen, err
			}
		}
	}
	if cached, size, err = cachedOf(tail); err != nil {
		return seen, err
	}
	seen.TailCachedFirst = float64(cached) / float64(size)
	if err := r.measure(log, spans, offsets, to, &seen); err != nil {
		return seen, err
	}
	all, _, err := cachedOf(spans)
	if err != nil {
		return seen, err
	}
	if cached, size, err = cachedOf(tail); err != nil {
		return seen, err
	}
	seen.TailCached, seen.RestCached = float64(cached)/float64(size), all-cached
	return seen, nil
}

// measure runs the appender, the readers and the transfer beside each other.
func (r ColdRound) measure(log *seglog.Log, spans []span, tail [2]int64, to *Receiver, seen *ColdSeen) error {
	send, err := r.way(log, spans, to)
	if err != nil {
		return err
	}
	reads := make([]pacer, r.Readers)
	var appends pacer
	errs := make([]error, r.Readers+2)
	var wg sync.WaitGroup
	faults := majorFaults()
	stop := measure.StartUsage()
	start := time.Now()
	end := start.Add(r.Duration)
	for i := range reads {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 11))
			errs[i] = reads[i].run(start, end, r.ReadEvery, func() error {
				return readOne(log, tail[0]+rng.Int64N(tail[1]-tail[0]))
			})
		})
	}
	wg.Go(func() { errs[r.Readers] = appends.run(start, end, r.AppendEvery, r.appender(log)) })
	wg.Go(func() { seen.Sent, errs[r.Readers+1] = r.transfer(start, end, send, to) })
	wg.Wait()
	u := stop()
	seen.Elapsed, seen.CPU, seen.Allocs, seen.MajorFaults = u.Elapsed, u.CPU, u.Mallocs, majorFaults()-faults
	for i := 1; i < len(reads); i++ {
		reads[0].latency.Merge(&reads[i].latency)
		reads[0].slow += reads[i].slow
		reads[0].stalled += reads[i].stalled
	}
	seen.Reads, seen.Appends = reads[0].latency.Percentiles(), appends.latency.Percentiles()
	seen.SlowReads, seen.Stalled = reads[0].slow, reads[0].stalled
	return errors.Join(errs...)
}

// transfer calls send, which sends one step and says how much that was, at the rate and until the end.
func (r ColdRound) transfer(start, end time.Time, send func() (int64, error), to *Receiver) (sent int64, err error) {
	steps := 0
	for ; send != nil && time.Now().Before(end); steps++ {
		if r.Rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(sent) / float64(r.Rate) * 1e9))))
		}
		n, err := send()
		if err != nil {
			return sent, err
		}
		sent += n
	}
	for range steps {
		if err := to.Arrived(); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// way returns what sends the next step of the log, from its start again when it is through.
func (r ColdRound) way(log *seglog.Log, spans []span, to *Receiver) (func() (int64, error), error) {
	switch i := slices.IndexFunc(raw.ColdWays(), func(w raw.ColdWay) bool { return w.Name == r.Way }); {
	case r.Way == ColdNone:
		return nil, nil
	case r.Way == ColdSeglog:
		return sendSections(log, spans[len(spans)-1].next, to), nil
	case i >= 0:
		return sendSpans(spans, to, raw.ColdWays()[i].New()), nil
	}
	return nil, fmt.Errorf("no way %q", r.Way)
}

// sendSections is TransferTo by steps whose length the receiver can be told before.
func sendSections(log *seglog.Log, end int64, to *Receiver) func() (int64, error) {
	offset := int64(0)
	return func() (int64, error) {
		if offset >= end {
			offset = 0
		}
		s, err := log.Section(offset, raw.ColdStep)
		if err != nil {
			return 0, err
		}
		offset = s.Next()
		err = to.Expect(s.Len())
		if err == nil {
			_, err = s.WriteTo(to.Conn)
		}
		return s.Len(), errors.Join(err, s.Close())
	}
}

func sendSpans(spans []span, to *Receiver, send func(conn *net.TCPConn, file *os.File, pos, n int64) error) func() (int64, error) {
	at, pos := 0, int64(0)
	return func() (int64, error) {
		s := spans[at]
		n := min(raw.ColdStep, s.end-pos)
		err := to.Expect(n)
		if err == nil {
			err = send(to.Conn, s.file, pos, n)
		}
		if pos += n; pos == s.end {
			at, pos = (at+1)%len(spans), 0
		}
		return n, err
	}
}

// span is a stretch of a segment's file, and the offsets in it.
type span struct {
	file         *os.File
	pos, end     int64
	offset, next int64
}

// openSpans opens the files of all segments, by descriptors that are not the log's.
func openSpans(log *seglog.Log) ([]span, error) {
	infos, err := log.Segments()
	if err != nil {
		return nil, err
	}
	var spans []span
	for _, s := range infos {
		if s.Bytes == 0 {
			continue
		}
		f, err := os.Open(s.Path)
		if err != nil {
			return nil, err
		}
		spans = append(spans, span{f, 0, s.Bytes, s.Base, s.Next})
	}
	return spans, nil
}

// lastBytes are the spans of the last n bytes. The batches are of one size, nearly: the offset is that of the place.
func lastBytes(spans []span, n int64) []span {
	at := len(spans)
	for at > 0 && n > 0 {
		at--
		n -= spans[at].end
	}
	out := slices.Clone(spans[at:])
	if s := &out[0]; n < 0 {
		s.pos = -n
		s.offset += (s.next - s.offset) * s.pos / s.end
	}
	return out
}

// cachedOf is how many bytes of the spans are in the page cache, and of how many.
func cachedOf(spans []span) (cached, size int64, err error) {
	for _, s := range spans {
		n, err := raw.Cached(s.file, s.pos, s.end-s.pos)
		if err != nil {
			return 0, 0, err
		}
		cached += min(n, s.end-s.pos)
		size += s.end - s.pos
	}
	return cached, size, nil
}

func readOne(log *seglog.Log, offset int64) error {
	rec, err := log.Read(offset)
	if err == nil && int64(binary.BigEndian.Uint64(rec.Value)) != offset {
		err = fmt.Errorf("the value at offset %d is another's", offset)
	}
	return err
}

// appender goes on with values as those that are there.
func (r ColdRound) appender(log *seglog.Log) func() error {
	records := make([]seglog.Record, r.Batch)
	for i := range records {
		records[i].Value = make([]byte, r.Value)
	}
	next := log.Offsets().End
	return func() error {
		for i := range records {
			binary.BigEndian.PutUint64(records[i].Value, uint64(next))
			next++
		}
		_, err := log.Append(records...)
		return err
	}
}

// pacer calls an operation at a fixed pace and notes how long each call took. After a stall it makes up for the calls that
// were due meanwhile.
type pacer struct {
	latency measure.Histogram
	slow    uint64
	stalled time.Duration
}

func (p *pacer) run(start, end time.Time, every time.Duration, op func() error) error {
	for due := start; due.Before(end); due = due.Add(every) {
		began := time.Now()
		if wait := due.Sub(began); wait > 0 {
			time.Sleep(wait)
			began = time.Now()
		}
		if !began.Before(end) {
			break // of what a stall left undone
		}
		if err := op(); err != nil {
			return err
		}
		took := time.Since(began)
		p.latency.Record(took)
		if took > slowRead {
			p.slow++
			p.stalled += took
		}
	}
	return nil
}

func majorFaults() int64 {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err) // it fails for a bad argument only
	}
	return ru.Majflt
}
