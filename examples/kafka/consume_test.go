package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetchRaw fetches from an offset of partition 0 of a topic in a single request.
func fetchRaw(t *testing.T, cl *kgo.Client, topic string, offset int64, change func(*kmsg.FetchRequest)) *kmsg.FetchResponse {
	t.Helper()
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.MinBytes, req.SessionEpoch = 1<<20, 1, -1
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic = topic
	fp := kmsg.NewFetchRequestTopicPartition()
	fp.FetchOffset, fp.PartitionMaxBytes = offset, 1<<20
	ft.Partitions = append(ft.Partitions, fp)
	req.Topics = append(req.Topics, ft)
	if change != nil {
		change(req)
	}
	resp, err := req.RequestWith(context.Background(), cl)
	require.NoError(t, err)
	return resp
}

func TestFetchLimits(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 2, nil)
	cl := b.client()
	const n = 10
	batch := encodeBatch(-1, -1, -1, strings.Repeat("x", 50))
	for range n {
		require.Zero(t, produceRaw(t, cl, "t", batch).ErrorCode)
	}
	bytesAt := func(change func(*kmsg.FetchRequest)) int {
		return len(fetchRaw(t, cl, "t", 0, change).Topics[0].Partitions[0].RecordBatches)
	}
	require.Equal(t, n*len(batch), bytesAt(nil))
	require.Equal(t, 3*len(batch), bytesAt(func(r *kmsg.FetchRequest) { r.Topics[0].Partitions[0].PartitionMaxBytes = int32(3*len(batch) + 1) }))
	require.Equal(t, 2*len(batch), bytesAt(func(r *kmsg.FetchRequest) { r.MaxBytes = int32(2 * len(batch)) }))
	require.Equal(t, len(batch), bytesAt(func(r *kmsg.FetchRequest) { r.MaxBytes = 1 }), "at least one batch")
	require.Equal(t, len(batch), bytesAt(func(r *kmsg.FetchRequest) { r.Topics[0].Partitions[0].PartitionMaxBytes = 1 }))

	twice := fetchRaw(t, cl, "t", 0, func(r *kmsg.FetchRequest) {
		r.MaxBytes = int32(len(batch))
		r.Topics = append(r.Topics, r.Topics[0])
	})
	require.Len(t, twice.Topics[0].Partitions[0].RecordBatches, len(batch))
	require.Empty(t, twice.Topics[1].Partitions[0].RecordBatches, "the limit must hold for the whole request")

	for offset, want := range map[int64]*kerr.Error{-1: kerr.OffsetOutOfRange, n + 1: kerr.OffsetOutOfRange} {
		p := fetchRaw(t, cl, "t", offset, nil).Topics[0].Partitions[0]
		require.Equal(t, want, kerr.TypedErrorForCode(p.ErrorCode))
		require.EqualValues(t, n, p.HighWatermark)
	}
	p := fetchRaw(t, cl, "t", 0, func(r *kmsg.FetchRequest) { r.Topics[0].Partitions[0].Partition = 9 }).Topics[0].Partitions[0]
	require.Equal(t, kerr.UnknownTopicOrPartition, kerr.TypedErrorForCode(p.ErrorCode))
}

func TestFetchWaits(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 2, nil)
	producer, consumer := b.client(), b.client()
	batch := encodeBatch(-1, -1, -1, "value")

	began := time.Now()
	p := fetchRaw(t, consumer, "t", 0, func(r *kmsg.FetchRequest) { r.MaxWaitMillis = 100 }).Topics[0].Partitions[0]
	require.Empty(t, p.RecordBatches)
	require.GreaterOrEqual(t, time.Since(began), 100*time.Millisecond)

	for _, c := range []struct{ minBatches, partitions int }{{1, 1}, {3, 1}, {1, 2}, {2, 2}} {
		t.Run(fmt.Sprintf("%d batches, %d partitions", c.minBatches, c.partitions), func(t *testing.T) {
			offset := fetchRaw(t, consumer, "t", 0, nil).Topics[0].Partitions[0].HighWatermark
			answered := make(chan kmsg.FetchResponseTopicPartition, 1)
			go func() {
				answered <- fetchRaw(t, consumer, "t", offset, func(r *kmsg.FetchRequest) {
					r.MaxWaitMillis, r.MinBytes = 20_000, int32(c.minBatches*len(batch))
					for i := 1; i < c.partitions; i++ {
						more := r.Topics[0].Partitions[0]
						more.Partition, more.FetchOffset = int32(i), 0
						r.Topics[0].Partitions = append(r.Topics[0].Partitions, more)
					}
				}).Topics[0].Partitions[0]
			}()
			for i := range c.minBatches {
				select {
				case <-answered:
					t.Fatalf("answered with %d batches", i)
				case <-time.After(50 * time.Millisecond):
				}
				require.Zero(t, produceRaw(t, producer, "t", batch).ErrorCode)
			}
			select {
			case p := <-answered:
				require.Len(t, p.RecordBatches, c.minBatches*len(batch))
			case <-time.After(10 * time.Second):
				t.Fatal("no answer")
			}
		})
	}
}

// TestEveryFetchVersion checks that kmsg decodes the responses that the server encodes by hand, with small sections, which are
// copied into the response, and large ones, which are sent from the file.
func TestEveryFetchVersion(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, nil)
	small := encodeBatch(-1, -1, -1, "small")
	large := encodeBatch(-1, -1, -1, make([]string, 20_000)...)
	require.Greater(t, len(large), inlineBytes)
	cl := b.client()
	require.Zero(t, produceRaw(t, cl, "t", small).ErrorCode)
	require.Zero(t, produceRaw(t, cl, "t", large).ErrorCode)
	api := apis[kmsg.Fetch.Int16()]
	for v := api.min; v <= api.max; v++ {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) {
			conn := dial(t, b.addr)
			req := kmsg.NewPtrFetchRequest()
			req.Version, req.MaxBytes, req.MinBytes = v, 1<<20, 1
			for _, offsets := range [][]int64{{1, 0}, {1, 2}} { // large then small, large then large
				ft := kmsg.NewFetchRequestTopic()
				ft.Topic = "t"
				for _, offset := range offsets {
					fp := kmsg.NewFetchRequestTopicPartition()
					fp.FetchOffset, fp.PartitionMaxBytes = offset, int32(len(large))
					ft.Partitions = append(ft.Partitions, fp)
				}
				req.Topics = append(req.Topics, ft)
			}
			log := b.server.topics.get("t").partitions[0].log()
			before := log.Stats().SentZeroCopy
			resp := conn.request(req).(*kmsg.FetchResponse)
			require.Len(t, resp.Topics, 2)
			for i, sizes := range [][]int{{len(large), len(small)}, {len(large), len(large)}} {
				require.Equal(t, "t", resp.Topics[i].Topic)
				for j, size := range sizes {
					p := resp.Topics[i].Partitions[j]
					require.Zero(t, p.ErrorCode)
					require.EqualValues(t, 20_001, p.HighWatermark)
					require.EqualValues(t, 20_001, p.LastStableOffset)
					require.Len(t, p.RecordBatches, size)
				}
			}
			if runtime.GOOS == "linux" {
				// The last section may end the response, which then is here before its bytes are counted.
				sent := func() int64 { return log.Stats().SentZeroCopy - before }
				eventually(t, func() bool { return sent() == int64(3*len(large)) }, func() string {
					return fmt.Sprintf("%d bytes were sent by sendfile, want 3 sections of %d", sent(), len(large))
				})
			}
			require.Equal(t, small[16:], resp.Topics[0].Partitions[1].RecordBatches[16:], "all bytes but those that the append sets")
			require.Equal(t, large[16:], resp.Topics[1].Partitions[1].RecordBatches[16:])
		})
	}
}

func TestOffsetsByTime(t *testing.T) {
	b := startBroker(t, Config{})
	b.createTopic("t", 1, nil)
	at := time.UnixMilli(time.Now().Add(-time.Hour).UnixMilli())
	cl := b.client(kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	for i := range 5 {
		require.NoError(t, cl.ProduceSync(context.Background(),
			&kgo.Record{Topic: "t", Value: []byte("a"), Timestamp: at.Add(time.Duration(2*i) * time.Second)},
			&kgo.Record{Topic: "t", Value: []byte("b"), Timestamp: at.Add(time.Duration(2*i+1) * time.Second)}).FirstErr())
	}
	admin := b.admin()
	for seconds, want := range map[int]int64{-10: 0, 0: 0, 3: 3, 8: 8, 9: 9} {
		l, err := admin.ListOffsetsAfterMilli(context.Background(), at.Add(time.Duration(seconds)*time.Second).UnixMilli(), "t")
		require.NoError(t, err)
		o, ok := l.Lookup("t", 0)
		require.True(t, ok)
		require.NoError(t, o.Err)
		require.Equal(t, want, o.Offset, "%d s", seconds)
		require.Equal(t, at.Add(time.Duration(want)*time.Second).UnixMilli(), o.Timestamp)
	}
	end, err := admin.ListEndOffsets(context.Background(), "t")
	require.NoError(t, err)
	late, err := admin.ListOffsetsAfterMilli(context.Background(), at.Add(time.Hour).UnixMilli(), "t")
	require.NoError(t, err)
	for _, l := range []kadm.ListedOffsets{end, late} {
		o, _ := l.Lookup("t", 0)
		require.EqualValues(t, 10, o.Offset)
	}
}

func TestEightConsumers(t *testing.T) {
	b := startBroker(t, Config{Partitions: 4})
	const n = 20_000
	producer := b.client()
	var wg sync.WaitGroup
	for c := range 8 {
		cl := b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		wg.Add(1)
		go func() {
			defer wg.Done()
			seen := make([]bool, n)
			next := map[int32]int64{}
			for count := 0; count < n; {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				fs := cl.PollFetches(ctx)
				cancel()
				if !check(t, len(fs.Errors()) == 0, "consumer %d: %v", c, fs.Errors()) {
					return
				}
				for _, r := range fs.Records() {
					var i int
					fmt.Sscanf(string(r.Value), "%d", &i)
					if !check(t, !seen[i] && r.Offset == next[r.Partition], "consumer %d: record %d at %d/%d, %d is next", c, i, r.Partition, r.Offset, next[r.Partition]) {
						return
					}
					seen[i] = true
					next[r.Partition]++
					count++
				}
			}
		}()
	}
	for i := range n {
		producer.Produce(context.Background(), &kgo.Record{Topic: "t", Value: fmt.Appendf(nil, "%d", i)}, func(_ *kgo.Record, err error) {
			check(t, err == nil, "produce: %v", err)
		})
	}
	require.NoError(t, producer.Flush(context.Background()))
	wg.Wait()
}

// check is an assertion for goroutines other than the test's own, which must not call FailNow.
func check(t *testing.T, ok bool, format string, args ...any) bool {
	if !ok {
		t.Errorf(format, args...)
	}
	return ok
}
