package rows

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

func transfer(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	log, files, err := transferLog(dir, pick(e, int64(512<<20), int64(1<<30)))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	defer closeFiles(files)
	total := int64(0)
	for _, f := range files {
		total += f.size
	}
	receiver, err := child.StartReceiver()
	if err != nil {
		return nil, err
	}
	defer receiver.Close()
	ways, release, err := raw.Ways()
	if err != nil {
		return nil, err
	}
	defer release()

	lines := []Line{lineOf(peers.Seglog)}
	lines[0].Name = "seglog TransferTo"
	sends := []func() error{func() error { return sendLog(log, total, receiver.Conn) }}
	for _, w := range ways {
		lines = append(lines, Line{Name: w.Name, CRC: "no"})
		sends = append(sends, func() error {
			for _, f := range files {
				if err := w.Send(receiver.Conn, f.File, 0, f.size); err != nil {
					return err
				}
			}
			return nil
		})
	}
	lines[0].CRC = "by the receiver"
	series := measure.Interleave(e.Rounds, sendSubjects(lines, sends, receiver, total))
	r := &Result{
		Guarantee: "the same file bytes, unchanged; the receiver, a process of its own, reads them all",
		Unit:      "bytes/s", CPUUnit: "CPU s/GB of the sender",
		Notes: []string{fmt.Sprintf("%d MiB in %d segments in cache, loopback TCP, congestion control %s on both ends", total>>20, len(files), child.Congestion)},
	}
	for i := range lines {
		lines[i] = fill(lines[i], &series[i], series[i].Throughputs())
		lines[i].CPU = measure.Median(series[i].CPUPerGB())
		lines[i].Allocs = measure.Median(series[i].AllocsPerOp())
	}
	if b := best(lines, func(i int) bool { return i > 0 }); b >= 0 {
		r.Checks = append(r.Checks, atLeast("speed: seglog / best raw way ("+lines[b].Name+")", 0.98, ratio(lines[0], lines[b])))
	}
	cheapest := 1
	for i := 2; i < len(lines); i++ {
		if lines[i].CPU < lines[cheapest].CPU {
			cheapest = i
		}
	}
	r.Checks = append(r.Checks, atLeast("CPU per GB: cheapest raw way ("+lines[cheapest].Name+") / seglog", 0.98,
		measure.MedianRatio(series[cheapest].CPUPerGB(), series[0].CPUPerGB())))
	r.Lines = lines
	return r, nil
}

func sendSubjects(lines []Line, sends []func() error, to *child.Receiver, total int64) []measure.Subject {
	subjects := make([]measure.Subject, len(sends))
	for i, send := range sends {
		subjects[i] = measure.Subject{Name: lines[i].Name, Round: func() (measure.Sample, error) {
			stop := measure.StartUsage()
			err := to.Expect(total)
			if err == nil {
				err = send()
			}
			if err == nil {
				err = to.Arrived()
			}
			return measure.Sample{Usage: stop(), Ops: 1, Bytes: total}, err
		}}
	}
	return subjects
}

// sendLog sends the whole log by one call.
func sendLog(log *seglog.Log, total int64, conn net.Conn) error {
	n, err := log.TransferTo(0, total, conn)
	if err == nil && n != total {
		err = fmt.Errorf("%d of %d bytes sent", n, total)
	}
	return err
}

// sized is a file of a log and how much of it is batches.
type sized struct {
	*os.File
	size int64
}

// transferLog fills a log with batches of 100 records of 128 B, reopens it so that its files are as long as their batches,
// and opens the same files for the raw ways.
func transferLog(dir string, size int64) (*seglog.Log, []sized, error) {
	log, err := peers.OpenSeglog(dir, seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return nil, nil, err
	}
	perBatch := int64(len(raw.AppendFrame(nil, 0, make([]byte, 128))) - raw.FrameHeader)
	if err := fillLog(log, size/perBatch, 100); err != nil {
		return nil, nil, err
	}
	if err := log.Close(); err != nil {
		return nil, nil, err
	}
	return reopen(dir)
}

// reopen opens a closed log again, and its segments' files for the raw ways.
func reopen(dir string) (*seglog.Log, []sized, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	var files []sized
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, nil, err
		}
		files = append(files, sized{f, info.Size()})
	}
	reopened, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
	return reopened, files, err
}

func closeFiles(files []sized) {
	for _, f := range files {
		f.Close()
	}
}
