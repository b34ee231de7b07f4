package rows

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
)

// indexDistances are the values of Options.IndexBytes that are compared.
var indexDistances = []int{256, 1 << 10, 4 << 10, 16 << 10, 64 << 10}

func indexDistance(e *Env) (*Result, error) {
	r := &Result{
		XName: "IndexBytes", Guarantee: "as rows 1 and 7", Unit: "operations/s", CPUUnit: "ns/operation",
		Notes: []string{
			fmt.Sprintf("one record in each batch; reads: at random over %d MiB of log in cache, reopened after a clean Close; appends: one caller, no flush, an empty log in each round", batchShapes(e)[0].bytes>>20),
			"the index is that of offsets, 8 bytes an entry, and that of times, 12 bytes an entry: few here, since thousands of records share a millisecond, and as many for a log that is written slowly",
		},
	}
	for _, value := range []int{128, 1 << 10} {
		s := batchShape{value: value, perBatch: 1, bytes: batchShapes(e)[0].bytes, duration: pick(e, 60*time.Millisecond, 400*time.Millisecond)}
		if err := e.indexShape(r, s); err != nil {
			return nil, fmt.Errorf("%s: %w", BytesName(int64(value)), err)
		}
	}
	return r, nil
}

// indexShape adds the lines for records of one size.
func (e *Env) indexShape(r *Result, s batchShape) (err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	var readers []readingPeer
	var appenders []candidate
	var notes []string
	for _, distance := range indexDistances {
		opts := seglog.Options{Flush: seglog.FlushNone, IndexBytes: distance}
		log, share, err := indexedLog(filepath.Join(dir, BytesName(int64(distance))), opts, s)
		if err != nil {
			return err
		}
		defer log.Close()
		notes = append(notes, fmt.Sprintf("%.3g MiB of index for 1 GiB of log", 1024*share))
		readers = append(readers, readingPeer{Line{CRC: "yes"}, log.Read})
		appenders = append(appenders, candidate{open: func(dir string) (peers.Log, error) { return peers.OpenSeglog(dir, opts) }})
	}
	reads, err := e.randomReads(readers, s.records(), s)
	if err != nil {
		return err
	}
	w := appendWork(e, 1, s.value)
	w.duration = s.duration
	appends, _ := e.compare(appenders, w)
	for i, distance := range indexDistances {
		reads[i].Name = "Read of " + BytesName(int64(s.value))
		if reads[i].Note == "" {
			reads[i].Note = notes[i]
		}
		appends[i].Name = "Append of " + BytesName(int64(s.value))
		reads[i].X, appends[i].X = float64(distance), float64(distance)
	}
	r.Lines = append(append(r.Lines, reads...), appends...)
	return nil
}

// indexedLog is a reopened log of records of one shape. share is what its indexes take for each byte of log.
func indexedLog(dir string, opts seglog.Options, s batchShape) (log *peers.SeglogLog, share float64, err error) {
	if log, err = peers.OpenSeglog(dir, opts); err != nil {
		return nil, 0, err
	}
	if err := errors.Join(fillRecords(log, s.records(), s.perBatch, s.value), log.Close()); err != nil {
		return nil, 0, err
	}
	sizes := map[string]int64{}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return nil, 0, err
		}
		sizes[filepath.Ext(f.Name())] += info.Size()
	}
	share = float64(sizes[".index"]+sizes[".timeindex"]) / float64(sizes[".log"])
	log, err = peers.OpenSeglog(dir, opts)
	return log, share, err
}
