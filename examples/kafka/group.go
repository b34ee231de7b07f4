package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A consumer group goes round this circle. Its members share partitions out among themselves; the server brings them
// together, numbers the generations, and notices who is gone.
//
//	empty --join--> preparing --all have joined, or time is up--> completing --the leader's SyncGroup--> stable
//	                    ^                                              |                                   |
//	                    +-------------- a member joins, leaves or is not heard of any more ---------------+
type groupState string // by the names that tools print

const (
	groupEmpty      groupState = "Empty"
	groupPreparing  groupState = "PreparingRebalance"  // members are to join (again)
	groupCompleting groupState = "CompletingRebalance" // all have joined, the leader assigns
	groupStable     groupState = "Stable"
)

// gatherTime is how long the first members of a group wait for others, so that consumers started together share one
// rebalance.
const gatherTime = 200 * time.Millisecond

// group is one consumer group. JoinGroup and SyncGroup hand back a channel that gets one answer, at once or later.
type group struct {
	id     string
	memory *budget // of the members of all groups

	mu           sync.Mutex // guards all below, members included
	dropped      bool       // had no members, and is not to be found any more
	state        groupState
	generation   int32
	protocolType string
	protocol     string // the assignment strategy this generation agreed on
	leader       string
	members      map[string]*member
	earliest     time.Time // preparing ends no earlier, if all have joined,
	deadline     time.Time // and no later: who has not joined by then is out
}

type member struct {
	id, instance     string // instance: the id a static member has in its configuration, or ""
	clientID, host   string
	sessionTimeout   time.Duration
	rebalanceTimeout time.Duration
	protocols        []kmsg.JoinGroupRequestProtocol // in order of preference
	assignment       []byte
	expires          time.Time                    // unless heard of until then
	joining          chan *kmsg.JoinGroupResponse // not nil while JoinGroup waits
	syncing          chan syncResult              // not nil while SyncGroup waits
	version          int16                        // of the request that joining is the answer to
	told             bool                         // of its id
	said             int64                        // bytes of memory that its request took
	assigned         int64                        // and its assignment
}

type syncResult struct {
	assignment []byte
	err        error
}

func newGroup(id string, memory *budget) *group {
	return &group{id: id, memory: memory, state: groupEmpty, members: map[string]*member{}}
}

// errDropped: look the group up again.
var errDropped = errors.New("the group is not there any more")

// memberBytes is what a member takes beside what it says.
const memberBytes = 512

func sizeOf(req *kmsg.JoinGroupRequest, clientID string) int64 {
	n := memberBytes + 2*len(clientID) + len(req.ProtocolType)
	if req.InstanceID != nil {
		n += len(*req.InstanceID)
	}
	for _, p := range req.Protocols {
		n += memberBytes/4 + len(p.Name) + len(p.Metadata)
	}
	return int64(n)
}

// join enters a member, or an old one into the next generation.
func (g *group) join(req *kmsg.JoinGroupRequest, clientID, host string, now time.Time) (<-chan *kmsg.JoinGroupResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return nil, errDropped
	}
	instance := ""
	if req.InstanceID != nil {
		instance = *req.InstanceID
	}
	m, err := g.lookup(req.MemberID, instance)
	if req.MemberID == "" {
		if m != nil { // a static member that was restarted takes its own place
			g.remove(m, kerr.FencedInstanceID)
		}
		m, err = &member{id: clientID + "-" + rand.Text(), instance: instance}, nil
	}
	if err != nil {
		return nil, err
	}
	if !g.agrees(m, req) {
		return nil, kerr.InconsistentGroupProtocol
	}
	said := sizeOf(req, clientID)
	if !g.memory.take(said - m.said) {
		return nil, kerr.GroupMaxSizeReached
	}
	m.said = said
	m.clientID, m.host = clientID, host
	m.sessionTimeout = time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	m.rebalanceTimeout = min(time.Duration(req.RebalanceTimeoutMillis)*time.Millisecond, maxSessionTimeout)
	if m.rebalanceTimeout <= 0 { // JoinGroup version 0
		m.rebalanceTimeout = m.sessionTimeout
	}
	m.protocols = nil
	for _, p := range req.Protocols {
		p.Metadata = bytes.Clone(p.Metadata)
		m.protocols = append(m.protocols, p)
	}
	m.answerJoin(nil, kerr.RebalanceInProgress) // to an earlier connection of the same member
	answer := make(chan *kmsg.JoinGroupResponse, 1)
	m.joining, m.version = answer, req.Version
	m.expires = now.Add(m.sessionTimeout)
	g.members[m.id] = m
	g.protocolType = req.ProtocolType
	g.rebalance(now)
	g.tryComplete(now)
	return answer, nil
}

// lookup finds a member by its id, or a static one by its instance, and refuses ids that were given up.
func (g *group) lookup(id, instance string) (*member, error) {
	if instance != "" {
		for _, m := range g.members {
			if m.instance == instance {
				if m.id != id {
					return m, kerr.FencedInstanceID
				}
				return m, nil
			}
		}
	}
	if m := g.members[id]; m != nil {
		return m, nil
	}
	return nil, kerr.UnknownMemberID
}

// agrees says whether the group with a member of these protocols still has one that all know.
func (g *group) agrees(joining *member, req *kmsg.JoinGroupRequest) bool {
	if len(req.Protocols) == 0 || req.ProtocolType == "" {
		return false
	}
	others := 0
	common := slices.Clone(req.Protocols)
	for _, m := range g.members {
		if m != joining {
			others++
			common = slices.DeleteFunc(common, func(p kmsg.JoinGroupRequestProtocol) bool { return m.metadata(p.Name) == nil })
		}
	}
	return len(common) > 0 && (others == 0 || req.ProtocolType == g.protocolType)
}

// metadata is what the member has to say under a protocol; nil if it does not know it.
func (m *member) metadata(protocol string) []byte {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return append([]byte{}, p.Metadata...)
		}
	}
	return nil
}

// rebalance begins a new generation, unless one is being prepared.
func (g *group) rebalance(now time.Time) {
	if g.state == groupPreparing {
		return
	}
	g.earliest = now
	if g.state == groupEmpty {
		g.earliest = now.Add(gatherTime)
	}
	g.state = groupPreparing
	var longest time.Duration
	for _, m := range g.members {
		longest = max(longest, m.rebalanceTimeout)
		m.answerSync(syncResult{err: kerr.RebalanceInProgress})
	}
	g.deadline = now.Add(longest)
}

// tryComplete ends the preparation if everybody is there.
func (g *group) tryComplete(now time.Time) {
	if g.state != groupPreparing || now.Before(g.earliest) {
		return
	}
	for _, m := range g.members {
		if m.joining == nil {
			if now.Before(g.deadline) {
				return
			}
			g.remove(m, kerr.UnknownMemberID)
		}
	}
	g.generation++
	if len(g.members) == 0 {
		g.state, g.protocol, g.leader = groupEmpty, "", ""
		return
	}
	g.state = groupCompleting
	if g.members[g.leader] == nil {
		g.leader = slices.Min(slices.Collect(maps.Keys(g.members)))
	}
	for _, p := range g.members[g.leader].protocols { // what the leader likes best of what all know
		if !slices.ContainsFunc(slices.Collect(maps.Values(g.members)), func(m *member) bool { return m.metadata(p.Name) == nil }) {
			g.protocol = p.Name
			break
		}
	}
	for _, m := range g.members {
		g.memory.take(-m.assigned)
		m.assignment, m.assigned = nil, 0
		m.expires = now.Add(m.sessionTimeout)
		m.answerJoin(g, nil)
	}
}

// answerJoin lets JoinGroup return, if it waits: with the new generation, or with an error.
func (m *member) answerJoin(g *group, err error) {
	if m.joining == nil {
		return
	}
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Version = m.version
	resp.MemberID, resp.ErrorCode, resp.Generation = m.id, code(err), -1
	resp.Protocol = kmsg.StringPtr("")
	if err == nil {
		m.told = true
		resp.Generation, resp.LeaderID = g.generation, g.leader
		resp.ProtocolType, resp.Protocol = kmsg.StringPtr(g.protocolType), kmsg.StringPtr(g.protocol)
		if m.id == g.leader { // who assigns, and so needs to know of everyone
			for _, other := range g.members {
				rm := kmsg.NewJoinGroupResponseMember()
				rm.MemberID, rm.ProtocolMetadata = other.id, other.metadata(g.protocol)
				if other.instance != "" {
					rm.InstanceID = kmsg.StringPtr(other.instance)
				}
				resp.Members = append(resp.Members, rm)
			}
		}
	}
	m.joining <- resp
	m.joining = nil
}

func (m *member) answerSync(r syncResult) {
	if m.syncing != nil {
		m.syncing <- r
		m.syncing = nil
	}
}

// remove takes a member out. What waits for it gets err.
func (g *group) remove(m *member, err error) {
	m.answerJoin(nil, err)
	m.answerSync(syncResult{err: err})
	g.memory.take(-m.said - m.assigned)
	m.said, m.assigned = 0, 0
	delete(g.members, m.id)
}

// abandonJoin is called when the client behind a JoinGroup has left. A member that never learned its id can't come back;
// another one has its session timeout to do so.
func (g *group) abandonJoin(answer <-chan *kmsg.JoinGroupResponse, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if (<-chan *kmsg.JoinGroupResponse)(m.joining) != answer {
			continue
		}
		m.joining = nil
		m.expires = now.Add(m.sessionTimeout)
		if !m.told && m.instance == "" {
			g.remove(m, kerr.UnknownMemberID)
			g.tryComplete(now)
		}
		return
	}
}

func (g *group) abandonSync(answer <-chan syncResult, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if (<-chan syncResult)(m.syncing) == answer {
			m.syncing = nil
			m.expires = now.Add(m.sessionTimeout)
			return
		}
	}
}

// sync brings the leader's assignments and waits for one's own.
func (g *group) sync(req *kmsg.SyncGroupRequest, now time.Time) (<-chan syncResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, err := g.checkMember(req.MemberID, req.InstanceID, req.Generation, now)
	if err != nil {
		return nil, err
	}
	answer := make(chan syncResult, 1)
	switch g.state {
	case groupPreparing:
		return nil, kerr.RebalanceInProgress
	case groupStable:
		answer <- syncResult{assignment: m.assignment}
		return answer, nil
	}
	if m.id == g.leader {
		if err := g.assign(req.GroupAssignment); err != nil {
			return nil, err
		}
	}
	m.answerSync(syncResult{err: kerr.RebalanceInProgress})
	m.syncing = answer
	if m.id == g.leader {
		g.state = groupStable
		for _, m := range g.members {
			m.expires = now.Add(m.sessionTimeout)
			m.answerSync(syncResult{assignment: m.assignment})
		}
	}
	return answer, nil
}

// assign keeps what the leader has assigned to each member.
func (g *group) assign(assignments []kmsg.SyncGroupRequestGroupAssignment) error {
	for _, a := range assignments {
		to := g.members[a.MemberID]
		if to == nil {
			continue
		}
		n := int64(len(a.MemberAssignment))
		if !g.memory.take(n - to.assigned) {
			return kerr.GroupMaxSizeReached
		}
		to.assignment, to.assigned = bytes.Clone(a.MemberAssignment), n
	}
	return nil
}

// checkMember finds a member of the current generation and notes that it lives. g.mu is held.
func (g *group) checkMember(id string, instance *string, generation int32, now time.Time) (*member, error) {
	name := ""
	if instance != nil {
		name = *instance
	}
	m, err := g.lookup(id, name)
	if err != nil {
		return nil, err
	}
	if generation != g.generation {
		return nil, kerr.IllegalGeneration
	}
	m.expires = now.Add(m.sessionTimeout)
	return m, nil
}

func (g *group) heartbeat(req *kmsg.HeartbeatRequest, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.checkMember(req.MemberID, req.InstanceID, req.Generation, now); err != nil {
		return err
	}
	if g.state == groupPreparing {
		return kerr.RebalanceInProgress
	}
	return nil
}

// leave removes a member, a static one also by its instance alone, and lets the others share what it had.
func (g *group) leave(id string, instance *string, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	name := ""
	if instance != nil {
		name = *instance
	}
	m, err := g.lookup(id, name)
	if m == nil || (err != nil && id != "") {
		return err
	}
	g.remove(m, kerr.UnknownMemberID)
	g.rebalance(now)
	g.tryComplete(now)
	return nil
}

func (g *group) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// tick removes members that were not heard of for too long, and ends a preparation whose time has come. A member whose
// request waits for others is alive. It says whether there are none.
func (g *group) tick(now time.Time) (empty bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if now.After(m.expires) && m.joining == nil && m.syncing == nil {
			g.remove(m, kerr.UnknownMemberID)
			g.rebalance(now)
		}
	}
	g.tryComplete(now)
	return len(g.members) == 0
}
