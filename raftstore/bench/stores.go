package main

import (
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/seglog/seglog/raftstore"
)

// store is what all of them are.
type store interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// peers are the stores that are compared, each with its own defaults.
var peers = []struct {
	name string
	open func(dir string) (store, error)
}{
	{"raftstore", func(dir string) (store, error) { return raftstore.Open(dir, nil) }},
	{"raft-wal", func(dir string) (store, error) { return wal.Open(dir) }},
	{"raft-boltdb", func(dir string) (store, error) { return raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db")) }},
}

// entries makes count entries of size bytes, from first on.
func entries(first uint64, count, size int) []*raft.Log {
	data := make([]byte, count*size)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	list := make([]*raft.Log, count)
	for i := range list {
		list[i] = &raft.Log{Index: first + uint64(i), Term: 1, Data: data[i*size : (i+1)*size : (i+1)*size]}
	}
	return list
}
