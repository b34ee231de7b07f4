package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetchRequest returns a request for the records from an offset of partition 0 of topic t, with a wait of up to a minute.
func fetchRequest(offset int64, partitionBytes int32, entries int) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 11, 60_000, 1, 1<<30
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic = "t"
	for range entries {
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.FetchOffset, fp.PartitionMaxBytes = offset, partitionBytes
		ft.Partitions = append(ft.Partitions, fp)
	}
	req.Topics = append(req.Topics, ft)
	return req
}

func (c *rawConn) send(req kmsg.Request) {
	_, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 77))
	require.NoError(c.t, err)
}

// TestFetchDoesNotSpin checks that a fetch whose minimum size exceeds its limits is answered at once with the bytes that the
// limits allow.
func TestFetchDoesNotSpin(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, map[string]*string{"segment.bytes": ptr("4096")})
	cl := b.client()
	batch := encodeBatch(-1, -1, -1, strings.Repeat("x", 50))
	for range 100 {
		require.Zero(t, produceRaw(t, cl, "t", batch).ErrorCode)
	}
	for name, change := range map[string]func(*kmsg.FetchRequest){
		"partition's limit": func(r *kmsg.FetchRequest) { r.Topics[0].Partitions[0].PartitionMaxBytes = 200 },
		"request's limit":   func(r *kmsg.FetchRequest) { r.MaxBytes = 200 },
		"end of a segment":  func(*kmsg.FetchRequest) {},
	} {
		t.Run(name, func(t *testing.T) {
			req := fetchRequest(0, 1<<20, 1)
			req.MinBytes = 1 << 30
			change(req)
			began := time.Now()
			p := dial(t, b.addr).request(req).(*kmsg.FetchResponse).Topics[0].Partitions[0]
			require.NotEmpty(t, p.RecordBatches)
			require.Less(t, time.Since(began), 10*time.Second)
		})
	}
}

// TestWaitsEndWithTheirClients checks that a waiting request ends when its client leaves.
func TestWaitsEndWithTheirClients(t *testing.T) {
	join := func(group string) *kmsg.JoinGroupRequest {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.ProtocolType = 5, group, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 1_800_000, 1_800_000
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range"}}
		return req
	}
	b := startBroker(t, Config{})
	require.NoError(t, b.server.topics.create("t", 2, nil, false))
	first := dial(t, b.addr)
	leader := first.request(join("g")).(*kmsg.JoinGroupResponse)
	require.Zero(t, leader.ErrorCode)

	multi := fetchRequest(0, 1<<20, 2)
	multi.Topics[0].Partitions[1].Partition = 1
	follower := join("g")
	for name, c := range map[string]struct {
		req  kmsg.Request
		more int // number of bytes that the client sends while the request waits
	}{
		"fetch": {fetchRequest(0, 1<<20, 1), 0}, "fetch of two": {multi, 0},
		"fetch, the next request begun": {fetchRequest(0, 1<<20, 1), 100},
		"fetch, many requests after":    {fetchRequest(0, 1<<20, 1), 8 << 10},
		"join, waiting for others":      {follower, 0},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, b.addr)
			conn.send(c.req)
			eventually(t, func() bool { return b.connections() == 2 }, func() string { return "not connected" })
			time.Sleep(20 * time.Millisecond) // most likely the request waits by now; if not, it must end all the same
			if c.more > 0 {
				_, err := conn.Write(make([]byte, c.more))
				require.NoError(t, err)
			}
			require.NoError(t, conn.Close())
			eventually(t, func() bool { return b.connections() == 1 }, func() string { return "the client has left, but its request still waits" })
		})
	}
	g := b.server.groups.get("g")
	require.Equal(t, 1, g.size(), "a client that left before it learned its member id can't return, so it must not stay a member")
}

// TestRefusedLeavesNoGroup checks that refused requests create no group.
func TestRefusedLeavesNoGroup(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, nil)
	cl := b.client()
	for i := range 50 {
		commit := kmsg.NewPtrOffsetCommitRequest()
		commit.Group, commit.Generation, commit.MemberID = fmt.Sprint("commit", i), 3, "nobody"
		ct := kmsg.NewOffsetCommitRequestTopic()
		ct.Topic, ct.Partitions = "t", []kmsg.OffsetCommitRequestTopicPartition{kmsg.NewOffsetCommitRequestTopicPartition()}
		commit.Topics = append(commit.Topics, ct)
		resp, err := commit.RequestWith(context.Background(), cl)
		require.NoError(t, err)
		require.Equal(t, kerr.UnknownMemberID.Code, resp.Topics[0].Partitions[0].ErrorCode)

		join := kmsg.NewPtrJoinGroupRequest()
		join.Group, join.MemberID, join.ProtocolType, join.SessionTimeoutMillis = fmt.Sprint("join", i), "nobody", "consumer", 6000
		join.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range"}}
		joined, err := join.RequestWith(context.Background(), cl)
		require.NoError(t, err)
		require.Equal(t, kerr.UnknownMemberID.Code, joined.ErrorCode)
	}
	list, err := b.admin().ListGroups(context.Background())
	require.NoError(t, err)
	require.Empty(t, list)
	require.Empty(t, b.server.groups.all())
}

// TestGroupLimits checks that the memory of members and committed offsets is bounded, and released.
func TestGroupLimits(t *testing.T) {
	b := startBroker(t, Config{Limits: Limits{Groups: 2, GroupBytes: 10_000, OffsetBytes: 10_000}})
	b.createTopic("t", 1, nil)
	join := func(group string, metadata int) (*kmsg.JoinGroupResponse, *rawConn) {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.ProtocolType, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 5, group, "consumer", 600_000, 1000
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: make([]byte, metadata)}}
		conn := dial(t, b.addr)
		return conn.request(req).(*kmsg.JoinGroupResponse), conn
	}
	one, conn := join("one", 8000)
	require.Zero(t, one.ErrorCode)
	large, _ := join("two", 8000)
	require.Equal(t, kerr.GroupMaxSizeReached.Code, large.ErrorCode)
	two, _ := join("two", 10)
	require.Zero(t, two.ErrorCode)
	three, _ := join("three", 10)
	require.Equal(t, kerr.GroupMaxSizeReached.Code, three.ErrorCode)

	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Version, leave.Group, leave.MemberID = 1, "one", one.MemberID
	require.Zero(t, conn.request(leave).(*kmsg.LeaveGroupResponse).ErrorCode)
	eventually(t, func() bool {
		again, _ := join("three", 8000)
		return again.ErrorCode == 0
	}, func() string { return "the memory of a member is not released" })

	admin := b.admin()
	committed := 0
	for i := range 100 {
		var os kadm.Offsets
		os.AddOffset("t", 0, 1, -1)
		resp, err := admin.CommitOffsets(context.Background(), fmt.Sprint("g", i), os)
		require.NoError(t, err)
		if resp.Error() != nil {
			require.ErrorIs(t, resp.Error(), kerr.PolicyViolation)
			break
		}
		committed++
	}
	require.Greater(t, committed, 5)
	require.Less(t, committed, 50)
	_, err := admin.DeleteGroup(context.Background(), "g0")
	require.NoError(t, err)
	resp, err := admin.CommitOffsets(context.Background(), "after", offset("t", 0, 1))
	require.NoError(t, err)
	require.NoError(t, resp.Error())
	require.NoError(t, b.server.groups.forgetTopic("t"))
	require.Zero(t, b.server.groups.stored.used.Load())
}

func TestPartitionLimit(t *testing.T) {
	b := startBroker(t, Config{Limits: Limits{Partitions: 3}})
	ctx, admin := context.Background(), b.admin()
	b.createTopic("t", 2, nil)
	_, err := admin.CreateTopic(ctx, 2, 1, nil, "more")
	require.ErrorIs(t, err, kerr.PolicyViolation)
	grown, err := admin.CreatePartitions(ctx, 2, "t")
	require.NoError(t, err)
	require.ErrorIs(t, grown.Error(), kerr.PolicyViolation)
	b.createTopic("last", 1, nil)
	_, err = os.Stat(filepath.Join(b.cfg.Dir, "more-0"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = admin.DeleteTopics(ctx, "t")
	require.NoError(t, err)
	b.createTopic("more", 2, nil)
}

func TestConnectionLimit(t *testing.T) {
	b := startBroker(t, Config{Limits: Limits{Conns: 3}})
	var conns []*rawConn
	for range 3 {
		conns = append(conns, dial(t, b.addr))
		conns[len(conns)-1].request(kmsg.NewPtrApiVersionsRequest())
	}
	n, err := dial(t, b.addr).Read(make([]byte, 1))
	require.Zero(t, n)
	require.Error(t, err, "a connection beyond the limit must be closed")
	conns[0].request(kmsg.NewPtrApiVersionsRequest())
	conns[0].Close()
	eventually(t, func() bool { return b.connections() == 2 }, func() string { return "the closed connection still counts" })
	dial(t, b.addr).request(kmsg.NewPtrApiVersionsRequest())
}

// TestSilentAndSlowClients checks that the server closes a connection that sends no request or half of one, or does not read
// its answer.
func TestSilentAndSlowClients(t *testing.T) {
	b := startBroker(t, Config{Limits: Limits{Patience: 300 * time.Millisecond}})
	require.NoError(t, b.server.topics.create("t", 1, nil, false))
	batch := encodeBatch(-1, -1, -1, make([]string, 12_000)...)
	require.Greater(t, len(batch), inlineBytes)
	p, err := b.server.topics.partition("t", 0)
	require.NoError(t, err)
	_, err = p.append(batch)
	require.NoError(t, err)
	for name, sent := range map[string][]byte{
		"silent": nil, "half a size": {0, 0}, "half a request": append([]byte{0, 0, 1, 0}, make([]byte, 100)...),
	} {
		t.Run(name, func(t *testing.T) { require.True(t, dial(t, b.addr).endsConnection(sent)) })
	}
	t.Run("does not read", func(t *testing.T) {
		eventually(t, func() bool { return b.connections() == 0 }, func() string { return "other clients are still connected" })
		c := dial(t, b.addr)
		c.request(kmsg.NewPtrApiVersionsRequest())
		c.send(fetchRequest(0, 1, 300))
		eventually(t, func() bool { return b.connections() == 0 }, func() string { return "still connected" })
	})
}

// bomb returns a small batch whose only record inflates to mib MiB.
func bomb(t *testing.T, at time.Time, mib int) []byte {
	size := mib << 20
	var body bytes.Buffer
	w := gzip.NewWriter(&body)
	record := []byte{0, 0, 0, 1} // attributes, time and offset deltas, no key
	record = binary.AppendVarint(record, int64(size))
	head := binary.AppendVarint(nil, int64(len(record)+size+1))
	_, err := w.Write(append(head, record...))
	require.NoError(t, err)
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		_, err := w.Write(zeros)
		require.NoError(t, err)
	}
	_, err = w.Write([]byte{0}) // no headers
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b := kmsg.NewRecordBatch()
	b.Length = int32(49 + body.Len())
	b.Magic, b.Attributes = 2, 1
	b.FirstTimestamp, b.MaxTimestamp = at.UnixMilli(), at.UnixMilli()
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.NumRecords, b.Records = 1, body.Bytes()
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// TestBombCostsOnce checks that a batch that inflates to far more than a producer makes is refused. A request that names a
// partition many times must not inflate a batch each time, and one whose searches take too long must be answered with a
// timeout.
func TestBombCostsOnce(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 8, nil)
	at := time.UnixMilli(1_700_000_000_000)
	require.Equal(t, kerr.MessageTooLarge.Code, produceRaw(t, b.client(), "t", bomb(t, at, 200)).ErrorCode)
	raw := bomb(t, at, 15)
	for i := range 8 {
		p, err := b.server.topics.partition("t", int32(i))
		require.NoError(t, err)
		_, err = p.append(raw)
		require.NoError(t, err)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version = 5
	lt := kmsg.NewListOffsetsRequestTopic()
	lt.Topic = "t"
	for range 1000 {
		lp := kmsg.NewListOffsetsRequestTopicPartition()
		lp.Timestamp = at.UnixMilli()
		lt.Partitions = append(lt.Partitions, lp)
	}
	req.Topics = []kmsg.ListOffsetsRequestTopic{lt}
	began := time.Now()
	resp := dial(t, b.addr).request(req).(*kmsg.ListOffsetsResponse)
	for _, p := range resp.Topics[0].Partitions {
		require.Equal(t, kerr.InvalidRequest.Code, p.ErrorCode)
	}
	require.Less(t, time.Since(began), time.Second, "no batch may be inflated")

	lt.Partitions = lt.Partitions[:8]
	for i := range lt.Partitions {
		lt.Partitions[i].Partition = int32(i)
	}
	req.Topics = []kmsg.ListOffsetsRequestTopic{lt}
	began = time.Now()
	resp = dial(t, b.addr).request(req).(*kmsg.ListOffsetsResponse)
	found, late := 0, 0
	for _, p := range resp.Topics[0].Partitions {
		switch p.ErrorCode {
		case 0:
			require.Zero(t, p.Offset)
			found++
		case kerr.RequestTimedOut.Code:
			late++
		default:
			t.Fatal(kerr.ErrorForCode(p.ErrorCode))
		}
	}
	require.NotZero(t, found, "some searches must finish")
	// Searches that begin within searchTime are finished. The bound is generous, since other tests may run at the same time.
	require.Less(t, time.Since(began), 30*time.Second)
	t.Logf("%d found, %d timed out, in %v", found, late, time.Since(began))
}

// TestAnswersAreBounded checks that a topic or group that a request names many times is described once.
func TestAnswersAreBounded(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 100, nil)
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.Version = 8
	for range 1000 {
		mt := kmsg.NewMetadataRequestTopic()
		mt.Topic = kmsg.StringPtr("t")
		metadata.Topics = append(metadata.Topics, mt)
	}
	require.Len(t, dial(t, b.addr).request(metadata).(*kmsg.MetadataResponse).Topics, 1)

	configs := kmsg.NewPtrDescribeConfigsRequest()
	groups := kmsg.NewPtrDescribeGroupsRequest()
	offsets := kmsg.NewPtrOffsetFetchRequest()
	offsets.Version, offsets.Group = 5, "g"
	for range 1000 {
		cr := kmsg.NewDescribeConfigsRequestResource()
		cr.ResourceType, cr.ResourceName = kmsg.ConfigResourceTypeTopic, "t"
		configs.Resources = append(configs.Resources, cr)
		groups.Groups = append(groups.Groups, "g")
		offsets.Topics = append(offsets.Topics, kmsg.OffsetFetchRequestTopic{Topic: "t", Partitions: []int32{0, 0}})
	}
	require.Len(t, dial(t, b.addr).request(configs).(*kmsg.DescribeConfigsResponse).Resources, 1)
	require.Len(t, dial(t, b.addr).request(groups).(*kmsg.DescribeGroupsResponse).Groups, 1)
	n := 0
	for _, t := range dial(t, b.addr).request(offsets).(*kmsg.OffsetFetchResponse).Topics {
		n += len(t.Partitions)
	}
	require.Equal(t, 1, n)
}

// TestProducersAreBounded checks that a partition remembers only a bounded number of producers, the most recent ones.
func TestProducersAreBounded(t *testing.T) {
	ps := producers{byID: map[int64]*producer{}}
	for id := range int64(3 * maxProducers) {
		ps.find(id)
	}
	require.LessOrEqual(t, len(ps.byID), maxProducers)
	require.Contains(t, ps.byID, int64(3*maxProducers-1))
	require.NotContains(t, ps.byID, int64(0))
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"data"}, {"-dir", "data", "more"}, {"-nonsense"}, {"-set", "x"}, {"-partitions", "many"}} {
		err := run(args)
		require.ErrorAs(t, err, new(usageError), args)
	}
	cfg, listen, _, err := parse([]string{"-dir", "data", "-set", "retention.ms=-1", "-max-connections", "7"})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:9092", listen)
	require.Equal(t, "data", cfg.Dir)
	require.Equal(t, 7, cfg.Limits.Conns)
	require.Equal(t, map[string]string{"retention.ms": "-1"}, cfg.Defaults)
	cfg, _, _, err = parse(nil)
	require.NoError(t, err)
	require.Empty(t, cfg.Dir, "the default must be a temporary directory")
}
