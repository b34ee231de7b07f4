package main

import (
	"context"
	"sync"
	"time"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetched is one partition of a Fetch response. Its section is pinned until the response is closed.
type fetched struct {
	topic, partition int // indexes into the request
	err              error
	offsets          seglog.Offsets
	section          *seglog.Section // nil: no bytes
	next             int64           // the offset behind the section, or the one that was asked for
}

// fetchResponse is the answer to a Fetch in the making; fetchwire.go sends it.
type fetchResponse struct {
	req    *kmsg.FetchRequest
	parts  []fetched
	bytes  int64
	failed bool // a partition has an error, which the client should know of at once
	more   bool // a partition has more than its limits allow to be sent
}

// fetch answers once there are MinBytes, or as many as the limits allow, or an error, or MaxWaitMillis have passed, or
// the client has left.
func (s *Server) fetch(rq *request) reply {
	req := rq.body.(*kmsg.FetchRequest)
	req.MaxBytes = min(req.MaxBytes, maxFetchBytes)
	r := s.collect(req)
	if r.complete() || req.MaxWaitMillis <= 0 {
		return r
	}
	rq.frame.release()
	watched, stop := rq.conn.watch(s.ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(watched, min(time.Duration(req.MaxWaitMillis)*time.Millisecond, maxFetchWait))
	defer cancel()
	appended := make(chan struct{}, 1)
	for _, p := range s.partitionsOf(req) {
		p.waiting.add(appended)
		defer p.waiting.remove(appended)
	}
	for woken := false; ; woken = true {
		r.close()
		r = s.collect(req) // also the first time: something may have come before the wait began
		if r.complete() || ctx.Err() != nil {
			return r
		}
		if woken {
			pause(ctx, gatherBytes)
		}
		select {
		case <-appended:
		case <-ctx.Done():
			return r
		}
	}
}

// gatherBytes is how long a fetch that was woken for too little is not woken again, so that one that wants many bytes
// is not looked at for each batch of a few.
const gatherBytes = time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// complete says whether there is no sense in waiting for more.
func (r *fetchResponse) complete() bool {
	return r.failed || r.more || r.bytes >= int64(min(r.req.MinBytes, r.req.MaxBytes))
}

// partitionsOf are the partitions that a request names.
func (s *Server) partitionsOf(req *kmsg.FetchRequest) (ps []*partition) {
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if part, err := s.topics.partition(t.Topic, p.Partition); err == nil {
				ps = append(ps, part)
			}
		}
	}
	return ps
}

// collect finds what each partition has to send, within its own limit and the request's. The first batch of all is
// sent whatever its size, so that a consumer with small limits gets on.
func (s *Server) collect(req *kmsg.FetchRequest) *fetchResponse {
	r := &fetchResponse{req: req}
	for ti := range req.Topics {
		t := &req.Topics[ti]
		for pi := range t.Partitions {
			p := &t.Partitions[pi]
			f := fetched{topic: ti, partition: pi, next: p.FetchOffset}
			f.err = s.collectPartition(&f, t.Topic, p, int64(req.MaxBytes)-r.bytes, r.bytes == 0)
			if f.section != nil {
				r.bytes += f.section.Len()
			}
			r.failed = r.failed || f.err != nil
			r.more = r.more || f.next < f.offsets.HighWatermark
			r.parts = append(r.parts, f)
		}
	}
	return r
}

func (s *Server) collectPartition(f *fetched, topic string, p *kmsg.FetchRequestTopicPartition, budget int64, first bool) error {
	part, err := s.topics.partition(topic, p.Partition)
	if err != nil {
		return err
	}
	log := part.log()
	f.offsets = log.Offsets()
	if p.FetchOffset < f.offsets.Start || p.FetchOffset > f.offsets.End {
		return kerr.OffsetOutOfRange
	}
	if p.FetchOffset >= f.offsets.HighWatermark || (budget <= 0 && !first) {
		return nil
	}
	section, err := log.Section(p.FetchOffset, min(int64(p.PartitionMaxBytes), max(budget, 0)))
	if err != nil {
		return err
	}
	if section.Len() == 0 || (section.Len() > budget && !first) {
		return section.Close()
	}
	f.section, f.next = section, section.Next()
	return nil
}

// close lets go of the sections that are still pinned.
func (r *fetchResponse) close() {
	for i := range r.parts {
		if s := r.parts[i].section; s != nil {
			s.Close()
			r.parts[i].section = nil
		}
	}
}

// waiters are the fetches that wait for records of a partition.
type waiters struct {
	mu  sync.Mutex
	set map[chan struct{}]struct{}
}

func (w *waiters) add(c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set = map[chan struct{}]struct{}{}
	}
	w.set[c] = struct{}{}
}

func (w *waiters) remove(c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, c)
}

// wake tells them to look again.
func (w *waiters) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.set {
		select {
		case c <- struct{}{}:
		default: // it was told and has not looked yet
		}
	}
}
