package peers

import (
	"errors"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
)

var natsFileStore = Peer{
	Name: "NATS file store", Module: "github.com/nats-io/nats-server/v2",
	Setup: "the file store alone, without server or network; sync_always where a flush is asked for",
	Kill:  "all", Power: "all with sync_always", CRC: "yes (highwayhash)",
	SurvivesKill: true, NonDurable: true, Durable: true,
	Open: openNATS,
}

// The file store is not exported. Its functions are reached by name, which leaves out the server and the network and so
// flatters the peer, if anything.

//go:linkname newFileStore github.com/nats-io/nats-server/v2/server.newFileStore
func newFileStore(server.FileStoreConfig, server.StreamConfig) (unsafe.Pointer, error)

//go:linkname storeMsg github.com/nats-io/nats-server/v2/server.(*fileStore).StoreMsg
func storeMsg(fs unsafe.Pointer, subject string, hdr, msg []byte, ttl int64) (uint64, int64, error)

//go:linkname loadMsg github.com/nats-io/nats-server/v2/server.(*fileStore).LoadMsg
func loadMsg(fs unsafe.Pointer, seq uint64, sm *server.StoreMsg) (*server.StoreMsg, error)

//go:linkname stopStore github.com/nats-io/nats-server/v2/server.(*fileStore).Stop
func stopStore(fs unsafe.Pointer) error

// natsMsg mirrors server.StoreMsg, whose fields are not exported, up to the one that is read.
type natsMsg struct {
	subj string
	hdr  []byte
	msg  []byte
}

type natsLog struct{ fs unsafe.Pointer }

func openNATS(dir string, s Setup) (Log, error) {
	fs, err := newFileStore(
		server.FileStoreConfig{StoreDir: dir, SyncAlways: s.Durable},
		server.StreamConfig{Name: "bench", Subjects: []string{"bench"}, Storage: server.FileStorage, Replicas: 1})
	if err != nil {
		return nil, err
	}
	if fs == nil {
		return nil, errors.New("no store")
	}
	return &natsLog{fs: fs}, nil
}

// Appender stores the values one by one: the store has no batch form.
func (l *natsLog) Appender() Append {
	return func(values [][]byte) error {
		for _, v := range values {
			if _, _, err := storeMsg(l.fs, "bench", nil, v, 0); err != nil {
				return err
			}
		}
		return nil
	}
}

func (l *natsLog) Read(i int64) ([]byte, error) {
	m, err := loadMsg(l.fs, uint64(i)+1, nil)
	if err != nil {
		return nil, err
	}
	return (*natsMsg)(unsafe.Pointer(m)).msg, nil
}

func (l *natsLog) Close() error { return stopStore(l.fs) }
