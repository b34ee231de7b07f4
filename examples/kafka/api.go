package main

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// api is one kind of request: the versions this server offers, and what handles it.
type api struct {
	min, max int16
	handle   func(s *Server, rq *request) reply // nil: nothing is sent
}

// apis is all this server understands, by key. Clients read it through ApiVersions and keep to it; their libraries turn
// what is missing into an error that names it.
//
// The upper bounds are where topics become ids instead of names (Produce 10+ aside, which asks for transactions), which
// a server that finds its topics by directory name does not need.
var apis map[int16]*api

func init() { // in init: ApiVersions answers from the map it is in
	apis = map[int16]*api{
		kmsg.ApiVersions.Int16(): on(0, 3, (*Server).apiVersions),
		kmsg.Metadata.Int16():    on(1, 9, (*Server).metadata),

		kmsg.InitProducerID.Int16(): on(0, 4, (*Server).initProducerID),
		kmsg.Produce.Int16():        on(3, 9, (*Server).produce),
		kmsg.Fetch.Int16():          {4, 12, (*Server).fetch},
		kmsg.ListOffsets.Int16():    on(1, 6, (*Server).listOffsets),

		kmsg.FindCoordinator.Int16(): on(0, 3, (*Server).findCoordinator),
		kmsg.JoinGroup.Int16():       on(0, 6, (*Server).joinGroup),
		kmsg.SyncGroup.Int16():       on(0, 4, (*Server).syncGroup),
		kmsg.Heartbeat.Int16():       on(0, 4, (*Server).heartbeat),
		kmsg.LeaveGroup.Int16():      on(0, 4, (*Server).leaveGroup),
		kmsg.OffsetCommit.Int16():    on(2, 8, (*Server).offsetCommit),
		kmsg.OffsetFetch.Int16():     on(1, 7, (*Server).offsetFetch),
		kmsg.OffsetDelete.Int16():    on(0, 0, (*Server).offsetDelete),
		kmsg.ListGroups.Int16():      on(0, 4, (*Server).listGroups),
		kmsg.DescribeGroups.Int16():  on(0, 5, (*Server).describeGroups),
		kmsg.DeleteGroups.Int16():    on(0, 2, (*Server).deleteGroups),

		kmsg.CreateTopics.Int16():            on(0, 5, (*Server).createTopics),
		kmsg.DeleteTopics.Int16():            on(0, 5, (*Server).deleteTopics),
		kmsg.CreatePartitions.Int16():        on(0, 3, (*Server).createPartitions),
		kmsg.DescribeConfigs.Int16():         on(0, 4, (*Server).describeConfigs),
		kmsg.IncrementalAlterConfigs.Int16(): on(0, 1, (*Server).incrementalAlterConfigs),
		kmsg.DeleteRecords.Int16():           on(0, 2, (*Server).deleteRecords),
	}
}

// on ties a handler to its request type. A handler that returns nil sends nothing.
func on[R kmsg.Request](min, max int16, handle func(*Server, *request, R) kmsg.Response) *api {
	return &api{min, max, func(s *Server, rq *request) reply {
		resp := handle(s, rq, rq.body.(R))
		if resp == nil {
			return nil
		}
		return message{resp}
	}}
}

// distinct leaves out what was named before. An answer that describes each of a thousand names a thousand times would be
// far larger than the request.
func distinct[T comparable](names []T) []T {
	seen := make(map[T]bool, len(names))
	return slices.DeleteFunc(names, func(name T) bool {
		again := seen[name]
		seen[name] = true
		return again
	})
}

// responseTo is the response that belongs to req: of its version, with the protocol's defaults.
func responseTo[R kmsg.Response](req kmsg.Request) R { return req.ResponseKind().(R) }

func (s *Server) apiVersions(rq *request, req *kmsg.ApiVersionsRequest) kmsg.Response {
	resp := responseTo[*kmsg.ApiVersionsResponse](req)
	if req.Version > rq.api.max {
		resp.Version = 0
		resp.ErrorCode = kerr.UnsupportedVersion.Code
	}
	for key, a := range apis {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = key, a.min, a.max
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
	return resp
}
