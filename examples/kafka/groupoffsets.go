package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// offsetKey and offsetRow are how far a group has got in a partition. They are kept in JSON, so that a look into the
// log with any tool shows what is there.
type offsetKey struct {
	Group     string `json:"group"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

type offsetRow struct {
	Offset      int64  `json:"offset"`
	LeaderEpoch int32  `json:"leader_epoch"`
	Metadata    string `json:"metadata,omitempty"`
}

// maxOffsetMetadata is Kafka's offset.metadata.max.bytes.
const maxOffsetMetadata = 4096

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // strings and numbers can't fail
		panic(fmt.Sprintf("encoding %T: %v", v, err))
	}
	return b
}

// forget drops the offsets whose key matches.
func (gs *groups) forget(match func(offsetKey) bool) error {
	var gone []row
	gs.eachOffset(func(key string, k offsetKey, _ offsetRow) {
		if match(k) {
			gone = append(gone, row{key, nil})
		}
	})
	return gs.offsets.put(gone...)
}

func (gs *groups) forgetTopic(topic string) error {
	return gs.forget(func(k offsetKey) bool { return k.Topic == topic })
}

func (gs *groups) eachOffset(f func(key string, k offsetKey, r offsetRow)) {
	gs.offsets.each(func(key string, value []byte) bool {
		var k offsetKey
		var r offsetRow
		if json.Unmarshal([]byte(key), &k) == nil && json.Unmarshal(value, &r) == nil {
			f(key, k, r)
		}
		return true
	})
}

// offsetGroups are the groups that have committed offsets.
func (gs *groups) offsetGroups() []string {
	ids := map[string]bool{}
	gs.eachOffset(func(_ string, k offsetKey, _ offsetRow) { ids[k.Group] = true })
	return slices.Sorted(maps.Keys(ids))
}

func (gs *groups) hasOffsets(id string) bool { return slices.Contains(gs.offsetGroups(), id) }

// offset is what a group has committed for a partition, or -1.
func (gs *groups) offset(k offsetKey) offsetRow {
	r := offsetRow{Offset: -1, LeaderEpoch: -1}
	if value := gs.offsets.get(string(mustJSON(k))); value != nil {
		if err := json.Unmarshal(value, &r); err != nil {
			return offsetRow{Offset: -1, LeaderEpoch: -1}
		}
	}
	return r
}

// mayCommit lets members of the current generation commit, and anybody while the group has no members: tools that reset
// offsets, consumers that assign partitions to themselves.
func (g *group) mayCommit(req *kmsg.OffsetCommitRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if req.Generation < 0 && req.MemberID == "" {
		if len(g.members) == 0 {
			return nil
		}
		return kerr.UnknownMemberID
	}
	_, err := g.checkMember(req.MemberID, req.InstanceID, req.Generation, time.Now())
	return err
}

func (s *Server) offsetCommit(_ *request, req *kmsg.OffsetCommitRequest) kmsg.Response {
	resp := responseTo[*kmsg.OffsetCommitResponse](req)
	refused := s.groups.get(req.Group, true).mayCommit(req)
	var rows []row
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			err := refused
			r := offsetRow{Offset: p.Offset, LeaderEpoch: p.LeaderEpoch}
			if p.Metadata != nil {
				r.Metadata = *p.Metadata
			}
			if err == nil {
				_, err = s.topics.partition(t.Topic, p.Partition)
			}
			if err == nil && len(r.Metadata) > maxOffsetMetadata {
				err = kerr.OffsetMetadataTooLarge
			}
			if err == nil {
				rows = append(rows, row{string(mustJSON(offsetKey{req.Group, t.Topic, p.Partition})), mustJSON(r)})
			}
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code(err)
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	if err := s.groups.offsets.put(rows...); err != nil {
		s.log.Error("offsets not committed", "group", req.Group, "err", err)
		for i := range resp.Topics {
			for j := range resp.Topics[i].Partitions {
				resp.Topics[i].Partitions[j].ErrorCode = code(err)
			}
		}
	}
	return resp
}

func (s *Server) offsetFetch(_ *request, req *kmsg.OffsetFetchRequest) kmsg.Response {
	resp := responseTo[*kmsg.OffsetFetchResponse](req)
	asked := req.Topics
	if asked == nil { // all there are
		s.groups.eachOffset(func(_ string, k offsetKey, _ offsetRow) {
			if k.Group == req.Group {
				asked = append(asked, kmsg.OffsetFetchRequestTopic{Topic: k.Topic, Partitions: []int32{k.Partition}})
			}
		})
	}
	for _, t := range asked {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			r := s.groups.offset(offsetKey{req.Group, t.Topic, p})
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = p, r.Offset, r.LeaderEpoch, &r.Metadata
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func (s *Server) offsetDelete(_ *request, req *kmsg.OffsetDeleteRequest) kmsg.Response {
	resp := responseTo[*kmsg.OffsetDeleteResponse](req)
	g := s.groups.get(req.Group, s.groups.hasOffsets(req.Group))
	if g == nil {
		resp.ErrorCode = kerr.GroupIDNotFound.Code
		return resp
	}
	g.mu.Lock()
	inUse := len(g.members) > 0
	g.mu.Unlock()
	var gone []row
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetDeleteResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetDeleteResponseTopicPartition()
			rp.Partition = p.Partition
			if inUse { // which topics the members subscribe to is theirs to know
				rp.ErrorCode = kerr.GroupSubscribedToTopic.Code
			} else {
				gone = append(gone, row{string(mustJSON(offsetKey{req.Group, t.Topic, p.Partition})), nil})
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	resp.ErrorCode = code(s.groups.offsets.put(gone...))
	return resp
}
