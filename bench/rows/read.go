package rows

import (
	"errors"
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

var errWrongRecord = errors.New("the record read is not the one asked for")

// frameBytes is what one record of 128 B takes alone in its batch; it turns the bytes of a log into a count of records.
var frameBytes = int64(len(raw.AppendFrame(nil, 0, make([]byte, 128))))

func readRandom(e *Env) (*Result, error) {
	size := pick(e, int64(256<<20), int64(1<<30))
	n := size / frameBytes
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()

	r := &Result{
		Guarantee: "the bytes returned were checked against their CRC where the table says so; the caller owns the copy",
		Unit:      "reads/s", CPUUnit: "ns/read",
		Notes: []string{fmt.Sprintf("%d records of 128 B, %d MiB of log, all in the page cache; one caller, offsets at random", n, size>>20)},
	}
	readers, lines, closeAll, err := e.readers(dir, n)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	subjects := make([]measure.Subject, len(readers))
	for i, read := range readers {
		// Once over all pages in order: the row is about reads in cache, and a mapping that was never touched is not that.
		for at := int64(0); at < n; at += 16 {
			if _, err := read(at); err != nil {
				return nil, fmt.Errorf("%s: record %d: %w", lines[i].Name, at, err)
			}
		}
		subjects[i] = measure.Subject{Name: lines[i].Name, Round: func() (measure.Sample, error) {
			rng := rand.New(rand.NewPCG(uint64(n), 7))
			return measure.Drive(measure.Load{Callers: 1, Duration: pick(e, 70*time.Millisecond, 400*time.Millisecond)}, func(int) func() error {
				return func() error {
					at := rng.Int64N(n)
					v, err := read(at)
					if err == nil && (len(v) != 128 || numberOf(v) != at) {
						err = errWrongRecord
					}
					return err
				}
			})
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range readers {
		lines[i] = fill(lines[i], &series[i], series[i].Rates())
	}
	if b := best(lines, func(i int) bool { return i >= 3 && lines[i].Name != boltName }); b >= 0 {
		r.Checks = append(r.Checks, atLeast("seglog / best log ("+lines[b].Name+")", 3, ratio(lines[0], lines[b])))
	}
	for _, l := range lines {
		if l.Name == boltName && len(l.Rounds) > 0 {
			r.Notes = append(r.Notes, fmt.Sprintf("bbolt, a tree over one mapping that checks no CRC, is a contrast and not held against the target: seglog / bbolt is %.2g", ratio(lines[0], l)))
		}
	}
	r.Checks = append(r.Checks, atLeast("seglog / mapped walk", 0.8, ratio(lines[0], lines[2])))
	r.Lines = lines
	return r, nil
}

// readers are seglog, the two raw limits and then the peers, each holding the same records. A line behind the last reader
// says why a peer is not among them.
func (e *Env) readers(dir string, n int64) (readers []func(int64) ([]byte, error), lines []Line, closeAll func(), err error) {
	var closers []func() error
	closeAll = func() {
		for _, c := range closers {
			c()
		}
	}
	log, err := peers.OpenSeglog(dir+"/seglog", seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return nil, nil, closeAll, err
	}
	closers = append(closers, log.Close)
	if err := fillLog(log, n, 1); err != nil {
		return nil, nil, closeAll, err
	}
	store, err := raw.BuildStore(dir, n, 1, 128, number)
	if err != nil {
		return nil, nil, closeAll, err
	}
	closers = append(closers, store.Close)
	readers = append(readers, log.Read, store.ReadPread, store.ReadMapped)
	lines = append(lines, lineOf(peers.Seglog),
		Line{Name: "raw 4 KiB index + one pread + CRC + copy", CRC: "yes"},
		Line{Name: "raw mapped walk + CRC + copy", CRC: "yes"})
	others, absent, closePeers, err := e.readingPeers(dir, n, 128, number, func(peers.Peer) int { return 5000 })
	closers = append(closers, closePeers)
	if err != nil {
		return nil, nil, closeAll, err
	}
	for _, o := range others {
		readers = append(readers, o.read)
		lines = append(lines, o.line)
	}
	return readers, append(lines, absent...), closeAll, nil
}

// readingPeer is a peer that was filled, and reads.
type readingPeer struct {
	line Line
	read func(int64) ([]byte, error)
}

// readingPeers fills the peers that have a random read with n records, perCall in one append; fill puts record i into a value of
// size bytes and returns it. The peers that cannot be had come back as lines.
func (e *Env) readingPeers(dir string, n int64, size int, fill func(i int64, value []byte) []byte, perCall func(peers.Peer) int) (can []readingPeer, absent []Line, closeAll func() error, err error) {
	var opened []peers.Log
	closeAll = func() (err error) {
		for _, l := range opened {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	for _, p := range e.peers() {
		if p.Absent != "" {
			absent = append(absent, lineOf(p))
			continue
		}
		sub, _, err := measure.Fresh(dir)
		if err != nil {
			return nil, nil, closeAll, err
		}
		log, err := p.Open(sub, peers.Setup{Durable: !p.NonDurable, Callers: 1})
		if err != nil {
			return nil, nil, closeAll, fmt.Errorf("%s: %w", p.Name, err)
		}
		opened = append(opened, log)
		reader, ok := log.(peers.Reader)
		if !ok {
			continue
		}
		e.Log("  filling %s", p.Name)
		if err := appendFilled(log, n, perCall(p), size, fill); err != nil {
			return nil, nil, closeAll, fmt.Errorf("%s: %w", p.Name, err)
		}
		can = append(can, readingPeer{lineOf(p), reader.Read})
	}
	return can, absent, closeAll, nil
}

// fillLog appends n numbered records of 128 B, perCall in one append.
func fillLog(log peers.Log, n int64, perCall int) error { return fillRecords(log, n, perCall, 128) }

// fillRecords appends n numbered records of the given size, perCall in one append.
func fillRecords(log peers.Log, n int64, perCall, size int) error {
	return appendFilled(log, n, perCall, size, number)
}

// appendFilled appends n records, perCall in one append; fill puts record i into a value of size bytes and returns it.
func appendFilled(log peers.Log, n int64, perCall, size int, fill func(i int64, value []byte) []byte) error {
	write := log.Appender()
	buffers, values := make([][]byte, perCall), make([][]byte, perCall)
	for i := range buffers {
		buffers[i] = payload(0, size)
	}
	for i := int64(0); i < n; {
		call := values[:min(int64(perCall), n-i)]
		for j := range call {
			call[j] = fill(i+int64(j), buffers[j])
		}
		if err := write(call); err != nil {
			return err
		}
		i += int64(len(call))
	}
	return nil
}

func scanAll(e *Env) (*Result, error) {
	r := &Result{
		Guarantee: "every byte was checked against its CRC", Unit: "bytes of log/s", CPUUnit: "ns/record",
		Notes: []string{
			"the raw scan finds and checks batches and looks at no record; seglog yields every record, which the raw walk of the records is the least price of",
		},
	}
	size := pick(e, int64(256<<20), int64(1<<30))
	for _, shape := range []struct{ value, perBatch int }{{128, 100}, {1 << 10, 16}, {16 << 10, 4}} {
		if err := e.scanShape(r, size, shape.value, shape.perBatch); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// scanLog is the raw scan of one segment file.
func scanLog(name string) (int64, error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return raw.ScanFile(file, info.Size())
}

func (e *Env) scanShape(r *Result, size int64, value, perBatch int) error {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return err
	}
	defer remove()
	n := size / int64(value) / int64(perBatch) * int64(perBatch)
	store, err := raw.BuildStore(dir, n, perBatch, value, number)
	if err != nil {
		return err
	}
	defer store.Close()
	log, err := peers.OpenSeglog(dir+"/seglog", seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return err
	}
	defer log.Close()
	prom, err := peers.Prometheus.Open(dir+"/prometheus", peers.Setup{Callers: 1})
	if err != nil {
		return err
	}
	defer prom.Close()
	for _, l := range []peers.Log{log, prom} {
		write := l.Appender()
		values := make([][]byte, perBatch)
		for i := range values {
			values[i] = payload(int64(i), value)
		}
		for i := int64(0); i < n; i += int64(perBatch) {
			if err := write(values); err != nil {
				return err
			}
		}
	}
	count := func(scan func(func([]byte) error) error) func() (int64, error) {
		return func() (int64, error) {
			seen := int64(0)
			err := scan(func(v []byte) error { seen++; return nil })
			if err == nil && seen != n {
				err = fmt.Errorf("%d of %d records", seen, n)
			}
			return n, err
		}
	}
	pieces := func(scan func() (int64, error)) func() (int64, error) {
		return func() (int64, error) {
			got, err := scan()
			if err == nil && got != store.Size() {
				err = fmt.Errorf("%d of %d bytes", got, store.Size())
			}
			return n, err
		}
	}
	walk := func() (int64, error) {
		records, values, err := store.ScanRecords()
		if err == nil && (records != n || values != n*int64(value)) {
			err = fmt.Errorf("%d of %d records", records, n)
		}
		return n, err
	}
	// The same raw scan over seglog's own files: the folios of the page cache, whose size depends on the pieces that a file was
	// written in, decide how fast it is read.
	own := func() (int64, error) {
		names, err := filepath.Glob(filepath.Join(dir, "seglog", "*.log"))
		if err != nil {
			return 0, err
		}
		got := int64(0)
		for _, name := range names {
			bytes, err := scanLog(name)
			if err != nil {
				return 0, err
			}
			got += bytes
		}
		if least := n * int64(value); got < least {
			err = fmt.Errorf("%d bytes, at least %d are there", got, least)
		}
		return n, err
	}
	// What a core does with bytes in its caches, as often as the log has them.
	hot, spare := make([]byte, 256<<10), make([]byte, 256<<10)
	inCache := func(step func()) func() (int64, error) {
		return func() (int64, error) {
			for done := int64(0); done < store.Size(); done += int64(len(hot)) {
				step()
			}
			return n, nil
		}
	}
	scans := []func() (int64, error){count(log.Scan), pieces(store.ScanPread), walk, own, pieces(store.ScanMapped), count(prom.(peers.Scanner).Scan),
		inCache(func() { raw.Copy(spare, hot) }), inCache(func() { raw.CRC(hot) })}
	shape := fmt.Sprintf(", %d x %d B per batch", perBatch, value)
	lines := []Line{lineOf(peers.Seglog), {Name: "raw pread 1 MiB + CRC"}, {Name: "raw pread 1 MiB + CRC + walk of the records"},
		{Name: "raw pread 1 MiB + CRC of seglog's files"}, {Name: "raw mapped + CRC"}, lineOf(peers.Prometheus),
		{Name: "raw memcpy in cache"}, {Name: "raw CRC-32C in cache"}}
	subjects := make([]measure.Subject, len(scans))
	for i, scan := range scans {
		subjects[i] = measure.Subject{Round: func() (measure.Sample, error) {
			stop := measure.StartUsage()
			n, err := scan()
			return measure.Sample{Usage: stop(), Ops: n, Bytes: store.Size()}, err
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range lines {
		lines[i].Name += shape
		lines[i] = fill(lines[i], &series[i], series[i].Throughputs())
	}
	r.Checks = append(r.Checks,
		atLeast("seglog / raw pread 1 MiB + CRC"+shape, 0.8, ratio(lines[0], lines[1])),
		atLeast("seglog / raw pread 1 MiB + CRC + walk of the records"+shape, 0.8, ratio(lines[0], lines[2])),
		atLeast("seglog / raw pread 1 MiB + CRC of seglog's files"+shape, 0.8, ratio(lines[0], lines[3])),
		atMost("allocations per record in steady state"+shape, 0.001, lines[0].Allocs))
	r.Lines = append(r.Lines, lines...)
	return nil
}
