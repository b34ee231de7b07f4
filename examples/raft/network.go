package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// network is all paths between the servers: a proxy for each direction, which can be cut.
type network struct {
	paths map[[2]string]*path
}

// path is how one server reaches another, at its Raft and at its API address.
type path struct {
	raft, api net.Listener

	mu     sync.Mutex
	raftTo string
	apiTo  string
	cut    chan struct{} // closed while the path is cut
	healed chan struct{} // closed once it is not any more
}

// newNetwork makes the paths between servers.
func newNetwork(ids ...string) (*network, error) {
	n := &network{paths: make(map[[2]string]*path)}
	for _, from := range ids {
		for _, to := range ids {
			if from == to {
				continue
			}
			p := &path{cut: make(chan struct{}), healed: make(chan struct{})}
			var err error
			if p.raft, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return nil, err
			}
			if p.api, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return nil, err
			}
			go p.serve(p.raft, func() string { return p.raftTo })
			go p.serve(p.api, func() string { return p.apiTo })
			n.paths[[2]string{from, to}] = p
		}
	}
	return n, nil
}

// peers is how a server reaches the others, as its -peers.
func (n *network) peers(from string) (peers string) {
	for key, p := range n.paths {
		if key[0] == from {
			peers += key[1] + "=" + p.raft.Addr().String() + "/" + p.api.Addr().String() + ","
		}
	}
	return peers
}

// started tells the paths to a server where it listens since it was started; nowhere, if the addresses are empty.
func (n *network) started(id, raft, api string) {
	for key, p := range n.paths {
		if key[1] == id {
			p.mu.Lock()
			p.raftTo, p.apiTo = raft, api
			p.mu.Unlock()
		}
	}
}

// isolate cuts all paths between the servers of one side and the others, in both directions.
func (n *network) isolate(side ...string) {
	in := func(id string) bool {
		for _, s := range side {
			if s == id {
				return true
			}
		}
		return false
	}
	for key, p := range n.paths {
		if in(key[0]) != in(key[1]) {
			p.setCut(true)
		}
	}
}

// cutOneWay cuts the paths from a server, which still hears the others.
func (n *network) cutOneWay(from string) {
	for key, p := range n.paths {
		if key[0] == from {
			p.setCut(true)
		}
	}
}

// heal joins everything.
func (n *network) heal() {
	for _, p := range n.paths {
		p.setCut(false)
	}
}

func (p *path) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.cut:
		if !cut {
			close(p.healed)
			p.cut, p.healed = make(chan struct{}), make(chan struct{})
		}
	default:
		if cut {
			close(p.cut)
		}
	}
}

// state is whether the path is cut, and what tells of a change.
func (p *path) state() (cut, healed chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut, p.healed
}

func (p *path) serve(l net.Listener, to func() string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go p.forward(c, to)
	}
}

// forward connects the two. What a connection carried when the path was cut is lost: nothing arrives and nothing fails
// until the path is healed, and then the connection breaks.
func (p *path) forward(c net.Conn, to func() string) {
	defer c.Close()
	cut, healed := p.state()
	select {
	case <-cut:
		<-healed
		return
	default:
	}
	p.mu.Lock()
	address := to()
	p.mu.Unlock()
	if address == "" {
		return
	}
	d, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return
	}
	defer d.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, d}, {d, c}} {
		go func() {
			_, _ = io.Copy(way[0], onPath{way[1], cut})
			done <- struct{}{}
		}()
	}
	select {
	case <-done:
	case <-cut:
		<-healed
	}
}

// onPath reads from a connection until the path is cut, and then loses what arrives.
type onPath struct {
	net.Conn
	cut chan struct{}
}

func (r onPath) Read(b []byte) (int, error) {
	for {
		n, err := r.Conn.Read(b)
		select {
		case <-r.cut:
			if err != nil {
				return 0, err
			}
		default:
			return n, err
		}
	}
}
