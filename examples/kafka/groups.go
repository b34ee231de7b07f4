package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groups are all consumer groups: those with members, and those that only have committed offsets. Members are in memory
// and join again after a restart; offsets are in a table.
type groups struct {
	offsets *table // offsetKey to offsetRow

	mu   sync.Mutex // guards byID
	byID map[string]*group
}

// maxSessionTimeout is Kafka's group.max.session.timeout.ms. Its lower bound, 6 s, would only slow tests down here.
const maxSessionTimeout = 30 * time.Minute

func openGroups(dir string, logger *slog.Logger) (*groups, error) {
	// A commit that a power cut takes is a record consumed twice, which consumers have to expect anyway.
	offsets, err := openTable(filepath.Join(dir, "__offsets"), seglog.FlushAsync, logger)
	if err != nil {
		return nil, err
	}
	return &groups{offsets: offsets, byID: map[string]*group{}}, nil
}

func (gs *groups) close() error { return gs.offsets.close() }

// get finds a group; with create it makes one that is not there.
func (gs *groups) get(id string, create bool) *group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byID[id]
	if g == nil && create {
		g = newGroup(id)
		gs.byID[id] = g
	}
	return g
}

func (gs *groups) all() []*group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	var all []*group
	for _, g := range gs.byID {
		all = append(all, g)
	}
	return all
}

func (gs *groups) tick(now time.Time) {
	for _, g := range gs.all() {
		g.tick(now)
	}
}

func (s *Server) findCoordinator(rq *request, req *kmsg.FindCoordinatorRequest) kmsg.Response {
	resp := responseTo[*kmsg.FindCoordinatorResponse](req)
	host, port, err := s.address(rq.conn)
	if err == nil && req.CoordinatorType != 0 {
		err = refuse(kerr.TransactionalIDAuthorizationFailed, "transactions are not supported")
	}
	resp.ErrorCode, resp.ErrorMessage = code(err), reason(err)
	resp.NodeID, resp.Host, resp.Port = nodeID, host, port
	return resp
}

func (s *Server) joinGroup(rq *request, req *kmsg.JoinGroupRequest) kmsg.Response {
	resp := responseTo[*kmsg.JoinGroupResponse](req)
	resp.MemberID, resp.Protocol = req.MemberID, kmsg.StringPtr("")
	switch session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond; {
	case req.Group == "":
		resp.ErrorCode = kerr.InvalidGroupID.Code
		return resp
	case session <= 0 || session > maxSessionTimeout:
		resp.ErrorCode = kerr.InvalidSessionTimeout.Code
		return resp
	}
	host, _, _ := net.SplitHostPort(rq.conn.RemoteAddr().String())
	answer, err := s.groups.get(req.Group, true).join(req, rq.clientID, "/"+host, time.Now())
	if err != nil {
		resp.ErrorCode = code(err)
		return resp
	}
	select {
	case r := <-answer:
		return r
	case <-s.ctx.Done():
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		return resp
	}
}

func (s *Server) syncGroup(_ *request, req *kmsg.SyncGroupRequest) kmsg.Response {
	resp := responseTo[*kmsg.SyncGroupResponse](req)
	g := s.groups.get(req.Group, false)
	if g == nil {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	answer, err := g.sync(req, time.Now())
	if err == nil {
		select {
		case r := <-answer:
			resp.MemberAssignment, err = r.assignment, r.err
		case <-s.ctx.Done():
			err = kerr.CoordinatorNotAvailable
		}
	}
	resp.ErrorCode = code(err)
	return resp
}

func (s *Server) heartbeat(_ *request, req *kmsg.HeartbeatRequest) kmsg.Response {
	resp := responseTo[*kmsg.HeartbeatResponse](req)
	g := s.groups.get(req.Group, false)
	if g == nil {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	resp.ErrorCode = code(g.heartbeat(req, time.Now()))
	return resp
}

func (s *Server) leaveGroup(_ *request, req *kmsg.LeaveGroupRequest) kmsg.Response {
	resp := responseTo[*kmsg.LeaveGroupResponse](req)
	g := s.groups.get(req.Group, false)
	if g == nil {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	if req.Version < 3 {
		resp.ErrorCode = code(g.leave(req.MemberID, nil, time.Now()))
		return resp
	}
	for _, m := range req.Members {
		rm := kmsg.NewLeaveGroupResponseMember()
		rm.MemberID, rm.InstanceID = m.MemberID, m.InstanceID
		rm.ErrorCode = code(g.leave(m.MemberID, m.InstanceID, time.Now()))
		resp.Members = append(resp.Members, rm)
	}
	return resp
}

func (s *Server) listGroups(_ *request, req *kmsg.ListGroupsRequest) kmsg.Response {
	resp := responseTo[*kmsg.ListGroupsResponse](req)
	for _, id := range s.groups.offsetGroups() {
		s.groups.get(id, true) // a group of a former run, with offsets and no members
	}
	for _, g := range s.groups.all() {
		g.mu.Lock()
		rg := kmsg.NewListGroupsResponseGroup()
		rg.Group, rg.ProtocolType, rg.GroupState = g.id, g.protocolType, string(g.state)
		g.mu.Unlock()
		if len(req.StatesFilter) == 0 || slices.Contains(req.StatesFilter, rg.GroupState) {
			resp.Groups = append(resp.Groups, rg)
		}
	}
	return resp
}

func (s *Server) describeGroups(_ *request, req *kmsg.DescribeGroupsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DescribeGroupsResponse](req)
	for _, id := range req.Groups {
		rg := kmsg.NewDescribeGroupsResponseGroup()
		rg.Group, rg.State = id, "Dead" // what Kafka says of a group that it does not know
		if g := s.groups.get(id, s.groups.hasOffsets(id)); g != nil {
			g.describe(&rg)
		}
		resp.Groups = append(resp.Groups, rg)
	}
	return resp
}

func (g *group) describe(rg *kmsg.DescribeGroupsResponseGroup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rg.State, rg.ProtocolType, rg.Protocol = string(g.state), g.protocolType, g.protocol
	for _, m := range g.members {
		rm := kmsg.NewDescribeGroupsResponseGroupMember()
		rm.MemberID, rm.ClientID, rm.ClientHost = m.id, m.clientID, m.host
		rm.ProtocolMetadata, rm.MemberAssignment = m.metadata(g.protocol), m.assignment
		if m.instance != "" {
			rm.InstanceID = kmsg.StringPtr(m.instance)
		}
		rg.Members = append(rg.Members, rm)
	}
}

func (s *Server) deleteGroups(_ *request, req *kmsg.DeleteGroupsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DeleteGroupsResponse](req)
	for _, id := range req.Groups {
		rg := kmsg.NewDeleteGroupsResponseGroup()
		rg.Group, rg.ErrorCode = id, code(s.groups.delete(id))
		resp.Groups = append(resp.Groups, rg)
	}
	return resp
}

// delete removes a group without members, and its offsets.
func (gs *groups) delete(id string) error {
	known := gs.hasOffsets(id)
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byID[id]
	if g == nil && !known {
		return kerr.GroupIDNotFound
	}
	if g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.members) > 0 {
			return kerr.NonEmptyGroup
		}
	}
	delete(gs.byID, id)
	return gs.forget(func(k offsetKey) bool { return k.Group == id })
}
