package child

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seglog/seglog/bench/measure"
)

// The protocol of a fetch: a request of 16 bytes (offset, bytes wanted), a reply of a header of 32 bytes whose first 8 are
// the length of the body, and the body.
const (
	RequestBytes = 16
	HeaderBytes  = 32
)

// Fetcher is a client in a process of its own that fetches over several connections at once.
type Fetcher struct {
	process *process
	send    *json.Encoder
	receive *json.Decoder
}

// Fetches is one piece of work for it.
type Fetches struct {
	Addr     string
	Conns    int
	Bytes    int64 // asked for in each request
	Offsets  int64 // requests walk over the offsets from 0 to this, by Step
	Step     int64
	Duration time.Duration
}

// Fetched is what came of it.
type Fetched struct {
	Ops, Bytes int64
	Elapsed    time.Duration
	Latency    measure.Percentiles
	Err        string
}

// StartFetcher starts the client.
func StartFetcher() (*Fetcher, error) {
	p, err := start("fetch")
	if err != nil {
		return nil, err
	}
	return &Fetcher{process: p, send: json.NewEncoder(p.in), receive: json.NewDecoder(p.out)}, nil
}

// Run has the client do f.
func (c *Fetcher) Run(f Fetches) (Fetched, error) {
	if err := c.send.Encode(f); err != nil {
		return Fetched{}, err
	}
	var done Fetched
	if err := c.receive.Decode(&done); err != nil {
		return Fetched{}, err
	}
	if done.Err != "" {
		return done, errors.New(done.Err)
	}
	return done, nil
}

// Close ends the process.
func (c *Fetcher) Close() error { return c.process.stop() }

func fetch([]string) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var f Fetches
		if err := in.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		done, err := fetchAll(f)
		if err != nil {
			done.Err = err.Error()
		}
		if err := out.Encode(done); err != nil {
			return err
		}
	}
}

func fetchAll(f Fetches) (Fetched, error) {
	conns := make([]net.Conn, f.Conns)
	for i := range conns {
		conn, err := net.Dial("tcp4", f.Addr)
		if err != nil {
			return Fetched{}, err
		}
		defer conn.Close()
		if err := Tune(conn.(*net.TCPConn)); err != nil {
			return Fetched{}, err
		}
		conns[i] = conn
	}
	results := make([]Fetched, f.Conns)
	histograms := make([]measure.Histogram, f.Conns)
	errs := make([]error, f.Conns)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range conns {
		wg.Go(func() {
			first := f.Offsets / int64(f.Conns) * int64(i)
			results[i], errs[i] = fetchOn(conns[i], f, first, start, &histograms[i])
		})
	}
	wg.Wait()
	sum := Fetched{Elapsed: time.Since(start)}
	for i := range results {
		sum.Ops += results[i].Ops
		sum.Bytes += results[i].Bytes
		if i > 0 {
			histograms[0].Merge(&histograms[i])
		}
	}
	sum.Latency = histograms[0].Percentiles()
	return sum, errors.Join(errs...)
}

func fetchOn(conn net.Conn, f Fetches, offset int64, start time.Time, h *measure.Histogram) (Fetched, error) {
	var done Fetched
	var request [RequestBytes]byte
	reply := make([]byte, HeaderBytes+2*f.Bytes+64<<10)
	last := start
	for deadline := start.Add(f.Duration); last.Before(deadline); {
		binary.BigEndian.PutUint64(request[:], uint64(offset))
		binary.BigEndian.PutUint64(request[8:], uint64(f.Bytes))
		if _, err := conn.Write(request[:]); err != nil {
			return done, err
		}
		got, err := io.ReadAtLeast(conn, reply, HeaderBytes)
		if err != nil {
			return done, err
		}
		body := binary.BigEndian.Uint64(reply)
		if body == 0 || HeaderBytes+body > uint64(len(reply)) {
			return done, fmt.Errorf("a reply of %d bytes to a request for %d", body, f.Bytes)
		}
		if rest := HeaderBytes + int(body) - got; rest > 0 {
			if _, err := io.ReadFull(conn, reply[got:got+rest]); err != nil {
				return done, err
			}
		}
		if base := binary.BigEndian.Uint64(reply[HeaderBytes:]); base > uint64(offset) {
			return done, fmt.Errorf("asked for offset %d, the reply begins at %d", offset, base)
		}
		done.Ops++
		done.Bytes += int64(body)
		if offset += f.Step; offset >= f.Offsets {
			offset = 0
		}
		now := time.Now()
		h.Record(now.Sub(last))
		last = now
	}
	return done, nil
}
