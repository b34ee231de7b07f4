package peers

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble is its record writer alone.
var Pebble = Peer{
	Name: "pebble record writer", Module: "github.com/cockroachdb/pebble/v2",
	Setup: "LogWriter over a file reserved by 4.4 MiB (110 % of the default memtable) as Pebble opens its WAL; a lock as commitPipeline has it",
	Kill:  "what was flushed; the rest was in user space", Power: "all with SyncRecord", CRC: "yes (a full replay; no random read)",
	SurvivesKill: false, NonDurable: true, Durable: true, Groups: true,
	Open: openPebble,
}

type pebbleLog struct {
	mu      sync.Mutex
	log     *record.LogWriter
	slots   chan struct{} // as Pebble bounds the syncs under way; more would overflow the writer's queue
	durable bool
	recycle *pebbleRecycler // nil where the log never rolls
}

func openPebble(dir string, s Setup) (Log, error) {
	file, err := vfs.Default.Create(filepath.Join(dir, "000001.log"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	l := newPebbleLog(s)
	l.log = l.writer(file, 1, 4<<20)
	return l, nil
}

func newPebbleLog(s Setup) *pebbleLog {
	return &pebbleLog{durable: s.Durable, slots: make(chan struct{}, record.SyncConcurrency-1)}
}

// writer is over a file reserved for a memtable of the given size.
func (l *pebbleLog) writer(file vfs.File, num uint64, memtable int) *record.LogWriter {
	return numbered(record.NewLogWriter, num)(
		vfs.NewSyncingFile(file, vfs.SyncingFileOptions{PreallocateSize: memtable * 11 / 10}),
		record.LogWriterConfig{
			QueueSemChan:        l.slots,
			WriteWALSyncOffsets: func() bool { return true },
		})
}

// numbered gives the log its number, whose type is internal to Pebble.
func numbered[N ~uint64](open func(io.Writer, N, record.LogWriterConfig) *record.LogWriter, num uint64) func(io.Writer, record.LogWriterConfig) *record.LogWriter {
	return func(w io.Writer, c record.LogWriterConfig) *record.LogWriter { return open(w, N(num), c) }
}

func (l *pebbleLog) Appender() Append {
	var flushed sync.WaitGroup
	var syncErr error
	return func(values [][]byte) error {
		if l.durable {
			l.slots <- struct{}{}
		}
		l.mu.Lock()
		if l.recycle != nil && l.log.Size() >= pebbleRollBytes {
			if err := l.roll(); err != nil {
				l.mu.Unlock()
				return err
			}
		}
		for i, v := range values {
			if last := i == len(values)-1; last && l.durable {
				flushed.Add(1)
				if _, err := l.log.SyncRecord(v, &flushed, &syncErr); err != nil {
					l.mu.Unlock()
					return err
				}
			} else if _, err := l.log.WriteRecord(v); err != nil {
				l.mu.Unlock()
				return err
			}
		}
		l.mu.Unlock()
		flushed.Wait()
		return syncErr
	}
}

func (l *pebbleLog) Close() error { return l.log.Close() }

// PebbleRecycled is the record writer over logs that roll, as a store with memtables of 64 MiB has them, the size that CockroachDB
// sets: the next log is written over the file of an older one. It is no log of its own, and not among All.
var PebbleRecycled = func() Peer {
	p := Pebble
	p.Name += ", recycled logs"
	p.Setup = "LogWriter over logs of 64 MiB, closed when they are full; the next one takes the file of an older one and its name, and the directory is flushed, as Pebble's WAL manager does"
	p.Open = openPebbleRecycled
	return p
}()

const (
	pebbleRollBytes = 64 << 20
	pebbleSpares    = 3
)

// pebbleRecycler is guarded by the lock of its log.
type pebbleRecycler struct {
	dir    string
	num    uint64
	name   string   // of the current log
	spares []string // longest unused first
}

// openPebbleRecycled fills logs, and half of the one that comes next, so that a round has it roll.
func openPebbleRecycled(dir string, s Setup) (Log, error) {
	l := newPebbleLog(s)
	r := &pebbleRecycler{dir: dir}
	value := make([]byte, 1<<10)
	for range pebbleSpares {
		r.num++
		name := r.path()
		file, err := vfs.Default.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return nil, err
		}
		w := l.writer(file, r.num, pebbleRollBytes)
		for w.Size() < pebbleRollBytes && err == nil {
			_, err = w.WriteRecord(value)
		}
		if err := errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
		r.spares = append(r.spares, name)
	}
	l.recycle = r
	err := l.roll()
	for err == nil && l.log.Size() < pebbleRollBytes/2 {
		_, err = l.log.WriteRecord(value)
	}
	return l, err
}

func (r *pebbleRecycler) path() string { return filepath.Join(r.dir, fmt.Sprintf("%06d.log", r.num)) }

// roll does what Pebble does under the lock of its commit pipeline.
func (l *pebbleLog) roll() error {
	r := l.recycle
	if l.log != nil {
		if err := l.log.Close(); err != nil {
			return err
		}
		r.spares = append(r.spares, r.name)
	}
	r.num++
	r.name = r.path()
	file, err := vfs.Default.ReuseForWrite(r.spares[0], r.name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	r.spares = r.spares[1:]
	dir, err := vfs.Default.OpenDir(r.dir)
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return err
	}
	l.log = l.writer(file, r.num, pebbleRollBytes)
	return nil
}
