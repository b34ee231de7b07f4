package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// broker is a server that a test can talk to and restart.
type broker struct {
	t      *testing.T
	cfg    Config
	addr   string
	server *Server
	served chan error
}

func startBroker(t *testing.T, cfg Config) *broker {
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	b := &broker{t: t, cfg: cfg, addr: "127.0.0.1:0"}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *broker) start() {
	l, err := net.Listen("tcp", b.addr)
	require.NoError(b.t, err)
	b.addr = l.Addr().String()
	b.server, err = NewServer(b.cfg)
	require.NoError(b.t, err)
	b.served = make(chan error, 1)
	go func() { b.served <- b.server.Serve(l.(*net.TCPListener)) }()
}

func (b *broker) stop() {
	if b.server != nil {
		require.NoError(b.t, b.server.Close())
		require.NoError(b.t, <-b.served)
		b.server = nil
	}
}

func (b *broker) restart() {
	b.stop()
	b.start()
}

func (b *broker) client(opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.addr), kgo.AllowAutoTopicCreation()}, opts...)...)
	require.NoError(b.t, err)
	b.t.Cleanup(cl.Close)
	return cl
}

func (b *broker) admin() *kadm.Client { return kadm.NewClient(b.client()) }

func (b *broker) createTopic(name string, partitions int32, settings map[string]*string) {
	_, err := b.admin().CreateTopic(context.Background(), partitions, 1, settings, name)
	require.NoError(b.t, err)
}

// produce sends values to a topic.
func (b *broker) produce(topic string, values ...string) {
	cl := b.client()
	defer cl.Close()
	var rs []*kgo.Record
	for _, v := range values {
		rs = append(rs, &kgo.Record{Topic: topic, Value: []byte(v)})
	}
	require.NoError(b.t, cl.ProduceSync(context.Background(), rs...).FirstErr())
}

// consume polls until it has n records, and fails if they do not come within 20 seconds.
func consume(t *testing.T, cl *kgo.Client, n int) (all []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for len(all) < n {
		fs := cl.PollFetches(ctx)
		for _, e := range fs.Errors() {
			require.NoError(t, e.Err, "after %d of %d records", len(all), n)
		}
		all = append(all, fs.Records()...)
	}
	require.Len(t, all, n)
	return all
}

func values(rs []*kgo.Record) (vs []string) {
	for _, r := range rs {
		vs = append(vs, string(r.Value))
	}
	return vs
}

// encodeBatch returns a batch as a producer with this id, epoch and first sequence number would send it.
func encodeBatch(id int64, epoch int16, sequence int32, values ...string) []byte {
	return encodeBatchAt(time.Now(), id, epoch, sequence, values...)
}

func encodeBatchAt(at time.Time, id int64, epoch int16, sequence int32, values ...string) []byte {
	var records []byte
	for i, v := range values {
		r := kmsg.NewRecord()
		r.OffsetDelta = int32(i)
		r.Value = []byte(v)
		r.Length = int32(len(r.AppendTo(nil)) - 1) // without the length itself, which is one byte here
		records = r.AppendTo(records)
	}
	b := kmsg.NewRecordBatch()
	b.Length = int32(49 + len(records))
	b.Magic = 2
	b.LastOffsetDelta = int32(len(values) - 1)
	b.FirstTimestamp, b.MaxTimestamp = at.UnixMilli(), at.UnixMilli()
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = id, epoch, sequence
	b.NumRecords, b.Records = int32(len(values)), records
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// produceRaw sends one encoded batch to partition 0.
func produceRaw(t *testing.T, cl *kgo.Client, topic string, batch []byte) kmsg.ProduceResponseTopicPartition {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 1000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = batch
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(context.Background(), cl)
	require.NoError(t, err)
	return resp.Topics[0].Partitions[0]
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func ptr(format string, args ...any) *string {
	s := fmt.Sprintf(format, args...)
	return &s
}
