package raftstore_test

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/seglog/seglog/raftstore"
	"github.com/stretchr/testify/require"
)

type fsm struct{}

func (fsm) Apply(entry *raft.Log) any           { return string(entry.Data) }
func (fsm) Snapshot() (raft.FSMSnapshot, error) { return nil, io.ErrUnexpectedEOF }
func (fsm) Restore(io.ReadCloser) error         { return nil }
func newTransport() (string, *raft.InmemTransport) {
	address, transport := raft.NewInmemTransport("")
	return string(address), transport
}

func Example() {
	dir, err := os.MkdirTemp("", "raftstore")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	address, transport := newTransport()
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(address)
	config.Logger = hclog.NewNullLogger()
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	servers := raft.Configuration{Servers: []raft.Server{{ID: config.LocalID, Address: raft.ServerAddress(address)}}}

	// begin
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, config.Logger)
	if err != nil {
		log.Fatal(err)
	}
	store, err := raftstore.Open(filepath.Join(dir, "raft"), &raftstore.Options{Snapshots: snapshots})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	node, err := raft.NewRaft(config, fsm{}, store, store, snapshots, transport)
	if err != nil {
		log.Fatal(err)
	}
	// end
	if err := node.BootstrapCluster(servers).Error(); err != nil {
		log.Fatal(err)
	}
	for node.State() != raft.Leader {
		time.Sleep(time.Millisecond)
	}
	applied := node.Apply([]byte("hello"), time.Second)
	fmt.Println(applied.Error(), applied.Response())
	fmt.Println(node.Shutdown().Error())
	// Output:
	// <nil> hello
	// <nil>
}

// TestReadme checks that README.md shows the lines of the example.
func TestReadme(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, lines, ok := strings.Cut(string(source), "\t// begin\n")
	require.True(t, ok)
	lines, _, ok = strings.Cut(lines, "\t// end\n")
	require.True(t, ok)
	lines = strings.TrimPrefix(strings.ReplaceAll(lines, "\n\t", "\n"), "\t")
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), "```go\n"+lines+"```\n")
}
