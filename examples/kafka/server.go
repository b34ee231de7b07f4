package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/seglog/seglog"
)

// Config is what a Server is started with. Dir is the only field that must be set.
type Config struct {
	Dir          string            // holds <topic>-<partition>/ for every partition, and the server's own logs
	Advertise    string            // host:port that clients are told; empty: the address by which they came
	Partitions   int               // of a topic whose creator names no number; default 1
	NoAutoCreate bool              // an unknown topic is an error rather than created on first use
	Defaults     map[string]string // topic settings that differ from defaultSettings
	Limits       Limits            // what clients may use up
	Logger       *slog.Logger      // nil discards
}

// Server is a broker of one node. It owns the logs below its directory and serves any number of listeners.
//
// Each connection has one goroutine that reads a request, handles it and writes the reply before it reads the next, as
// Kafka's own broker does: replies must leave in the order of the requests.
type Server struct {
	cfg         Config
	log         *slog.Logger
	topics      *topics
	groups      *groups
	producerIDs *seglog.Log
	inFlight    *semaphore.Weighted // bytes of requests
	searches    chan struct{}       // searches by time that run, see offsets.go

	ctx  context.Context // ends long polls and group waits at Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu        sync.Mutex // guards all below
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{}
	refusedAt time.Time // when it was last logged that there are too many connections
}

// clusterID is what Metadata names the cluster. Tools print it and compare it; nothing else depends on it.
const clusterID = "seglog-examples-kafka"

// nodeID is the id of the only broker there is: leader of all partitions, coordinator of all groups.
const nodeID = 1

// NewServer opens every log below cfg.Dir and is then ready for Serve.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = 1
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Logger, listeners: map[net.Listener]struct{}{}, conns: map[net.Conn]struct{}{},
		inFlight: semaphore.NewWeighted(cfg.Limits.InFlightBytes), searches: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/4))}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.spawn(s.tick)
	return s, nil
}

func (s *Server) open() (err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o755); err != nil {
		return err
	}
	// An id given twice would make one producer's batches look like another's duplicates: durable before it is given.
	s.producerIDs, err = seglog.Open(filepath.Join(s.cfg.Dir, "__producer_ids"), &seglog.Options{SegmentBytes: 1 << 20, Logger: s.log})
	if err != nil {
		return err
	}
	if s.topics, err = openTopics(s.cfg.Dir, s.cfg.Defaults, s.cfg.Limits.Partitions, s.log); err != nil {
		return err
	}
	s.groups, err = openGroups(s.cfg.Dir, s.cfg.Limits, s.log)
	return err
}

// tick drives everything that happens because time passes.
func (s *Server) tick() {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.groups.tick(now)
		case <-s.ctx.Done():
			return
		}
	}
}

// Serve accepts connections from l until Close, which closes l and makes Serve return nil.
func (s *Server) Serve(l *net.TCPListener) error {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		l.Close()
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		c, err := l.AcceptTCP()
		switch {
		case s.ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too many open files, say: wait for some to be closed
			s.log.Error("no connection accepted", "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !s.admit(c) {
			c.Close()
			continue
		}
		if !s.spawn(func() {
			defer s.forget(c)
			if err := s.serveConn(c); err != nil && s.ctx.Err() == nil {
				s.log.Warn("connection ended", "peer", c.RemoteAddr().String(), "err", err)
			}
		}) {
			s.forget(c)
		}
	}
}

// admit counts a connection, unless there are too many.
func (s *Server) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) < s.cfg.Limits.Conns {
		s.conns[c] = struct{}{}
		return true
	}
	if now := time.Now(); now.Sub(s.refusedAt) > 10*time.Second {
		s.refusedAt = now
		s.log.Warn("too many connections: new ones are closed", "limit", s.cfg.Limits.Conns)
	}
	return false
}

func (s *Server) forget(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.Close()
}

// spawn runs f in a goroutine that Close waits for, unless Close has begun.
func (s *Server) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
	return true
}

// Close ends all connections and closes all logs. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.stop()
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()

	var errs []error
	if s.topics != nil {
		errs = append(errs, s.topics.close())
	}
	if s.groups != nil {
		errs = append(errs, s.groups.close())
	}
	if s.producerIDs != nil {
		errs = append(errs, s.producerIDs.Close())
	}
	return errors.Join(errs...)
}

// address is where the client behind c is to connect to for this server.
func (s *Server) address(c net.Conn) (host string, port int32, err error) {
	addr := s.cfg.Advertise
	if addr == "" {
		addr = c.LocalAddr().String()
	}
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port of %s: %w", addr, err)
	}
	return host, int32(n), nil
}
