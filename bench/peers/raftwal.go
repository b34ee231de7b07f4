package peers

import (
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
)

var raftWAL = Peer{
	Name: "hashicorp/raft-wal", Module: "github.com/hashicorp/raft-wal",
	Setup: "defaults (64 MB segments, binary codec); every StoreLogs flushes; a lock around index and write",
	Kill:  "all", Power: "all", CRC: "no (at recovery only)",
	SurvivesKill: true, Durable: true,
	Open: openRaftWAL,
}

type raftLog struct {
	mu   sync.Mutex // a raft node numbers its entries under a lock of its own
	log  *raftwal.WAL
	next uint64
}

func openRaftWAL(dir string, _ Setup) (Log, error) {
	log, err := raftwal.Open(dir, raftwal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return nil, err
	}
	return &raftLog{log: log, next: 1}, nil
}

func (l *raftLog) Appender() Append {
	var entries []*raft.Log
	return func(values [][]byte) error {
		for len(entries) < len(values) {
			entries = append(entries, &raft.Log{Term: 1})
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, v := range values {
			entries[i].Index = l.next + uint64(i)
			entries[i].Data = v
		}
		if err := l.log.StoreLogs(entries[:len(values)]); err != nil {
			return err
		}
		l.next += uint64(len(values))
		return nil
	}
}

func (l *raftLog) Read(i int64) ([]byte, error) {
	var entry raft.Log
	err := l.log.GetLog(uint64(i)+1, &entry)
	return entry.Data, err
}

// Truncate drops the end by DeleteRange, as raft does when a new leader overwrites it. This release does not open such a log
// again: it marks a segment that it cut as sealed without writing the index that one has ("sealed segment has no index
// block").
func (l *raftLog) Truncate(n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.log.DeleteRange(uint64(n)+1, l.next-1); err != nil {
		return err
	}
	l.next = uint64(n) + 1
	return nil
}

func (l *raftLog) Close() error { return l.log.Close() }
