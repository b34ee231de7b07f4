package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/seglog/seglog/raftstore"
)

// event tells the program that started this process what happened, for its terminal.
func event(format string, args ...any) { fmt.Printf("event "+format+"\n", args...) }

// node is one server: a process of its own.
type node struct {
	id       string
	raft     *raft.Raft
	store    *raftstore.Store
	replica  *replica
	raftPeer map[string]string // where to dial the others: proxies, which the network can be cut at
	apiPeer  map[string]string
	forward  http.Client
}

// ServerAddr tells raft's transport where to dial a server.
func (n *node) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	address, ok := n.raftPeer[string(id)]
	if !ok {
		return "", fmt.Errorf("no address of %s", id)
	}
	return raft.ServerAddress(address), nil
}

// runNode is the process of one server. It ends when its standard input does: with whoever started it.
func runNode(args []string) error {
	flags := flag.NewFlagSet("node", flag.ExitOnError)
	id := flags.String("id", "", "name of the server")
	dir := flags.String("dir", "", "directory of its files")
	bootstrap := flags.String("bootstrap", "", "servers of a new cluster")
	peers := flags.String("peers", "", "where to dial the others: id=raft/api,...")
	threshold := flags.Uint64("snapshot", 1000, "entries between snapshots")
	_ = flags.Parse(args)

	n := &node{id: *id, raftPeer: map[string]string{}, apiPeer: map[string]string{}, forward: http.Client{Timeout: 2 * time.Second}}
	for peer := range strings.SplitSeq(*peers, ",") {
		name, addresses, ok := strings.Cut(peer, "=")
		if !ok {
			continue
		}
		n.raftPeer[name], n.apiPeer[name], _ = strings.Cut(addresses, "/")
	}
	if err := n.start(*dir, *bootstrap, *threshold); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("api %s\n", listener.Addr())
	go n.tellLeadership()
	go func() { _ = http.Serve(listener, n.api()) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return errors.Join(n.raft.Shutdown().Error(), n.store.Close(), n.replica.log.Close())
}

// start opens what the server keeps, and lets raft go on from there.
func (n *node) start(dir, bootstrap string, threshold uint64) error {
	logFile, err := os.OpenFile(filepath.Join(dir, "raft.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: n.id, Output: logFile, Level: hclog.Info})
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, logger)
	if err != nil {
		return err
	}
	if n.store, err = raftstore.Open(filepath.Join(dir, "store"), &raftstore.Options{Snapshots: snapshots, SegmentBytes: 1 << 20}); err != nil {
		return err
	}
	if n.replica, err = newReplica(filepath.Join(dir, "replica")); err != nil {
		return err
	}
	transport, err := raft.NewTCPTransportWithConfig("127.0.0.1:0", nil, &raft.NetworkTransportConfig{
		ServerAddressProvider: n, MaxPool: 3, Timeout: 700 * time.Millisecond, Logger: logger,
	})
	if err != nil {
		return err
	}
	n.raftPeer[n.id] = string(transport.LocalAddr())
	fmt.Printf("raft %s\n", transport.LocalAddr())

	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(n.id)
	config.Logger = logger
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 400*time.Millisecond, 400*time.Millisecond, 300*time.Millisecond
	config.CommitTimeout = 10 * time.Millisecond
	config.SnapshotThreshold, config.TrailingLogs = threshold, threshold/4
	config.SnapshotInterval = 300 * time.Millisecond
	// RestoreCommittedLogs, which the store serves, stays off: raft 1.8.0 then looks for the servers of the cluster in a snapshot
	// and above the commit index alone, and starts without any where they stand below.

	exists, err := raft.HasExistingState(n.store, n.store, snapshots)
	if err != nil {
		return err
	}
	if !exists && bootstrap != "" {
		var servers raft.Configuration
		for id := range strings.SplitSeq(bootstrap, ",") {
			servers.Servers = append(servers.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
		if err := raft.BootstrapCluster(config, n.store, n.store, snapshots, transport, servers); err != nil {
			return err
		}
	}
	n.raft, err = raft.NewRaft(config, n.replica, n.store, n.store, snapshots, transport)
	return err
}

func (n *node) tellLeadership() {
	for leads := range n.raft.LeaderCh() {
		if leads {
			event("leads in term %d", n.raft.CurrentTerm())
		} else {
			event("leads no more")
		}
	}
}
