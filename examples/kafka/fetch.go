package main

import (
	"context"
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
	log              *seglog.Log     // to wait on, with next, when there is too little
	next             int64
}

// fetchResponse is the answer to a Fetch in the making; fetchwire.go sends it.
type fetchResponse struct {
	req    *kmsg.FetchRequest
	parts  []fetched
	bytes  int64
	failed bool // a partition has an error, which the client should know of at once
}

// fetch answers once there are MinBytes, or an error, or MaxWaitMillis have passed.
func (s *Server) fetch(rq *request) reply {
	req := rq.body.(*kmsg.FetchRequest)
	ctx, cancel := context.WithTimeout(s.ctx, time.Duration(req.MaxWaitMillis)*time.Millisecond)
	defer cancel()
	for {
		r := s.collect(req)
		if r.failed || r.bytes >= int64(req.MinBytes) || ctx.Err() != nil {
			return r
		}
		r.close()
		r.wait(ctx)
	}
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
	f.log = part.log()
	f.offsets = f.log.Offsets()
	if p.FetchOffset < f.offsets.Start || p.FetchOffset > f.offsets.End {
		return kerr.OffsetOutOfRange
	}
	if p.FetchOffset >= f.offsets.HighWatermark || (budget <= 0 && !first) {
		return nil
	}
	section, err := f.log.Section(p.FetchOffset, min(int64(p.PartitionMaxBytes), max(budget, 0)))
	if err != nil {
		return err
	}
	if section.Len() == 0 || (section.Len() > budget && !first) {
		return section.Close()
	}
	f.section, f.next = section, section.Next()
	return nil
}

// wait returns when a partition may have more than was collected, or ctx ends. A log that can't be waited on, because
// it was closed or has failed, is looked at again when ctx has ended.
func (r *fetchResponse) wait(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if len(r.parts) == 1 { // the common case, and no goroutine
		if f := r.parts[0]; f.log.Wait(ctx, f.next) == nil {
			return
		}
	} else {
		for _, f := range r.parts {
			go func() {
				if f.log.Wait(ctx, f.next) == nil {
					cancel()
				}
			}()
		}
	}
	<-ctx.Done()
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
