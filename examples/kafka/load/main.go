// Command load produces to or consumes from any Kafka server as fast as it can, and prints how fast that was. compare.sh
// uses it on this server and on a real broker, many.sh on a server of many partitions.
//
//	go run ./load -server 127.0.0.1:9092 -topic t -produce -clients 8
//	go run ./load -server 127.0.0.1:9092 -topic t -clients 8
//	go run ./load -server 127.0.0.1:9092 -topic m -produce -clients 8 -partitions 1000 -spread -buffered 125 -linger 0
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

type options struct {
	server, topic string
	partitions    int
	clients       int
	bytes, size   int64
	spread        bool
	buffered      int
	linger        time.Duration
	waits         [][]time.Duration // by client, until a record was acknowledged
}

func main() {
	var o options
	produce := flag.Bool("produce", false, "produce to a new topic, instead of consuming from one")
	flag.StringVar(&o.server, "server", "127.0.0.1:9092", "`host:port`")
	flag.StringVar(&o.topic, "topic", "load", "`name` of the topic")
	flag.IntVar(&o.partitions, "partitions", 8, "of the topic to create")
	flag.IntVar(&o.clients, "clients", 1, "producers that share the work, or consumers that each read all of it")
	flag.Int64Var(&o.bytes, "bytes", 1<<30, "values to produce, or to consume by each client, in bytes")
	flag.Int64Var(&o.size, "size", 1024, "bytes of a value")
	exists := flag.Bool("exists", false, "produce to a topic that there is")
	flag.BoolVar(&o.spread, "spread", false, "produce each record to the next partition")
	flag.IntVar(&o.buffered, "buffered", 50_000, "records of a producer that are not acknowledged yet, at most")
	flag.DurationVar(&o.linger, "linger", 5*time.Millisecond, "how long a producer waits for more records before it sends")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "load produces to or consumes from a Kafka server as fast as it can, and prints how fast that was.\n\n"+
			"  go run ./load -server 127.0.0.1:9092 -topic t -produce -clients 8\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if o.bytes%(o.size*int64(o.clients)) != 0 {
		fail(fmt.Errorf("%d bytes are no whole number of records of %d for each of %d clients", o.bytes, o.size, o.clients))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	work, total := o.consume, o.bytes*int64(o.clients)
	if *produce {
		if !*exists {
			if err := o.createTopic(ctx); err != nil {
				fail(err)
			}
		}
		work, total = o.produce, o.bytes
		o.waits = make([][]time.Duration, o.clients)
	}
	began := time.Now()
	if err := o.all(ctx, work); err != nil {
		fail(err)
	}
	took := time.Since(began).Seconds()
	fmt.Printf("%.0f MB/s, %.2f s", float64(total)/took/1e6, took)
	if waits := slices.Sorted(slices.Values(slices.Concat(o.waits...))); len(waits) > 0 {
		at := func(share int) time.Duration { return waits[(len(waits)-1)*share/100].Round(10 * time.Microsecond) }
		fmt.Printf(", %.0f records/s, acknowledged after p50 %v p99 %v", float64(len(waits))/took, at(50), at(99))
	}
	fmt.Println()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

func (o *options) createTopic(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(o.server))
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = kadm.NewClient(cl).CreateTopic(ctx, int32(o.partitions), 1, nil, o.topic)
	return err
}

// all runs the clients side by side.
func (o *options) all(ctx context.Context, work func(ctx context.Context, client int) error) error {
	errs := make([]error, o.clients)
	var wg sync.WaitGroup
	for i := range o.clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = work(ctx, i)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// produce sends this client's share and waits until it is acknowledged.
func (o *options) produce(ctx context.Context, client int) error {
	opts := []kgo.Opt{kgo.SeedBrokers(o.server), kgo.DefaultProduceTopic(o.topic), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(o.linger), kgo.MaxBufferedRecords(o.buffered)}
	if o.spread {
		opts = append(opts, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	value := make([]byte, o.size)
	seed := rand.New(rand.NewPCG(uint64(client), 0))
	for i := 0; i+8 <= len(value); i += 8 {
		binary.LittleEndian.PutUint64(value[i:], seed.Uint64())
	}
	var failed atomic.Pointer[error]
	waits := make([]time.Duration, o.bytes/o.size/int64(o.clients))
	o.waits[client] = waits
	for i := range waits {
		began := time.Now()
		cl.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			waits[i] = time.Since(began)
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// consume reads until it has had every byte.
func (o *options) consume(ctx context.Context, client int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(o.server), kgo.ConsumeTopics(o.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for left := o.bytes; left > 0; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("client %d, %d bytes to go: %w", client, left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { left -= int64(len(r.Value)) })
	}
	return nil
}
