// Package raftstore keeps the log of a github.com/hashicorp/raft server in a seglog, and its votes and term beside it.
//
//	store, err := raftstore.Open(dir, nil)
//	node, err := raft.NewRaft(config, fsm, store, store, snapshots, transport)
//
// A Store is a raft.LogStore, a raft.MonotonicLogStore, a raft.CommitTrackingLogStore and a raft.StableStore.
// StoreLogs appends one batch and returns once it is on stable storage; GetLog takes no lock.
//
// # Layout
//
//	dir/log/       a seglog: the record at offset i is the entry at index i
//	dir/stable     keys and values of the stable store, each state of them twice
//	dir/migrating  only while Migrate is under way; Open refuses a directory that has it
//
// A record's value is the entry's Data, its only header the Extensions, and its key the rest, in a form that entry.go
// gives byte by byte. So any Kafka client and any tool for seglog can read the log of a Raft server.
//
// # What survives
//
// Every change is one durable step of the seglog: an append, a cut, a deletion or a reset. A server that is killed at any
// point finds, when it opens the store again, the state before the step or the state after it. Of a StoreLogs that did not
// return, either all entries are there or none, unless they had to be split (see Options.MaxBatchBytes). Damage to what
// was acknowledged is an error that wraps seglog.ErrCorrupt, never a missing or a wrong entry.
//
// # Gaps
//
// The log is dense: entries follow each other without gaps, and the store says so by IsMonotonic. An empty store takes
// any first index, which is how a follower goes on after it installed a snapshot. A server that was killed after it saved
// a received snapshot and before it emptied its log would be stuck, since the next entry that its leader sends does not
// follow the last one in the log; with Options.Snapshots, Open notices this and empties the log.
package raftstore
