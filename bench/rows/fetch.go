package rows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// answer serves one request on a connection. It is made once per connection and may keep buffers.
type answer func(conn *net.TCPConn, offset, n int64) error

// fetchServer answers requests on a listener of its own, each connection in a goroutine.
type fetchServer struct {
	listener net.Listener
	wg       sync.WaitGroup
}

func serveFetches(newAnswer func() answer) (*fetchServer, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &fetchServer{listener: listener}
	s.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			tcp := conn.(*net.TCPConn)
			if err := child.Tune(tcp); err != nil {
				conn.Close()
				continue
			}
			s.wg.Go(func() {
				defer conn.Close()
				serveConn(tcp, newAnswer())
			})
		}
	})
	return s, nil
}

// serveConn ends with the connection; a client that got no reply reports the error.
func serveConn(conn *net.TCPConn, reply answer) {
	var request [child.RequestBytes]byte
	for {
		if _, err := io.ReadFull(conn, request[:]); err != nil {
			return
		}
		if err := reply(conn, int64(binary.BigEndian.Uint64(request[:])), int64(binary.BigEndian.Uint64(request[8:]))); err != nil {
			return
		}
	}
}

func (s *fetchServer) close() {
	s.listener.Close()
	s.wg.Wait()
}

// fetchLog is a log of batches of one size, so that the raw ways can compute where an offset lies.
type fetchLog struct {
	log       *seglog.Log
	file      sized
	batchSize int64
}

func openFetchLog(dir string, size int64) (*fetchLog, error) {
	log, err := peers.OpenSeglog(dir, seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 2 * size})
	if err != nil {
		return nil, err
	}
	value := payload(0, fetchValue)
	write := log.Appender()
	for written := int64(0); written < size; written += fetchValue {
		if err := write([][]byte{value}); err != nil {
			return nil, err
		}
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	reopened, files, err := reopen(dir)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		return nil, fmt.Errorf("%d segments, want one", len(files))
	}
	end := reopened.Offsets().End
	if files[0].size%end != 0 {
		return nil, errors.New("the batches are not of one size")
	}
	return &fetchLog{log: reopened, file: files[0], batchSize: files[0].size / end}, nil
}

// fetchValue makes a batch of one record just under 512 B, the smallest fetch.
const fetchValue = 440

// span is what the raw ways send for a request: whole batches, at least one.
func (f *fetchLog) span(offset, n int64) (pos, length int64) {
	pos = offset * f.batchSize
	return pos, min(max(n/f.batchSize, 1)*f.batchSize, f.file.size-pos)
}

func putHeader(b []byte, body int64) { binary.BigEndian.PutUint64(b, uint64(body)) }

// bySeglog is a server as a user writes it: the section takes the header along and finds the cheapest way.
func (f *fetchLog) bySeglog() answer {
	header := make([]byte, child.HeaderBytes)
	return func(conn *net.TCPConn, offset, n int64) error {
		s, err := f.log.Section(offset, n)
		if err != nil {
			return err
		}
		putHeader(header, s.Len())
		s.SetHeader(header)
		_, err = s.WriteTo(conn)
		return errors.Join(err, s.Close())
	}
}

func (f *fetchLog) byHeaderWrite() answer {
	header := make([]byte, child.HeaderBytes)
	return func(conn *net.TCPConn, offset, n int64) error {
		pos, length := f.span(offset, n)
		putHeader(header, length)
		if _, err := conn.Write(header); err != nil {
			return err
		}
		return raw.SendFile(conn, f.file.File, pos, length)
	}
}

func (f *fetchLog) byHeaderMore() answer {
	header := make([]byte, child.HeaderBytes)
	return func(conn *net.TCPConn, offset, n int64) error {
		pos, length := f.span(offset, n)
		putHeader(header, length)
		if err := raw.SendHeaderMore(conn, header); err != nil {
			return err
		}
		return raw.SendFile(conn, f.file.File, pos, length)
	}
}

func (f *fetchLog) byCopy() answer {
	buf := make([]byte, child.HeaderBytes+512<<10)
	return func(conn *net.TCPConn, offset, n int64) error {
		pos, length := f.span(offset, n)
		putHeader(buf, length)
		out := buf[:child.HeaderBytes+length]
		if _, err := f.file.ReadAt(out[child.HeaderBytes:], pos); err != nil {
			return err
		}
		_, err := conn.Write(out)
		return err
	}
}

func fetchTrips(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	f, err := openFetchLog(dir, 128<<20)
	if err != nil {
		return nil, err
	}
	defer f.log.Close()
	defer f.file.Close()
	client, err := child.StartFetcher()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ways := []struct {
		name   string
		answer func() answer
	}{
		{"seglog Section", f.bySeglog},
		{"raw header write, then sendfile", f.byHeaderWrite},
		{"raw header MSG_MORE, then sendfile", f.byHeaderMore},
		{"raw one copied write", f.byCopy},
	}
	servers := make([]*fetchServer, len(ways))
	for i, w := range ways {
		if servers[i], err = serveFetches(w.answer); err != nil {
			return nil, err
		}
		defer servers[i].close()
	}
	r := &Result{
		Guarantee: "the same file bytes behind a header of 32 bytes; client in a process of its own",
		Unit:      "round trips/s", CPUUnit: "CPU us/trip of the server",
		Notes: []string{"congestion control " + child.Congestion + " on both ends"},
	}
	for _, conns := range []int{1, 8} {
		for _, size := range []int64{512, 4 << 10, 16 << 10, 64 << 10, 256 << 10} {
			shape := child.Fetches{Conns: conns, Bytes: size, Offsets: f.log.Offsets().End - size/fetchValue - 1, Step: 97, Duration: pick(e, 50*time.Millisecond, 250*time.Millisecond)}
			lines := make([]Line, len(ways))
			subjects := make([]measure.Subject, len(ways))
			latencies := make([]measure.Percentiles, len(ways))
			for i, w := range ways {
				lines[i] = Line{Name: fmt.Sprintf("%s, %s, %d conn", w.name, BytesName(size), conns), X: float64(size)}
				subjects[i] = measure.Subject{Round: func() (measure.Sample, error) {
					ask := shape
					ask.Addr = servers[i].listener.Addr().String()
					stop := measure.StartUsage()
					got, err := client.Run(ask)
					u := stop()
					u.Elapsed = got.Elapsed
					latencies[i] = got.Latency
					return measure.Sample{Usage: u, Ops: got.Ops, Bytes: got.Bytes}, err
				}}
			}
			series := measure.Interleave(e.Rounds, subjects)
			for i := range lines {
				lines[i] = fill(lines[i], &series[i], series[i].Rates())
				lines[i].Latency = &latencies[i]
				if len(series[i].Samples) == 0 {
					lines[i].Latency = nil
				}
			}
			if b := best(lines, func(i int) bool { return i > 0 }); b >= 0 {
				r.Checks = append(r.Checks, atLeast(fmt.Sprintf("seglog / best raw way (%s)", lines[b].Name), 0.9, ratio(lines[0], lines[b])))
			}
			r.Lines = append(r.Lines, lines...)
		}
	}
	return r, nil
}
