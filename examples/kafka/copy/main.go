// Command copy copies topics from one Kafka server to another, say from this one to a cluster, and goes on with what
// is produced meanwhile: keys, values, headers, times and partitions stay as they are. Offsets are the destination's own.
//
//	go run ./copy -from 127.0.0.1:9092 -to broker1:9092,broker2:9092 -topics orders,events
//
// How far it got it commits at the source, as the offsets of a consumer group, after the destination has acknowledged. A
// copier that is started again goes on from there; what was copied after the last commit is copied again, once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// options are the command line.
type options struct {
	from, to    []string
	topics      []string
	group       string
	replication int16
	toEnd       bool
}

func main() {
	var o options
	from := flag.String("from", "127.0.0.1:9092", "`servers` to copy from, host:port,..")
	to := flag.String("to", "", "`servers` to copy to")
	topics := flag.String("topics", "", "`names` of the topics, comma-separated")
	replication := flag.Int("replication", -1, "replication factor of topics to create; -1: the destination's default")
	flag.StringVar(&o.group, "group", "copy", "consumer `group` that remembers, at the source, what has been copied")
	flag.BoolVar(&o.toEnd, "to-end", false, "stop when all that was there at the start is copied, instead of following")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "copy copies topics from one Kafka server to another, and goes on with what is produced meanwhile.\n\n"+
			"  go run ./copy -from 127.0.0.1:9092 -to broker1:9092 -topics orders,events\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.from, o.to, o.topics, o.replication = strings.Split(*from, ","), strings.Split(*to, ","), strings.Split(*topics, ","), int16(*replication)
	if *to == "" || *topics == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	n, err := run(ctx, o)
	slog.Info("copied", "records", n)
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "copy:", err)
		os.Exit(1)
	}
}

// run copies until ctx ends or, with toEnd, all is copied.
func run(ctx context.Context, o options) (copied int64, err error) {
	source, err := kgo.NewClient(kgo.SeedBrokers(o.from...), kgo.ConsumerGroup(o.group), kgo.ConsumeTopics(o.topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())
	if err != nil {
		return 0, err
	}
	defer source.CloseAllowingRebalance()
	// The partition is the record's own: whoever relied on keys sharing a partition, and on order in it, still can.
	dest, err := kgo.NewClient(kgo.SeedBrokers(o.to...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.ProducerBatchMaxBytes(1<<20))
	if err != nil {
		return 0, err
	}
	defer dest.Close()
	if err := createTopics(ctx, kadm.NewClient(source), kadm.NewClient(dest), o); err != nil {
		return 0, err
	}
	left, err := remaining(ctx, kadm.NewClient(source), o)
	if err != nil {
		return 0, err
	}
	for !o.toEnd || len(left) > 0 {
		fetches := source.PollRecords(ctx, 10_000)
		if err := ctx.Err(); err != nil {
			return copied, err
		}
		for _, e := range fetches.Errors() {
			return copied, fmt.Errorf("%s/%d: %w", e.Topic, e.Partition, e.Err)
		}
		n, err := produce(ctx, dest, fetches)
		copied += n
		if err != nil {
			return copied, err
		}
		if err := source.CommitUncommittedOffsets(ctx); err != nil {
			return copied, fmt.Errorf("committing at the source: %w", err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			at := partition{p.Topic, p.Partition}
			if n := len(p.Records); n > 0 && p.Records[n-1].Offset+1 >= left[at] {
				delete(left, at)
			}
		})
		source.AllowRebalance()
	}
	return copied, nil
}

// produce hands the records on and waits until all are acknowledged.
func produce(ctx context.Context, dest *kgo.Client, fetches kgo.Fetches) (int64, error) {
	var acknowledged atomic.Int64
	var failed atomic.Pointer[error]
	fetches.EachRecord(func(r *kgo.Record) {
		// A record of its own: the client writes offset and producer into the one it is given.
		dest.Produce(ctx, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value, Headers: r.Headers},
			func(_ *kgo.Record, err error) {
				if err != nil {
					err = fmt.Errorf("%s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
					failed.CompareAndSwap(nil, &err)
					return
				}
				acknowledged.Add(1)
			})
	})
	if err := dest.Flush(ctx); err != nil {
		return acknowledged.Load(), err
	}
	if err := failed.Load(); err != nil {
		return acknowledged.Load(), *err
	}
	return acknowledged.Load(), nil
}

// createTopics makes the topics that the destination lacks, with as many partitions as at the source.
func createTopics(ctx context.Context, source, dest *kadm.Client, o options) error {
	details, err := source.ListTopics(ctx, o.topics...)
	if err != nil {
		return fmt.Errorf("topics at the source: %w", err)
	}
	for _, t := range details.Sorted() {
		if t.Err != nil {
			return fmt.Errorf("topic %s at the source: %w", t.Topic, t.Err)
		}
		resp, err := dest.CreateTopic(ctx, int32(len(t.Partitions)), o.replication, nil, t.Topic)
		switch {
		case errors.Is(err, kerr.TopicAlreadyExists):
		case err != nil:
			return fmt.Errorf("creating topic %s: %w %s", t.Topic, err, resp.ErrMessage)
		default:
			slog.Info("created", "topic", t.Topic, "partitions", len(t.Partitions))
		}
	}
	return awaitTopics(ctx, dest, details)
}

// awaitTopics returns once the destination has all partitions. A topic just created takes a moment to be known.
func awaitTopics(ctx context.Context, dest *kadm.Client, want kadm.TopicDetails) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got, err := dest.ListTopics(ctx, want.Names()...)
		if err != nil {
			return fmt.Errorf("topics at the destination: %w", err)
		}
		short := ""
		for _, t := range want.Sorted() {
			if n := len(got[t.Topic].Partitions); n < len(t.Partitions) {
				short = fmt.Sprintf("topic %s has %d partitions at the source and %d at the destination", t.Topic, len(t.Partitions), n)
			}
		}
		if short == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New(short)
		}
	}
}

type partition struct {
	topic string
	index int32
}

// remaining is the end of each partition that is not copied up to it.
func remaining(ctx context.Context, source *kadm.Client, o options) (map[partition]int64, error) {
	ends, err := source.ListEndOffsets(ctx, o.topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ends at the source: %w", err)
	}
	starts, err := source.ListStartOffsets(ctx, o.topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("starts at the source: %w", err)
	}
	committed, err := source.FetchOffsets(ctx, o.group)
	if err != nil {
		return nil, fmt.Errorf("what group %s has copied: %w", o.group, err)
	}
	left := map[partition]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		at := int64(-1)
		if start, ok := starts.Lookup(end.Topic, end.Partition); ok {
			at = start.Offset
		}
		if c, ok := committed.Lookup(end.Topic, end.Partition); ok {
			at = max(at, c.At)
		}
		if at < end.Offset {
			left[partition{end.Topic, end.Partition}] = end.Offset
		}
	})
	return left, nil
}
