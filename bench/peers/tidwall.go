package peers

import (
	"errors"
	"sync"

	"github.com/tidwall/wal"
)

var tidwallWAL = Peer{
	Name: "tidwall/wal", Module: "github.com/tidwall/wal",
	Setup: "defaults (20 MB segments); NoSync where no flush is asked for; a lock around index and write",
	Kill:  "all", Power: "all; a torn tail fails Open", CRC: "no",
	SurvivesKill: true, NonDurable: true, Durable: true,
	Open: openTidwall,
}

type tidwallLog struct {
	mu   sync.Mutex // callers must number their writes without a gap
	log  *wal.Log
	next uint64
}

func openTidwall(dir string, s Setup) (Log, error) {
	opts := *wal.DefaultOptions
	opts.NoSync = !s.Durable
	log, err := wal.Open(dir, &opts)
	if err != nil {
		return nil, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &tidwallLog{log: log, next: last + 1}, nil
}

func (l *tidwallLog) Appender() Append {
	var batch wal.Batch
	return func(values [][]byte) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(values) == 1 {
			if err := l.log.Write(l.next, values[0]); err != nil {
				return err
			}
			l.next++
			return nil
		}
		batch.Clear()
		for i, v := range values {
			batch.Write(l.next+uint64(i), v)
		}
		if err := l.log.WriteBatch(&batch); err != nil {
			return err
		}
		l.next += uint64(len(values))
		return nil
	}
}

func (l *tidwallLog) Read(i int64) ([]byte, error) { return l.log.Read(uint64(i) + 1) }

func (l *tidwallLog) Truncate(n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.log.TruncateBack(uint64(n)); err != nil {
		return err
	}
	l.next = uint64(n) + 1
	return nil
}

func (l *tidwallLog) Close() error { return l.log.Close() }
