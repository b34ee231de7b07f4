package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func groupOpts(group string, opts ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{
		kgo.ConsumerGroup(group), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.HeartbeatInterval(100 * time.Millisecond), kgo.SessionTimeout(6 * time.Second), kgo.RebalanceTimeout(10 * time.Second),
	}, opts...)
}

func TestGroupContinuesWhereItWas(t *testing.T) {
	b := startBroker(t, Config{})
	b.produce("t", "a", "b", "c")
	first := b.client(groupOpts("g")...)
	rs := consume(t, first, 3)
	require.NoError(t, first.CommitRecords(context.Background(), rs[:2]...))
	first.Close()

	b.restart()
	second := b.client(groupOpts("g")...)
	require.Equal(t, []string{"c"}, values(consume(t, second, 1)))
	second.Close()

	offsets, err := b.admin().FetchOffsets(context.Background(), "g")
	require.NoError(t, err)
	o, ok := offsets.Lookup("t", 0)
	require.True(t, ok)
	require.EqualValues(t, 2, o.At)
}

// TestGroupShares lets members join and leave a group, and checks that the partitions are always shared out evenly among them.
func TestGroupShares(t *testing.T) {
	for name, balancer := range map[string]kgo.GroupBalancer{"eager": kgo.RangeBalancer(), "cooperative": kgo.CooperativeStickyBalancer()} {
		t.Run(name, func(t *testing.T) {
			b := startBroker(t, Config{})
			b.createTopic("t", 6, nil)
			var assigned [3]atomic.Int64
			var members [3]*kgo.Client
			for i := range members {
				members[i] = b.client(groupOpts("g", kgo.Balancers(balancer),
					kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { assigned[i].Add(int64(len(m["t"]))) }),
					kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { assigned[i].Add(-int64(len(m["t"]))) }),
					kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { assigned[i].Add(-int64(len(m["t"]))) }),
				)...)
				eventually(t, func() bool {
					for j := range i + 1 {
						if assigned[j].Load() != int64(6/(i+1)) {
							return false
						}
					}
					return true
				}, func() string { return fmt.Sprintf("%d members share 6 partitions as %v", i+1, counts(&assigned)) })
			}
			members[0].Close()
			eventually(t, func() bool { return assigned[1].Load() == 3 && assigned[2].Load() == 3 },
				func() string { return fmt.Sprintf("after one left: %v", counts(&assigned)) })
		})
	}
}

func counts(a *[3]atomic.Int64) (n [3]int64) {
	for i := range a {
		n[i] = a[i].Load()
	}
	return n
}

func eventually(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%s", what())
	}
}

// joinRaw joins a group as a member that then sends only the requests of the test.
func joinRaw(t *testing.T, cl *kgo.Client, member string, instance *string, session time.Duration) *kmsg.JoinGroupResponse {
	t.Helper()
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.InstanceID, req.ProtocolType = "g", member, instance, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(session.Milliseconds()), 1000
	req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte("metadata of " + member)}}
	resp, err := req.RequestWith(context.Background(), cl)
	require.NoError(t, err)
	return resp
}

func syncRaw(t *testing.T, cl *kgo.Client, j *kmsg.JoinGroupResponse) *kmsg.SyncGroupResponse {
	t.Helper()
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.Generation, req.MemberID = "g", j.Generation, j.MemberID
	for _, m := range j.Members {
		req.GroupAssignment = append(req.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: m.MemberID, MemberAssignment: []byte("for " + m.MemberID)})
	}
	resp, err := req.RequestWith(context.Background(), cl)
	require.NoError(t, err)
	return resp
}

func heartbeatRaw(t *testing.T, cl *kgo.Client, member string, generation int32) error {
	t.Helper()
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.Generation, req.MemberID = "g", generation, member
	resp, err := req.RequestWith(context.Background(), cl)
	require.NoError(t, err)
	return kerr.ErrorForCode(resp.ErrorCode)
}

func TestSilentMemberIsOut(t *testing.T) {
	b := startBroker(t, Config{})
	cl := b.client()
	j := joinRaw(t, cl, "", nil, 400*time.Millisecond)
	require.Zero(t, j.ErrorCode)
	require.Equal(t, j.MemberID, j.LeaderID)
	require.Equal(t, "for "+j.MemberID, string(syncRaw(t, cl, j).MemberAssignment))
	for range 6 { // for longer than the session timeout, with heartbeats
		time.Sleep(100 * time.Millisecond)
		require.NoError(t, heartbeatRaw(t, cl, j.MemberID, j.Generation))
	}
	require.Equal(t, kerr.IllegalGeneration, heartbeatRaw(t, cl, j.MemberID, j.Generation+1))
	require.Equal(t, kerr.UnknownMemberID, heartbeatRaw(t, cl, "somebody else", j.Generation))
	eventually(t, func() bool {
		time.Sleep(500 * time.Millisecond)
		return heartbeatRaw(t, cl, j.MemberID, j.Generation) == kerr.UnknownMemberID
	}, func() string { return "the group keeps a silent member" })
}

func TestStaticMemberComesBack(t *testing.T) {
	b := startBroker(t, Config{})
	cl := b.client()
	old := joinRaw(t, cl, "", ptr("instance"), time.Minute)
	require.Zero(t, old.ErrorCode)
	require.Zero(t, syncRaw(t, cl, old).ErrorCode)
	back := joinRaw(t, cl, "", ptr("instance"), time.Minute)
	require.Zero(t, back.ErrorCode)
	require.NotEqual(t, old.MemberID, back.MemberID)
	require.Len(t, back.Members, 1, "the old member is gone")
	require.Equal(t, kerr.FencedInstanceID.Code, joinRaw(t, cl, old.MemberID, ptr("instance"), time.Minute).ErrorCode)
}

func TestGroupAdministration(t *testing.T) {
	ctx := context.Background()
	b := startBroker(t, Config{})
	b.produce("t", "a", "b")
	member := b.client(groupOpts("g")...)
	require.NoError(t, member.CommitRecords(ctx, consume(t, member, 2)...))

	admin := b.admin()
	groups, err := admin.ListGroups(ctx)
	require.NoError(t, err)
	require.Equal(t, "Stable", groups["g"].State)
	described, err := admin.DescribeGroups(ctx, "g", "nobody")
	require.NoError(t, err)
	g := described["g"]
	require.Len(t, g.Members, 1)
	require.Equal(t, kadm.TopicsSet{"t": {0: {}}}, g.AssignedPartitions())
	require.Equal(t, "Dead", described["nobody"].State)
	deleted, err := admin.DeleteGroup(ctx, "g")
	require.ErrorIs(t, err, kerr.NonEmptyGroup, "%v", deleted)
	foreign, err := admin.CommitOffsets(ctx, "g", offset("t", 0, 1))
	require.NoError(t, err)
	require.ErrorIs(t, foreign.Error(), kerr.UnknownMemberID, "the group has members, but the committer is not one")
	member.Close()

	reset, err := admin.CommitOffsets(ctx, "g", offset("t", 0, 1))
	require.NoError(t, err)
	require.NoError(t, reset.Error())
	again := b.client(groupOpts("g")...)
	require.Equal(t, []string{"b"}, values(consume(t, again, 1)))
	again.Close()

	b.restart()
	groups, err = admin.ListGroups(ctx)
	require.NoError(t, err)
	require.Equal(t, "Empty", groups["g"].State)
	_, err = admin.DeleteGroup(ctx, "g")
	require.NoError(t, err)
	_, err = admin.DeleteGroup(ctx, "g")
	require.ErrorIs(t, err, kerr.GroupIDNotFound)
	offsets, err := admin.FetchOffsets(ctx, "g")
	require.NoError(t, err)
	require.Empty(t, offsets)
}

func offset(topic string, partition int32, at int64) kadm.Offsets {
	var os kadm.Offsets
	os.AddOffset(topic, partition, at, -1)
	return os
}
