package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// call is one call of a client: an append, or a read that is at least as new as everything acknowledged before it.
type call struct {
	Append bool
	Value  string
}

// reply is what the client got: the offset of the append, or what it read.
type reply struct {
	Offset int64
	view
}

// clients are users of the cluster, each with one call under way. They record what they were told.
type clients struct {
	cluster *cluster
	pause   time.Duration // between two calls of a client
	failing atomic.Int64  // calls that were repeated

	mu      sync.Mutex
	history []porcupine.Operation
	stale   []view           // what reads got that need not be new
	acked   map[string]int64 // value to offset
	begin   time.Time
	numbers map[string]uint64 // the last append of each client
	errs    []error

	stop chan struct{}
	wg   sync.WaitGroup
}

func newClients(c *cluster, pause time.Duration) *clients {
	return &clients{cluster: c, pause: pause, acked: make(map[string]int64), numbers: make(map[string]uint64), begin: time.Now()}
}

// run starts so many clients; halt ends them, each after its call.
func (cs *clients) run(n int) {
	cs.stop = make(chan struct{})
	for i := range n {
		cs.wg.Add(1)
		go cs.client(i)
	}
}

// halt returns the history since run. No call is under way then.
func (cs *clients) halt() ([]porcupine.Operation, error) {
	close(cs.stop)
	cs.wg.Wait()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	history := cs.history
	cs.history = nil
	if len(cs.errs) > 0 {
		return nil, cs.errs[0]
	}
	return history, nil
}

func (cs *clients) total() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.acked)
}

func (cs *clients) client(i int) {
	defer cs.wg.Done()
	name := fmt.Sprintf("client%d", i)
	cs.mu.Lock()
	number := cs.numbers[name]
	cs.mu.Unlock()
	h := &http.Client{Timeout: 1500 * time.Millisecond, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer h.CloseIdleConnections()
	for {
		select {
		case <-cs.stop:
			return
		default:
		}
		var err error
		switch rand.IntN(10) {
		case 0:
			cs.readStale(h)
		case 1, 2:
			err = cs.record(h, i, call{}, "GET", "/read")
		default:
			number++
			value := fmt.Sprintf("%s-%d", name, number)
			err = cs.record(h, i, call{true, value}, "POST", fmt.Sprintf("/append?client=%s&number=%d", url.QueryEscape(name), number))
		}
		cs.mu.Lock()
		cs.numbers[name] = number
		if err != nil {
			cs.errs = append(cs.errs, err)
		}
		cs.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(cs.pause)
	}
}

// record makes a call at any server, and at others until one of them acknowledges it.
func (cs *clients) record(h *http.Client, client int, c call, method, path string) error {
	begin := time.Now()
	for {
		ids := cs.cluster.running()
		if len(ids) > 0 {
			var r reply
			var err error
			id := ids[rand.IntN(len(ids))]
			if c.Append {
				err = cs.cluster.call(h, id, method, path, c.Value, &r.Offset)
			} else {
				err = cs.cluster.call(h, id, method, path, "", &r.view)
			}
			if err == nil {
				cs.acknowledged(client, c, r, begin, time.Now())
				return nil
			}
			if time.Since(begin) > 40*time.Second {
				return fmt.Errorf("client %d: no server acknowledges %+v: %w", client, c, err)
			}
		}
		cs.failing.Add(1)
		time.Sleep(time.Duration(20+rand.IntN(30)) * time.Millisecond)
	}
}

func (cs *clients) acknowledged(client int, c call, r reply, begin, end time.Time) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.history = append(cs.history, porcupine.Operation{
		ClientId: client, Input: c, Call: begin.Sub(cs.begin).Nanoseconds(), Output: r, Return: end.Sub(cs.begin).Nanoseconds(),
	})
	if c.Append {
		cs.acked[c.Value] = r.Offset
	}
}

// readStale reads what some server has; it may be old, but not wrong.
func (cs *clients) readStale(h *http.Client) {
	ids := cs.cluster.running()
	if len(ids) == 0 {
		return
	}
	var v view
	if err := cs.cluster.call(h, ids[rand.IntN(len(ids))], "GET", "/read?stale=1", "", &v); err != nil {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.stale = append(cs.stale, v)
}
