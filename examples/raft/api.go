package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// The interface of a server, over HTTP:
//
//	POST /append?client=C&number=N  the body is the value; the reply its offset. A follower forwards to the leader.
//	GET  /read?stale=1              the end of the log and the last value: of this server as it is
//	GET  /read                      the same, at least as new as everything acknowledged before the call
//	GET  /barrier                   of the leader: the index of the last command
//	GET  /log                       all batches, as they are stored
//	GET  /status                    who leads, and what the server has
//	POST /add?id=I, /remove?id=I    of the leader: change the cluster
func (n *node) api() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			reply, err := f(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			_ = json.NewEncoder(w).Encode(reply)
		})
	}
	handle("POST /append", n.append)
	handle("GET /read", n.read)
	handle("GET /barrier", func(r *http.Request) (any, error) { return n.barrier(r) })
	handle("GET /status", n.status)
	handle("POST /add", func(r *http.Request) (any, error) {
		id := r.FormValue("id")
		return nil, n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, 5*time.Second).Error()
	})
	handle("POST /remove", func(r *http.Request) (any, error) {
		return nil, n.raft.RemoveServer(raft.ServerID(r.FormValue("id")), 0, 5*time.Second).Error()
	})
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, r *http.Request) { _ = writeBatches(w, n.replica.log) })
	return mux
}

const forwarded = "Forwarded-By"

// toLeader sends a request on to the leader, and returns its reply.
func (n *node) toLeader(r *http.Request, method, path string, reply any) error {
	if by := r.Header.Get(forwarded); by != "" {
		return fmt.Errorf("%s does not lead, as %s believes", n.id, by)
	}
	_, leader := n.raft.LeaderWithID()
	address, ok := n.apiPeer[string(leader)]
	if !ok {
		return errors.New("no leader is known")
	}
	req, err := http.NewRequestWithContext(r.Context(), method, "http://"+address+path, r.Body)
	if err != nil {
		return err
	}
	req.Header.Set(forwarded, n.id)
	return do(&n.forward, req, reply)
}

// do sends a request and decodes the reply.
func do(client *http.Client, req *http.Request, reply any) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	return json.Unmarshal(b, reply)
}

func (n *node) append(r *http.Request) (any, error) {
	var offset int64
	if n.raft.State() != raft.Leader {
		err := n.toLeader(r, "POST", "/append?"+r.URL.RawQuery, &offset)
		return offset, err
	}
	value, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(r.FormValue("number"), 10, 64)
	if err != nil {
		return 0, err
	}
	future := n.raft.Apply(command{r.FormValue("client"), number, value}.encode(), time.Second)
	if err := future.Error(); err != nil {
		return 0, err
	}
	if err, ok := future.Response().(error); ok {
		return 0, err
	}
	return future.Response(), nil
}

// barrier is an index such that a replica that has applied it has everything that was acknowledged before the call.
func (n *node) barrier(r *http.Request) (index uint64, err error) {
	if n.raft.State() != raft.Leader {
		err := n.toLeader(r, "GET", "/barrier", &index)
		return index, err
	}
	if err := n.raft.Barrier(time.Second).Error(); err != nil { // committed in this term, so this is the leader
		return 0, err
	}
	n.replica.mu.RLock()
	defer n.replica.mu.RUnlock()
	return n.replica.applied, nil
}

func (n *node) read(r *http.Request) (any, error) {
	if r.FormValue("stale") != "" {
		return n.replica.view(), nil
	}
	index, err := n.barrier(r)
	if err != nil {
		return nil, err
	}
	p := n.replica
	deadline := time.AfterFunc(time.Second, p.grown.Broadcast)
	defer deadline.Stop()
	begin := time.Now()
	p.mu.Lock()
	for p.applied < index && time.Since(begin) < time.Second {
		p.grown.Wait()
	}
	behind := p.applied < index
	p.mu.Unlock()
	if behind {
		return nil, fmt.Errorf("%s has not applied entry %d", n.id, index)
	}
	return p.view(), nil
}

// status is what a server says of itself.
type status struct {
	Leader      string `json:"leader"`
	State       string `json:"state"`
	Term        uint64 `json:"term"`
	First, Last uint64 // of the Raft log
	Snapshot    uint64 // index of the newest
	End         int64  // of the replica
}

func (n *node) status(*http.Request) (any, error) {
	_, leader := n.raft.LeaderWithID()
	first, err := n.store.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return nil, err
	}
	snapshot, _ := strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64)
	return status{string(leader), n.raft.State().String(), n.raft.CurrentTerm(), first, last, snapshot, n.replica.view().End}, nil
}
