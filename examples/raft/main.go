// Raft replicates a seglog over several servers by github.com/hashicorp/raft, whose own log and votes are kept by
// raftstore. One command starts three servers, each a process of its own, on loopback, and clients that append and read;
// then it kills servers with -9, cuts the network, lets a server that was away install a snapshot, adds one and removes
// one, and says what happens as it happens. At the end it checks that nothing that was acknowledged is missing, doubled or
// moved, that the logs of all servers are equal, and that the history of all calls is linearizable.
//
//	go run .                    the whole story, under 40 seconds
//	go run . -clients 64        more clients
//	go test -rounds 200 .       as many rounds of random kills and cuts, each checked
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == nodeArgument {
		if err := runNode(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	dir := flag.String("dir", "", "where the servers keep their files; a temporary directory that is removed, if empty")
	n := flag.Int("clients", 8, "clients")
	flag.Parse()
	if err := run(*dir, *n); err != nil {
		fmt.Fprintln(os.Stderr, "raft:", err)
		os.Exit(1)
	}
}

func run(dir string, n int) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "seglog-raft")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	begin := time.Now()
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("%6.2fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	c, err := newCluster(dir, 500, say, "n1", "n2", "n3", "n4")
	if err != nil {
		return err
	}
	defer c.stop()
	d := &demo{cluster: c, clients: newClients(c, 2*time.Millisecond), n: n, say: say, picture: filepath.Join(os.TempDir(), "seglog-raft-history.html")}
	return d.run()
}
