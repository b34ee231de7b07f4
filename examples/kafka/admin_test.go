package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestTopicsComeAndGo(t *testing.T) {
	ctx := context.Background()
	b := startBroker(t, Config{Partitions: 2})
	admin := b.admin()
	b.createTopic("made", 3, nil)
	_, err := admin.CreateTopic(ctx, -1, -1, nil, "by-default")
	require.NoError(t, err)
	b.produce("on.first_use", "v")

	for name, c := range map[string]struct {
		partitions  int32
		replication int16
		settings    map[string]*string
		want        *kerr.Error
	}{
		"made":         {1, 1, nil, kerr.TopicAlreadyExists},
		"two-replicas": {1, 2, nil, kerr.InvalidReplicationFactor},
		"none":         {0, 1, nil, kerr.InvalidPartitions},
		"sl/ash":       {1, 1, nil, kerr.InvalidTopicException},
		"..":           {1, 1, nil, kerr.InvalidTopicException},
		"compacted":    {1, 1, map[string]*string{"cleanup.policy": ptr("compact")}, kerr.InvalidConfig},
		"misspelt":     {1, 1, map[string]*string{"retention": ptr("1")}, kerr.InvalidConfig},
		"no-number":    {1, 1, map[string]*string{"retention.ms": ptr("soon")}, kerr.InvalidConfig},
	} {
		resp, err := admin.CreateTopic(ctx, c.partitions, c.replication, c.settings, name)
		require.ErrorIs(t, err, c.want, name)
		require.Equal(t, c.want != kerr.TopicAlreadyExists, strings.Contains(resp.ErrMessage, "("), "the reason: %s", resp.ErrMessage)
	}
	_, err = admin.UpdatePartitions(ctx, 5, "made")
	require.NoError(t, err)
	fewer, err := admin.UpdatePartitions(ctx, 1, "made")
	require.NoError(t, err)
	require.ErrorIs(t, fewer.Error(), kerr.InvalidPartitions)

	want := map[string]int{"made": 5, "by-default": 2, "on.first_use": 2}
	expect := func() {
		t.Helper()
		topics, err := b.admin().ListTopics(ctx)
		require.NoError(t, err)
		got := map[string]int{}
		for name, topic := range topics {
			got[name] = len(topic.Partitions)
		}
		require.Equal(t, want, got)
	}
	expect()
	b.restart()
	expect()

	_, err = admin.DeleteTopic(ctx, "made")
	require.NoError(t, err)
	_, err = admin.DeleteTopic(ctx, "made")
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
	delete(want, "made")
	expect()
	b.restart()
	expect()
	left, err := filepath.Glob(filepath.Join(b.cfg.Dir, "made-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestDeletionIsFinishedAtStart(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("half-gone", 2, nil)
	require.NoError(t, b.server.topics.save("half-gone", topicRow{Partitions: 2, Deleting: true})) // as if the server was killed then
	b.restart()
	require.Nil(t, b.server.topics.get("half-gone"))
	left, err := filepath.Glob(filepath.Join(b.cfg.Dir, "half-gone-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestNoAutoCreate(t *testing.T) {
	b := startBroker(t, Config{NoAutoCreate: true})
	cl := b.client(kgo.UnknownTopicRetries(0))
	require.ErrorIs(t, cl.ProduceSync(context.Background(), &kgo.Record{Topic: "t"}).FirstErr(), kerr.UnknownTopicOrPartition)
}

// TestDirectoryBecomesTopic checks that the server serves logs that another program wrote.
func TestDirectoryBecomesTopic(t *testing.T) {
	dir := t.TempDir()
	l, err := seglog.Open(filepath.Join(dir, "handed-over-0"), nil)
	require.NoError(t, err)
	_, err = l.Append(seglog.Record{Value: []byte("from elsewhere")})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	b := startBroker(t, Config{Dir: dir, NoAutoCreate: true})
	rs := consume(t, b.client(kgo.ConsumeTopics("handed-over"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 1)
	require.Equal(t, []string{"from elsewhere"}, values(rs))
}

func TestSettings(t *testing.T) {
	ctx := context.Background()
	b := startBroker(t, Config{Defaults: map[string]string{"segment.bytes": "1000000"}})
	b.createTopic("t", 2, map[string]*string{"retention.ms": ptr("5000"), "compression.type": ptr("producer")})
	b.produce("t", "kept through all changes")
	expect := func(name, value string, isDefault bool) {
		t.Helper()
		described, err := b.admin().DescribeTopicConfigs(ctx, "t")
		require.NoError(t, err)
		require.NoError(t, described[0].Err)
		for _, c := range described[0].Configs {
			if c.Key == name {
				require.Equal(t, value, *c.Value)
				require.Equal(t, isDefault, strings.HasPrefix(c.Source.String(), "DEFAULT"), c.Source)
				return
			}
		}
		require.Fail(t, "no "+name)
	}
	expect("retention.ms", "5000", false)
	expect("segment.bytes", "1000000", false)
	expect("max.message.bytes", "1048588", true)

	alter := func(configs ...kadm.AlterConfig) error {
		resps, err := b.admin().AlterTopicConfigs(ctx, configs, "t")
		require.NoError(t, err)
		return resps[0].Err
	}
	require.NoError(t, alter(kadm.AlterConfig{Name: "flush.messages", Value: ptr("1")}, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: "retention.ms"}))
	require.ErrorIs(t, alter(kadm.AlterConfig{Name: "cleanup.policy", Value: ptr("compact")}), kerr.InvalidConfig)
	expect("flush.messages", "1", false)
	expect("retention.ms", fmt.Sprint(7*day), true)
	b.produce("t", "more")
	b.restart()
	expect("flush.messages", "1", false)
	consume(t, b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 2)
}

func TestSettingsBecomeOptions(t *testing.T) {
	options := func(settings map[string]string) seglog.Options {
		for name, value := range settings {
			require.NoError(t, checkSetting(name, value))
		}
		o, err := layers{settings, nil}.options()
		require.NoError(t, err)
		return *o
	}
	week := 7 * 24 * time.Hour
	require.Equal(t, seglog.Options{
		Flush: seglog.FlushNone, SegmentBytes: 128 << 20, SegmentAge: week, IndexBytes: 4096, MaxBatchBytes: 1<<20 + 12, RetentionAge: week,
		MaxInflatedBytes: 16 * (1<<20 + 12),
	}, options(nil))
	require.Equal(t, seglog.Options{
		Flush: seglog.FlushAsync, FlushInterval: 10 * time.Millisecond, SegmentBytes: 1 << 20, SegmentAge: time.Second, IndexBytes: 100, MaxBatchBytes: 1 << 20,
		RetentionBytes: 1 << 30, MaxInflatedBytes: leastInflated,
	}, options(map[string]string{
		"flush.ms": "10", "segment.bytes": "1048576", "segment.ms": "1000", "index.interval.bytes": "100", "retention.ms": "-1", "retention.bytes": "1073741824",
	}))
	require.Equal(t, seglog.FlushSync, options(map[string]string{"flush.messages": "1", "flush.ms": "10"}).Flush)
	require.Equal(t, time.Millisecond, options(map[string]string{"retention.ms": "0"}).RetentionAge)
}

func startOffset(t *testing.T, b *broker, topic string) int64 {
	t.Helper()
	l, err := b.admin().ListStartOffsets(context.Background(), topic)
	require.NoError(t, err)
	o, _ := l.Lookup(topic, 0)
	require.NoError(t, o.Err)
	return o.Offset
}

func TestRetention(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("by-size", 1, map[string]*string{"segment.bytes": ptr("8192"), "retention.bytes": ptr("20000"), "retention.ms": ptr("-1")})
	b.createTopic("by-age", 1, map[string]*string{"segment.bytes": ptr("8192"), "retention.ms": ptr("60000")})
	cl := b.client()
	batch := encodeBatchAt(time.Now().Add(-time.Hour), -1, -1, -1, strings.Repeat("x", 50))
	const n = 1000
	for range n {
		require.Zero(t, produceRaw(t, cl, "by-size", batch).ErrorCode)
		require.Zero(t, produceRaw(t, cl, "by-age", batch).ErrorCode)
	}
	perSegment := int64(8192 / len(batch))
	eventually(t, func() bool { return startOffset(t, b, "by-size") >= n-4*perSegment-1 }, func() string { return "the oldest segments stay" })
	require.LessOrEqual(t, startOffset(t, b, "by-size"), n-20000/int64(len(batch)), "retention must delete no more than it must")
	eventually(t, func() bool { return startOffset(t, b, "by-age") >= n-2*perSegment }, func() string { return "old segments stay" })
}

func TestDeleteRecords(t *testing.T) {
	ctx := context.Background()
	b := startBroker(t, Config{})
	b.produce("t", "a", "b", "c", "d", "e")
	remove := func(at int64) error {
		resp, err := b.admin().DeleteRecords(ctx, offset("t", 0, at))
		require.NoError(t, err)
		r, _ := resp.Lookup("t", 0)
		if r.Err == nil && at >= 0 {
			require.Equal(t, at, r.LowWatermark)
		}
		return r.Err
	}
	require.ErrorIs(t, remove(6), kerr.OffsetOutOfRange)
	require.NoError(t, remove(3))
	require.EqualValues(t, 3, startOffset(t, b, "t"))
	require.Equal(t, []string{"d", "e"}, values(consume(t, b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 2)))
	b.restart()
	require.EqualValues(t, 3, startOffset(t, b, "t"))
	require.NoError(t, remove(-1))
	require.EqualValues(t, 5, startOffset(t, b, "t"))
	b.produce("t", "f")
	require.Equal(t, []string{"f"}, values(consume(t, b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 1)))
}

func TestTableCompacts(t *testing.T) {
	dir := t.TempDir()
	tab, err := openTable(dir, seglog.FlushNone, nil)
	require.NoError(t, err)
	require.NoError(t, tab.put(row{"kept", []byte("once")}, row{"gone", []byte("x")}))
	require.NoError(t, tab.put(row{"gone", nil}))
	var rows []row
	for i := range 100 {
		rows = append(rows, row{fmt.Sprint("key", i%10), fmt.Append(nil, i)})
	}
	for range 300 {
		require.NoError(t, tab.put(rows...))
	}
	o := tab.log.Offsets()
	require.Less(t, o.End-o.Start, int64(compactSlack+2*len(rows)), "the table must drop old rows")
	require.NoError(t, tab.close())

	tab, err = openTable(dir, seglog.FlushNone, nil)
	require.NoError(t, err)
	want := map[string][]byte{"kept": []byte("once")}
	for i := range 10 {
		want[fmt.Sprint("key", i)] = fmt.Append(nil, 90+i)
	}
	require.Equal(t, want, tab.rows)
	require.NoError(t, tab.close())
}

func TestServerLeavesForeignFilesAlone(t *testing.T) {
	dir := t.TempDir()
	note := filepath.Join(dir, "notes-7") // a file, not a directory
	require.NoError(t, os.WriteFile(note, []byte("mine"), 0o600))
	b := startBroker(t, Config{Dir: dir})
	b.produce("t", "v")
	b.stop()
	got, err := os.ReadFile(note)
	require.NoError(t, err)
	require.Equal(t, "mine", string(got))
}
