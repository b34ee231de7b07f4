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

func (l *raftLog) Close() error { return l.log.Close() }
