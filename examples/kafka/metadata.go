package main

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// metadata tells where everything is: here. Asking for a topic by name creates it, unless client or server forbid that.
func (s *Server) metadata(rq *request, req *kmsg.MetadataRequest) kmsg.Response {
	resp := responseTo[*kmsg.MetadataResponse](req)
	host, port, err := s.address(rq.conn)
	if err != nil {
		s.log.Error("no address to tell clients", "err", err)
		return resp
	}
	b := kmsg.NewMetadataResponseBroker()
	b.NodeID, b.Host, b.Port = nodeID, host, port
	resp.Brokers = append(resp.Brokers, b)
	resp.ControllerID = nodeID
	resp.ClusterID = kmsg.StringPtr(clusterID)

	if req.Topics == nil {
		for _, t := range s.topics.all() {
			resp.Topics = append(resp.Topics, describeTopic(t.name, t, nil))
		}
		return resp
	}
	create := !s.cfg.NoAutoCreate && (req.AllowAutoTopicCreation || req.Version < 4)
	var names []string
	for _, rt := range req.Topics {
		name := ""
		if rt.Topic != nil {
			name = *rt.Topic
		}
		names = append(names, name)
	}
	for _, name := range distinct(names) {
		t := s.topics.get(name)
		var err error
		if t == nil {
			err = kerr.UnknownTopicOrPartition
			if create {
				if err = s.topics.create(name, s.cfg.Partitions, nil, false); errors.Is(err, kerr.TopicAlreadyExists) {
					err = nil // by another client, between get and create
				}
				t = s.topics.get(name)
			}
		}
		resp.Topics = append(resp.Topics, describeTopic(name, t, err))
	}
	return resp
}

// describeTopic is t, or the reason why it can't be had.
func describeTopic(name string, t *topic, err error) kmsg.MetadataResponseTopic {
	rt := kmsg.NewMetadataResponseTopic()
	rt.Topic = &name
	rt.ErrorCode = code(err)
	if t == nil {
		return rt
	}
	for i := range t.partitions {
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Partition = int32(i)
		p.Leader = nodeID
		p.LeaderEpoch = -1 // there is never another leader, so nothing for a client to check epochs for
		p.Replicas, p.ISR = []int32{nodeID}, []int32{nodeID}
		rt.Partitions = append(rt.Partitions, p)
	}
	return rt
}
