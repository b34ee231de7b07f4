package main

import (
	"sync"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// produce stores each batch as its producer encoded it, compressed or not. acks=1 and acks=all are the same on a single
// node: when the answer is given is up to the topic's flush settings.
func (s *Server) produce(_ *request, req *kmsg.ProduceRequest) kmsg.Response {
	resp := responseTo[*kmsg.ProduceResponse](req)
	var refused error
	switch {
	case req.TransactionID != nil:
		refused = refuse(kerr.InvalidRequest, "transactions are not supported")
	case req.Acks < -1 || req.Acks > 1:
		refused = kerr.InvalidRequiredAcks
	}
	// Partitions are appended to side by side: where an append waits for its flush, the request waits for one flush of
	// many partitions at once and not for one after the other.
	var wg sync.WaitGroup
	slots := make(chan struct{}, appendsAtOnce)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		rt.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(t.Partitions))
		resp.Topics = append(resp.Topics, rt)
		for i, p := range t.Partitions {
			out := &rt.Partitions[i]
			wg.Add(1)
			work := func() {
				defer wg.Done()
				*out = s.produceTo(t.Topic, p, refused)
			}
			if len(req.Topics) == 1 && len(t.Partitions) == 1 {
				work()
				continue
			}
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				work()
			}()
		}
	}
	wg.Wait()
	s.logRefused(resp)
	if req.Acks == 0 {
		return nil
	}
	return resp
}

// appendsAtOnce bounds the goroutines of one produce request. Those that wait for the disk share its flushes.
const appendsAtOnce = 128

// logRefused logs the first error of a request; a client that wants all of them has them.
func (s *Server) logRefused(resp *kmsg.ProduceResponse) {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				s.log.Warn("produce refused", "topic", t.Topic, "partition", p.Partition, "err", *p.ErrorMessage)
				return
			}
		}
	}
}

func (s *Server) produceTo(topic string, in kmsg.ProduceRequestTopicPartition, err error) kmsg.ProduceResponseTopicPartition {
	out := kmsg.NewProduceResponseTopicPartition()
	out.Partition = in.Partition
	out.BaseOffset = -1
	if err == nil {
		var p *partition
		if p, err = s.topics.partition(topic, in.Partition); err == nil {
			out.BaseOffset, err = p.append(in.Records)
			p.waiting.wake()
			out.LogStartOffset = p.log().Offsets().Start
		}
	}
	if err != nil {
		out.ErrorCode, out.ErrorMessage = code(err), reason(err)
	}
	return out
}

// append stores a batch and returns the offset of its first record.
func (p *partition) append(batch []byte) (base int64, err error) {
	h, err := parseBatchHeader(batch)
	switch {
	case err != nil:
		return -1, err
	case h.size != int64(len(batch)):
		return -1, refuse(kerr.InvalidRecord, "%d bytes for a batch of %d: want exactly one batch", len(batch), h.size)
	case h.attributes&(attrTransactional|attrControl) != 0:
		return -1, refuse(kerr.InvalidRecord, "transactions are not supported")
	}
	if h.producerID < 0 {
		return appendTo(p.log(), batch)
	}
	pr, err := p.producers.get(p.log(), h.producerID)
	if err != nil {
		return -1, err
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	base, duplicate, err := pr.check(h)
	if err != nil || duplicate {
		return base, err
	}
	if base, err = appendTo(p.log(), batch); err == nil {
		pr.note(h, base)
	}
	return base, err
}

func appendTo(log *seglog.Log, batch []byte) (int64, error) {
	base, err := log.AppendBatch(batch)
	if err != nil {
		return -1, err
	}
	return base, nil
}

// initProducerID gives out the offsets of a log as ids: each once, also over a crash.
func (s *Server) initProducerID(_ *request, req *kmsg.InitProducerIDRequest) kmsg.Response {
	resp := responseTo[*kmsg.InitProducerIDResponse](req)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if req.TransactionalID != nil {
		s.log.Warn("transactions are not supported", "transactional_id", *req.TransactionalID)
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		return resp
	}
	id, err := s.producerIDs.Append(seglog.Record{})
	if err == nil && id%1000 == 0 {
		err = s.producerIDs.DeleteBefore(id)
	}
	if err != nil {
		s.log.Error("no producer id", "err", err)
		resp.ErrorCode = code(err)
		return resp
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return resp
}
