package peers

import (
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

var pebbleRecord = Peer{
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
}

func openPebble(dir string, s Setup) (Log, error) {
	const preallocate = 4 << 20 * 11 / 10
	file, err := vfs.Default.Create(filepath.Join(dir, "000001.log"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	l := &pebbleLog{durable: s.Durable, slots: make(chan struct{}, record.SyncConcurrency-1)}
	l.log = record.NewLogWriter(
		vfs.NewSyncingFile(file, vfs.SyncingFileOptions{PreallocateSize: preallocate}),
		1, record.LogWriterConfig{
			QueueSemChan:        l.slots,
			WriteWALSyncOffsets: func() bool { return true },
		})
	return l, nil
}

func (l *pebbleLog) Appender() Append {
	var flushed sync.WaitGroup
	var syncErr error
	return func(values [][]byte) error {
		if l.durable {
			l.slots <- struct{}{}
		}
		l.mu.Lock()
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
