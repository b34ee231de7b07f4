package main

import (
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func (s *Server) createTopics(_ *request, req *kmsg.CreateTopicsRequest) kmsg.Response {
	resp := responseTo[*kmsg.CreateTopicsResponse](req)
	for _, t := range req.Topics {
		rt := kmsg.NewCreateTopicsResponseTopic()
		rt.Topic = t.Topic
		partitions, settings, err := s.wanted(t)
		if err == nil {
			err = s.topics.create(t.Topic, partitions, settings, req.ValidateOnly)
		}
		rt.ErrorCode, rt.ErrorMessage = code(err), reason(err)
		if err == nil {
			rt.NumPartitions, rt.ReplicationFactor = int32(partitions), 1
			l := layers{settings, s.cfg.Defaults}
			for _, name := range settingNames {
				c := kmsg.NewCreateTopicsResponseTopicConfig()
				value, source := l.get(name)
				c.Name, c.Value, c.Source = name, &value, int8(source)
				rt.Configs = append(rt.Configs, c)
			}
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// wanted reads a creation request: how many partitions, with which settings.
func (s *Server) wanted(t kmsg.CreateTopicsRequestTopic) (partitions int, settings map[string]string, err error) {
	partitions = int(t.NumPartitions)
	switch {
	case t.ReplicationFactor > 1:
		return 0, nil, refuse(kerr.InvalidReplicationFactor, "%d: this is a single node", t.ReplicationFactor)
	case len(t.ReplicaAssignment) > 0: // names the brokers of each partition; here it says how many there are
		partitions = len(t.ReplicaAssignment)
		for _, a := range t.ReplicaAssignment {
			if len(a.Replicas) != 1 || a.Replicas[0] != nodeID {
				return 0, nil, refuse(kerr.InvalidReplicaAssignment, "the only broker is %d", nodeID)
			}
		}
	case partitions == -1:
		partitions = s.cfg.Partitions
	}
	settings = map[string]string{}
	for _, c := range t.Configs {
		if c.Value == nil {
			return 0, nil, refuse(kerr.InvalidConfig, "%s without a value", c.Name)
		}
		settings[c.Name] = *c.Value
	}
	return partitions, settings, nil
}

func (s *Server) deleteTopics(_ *request, req *kmsg.DeleteTopicsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DeleteTopicsResponse](req)
	for _, name := range req.TopicNames {
		err := s.topics.delete(name)
		if err == nil {
			err = s.groups.forgetTopic(name)
		}
		rt := kmsg.NewDeleteTopicsResponseTopic()
		rt.Topic, rt.ErrorCode, rt.ErrorMessage = &name, code(err), reason(err)
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func (s *Server) createPartitions(_ *request, req *kmsg.CreatePartitionsRequest) kmsg.Response {
	resp := responseTo[*kmsg.CreatePartitionsResponse](req)
	for _, t := range req.Topics {
		err := s.topics.grow(t.Topic, int(t.Count), req.ValidateOnly)
		rt := kmsg.NewCreatePartitionsResponseTopic()
		rt.Topic, rt.ErrorCode, rt.ErrorMessage = t.Topic, code(err), reason(err)
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func (s *Server) describeConfigs(_ *request, req *kmsg.DescribeConfigsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DescribeConfigsResponse](req)
	type resource struct {
		kind kmsg.ConfigResourceType
		name string
	}
	described := map[resource]bool{}
	for _, r := range req.Resources {
		if id := (resource{r.ResourceType, r.ResourceName}); described[id] {
			continue
		} else {
			described[id] = true
		}
		rr := kmsg.NewDescribeConfigsResponseResource()
		rr.ResourceType, rr.ResourceName = r.ResourceType, r.ResourceName
		values, err := s.settingsOf(r.ResourceType, r.ResourceName)
		rr.ErrorCode, rr.ErrorMessage = code(err), reason(err)
		for _, name := range settingNames {
			if err != nil || (r.ConfigNames != nil && !slices.Contains(r.ConfigNames, name)) {
				continue
			}
			value, source := values.get(name)
			c := kmsg.NewDescribeConfigsResponseResourceConfig()
			c.Name, c.Value, c.Source = name, &value, source
			c.IsDefault = source == kmsg.ConfigSourceDefaultConfig
			c.ReadOnly = defaultSettings[name].apply == nil || r.ResourceType != kmsg.ConfigResourceTypeTopic
			rr.Configs = append(rr.Configs, c)
		}
		resp.Resources = append(resp.Resources, rr)
	}
	return resp
}

// settingsOf are those of a topic, or the defaults that the server gives to topics.
func (s *Server) settingsOf(kind kmsg.ConfigResourceType, name string) (layers, error) {
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		t := s.topics.get(name)
		if t == nil {
			return layers{}, kerr.UnknownTopicOrPartition
		}
		return t.settings, nil
	case kmsg.ConfigResourceTypeBroker:
		if name != "" && name != strconv.Itoa(nodeID) {
			return layers{}, refuse(kerr.InvalidRequest, "the only broker is %d", nodeID)
		}
		return layers{nil, s.cfg.Defaults}, nil
	default:
		return layers{}, refuse(kerr.InvalidRequest, "only topics and the broker have settings here")
	}
}

func (s *Server) incrementalAlterConfigs(_ *request, req *kmsg.IncrementalAlterConfigsRequest) kmsg.Response {
	resp := responseTo[*kmsg.IncrementalAlterConfigsResponse](req)
	for _, r := range req.Resources {
		var err error
		if r.ResourceType != kmsg.ConfigResourceTypeTopic {
			err = refuse(kerr.InvalidRequest, "only the settings of topics can be changed, the server's are its command line")
		} else {
			err = s.topics.alter(r.ResourceName, req.ValidateOnly, func(settings map[string]string) error {
				return applyChanges(settings, r.Configs)
			})
		}
		rr := kmsg.NewIncrementalAlterConfigsResponseResource()
		rr.ResourceType, rr.ResourceName = r.ResourceType, r.ResourceName
		rr.ErrorCode, rr.ErrorMessage = code(err), reason(err)
		resp.Resources = append(resp.Resources, rr)
	}
	return resp
}

func applyChanges(settings map[string]string, changes []kmsg.IncrementalAlterConfigsRequestResourceConfig) error {
	for _, c := range changes {
		switch c.Op {
		case kmsg.IncrementalAlterConfigOpSet:
			if c.Value == nil {
				return refuse(kerr.InvalidConfig, "%s without a value", c.Name)
			}
			if err := checkSetting(c.Name, *c.Value); err != nil {
				return err
			}
			settings[c.Name] = *c.Value
		case kmsg.IncrementalAlterConfigOpDelete:
			delete(settings, c.Name)
		default:
			return refuse(kerr.InvalidRequest, "%s is not a list", c.Name)
		}
	}
	return nil
}
