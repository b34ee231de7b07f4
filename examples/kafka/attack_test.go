package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAttack runs hundreds of hostile clients: they send requests with random contents, damaged requests and noise, stop in
// the middle, do not read, and leave. Afterwards they must have left no resources behind, and the server must still work.
func TestAttack(t *testing.T) {
	b := &broker{t: t, cfg: Config{Dir: t.TempDir(), Limits: Limits{Conns: 200, Partitions: 20, Groups: 20, Patience: 2 * time.Second}}, addr: "127.0.0.1:0"}
	b.start() // without a logger, since there would be a line for each attack
	t.Cleanup(b.stop)
	require.NoError(t, b.server.topics.create("t", 2, nil, false))
	p, err := b.server.topics.partition("t", 0)
	require.NoError(t, err)
	for range 20 {
		_, err := p.append(encodeBatch(-1, -1, -1, make([]string, 10_000)...))
		require.NoError(t, err)
	}
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	var wg sync.WaitGroup
	for client := range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(uint64(client), 7))
			for range rounds {
				attack(r, b.addr)
			}
		}()
	}
	wg.Wait()
	eventually(t, func() bool { return b.connections() == 0 }, func() string { return "connections are left" })
	eventually(t, func() bool { return goroutinesOfClients() == 0 }, func() string { return "goroutines are left" })
	require.True(t, b.server.inFlight.TryAcquire(b.server.cfg.Limits.InFlightBytes), "memory of requests must be released")
	b.server.inFlight.Release(b.server.cfg.Limits.InFlightBytes)
	require.LessOrEqual(t, len(b.server.groups.all()), 20)
	require.Less(t, heapInUse(), int64(300<<20))
	resp := dial(t, b.addr).request(fetchRequest(0, 1<<20, 1)).(*kmsg.FetchResponse)
	require.Zero(t, resp.Topics[0].Partitions[0].ErrorCode)
	require.NotEmpty(t, resp.Topics[0].Partitions[0].RecordBatches)
}

// goroutinesOfClients returns the number of goroutines for clients. Goroutines of logs do not count, since topics that clients
// created stay.
func goroutinesOfClients() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte(".(*Server).serveConn(")) + bytes.Count(stacks, []byte(".(*conn).watch"))
}

// attack makes one hostile connection.
func attack(r *rand.Rand, addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	for range 1 + r.IntN(5) {
		frame := hostileFrame(r)
		if r.IntN(4) == 0 {
			frame = frame[:r.IntN(len(frame)+1)] // the rest never comes
		}
		if _, err := c.Write(frame); err != nil {
			return
		}
		if r.IntN(3) > 0 {
			c.SetReadDeadline(time.Now().Add(time.Duration(r.IntN(20)) * time.Millisecond))
			io.CopyN(io.Discard, c, int64(r.IntN(100_000)))
		}
	}
	if r.IntN(2) == 0 {
		c.(*net.TCPConn).SetLinger(0) // reset
	}
}

func hostileFrame(r *rand.Rand) []byte {
	if r.IntN(10) == 0 {
		b := make([]byte, 4+r.IntN(2000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	keys := []int16{}
	for key := range apis {
		keys = append(keys, key)
	}
	key := keys[r.IntN(len(keys))]
	api := apis[key]
	req := kmsg.RequestForKey(key)
	fill(reflect.ValueOf(req).Elem(), r)
	req.SetVersion(api.min + int16(r.IntN(int(api.max-api.min+1))))
	switch req := req.(type) {
	case *kmsg.FetchRequest:
		*req = *fetchRequest(int64(r.IntN(3)), 1<<20, 1+r.IntN(50))
		req.MinBytes = int32(r.IntN(2)) << 30
	case *kmsg.JoinGroupRequest:
		req.MemberID, req.InstanceID = "", nil
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(r.IntN(500)), int32(r.IntN(2000))
	case *kmsg.ProduceRequest:
		for i := range req.Topics {
			req.Topics[i].Topic = "t"
		}
	case *kmsg.ListOffsetsRequest:
		for i := range req.Topics {
			req.Topics[i].Topic = "t"
		}
	}
	b := kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)
	for range r.IntN(4) { // mostly after the key, since a wrong key is noticed at once
		b[4+r.IntN(len(b)-4)] ^= 1 << r.IntN(8)
	}
	if r.IntN(10) == 0 {
		binary.BigEndian.PutUint32(b, r.Uint32N(200<<20))
	}
	return b
}
