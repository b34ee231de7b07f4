package rows

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

// receive asks which way a follower should store what its leader sends.
func receive(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	log, files, err := transferLog(dir, pick(e, int64(128<<20), int64(512<<20)))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	defer closeFiles(files)
	var parts []child.Part
	total := int64(0)
	for _, f := range files {
		parts = append(parts, child.Part{Path: f.Name(), Bytes: f.size})
		total += f.size
	}
	ways := []struct {
		name  string
		store func(dir string, conn *net.TCPConn) (int64, error)
	}{
		{"seglog TransferFrom", func(dir string, conn *net.TCPConn) (int64, error) {
			to, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
			if err != nil {
				return 0, err
			}
			n, err := to.TransferFrom(conn, -1)
			return n, errors.Join(err, to.Close())
		}},
		{"raw read, check, write 1 MiB", func(dir string, conn *net.TCPConn) (int64, error) {
			return intoFile(dir, func(f *os.File) (int64, error) { return raw.ReadCheckWrite(conn, f) })
		}},
		{"raw splice, check in a mapping", func(dir string, conn *net.TCPConn) (int64, error) {
			return intoFile(dir, func(f *os.File) (int64, error) { return raw.SpliceCheck(conn, f, total) })
		}},
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	r := &Result{
		Guarantee: "every CRC is checked before a batch counts; a power cut leaves a prefix", Unit: "bytes/s", CPUUnit: "CPU s/GB of the receiver",
		Notes: []string{fmt.Sprintf("%d MiB over loopback TCP from a process of its own, congestion control %s; seglog's time includes opening and closing, which flushes", total>>20, child.Congestion)},
	}
	subjects := make([]measure.Subject, len(ways))
	for i, w := range ways {
		subjects[i] = measure.Subject{Name: w.name, Round: func() (measure.Sample, error) {
			dir, remove, err := measure.Fresh(e.Dir)
			if err != nil {
				return measure.Sample{}, err
			}
			if err := measure.TouchMemory(2 * total); err != nil {
				return measure.Sample{}, err
			}
			wait, err := child.StartSender(listener.Addr().String(), parts...)
			if err != nil {
				return measure.Sample{}, err
			}
			conn, err := listener.Accept()
			if err != nil {
				return measure.Sample{}, err
			}
			defer conn.Close()
			if err := child.Tune(conn.(*net.TCPConn)); err != nil {
				return measure.Sample{}, err
			}
			stop := measure.StartUsage()
			n, err := w.store(dir, conn.(*net.TCPConn))
			s := measure.Sample{Usage: stop(), Ops: 1, Bytes: n}
			if err == nil && n != total {
				err = fmt.Errorf("%d of %d bytes arrived", n, total)
			}
			return s, errors.Join(err, wait(), remove())
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range series {
		l := fill(Line{Name: series[i].Name, CRC: "yes"}, &series[i], series[i].Throughputs())
		l.CPU = measure.Median(series[i].CPUPerGB())
		r.Lines = append(r.Lines, l)
	}
	return r, nil
}

// intoFile has store fill a new file, which is flushed as a log is when it is closed.
func intoFile(dir string, store func(*os.File) (int64, error)) (int64, error) {
	f, err := os.Create(filepath.Join(dir, "received"))
	if err != nil {
		return 0, err
	}
	n, err := store(f)
	return n, errors.Join(err, f.Sync(), f.Close())
}
