package peers

import (
	"bytes"
	"encoding/binary"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

var boltDB = Peer{
	Name: "bbolt (a contrast)", Module: "go.etcd.io/bbolt",
	Setup: "one bucket keyed by sequence, FillPercent 0.9, NoFreelistSync; Update for one caller, Batch for several; NoSync where no flush is asked for",
	Kill:  "all", Power: "all", CRC: "no (meta pages only)",
	SurvivesKill: true, NonDurable: true, Durable: true, Groups: true,
	Open: openBolt,
}

var boltBucket = []byte("log")

type boltLog struct {
	db    *bolt.DB
	batch bool
}

func openBolt(dir string, s Setup) (Log, error) {
	db, err := bolt.Open(filepath.Join(dir, "bolt.db"), 0o644, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: !s.Durable})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(boltBucket)
		return err
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return &boltLog{db: db, batch: s.Callers > 1}, nil
}

func (l *boltLog) Appender() Append {
	return func(values [][]byte) error {
		put := func(tx *bolt.Tx) error {
			b := tx.Bucket(boltBucket)
			b.FillPercent = 0.9
			for _, v := range values {
				seq, err := b.NextSequence()
				if err != nil {
					return err
				}
				var key [8]byte
				binary.BigEndian.PutUint64(key[:], seq)
				if err := b.Put(key[:], v); err != nil {
					return err
				}
			}
			return nil
		}
		if l.batch {
			return l.db.Batch(put)
		}
		return l.db.Update(put)
	}
}

func (l *boltLog) Read(i int64) ([]byte, error) {
	var out []byte
	err := l.db.View(func(tx *bolt.Tx) error {
		var key [8]byte
		binary.BigEndian.PutUint64(key[:], uint64(i)+1)
		out = bytes.Clone(tx.Bucket(boltBucket).Get(key[:]))
		return nil
	})
	if out == nil && err == nil {
		err = errLost
	}
	return out, err
}

// Truncate deletes the last keys in one transaction.
func (l *boltLog) Truncate(n int64) error {
	return l.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(boltBucket)
		for seq := b.Sequence(); seq > uint64(n); seq-- {
			var key [8]byte
			binary.BigEndian.PutUint64(key[:], seq)
			if err := b.Delete(key[:]); err != nil {
				return err
			}
		}
		return b.SetSequence(uint64(n))
	})
}

func (l *boltLog) Close() error { return l.db.Close() }
