package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// nodeArgument makes this program a server.
const nodeArgument = "-node-of-the-cluster"

// cluster is the servers, each a process, and the network between them.
type cluster struct {
	dir       string
	threshold uint64
	net       *network
	say       func(format string, args ...any)

	mu      sync.Mutex
	servers map[string]*server
}

// server is a process, from when it is started to when it is killed.
type server struct {
	id    string
	cmd   *exec.Cmd
	stdin io.Closer // the process ends when it is closed
	api   string
	gone  chan struct{}
}

func newCluster(dir string, threshold uint64, say func(string, ...any), ids ...string) (*cluster, error) {
	n, err := newNetwork(ids...)
	if err != nil {
		return nil, err
	}
	return &cluster{dir: dir, threshold: threshold, net: n, say: say, servers: make(map[string]*server)}, nil
}

// start runs a server; bootstrap names the servers of a new cluster.
func (c *cluster) start(id string, bootstrap ...string) error {
	dir := filepath.Join(c.dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0], nodeArgument, "-id", id, "-dir", dir, "-bootstrap", strings.Join(bootstrap, ","),
		"-peers", c.net.peers(id), "-snapshot", fmt.Sprint(c.threshold))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr, err := os.OpenFile(filepath.Join(dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	s := &server{id: id, cmd: cmd, stdin: stdin, gone: make(chan struct{})}
	lines := bufio.NewScanner(stdout)
	var raft string
	for s.api == "" && lines.Scan() {
		switch kind, text, _ := strings.Cut(lines.Text(), " "); kind {
		case "raft":
			raft = text
		case "api":
			s.api = text
		case "event":
			c.say("%s %s", id, text)
		}
	}
	go func() {
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "event "); ok {
				c.say("%s %s", id, text)
			}
		}
		_ = cmd.Wait()
		close(s.gone)
	}()
	if s.api == "" {
		<-s.gone
		text, _ := os.ReadFile(filepath.Join(dir, "stderr"))
		return fmt.Errorf("%s did not start: %s", id, text)
	}
	c.net.started(id, raft, s.api)
	c.mu.Lock()
	c.servers[id] = s
	c.mu.Unlock()
	return nil
}

// kill ends a server with SIGKILL.
func (c *cluster) kill(id string) {
	c.mu.Lock()
	s := c.servers[id]
	delete(c.servers, id)
	c.mu.Unlock()
	if s != nil {
		c.net.started(id, "", "") // before another process gets its ports
		_ = s.cmd.Process.Kill()
		<-s.gone
	}
}

// stop ends all servers as an operator would.
func (c *cluster) stop() {
	for _, id := range c.running() {
		c.mu.Lock()
		s := c.servers[id]
		delete(c.servers, id)
		c.mu.Unlock()
		_ = s.stdin.Close()
		select {
		case <-s.gone:
		case <-time.After(5 * time.Second):
			_ = s.cmd.Process.Kill()
			<-s.gone
		}
	}
}

// running are the servers that are, in order.
func (c *cluster) running() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.servers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (c *cluster) address(id string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.servers[id]
	if !ok {
		return "", false
	}
	return s.api, true
}

var errNotRunning = errors.New("the server does not run")

// call sends a request to a server.
func (c *cluster) call(client *http.Client, id, method, path, body string, reply any) error {
	address, ok := c.address(id)
	if !ok {
		return errNotRunning
	}
	req, err := http.NewRequest(method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	return do(client, req, reply)
}

// admin is for everything but the clients' calls.
var admin = &http.Client{Timeout: 5 * time.Second}

func (c *cluster) status(id string) (s status, err error) {
	err = c.call(admin, id, "GET", "/status", "", &s)
	return s, err
}

// leader is the server that leads with the highest term, "" if none does.
func (c *cluster) leader() string {
	var leader string
	var term uint64
	for _, id := range c.running() {
		if s, err := c.status(id); err == nil && s.State == "Leader" && s.Term >= term {
			leader, term = id, s.Term
		}
	}
	return leader
}

// await waits until something holds.
func await(what string, limit time.Duration, holds func() bool) error {
	for begin := time.Now(); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > limit {
			return fmt.Errorf("waited %v for %s", limit, what)
		}
	}
	return nil
}

// awaitLeader waits for one that is not among others.
func (c *cluster) awaitLeader(others ...string) (leader string, err error) {
	err = await("a leader", 20*time.Second, func() bool {
		leader = c.leader()
		return leader != "" && !slices.Contains(others, leader)
	})
	return leader, err
}

// follower is a running server that does not lead.
func (c *cluster) follower() string {
	leader := c.leader()
	for _, id := range c.running() {
		if id != leader {
			return id
		}
	}
	return ""
}

// change adds or removes a server.
func (c *cluster) change(what, id string) error {
	var last error
	err := await(what+" "+id, 20*time.Second, func() bool {
		var reply any
		last = c.call(admin, c.leader(), "POST", "/"+what+"?id="+id, "", &reply)
		return last == nil
	})
	return errors.Join(err, last)
}

// settle waits until all servers have the same log, and returns its end.
func (c *cluster) settle() (end int64, err error) {
	var all []status
	err = await("all servers to have everything", 30*time.Second, func() bool {
		all = all[:0]
		for _, id := range c.running() {
			s, err := c.status(id)
			if err != nil || s.Leader == "" {
				return false
			}
			all = append(all, s)
		}
		for _, s := range all[1:] {
			if s.End != all[0].End || max(s.Last, s.Snapshot) != max(all[0].Last, all[0].Snapshot) { // a snapshot empties the log
				return false
			}
		}
		return true
	})
	if err != nil {
		text, _ := json.Marshal(all)
		return 0, fmt.Errorf("%w: %s", err, text)
	}
	return all[0].End, nil
}
