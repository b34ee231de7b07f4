package peers

import (
	"path/filepath"
	"sync"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

var etcdWAL = Peer{
	Name: "etcd wal", Module: "go.etcd.io/etcd/server/v3",
	Setup: "Save of raft entries, 64 MB segments reserved ahead; SetUnsafeNoFsync where no flush is asked for",
	Kill:  "all", Power: "all", CRC: "yes (a full replay; no random read)",
	SurvivesKill: true, NonDurable: true, Durable: true,
	Open: openEtcd,
}

type etcdLog struct {
	mu   sync.Mutex // entries are numbered in order
	log  *wal.WAL
	next uint64
}

func openEtcd(dir string, s Setup) (Log, error) {
	log, err := wal.Create(zap.NewNop(), filepath.Join(dir, "wal"), nil)
	if err != nil {
		return nil, err
	}
	if !s.Durable {
		log.SetUnsafeNoFsync()
	}
	return &etcdLog{log: log, next: 1}, nil
}

func (l *etcdLog) Appender() Append {
	var entries []*raftpb.Entry
	state := new(raftpb.HardState)
	term := uint64(1)
	return func(values [][]byte) error {
		for len(entries) < len(values) {
			entries = append(entries, &raftpb.Entry{Term: &term, Index: new(uint64)})
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, v := range values {
			*entries[i].Index = l.next + uint64(i)
			entries[i].Data = v
		}
		if err := l.log.Save(state, entries[:len(values)]); err != nil {
			return err
		}
		l.next += uint64(len(values))
		return nil
	}
}

func (l *etcdLog) Close() error { return l.log.Close() }
