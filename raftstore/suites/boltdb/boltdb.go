// Package raftboltdb has the names that raft's fuzzy tests use of github.com/hashicorp/raft-boltdb, which this module
// replaces for them, and keeps what they store in a raftstore.
package raftboltdb

import "github.com/seglog/seglog/raftstore"

// BoltStore is the store under test.
type BoltStore struct{ *raftstore.Store }

// NewBoltStore opens the store in the directory path.
func NewBoltStore(path string) (*BoltStore, error) {
	store, err := raftstore.Open(path, nil)
	return &BoltStore{store}, err
}
