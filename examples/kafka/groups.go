package main

import (
	"errors"
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
	most    int    // groups with members
	memory  budget // of members
	stored  budget // of offsets

	writes    sync.Mutex // held while offsets and committed are changed; taken before mu
	mu        sync.Mutex // guards all below; taken before a group's
	byID      map[string]*group
	committed map[string]map[string]struct{} // group to its keys in offsets
}

// maxSessionTimeout is Kafka's group.max.session.timeout.ms. Its lower bound, 6 s, would only slow tests down here.
const maxSessionTimeout = 30 * time.Minute

func openGroups(dir string, limits Limits, logger *slog.Logger) (*groups, error) {
	// A commit that a power cut takes is a record consumed twice, which consumers have to expect anyway.
	offsets, err := openTable(filepath.Join(dir, "__offsets"), seglog.FlushAsync, logger)
	if err != nil {
		return nil, err
	}
	gs := &groups{offsets: offsets, most: limits.Groups, byID: map[string]*group{}, committed: map[string]map[string]struct{}{}}
	gs.memory.limit, gs.stored.limit = limits.GroupBytes, limits.OffsetBytes
	gs.index()
	return gs, nil
}

func (gs *groups) close() error { return gs.offsets.close() }

// get finds a group that has members, or nil.
func (gs *groups) get(id string) *group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.byID[id]
}

// join enters a member into a group, which is made if need be and dropped again if the member is refused.
func (gs *groups) join(req *kmsg.JoinGroupRequest, clientID, host string) (*group, <-chan *kmsg.JoinGroupResponse, error) {
	for {
		g, err := gs.getOrMake(req.Group)
		if err != nil {
			return nil, nil, err
		}
		answer, err := g.join(req, clientID, host, time.Now())
		if errors.Is(err, errDropped) {
			continue
		}
		if err != nil {
			gs.dropEmpty(g)
		}
		return g, answer, err
	}
}

func (gs *groups) getOrMake(id string) (*group, error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byID[id]
	if g == nil {
		if len(gs.byID) >= gs.most {
			return nil, kerr.GroupMaxSizeReached
		}
		g = newGroup(id, &gs.memory)
		gs.byID[id] = g
	}
	return g, nil
}

// dropEmpty forgets a group without members. What it has committed stays.
func (gs *groups) dropEmpty(g *group) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.members) == 0 && !g.dropped {
		g.dropped = true
		delete(gs.byID, g.id)
	}
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
		if g.tick(now) {
			gs.dropEmpty(g)
		}
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
	g, answer, err := s.groups.join(req, rq.clientID, "/"+host)
	if err != nil {
		resp.ErrorCode = code(err)
		return resp
	}
	rq.frame.release()
	ctx, stop := rq.conn.watch(s.ctx)
	defer stop()
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		g.abandonJoin(answer, time.Now())
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		return resp
	}
}

func (s *Server) syncGroup(rq *request, req *kmsg.SyncGroupRequest) kmsg.Response {
	resp := responseTo[*kmsg.SyncGroupResponse](req)
	g := s.groups.get(req.Group)
	if g == nil {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	answer, err := g.sync(req, time.Now())
	if err == nil {
		rq.frame.release()
		ctx, stop := rq.conn.watch(s.ctx)
		defer stop()
		select {
		case r := <-answer:
			resp.MemberAssignment, err = r.assignment, r.err
		case <-ctx.Done():
			g.abandonSync(answer, time.Now())
			err = kerr.CoordinatorNotAvailable
		}
	}
	resp.ErrorCode = code(err)
	return resp
}

func (s *Server) heartbeat(_ *request, req *kmsg.HeartbeatRequest) kmsg.Response {
	resp := responseTo[*kmsg.HeartbeatResponse](req)
	g := s.groups.get(req.Group)
	if g == nil {
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	resp.ErrorCode = code(g.heartbeat(req, time.Now()))
	return resp
}

func (s *Server) leaveGroup(_ *request, req *kmsg.LeaveGroupRequest) kmsg.Response {
	resp := responseTo[*kmsg.LeaveGroupResponse](req)
	g := s.groups.get(req.Group)
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
	add := func(id, protocolType string, state groupState) {
		if len(req.StatesFilter) > 0 && !slices.Contains(req.StatesFilter, string(state)) {
			return
		}
		rg := kmsg.NewListGroupsResponseGroup()
		rg.Group, rg.ProtocolType, rg.GroupState = id, protocolType, string(state)
		resp.Groups = append(resp.Groups, rg)
	}
	seen := map[string]bool{}
	for _, g := range s.groups.all() {
		g.mu.Lock()
		protocolType, state := g.protocolType, g.state
		g.mu.Unlock()
		seen[g.id] = true
		add(g.id, protocolType, state)
	}
	for _, id := range s.groups.withOffsets() {
		if !seen[id] {
			add(id, "", groupEmpty)
		}
	}
	return resp
}

func (s *Server) describeGroups(_ *request, req *kmsg.DescribeGroupsRequest) kmsg.Response {
	resp := responseTo[*kmsg.DescribeGroupsResponse](req)
	for _, id := range distinct(req.Groups) {
		rg := kmsg.NewDescribeGroupsResponseGroup()
		rg.Group = id
		if g := s.groups.get(id); g != nil {
			g.describe(&rg)
		} else if s.groups.hasOffsets(id) {
			rg.State = string(groupEmpty)
		} else {
			rg.State = "Dead" // what Kafka says of a group that it does not know
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
	if g := gs.get(id); g != nil {
		if g.size() > 0 {
			return kerr.NonEmptyGroup
		}
		gs.dropEmpty(g)
	} else if !gs.hasOffsets(id) {
		return kerr.GroupIDNotFound
	}
	return gs.forgetGroup(id)
}
