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

// index notes which group has committed what, at the start.
func (gs *groups) index() {
	gs.offsets.each(func(key string, value []byte) bool {
		var k offsetKey
		if json.Unmarshal([]byte(key), &k) == nil {
			gs.note(k.Group, row{key, value})
			gs.stored.take(rowBytes(key, value)) // a limit that is lower than it was only keeps more from coming
		}
		return true
	})
}

// rowBytes is what a row takes in memory.
func rowBytes(key string, value []byte) int64 {
	if value == nil {
		return 0
	}
	return int64(2*len(key) + len(value) + 256)
}

// note enters a row into the index, or takes it out. gs.mu is held, unless nobody else knows of gs.
func (gs *groups) note(group string, r row) {
	keys := gs.committed[group]
	if r.value == nil {
		delete(keys, r.key)
		if len(keys) == 0 {
			delete(gs.committed, group)
		}
		return
	}
	if keys == nil {
		keys = map[string]struct{}{}
		gs.committed[group] = keys
	}
	keys[r.key] = struct{}{}
}

// put changes a group's offsets, all or none.
func (gs *groups) put(group string, rows ...row) error {
	gs.writes.Lock()
	defer gs.writes.Unlock()
	var more int64
	before := map[string][]byte{}
	for _, r := range rows {
		old, again := before[r.key]
		if !again {
			old = gs.offsets.get(r.key)
		}
		before[r.key] = r.value
		more += rowBytes(r.key, r.value) - rowBytes(r.key, old)
	}
	if !gs.stored.take(more) {
		return refuse(kerr.PolicyViolation, "committed offsets take %d bytes, the limit is %d", gs.stored.used.Load(), gs.stored.limit)
	}
	if err := gs.offsets.put(rows...); err != nil {
		gs.stored.used.Add(-more)
		return err
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, r := range rows {
		gs.note(group, r)
	}
	return nil
}

// forgetGroup drops all that a group has committed.
func (gs *groups) forgetGroup(id string) error {
	var gone []row
	for _, key := range gs.keysOf(id) {
		gone = append(gone, row{key, nil})
	}
	return gs.put(id, gone...)
}

// forgetTopic drops what all groups have committed for a topic.
func (gs *groups) forgetTopic(topic string) error {
	gone := map[string][]row{}
	gs.offsets.each(func(key string, _ []byte) bool {
		var k offsetKey
		if json.Unmarshal([]byte(key), &k) == nil && k.Topic == topic {
			gone[k.Group] = append(gone[k.Group], row{key, nil})
		}
		return true
	})
	for group, rows := range gone {
		if err := gs.put(group, rows...); err != nil {
			return err
		}
	}
	return nil
}

// withOffsets are the groups that have committed offsets.
func (gs *groups) withOffsets() []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return slices.Sorted(maps.Keys(gs.committed))
}

func (gs *groups) hasOffsets(id string) bool {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return len(gs.committed[id]) > 0
}

// keysOf are the keys in the table of what a group has committed.
func (gs *groups) keysOf(id string) []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return slices.Sorted(maps.Keys(gs.committed[id]))
}

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
// offsets, consumers that assign partitions to themselves. A group that does not exist (nil) has none.
func (g *group) mayCommit(req *kmsg.OffsetCommitRequest) error {
	if g == nil {
		if req.Generation < 0 && req.MemberID == "" {
			return nil
		}
		return kerr.UnknownMemberID
	}
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
	refused := s.groups.get(req.Group).mayCommit(req)
	if req.Group == "" {
		refused = kerr.InvalidGroupID
	}
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
	if err := s.groups.put(req.Group, rows...); err != nil {
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
		for _, key := range s.groups.keysOf(req.Group) {
			var k offsetKey
			if json.Unmarshal([]byte(key), &k) == nil {
				asked = append(asked, kmsg.OffsetFetchRequestTopic{Topic: k.Topic, Partitions: []int32{k.Partition}})
			}
		}
	}
	answered := map[offsetKey]bool{}
	for _, t := range asked {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			k := offsetKey{req.Group, t.Topic, p}
			if answered[k] {
				continue
			}
			answered[k] = true
			r := s.groups.offset(k)
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
	g := s.groups.get(req.Group)
	if g == nil && !s.groups.hasOffsets(req.Group) {
		resp.ErrorCode = kerr.GroupIDNotFound.Code
		return resp
	}
	inUse := g != nil && g.size() > 0
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
	resp.ErrorCode = code(s.groups.put(req.Group, gone...))
	return resp
}
