package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// server is one of three in this process.
type server struct {
	id        raft.ServerID
	store     store
	transport *raft.NetworkTransport
	raft      *raft.Raft
	applied   atomic.Uint64
}

func (s *server) Apply(entry *raft.Log) any           { s.applied.Store(entry.Index); return nil }
func (s *server) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (s *server) Restore(r io.ReadCloser) error       { return r.Close() }

type cluster struct {
	servers   []*server
	addresses addresses
}

// addresses are where servers listen; one that is not there is away.
type addresses struct {
	mu sync.Mutex
	of map[raft.ServerID]raft.ServerAddress
}

func (a *addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if address, ok := a.of[id]; ok {
		return address, nil
	}
	return "", fmt.Errorf("%s is away", id)
}

func newCluster(open func() (store, error)) (*cluster, error) {
	c := &cluster{addresses: addresses{of: make(map[raft.ServerID]raft.ServerAddress)}}
	var config raft.Configuration
	for i := range 3 {
		id := raft.ServerID(fmt.Sprintf("n%d", i+1))
		config.Servers = append(config.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
		s, err := open()
		if err != nil {
			return c, errors.Join(err, c.close())
		}
		c.servers = append(c.servers, &server{id: id, store: s})
	}
	return c, c.bootstrap(config)
}

func (c *cluster) bootstrap(config raft.Configuration) error {
	for _, s := range c.servers {
		_, inmem := raft.NewInmemTransport("")
		if err := raft.BootstrapCluster(s.config(), s.store, s.store, raft.NewDiscardSnapshotStore(), inmem, config); err != nil {
			return err
		}
	}
	return nil
}

// config is raft's default, without snapshots.
func (s *server) config() *raft.Config {
	config := raft.DefaultConfig()
	config.LocalID, config.Logger = s.id, hclog.NewNullLogger()
	config.SnapshotInterval, config.SnapshotThreshold = time.Hour, 1<<60
	return config
}

// start lets servers run on their stores.
func (c *cluster) start(servers ...*server) (err error) {
	for _, s := range servers {
		s.transport, err = raft.NewTCPTransportWithConfig("127.0.0.1:0", nil, &raft.NetworkTransportConfig{
			ServerAddressProvider: &c.addresses, MaxPool: 3, Timeout: 10 * time.Second, Logger: hclog.NewNullLogger(),
		})
		if err != nil {
			return err
		}
		c.addresses.mu.Lock()
		c.addresses.of[s.id] = s.transport.LocalAddr()
		c.addresses.mu.Unlock()
		if s.raft, err = raft.NewRaft(s.config(), s, s.store, s.store, raft.NewDiscardSnapshotStore(), s.transport); err != nil {
			return err
		}
	}
	return nil
}

// stop ends a server, and leaves its store open.
func (c *cluster) stop(s *server) error {
	if s.raft == nil {
		return nil
	}
	c.addresses.mu.Lock()
	delete(c.addresses.of, s.id)
	c.addresses.mu.Unlock()
	err := errors.Join(s.raft.Shutdown().Error(), s.transport.Close())
	s.raft = nil
	return err
}

func (c *cluster) close() (err error) {
	for _, s := range c.servers {
		err = errors.Join(err, c.stop(s), s.store.Close())
	}
	return err
}

// leader waits for one that can commit.
func (c *cluster) leader() (*server, error) {
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
		for _, s := range c.servers {
			if s.raft != nil && s.raft.State() == raft.Leader && s.raft.Barrier(time.Second).Error() == nil {
				return s, nil
			}
		}
	}
	return nil, errors.New("no leader in a minute")
}

// commit commits an entry, whoever leads, and returns its index.
func (c *cluster) commit() (uint64, error) {
	for begin := time.Now(); ; {
		leader, err := c.leader()
		if err != nil {
			return 0, err
		}
		future := leader.raft.Apply([]byte("an entry"), 0)
		if err = future.Error(); err == nil {
			return future.Index(), nil
		}
		if time.Since(begin) > time.Minute {
			return 0, err
		}
	}
}

// clusterRows measures commits of 1 KiB by several numbers of clients.
func (b *bench) clusterRows() error {
	return b.each(func(name string, open func() (store, error)) (err error) {
		c, err := newCluster(open)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		if err := c.start(c.servers...); err != nil {
			return err
		}
		leader, err := c.leader()
		if err != nil {
			return err
		}
		for _, clients := range []int{0, 1, 4, 16, 64, 256} {
			if err := b.commits(name, leader, clients); err != nil {
				return err
			}
		}
		return nil
	})
}

// commits notes what some clients got. No clients are some of which nothing is noted, so that the stores are warm.
func (b *bench) commits(name string, leader *server, clients int) error {
	warm := clients == 0
	if warm {
		clients = 64
	}
	data := entries(1, 1, 1024)[0].Data
	var mu sync.Mutex
	var latencies []time.Duration
	var failed error
	var wg sync.WaitGroup
	before := usage()
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			var own []time.Duration
			for time.Since(begin) < b.round {
				called := time.Now()
				err := leader.raft.Apply(data, 10*time.Second).Error()
				own = append(own, time.Since(called))
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
			}
			mu.Lock()
			latencies = append(latencies, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(begin)
	used := usage()
	if failed != nil {
		return failed
	}
	if warm {
		return nil
	}
	slices.Sort(latencies)
	n := float64(len(latencies))
	row := func(what string) string { return fmt.Sprintf("%d clients: %s", clients, what) }
	b.note(row("commits/s"), name, n/took.Seconds())
	b.note(row("latency p50, ms"), name, ms(latencies[len(latencies)/2]))
	b.note(row("latency p99, ms"), name, ms(latencies[len(latencies)*99/100]))
	b.note(row("CPU of all three servers, µs a commit"), name, float64((used.cpu-before.cpu).Microseconds())/n)
	b.note(row("written to disk by all three, KiB a commit"), name, float64(used.written-before.written)/1024/n)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// catchUpRows measures how long a server that was away takes to get a log.
func (b *bench) catchUpRows() error {
	return b.each(func(name string, open func() (store, error)) (err error) {
		c, err := newCluster(open)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		away := c.servers[2]
		for _, s := range c.servers[:2] {
			if err := fill(s.store, b.awayMiB); err != nil {
				return err
			}
		}
		if err := c.start(c.servers[:2]...); err != nil {
			return err
		}
		last, err := c.commit()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := c.start(away); err != nil {
			return err
		}
		for away.applied.Load() < last {
			if time.Sleep(time.Millisecond); time.Since(begin) > 5*time.Minute {
				return errors.New("no catch-up in 5 minutes")
			}
		}
		b.note(fmt.Sprintf("catch-up of %d MiB in entries of 1 KiB, MB/s", b.awayMiB), name, float64(b.awayMiB<<20)/1e6/time.Since(begin).Seconds())
		return nil
	})
}

// leaderRows measures leader changes with a long log.
func (b *bench) leaderRows() error {
	return b.each(func(name string, open func() (store, error)) (err error) {
		c, err := newCluster(open)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		for _, s := range c.servers {
			if err := fill(s.store, b.logMiB); err != nil {
				return err
			}
		}
		if err := c.start(c.servers...); err != nil {
			return err
		}
		if _, err := c.commit(); err != nil {
			return err
		}
		time.Sleep(5 * time.Second) // the filling left work to the background: seals, checkpoints
		var took []float64
		for range 10 {
			leader, err := c.leader()
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := leader.raft.LeadershipTransfer().Error(); err != nil {
				return err
			}
			if _, err := c.commit(); err != nil {
				return err
			}
			took = append(took, ms(time.Since(begin)))
		}
		b.note(fmt.Sprintf("leader change with a log of %d MiB, to the first commit, ms", b.logMiB), name, median(took))
		return nil
	})
}

// fill stores the log that the other servers have, too.
func fill(s store, mib int) error {
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	for range mib {
		if err := s.StoreLogs(entries(last+1, 1024, 1024)); err != nil {
			return err
		}
		last += 1024
	}
	return nil
}
