package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What a server may hold that nobody asks anything of: so much for each partition, and so much beside.
const (
	idleGoroutines   = 0
	restDescriptors  = 2 // of a log at rest
	readDescriptors  = 3 // of a log at rest that was read in the last twenty seconds, also by its retention
	workDescriptors  = 4
	besideGoroutines = 30
	besideFiles      = 60
)

// holds counts the goroutines and descriptors of the process.
func holds() (goroutines, descriptors int) {
	open, _ := os.ReadDir("/proc/self/fd") // none where there is no such directory
	return runtime.NumGoroutine(), len(open)
}

// TestThousandPartitions checks that one process serves 1,000 partitions: all are written to, read, and there after a restart,
// and a server to which nobody talks holds no goroutine for them and few descriptors.
func TestThousandPartitions(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 1,000 logs")
	}
	const n, rounds = 1000, 3
	if limits, err := os.ReadFile("/proc/self/limits"); err == nil {
		var files int
		_, line, _ := strings.Cut(string(limits), "Max open files")
		if fmt.Sscan(line, &files); files < workDescriptors*n+1000 {
			t.Skipf("the process may open %d files", files)
		}
	}
	b := startBroker(t, Config{Defaults: map[string]string{"flush.messages": "1"}})
	idle := func(when string, each int) {
		eventually(t, func() bool {
			goroutines, descriptors := holds()
			return goroutines <= idleGoroutines*n+besideGoroutines && descriptors <= each*n+besideFiles
		}, func() string {
			goroutines, descriptors := holds()
			return fmt.Sprintf("%s: %d goroutines and %d descriptors", when, goroutines, descriptors)
		})
	}
	value := func(partition int32, round int64) string { return fmt.Sprintf("%d of partition %d", round, partition) }
	produce := func(round int64) {
		cl := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()))
		defer cl.Close()
		var rs []*kgo.Record
		for p := range int32(n) {
			rs = append(rs, &kgo.Record{Topic: "t", Partition: p, Value: []byte(value(p, round))})
		}
		require.NoError(t, cl.ProduceSync(context.Background(), rs...).FirstErr())
	}
	consumed := func(rounds int) {
		cl := b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		defer cl.Close()
		for _, r := range consume(t, cl, rounds*n) {
			require.Equal(t, value(r.Partition, r.Offset), string(r.Value))
		}
	}

	b.createTopic("t", n, nil)
	idle("created", restDescriptors)
	for round := range int64(rounds) {
		produce(round)
	}
	consumed(rounds)
	idle("produced and consumed", readDescriptors)
	b.restart()
	idle("restarted", readDescriptors)
	consumed(rounds)
	produce(rounds)
	consumed(rounds + 1)
	idle("in use again", readDescriptors)
}
