package main

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What a ListOffsets request asks for in place of a time.
const (
	latestOffset   = -1
	earliestOffset = -2
)

// searchTime is how long the searches by time of one request may take; what is left then is to be asked for again. A
// search decompresses the batch that it finds, which may be a thousand times smaller than what it inflates to.
const searchTime = time.Second

// listOffsets finds where to begin: at the end, at the start, or at the first record of a time. A partition may be asked
// for once, as with Kafka.
func (s *Server) listOffsets(_ *request, req *kmsg.ListOffsetsRequest) kmsg.Response {
	resp := responseTo[*kmsg.ListOffsetsResponse](req)
	type id struct {
		topic     string
		partition int32
	}
	asked := map[id]int{}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			asked[id{t.Topic, p.Partition}]++
		}
	}
	var search searches
	defer search.end(s)
	for _, t := range req.Topics {
		rt := kmsg.NewListOffsetsResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Partition = p.Partition
			part, err := s.topics.partition(t.Topic, p.Partition)
			if asked[id{t.Topic, p.Partition}] > 1 {
				err = kerr.InvalidRequest
			}
			if err == nil && p.Timestamp >= 0 {
				err = search.begin(s)
			}
			if err == nil {
				rp.Offset, rp.Timestamp, err = part.find(p.Timestamp)
			}
			rp.ErrorCode = code(err)
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// searches are those by time of one request. Few requests search at once, so that they leave the processors to others.
type searches struct{ until time.Time }

// begin waits for the turn of the request, once, and says whether it still has time.
func (x *searches) begin(s *Server) error {
	if x.until.IsZero() {
		select {
		case s.searches <- struct{}{}:
			x.until = time.Now().Add(searchTime)
		case <-s.ctx.Done():
			return kerr.NotLeaderForPartition
		}
	}
	if time.Now().After(x.until) {
		return kerr.RequestTimedOut
	}
	return nil
}

func (x *searches) end(s *Server) {
	if !x.until.IsZero() {
		<-s.searches
	}
}

// find returns an offset and, for a search by time, the time of its record. Both are -1 if there is none.
func (p *partition) find(timestamp int64) (offset, at int64, err error) {
	log := p.log()
	o := log.Offsets()
	switch {
	case timestamp == latestOffset:
		return o.HighWatermark, -1, nil
	case timestamp == earliestOffset:
		return o.Start, -1, nil
	case timestamp < 0:
		return -1, -1, kerr.UnsupportedVersion // later versions have more of these
	}
	offset, err = log.OffsetForTime(time.UnixMilli(timestamp))
	if err != nil {
		return -1, -1, err
	}
	if offset >= o.HighWatermark {
		return -1, -1, nil
	}
	r, err := log.Read(offset)
	if err != nil {
		return -1, -1, err
	}
	return offset, r.Time.UnixMilli(), nil
}

// deleteRecords drops the records below an offset, -1 standing for the high watermark. Files go once none of their
// records is left.
func (s *Server) deleteRecords(_ *request, req *kmsg.DeleteRecordsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DeleteRecordsResponse](req)
	for _, t := range req.Topics {
		rt := kmsg.NewDeleteRecordsResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewDeleteRecordsResponseTopicPartition()
			rp.Partition, rp.LowWatermark = p.Partition, -1
			part, err := s.topics.partition(t.Topic, p.Partition)
			if err == nil {
				rp.LowWatermark, err = part.deleteBefore(p.Offset)
			}
			rp.ErrorCode = code(err)
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// deleteBefore returns where the log starts then.
func (p *partition) deleteBefore(offset int64) (start int64, err error) {
	log := p.log()
	if offset == -1 {
		offset = log.Offsets().HighWatermark
	}
	if o := log.Offsets(); offset < 0 || offset > o.HighWatermark {
		return -1, kerr.OffsetOutOfRange
	}
	if err := log.DeleteBefore(offset); err != nil {
		return -1, err
	}
	return log.Offsets().Start, nil
}
