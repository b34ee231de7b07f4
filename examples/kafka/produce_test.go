package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestProduceEveryCodec(t *testing.T) {
	b := startBroker(t, Config{Partitions: 3})
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	at := time.UnixMilli(time.Now().Add(-time.Hour).UnixMilli())
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			producer := b.client(kgo.ProducerBatchCompression(codec))
			var sent []*kgo.Record
			for i := range 300 {
				sent = append(sent, &kgo.Record{
					Topic: name, Key: fmt.Appendf(nil, "key %d", i), Value: bytes.Repeat([]byte{byte(i)}, i), Timestamp: at.Add(time.Duration(i) * time.Second),
					Headers: []kgo.RecordHeader{{Key: "n", Value: fmt.Append(nil, i)}, {Key: "null"}},
				})
			}
			sent = append(sent, &kgo.Record{Topic: name, Key: []byte("tombstone"), Timestamp: at})
			require.NoError(t, producer.ProduceSync(context.Background(), sent...).FirstErr())

			got := map[string]*kgo.Record{}
			for _, r := range consume(t, b.client(kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), len(sent)) {
				got[string(r.Key)] = r
			}
			for _, want := range sent {
				r := got[string(want.Key)]
				require.NotNil(t, r, "record %s", want.Key)
				require.Equal(t, len(want.Value), len(r.Value))
				require.True(t, bytes.Equal(want.Value, r.Value))
				require.Equal(t, want.Value == nil, r.Value == nil)
				require.Equal(t, append([]kgo.RecordHeader{}, want.Headers...), r.Headers)
				require.True(t, want.Timestamp.Equal(r.Timestamp))
				require.Equal(t, [2]any{want.Partition, want.Offset}, [2]any{r.Partition, r.Offset})
			}
		})
	}
}

func TestAcks(t *testing.T) {
	b := startBroker(t, Config{Defaults: map[string]string{"flush.messages": "1"}})
	for name, acks := range map[string]kgo.Acks{"0": kgo.NoAck(), "1": kgo.LeaderAck(), "all": kgo.AllISRAcks()} {
		t.Run("acks="+name, func(t *testing.T) {
			topic := "acks-" + name
			cl := b.client(kgo.RequiredAcks(acks), kgo.DisableIdempotentWrite())
			require.NoError(t, cl.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Value: []byte("v")}).FirstErr())
			rs := consume(t, b.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 1)
			require.Equal(t, []string{"v"}, values(rs))
		})
	}
}

func TestProduceRefused(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, map[string]*string{"max.message.bytes": ptr("1000")})
	cl := b.client()
	spoiled := encodeBatch(-1, -1, -1, "good")
	spoiled[len(spoiled)-2] ^= 1
	old := encodeBatch(-1, -1, -1, "good")
	old[16] = 1
	transactional := encodeBatch(7, 0, 0, "good")
	transactional[22] |= attrTransactional
	two := append(encodeBatch(-1, -1, -1, "one"), encodeBatch(-1, -1, -1, "two")...)
	for name, c := range map[string]struct {
		batch []byte
		want  []*kerr.Error
	}{
		"too large":     {encodeBatch(-1, -1, -1, strings.Split(strings.Repeat("0123456789 ", 100), " ")...), []*kerr.Error{kerr.MessageTooLarge}},
		"bad CRC":       {spoiled, []*kerr.Error{kerr.CorruptMessage, kerr.InvalidRecord}},
		"old format":    {old, []*kerr.Error{kerr.UnsupportedForMessageFormat}},
		"transactional": {transactional, []*kerr.Error{kerr.InvalidRecord}},
		"two batches":   {two, []*kerr.Error{kerr.InvalidRecord}},
		"not a batch":   {[]byte("hello"), []*kerr.Error{kerr.InvalidRecord}},
		"wrong length":  {encodeBatch(-1, -1, -1, "good")[:65], []*kerr.Error{kerr.InvalidRecord}},
	} {
		t.Run(name, func(t *testing.T) {
			p := produceRaw(t, cl, "t", c.batch)
			require.Contains(t, c.want, kerr.TypedErrorForCode(p.ErrorCode))
			require.NotNil(t, p.ErrorMessage)
		})
	}
	require.Zero(t, produceRaw(t, cl, "t", encodeBatch(-1, -1, -1, "good")).BaseOffset, "refused batches must not be stored")
}

func TestTransactionsRefused(t *testing.T) {
	b := startBroker(t, Config{})
	cl := b.client(kgo.TransactionalID("x"))
	err := cl.BeginTransaction() // needs a producer id
	require.ErrorContains(t, err, kerr.TransactionalIDAuthorizationFailed.Message)
}

func TestIdempotence(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, nil)
	cl := b.client()
	send := func(epoch int16, sequence int32, values ...string) (base int64, code int16) {
		p := produceRaw(t, cl, "t", encodeBatch(42, epoch, sequence, values...))
		return p.BaseOffset, p.ErrorCode
	}
	expect := func(wantBase int64, wantErr *kerr.Error) func(int64, int16) {
		return func(base int64, code int16) {
			t.Helper()
			if wantErr != nil {
				require.Equal(t, wantErr, kerr.TypedErrorForCode(code))
				return
			}
			require.Zero(t, code, kerr.TypedErrorForCode(code))
			require.Equal(t, wantBase, base)
		}
	}
	expect(0, nil)(send(0, 0, "a", "b"))
	expect(2, nil)(send(0, 2, "c"))
	expect(0, nil)(send(0, 0, "a", "b")) // a repeated request is answered, but not stored
	expect(2, nil)(send(0, 2, "c"))
	expect(0, kerr.OutOfOrderSequenceNumber)(send(0, 4, "e"))

	b.restart()
	expect(0, nil)(send(0, 0, "a", "b"))
	expect(0, kerr.OutOfOrderSequenceNumber)(send(0, 5, "f"))
	expect(3, nil)(send(0, 3, "d"))
	expect(0, kerr.OutOfOrderSequenceNumber)(send(1, 3, "x")) // a new epoch must begin with sequence number 0
	expect(4, nil)(send(1, 0, "e"))
	expect(0, kerr.InvalidProducerEpoch)(send(0, 4, "x"))

	rs := consume(t, b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 5)
	require.Equal(t, []string{"a", "b", "c", "d", "e"}, values(rs))
}

// TestDuplicateBehindOthers checks that a batch sent again after a restart is found, although the state of producers is read only
// then, and others have meanwhile sent more than is read of a log.
func TestDuplicateBehindOthers(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, nil)
	cl := b.client()
	sent := encodeBatch(42, 0, 0, "a", "b")
	require.Zero(t, produceRaw(t, cl, "t", sent).ErrorCode)
	b.restart()
	p, err := b.server.topics.partition("t", 0)
	require.NoError(t, err)
	other := encodeBatch(-1, -1, -1, make([]string, 12_000)...)
	for n := 0; n <= tailBytes; n += len(other) {
		_, err := p.append(other)
		require.NoError(t, err)
	}
	require.Nil(t, p.producers.byID, "nobody has asked for it")
	again := produceRaw(t, cl, "t", sent)
	require.Zero(t, again.ErrorCode)
	require.Zero(t, again.BaseOffset)
}

func TestSequenceWraps(t *testing.T) {
	p := &producer{epoch: -1}
	h := batchHeader{producerID: 1, firstSequence: 1<<31 - 2, lastDelta: 3}
	_, _, err := p.check(h)
	require.NoError(t, err)
	p.note(h, 100)
	require.EqualValues(t, 1, p.recent[0].last)
	_, _, err = p.check(batchHeader{producerID: 1, firstSequence: 2})
	require.NoError(t, err)
	base, duplicate, err := p.check(h)
	require.NoError(t, err)
	require.True(t, duplicate)
	require.EqualValues(t, 100, base)
}

func TestProducerIDsAreGivenOnce(t *testing.T) {
	b := startBroker(t, Config{})
	seen := map[int64]bool{}
	for range 3 {
		cl := b.client()
		for range 3 {
			resp, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(context.Background(), cl)
			require.NoError(t, err)
			require.Zero(t, resp.ErrorCode)
			require.False(t, seen[resp.ProducerID], "id %d was given twice", resp.ProducerID)
			seen[resp.ProducerID] = true
		}
		b.restart()
	}
}

// TestStoredOnceDespiteRestarts restarts the server many times while a producer sends. Requests that were stored but not
// answered are sent again, and must not be stored again.
func TestStoredOnceDespiteRestarts(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 2, nil)
	producer := b.client(kgo.RecordRetries(1000), kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond }),
		kgo.MetadataMinAge(10*time.Millisecond), kgo.ProducerBatchMaxBytes(2000))
	var acknowledged atomic.Int64
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		for ; ; sent++ {
			select {
			case <-stop:
				stopped <- sent
				return
			default:
			}
			producer.Produce(context.Background(), &kgo.Record{Topic: "t", Value: fmt.Appendf(nil, "%08d", sent)}, func(_ *kgo.Record, err error) {
				check(t, err == nil, "produce: %v", err)
				acknowledged.Add(1)
			})
		}
	}()
	for range 20 {
		goal := acknowledged.Load() + 3000
		eventually(t, func() bool { return acknowledged.Load() > goal }, func() string { return "no progress after a restart" })
		b.restart()
	}
	close(stop)
	sent := <-stopped
	require.NoError(t, producer.Flush(context.Background()))

	rs := consume(t, b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), sent)
	seen := make([]bool, sent)
	last := map[int32]string{}
	for _, r := range rs {
		n, err := strconv.Atoi(string(r.Value))
		require.NoError(t, err)
		require.False(t, seen[n], "record %d was stored twice", n)
		seen[n] = true
		require.Less(t, last[r.Partition], string(r.Value), "partition %d is out of order", r.Partition)
		last[r.Partition] = string(r.Value)
	}
	t.Logf("%d records", sent)
}
