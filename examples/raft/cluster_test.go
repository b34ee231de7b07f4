package main

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

var rounds = flag.Int("rounds", 4, "rounds of TestCluster")

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == nodeArgument {
		if err := runNode(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// faults lists the faults of which each round has one. All servers work before and after it; hold is its duration.
var faults = []struct {
	name string
	do   func(t *testing.T, c *cluster, hold time.Duration)
}{
	{"kill the leader", func(t *testing.T, c *cluster, hold time.Duration) { killSome(t, c, hold, c.leader()) }},
	{"kill a follower", func(t *testing.T, c *cluster, hold time.Duration) { killSome(t, c, hold, c.follower()) }},
	{"kill the leader and a follower", func(t *testing.T, c *cluster, hold time.Duration) { killSome(t, c, hold, c.leader(), c.follower()) }},
	{"kill all", func(t *testing.T, c *cluster, hold time.Duration) { killSome(t, c, hold, c.running()...) }},
	{"kill the leader, and again as it starts", func(t *testing.T, c *cluster, hold time.Duration) {
		leader := c.leader()
		killSome(t, c, hold/4, leader)
		time.Sleep(hold / 8)
		killSome(t, c, hold/4, leader)
	}},
	{"isolate the leader", func(t *testing.T, c *cluster, hold time.Duration) { c.net.isolate(c.leader()); time.Sleep(hold) }},
	{"isolate a follower", func(t *testing.T, c *cluster, hold time.Duration) { c.net.isolate(c.follower()); time.Sleep(hold) }},
	{"the leader is not heard", func(t *testing.T, c *cluster, hold time.Duration) { c.net.cutOneWay(c.leader()); time.Sleep(hold) }},
	{"a follower is not heard", func(t *testing.T, c *cluster, hold time.Duration) { c.net.cutOneWay(c.follower()); time.Sleep(hold) }},
	{"isolate the leader, and kill it", func(t *testing.T, c *cluster, hold time.Duration) {
		leader := c.leader()
		c.net.isolate(leader)
		time.Sleep(hold / 2)
		killSome(t, c, hold/2, leader)
	}},
	{"isolate everyone", func(t *testing.T, c *cluster, hold time.Duration) {
		for _, id := range c.running() {
			c.net.cutOneWay(id)
		}
		time.Sleep(hold)
	}},
}

func killSome(t *testing.T, c *cluster, hold time.Duration, ids ...string) {
	for _, id := range ids {
		if id != "" {
			c.kill(id)
		}
	}
	time.Sleep(hold)
	for _, id := range ids {
		if id != "" && !slices.Contains(c.running(), id) {
			require.NoError(t, c.start(id))
		}
	}
}

// TestCluster lets clients append and read while servers are killed and isolated. After each round, it checks that no
// acknowledged record is lost, duplicated or moved, that the logs are equal, and that the history is linearizable.
func TestCluster(t *testing.T) {
	n := *rounds
	if testing.Short() {
		n = min(n, 1)
	}
	dir := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	ids := []string{"n1", "n2", "n3"}
	c, err := newCluster(dir, 200, func(string, ...any) {}, ids...)
	require.NoError(t, err)
	defer c.stop()
	defer func() {
		if t.Failed() {
			tellLogs(t, dir)
		}
	}()
	for _, id := range ids {
		require.NoError(t, c.start(id, ids...))
	}
	_, err = c.awaitLeader()
	require.NoError(t, err)
	cs := newClients(c, time.Millisecond)
	var state view
	calls := 0
	for round := range n {
		fault := faults[(round+int(seed%uint64(len(faults))))%len(faults)]
		begin := time.Now()
		cs.run(8)
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
		fault.do(t, c, time.Duration(r.IntN(1200))*time.Millisecond)
		c.net.heal()
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		_, err := c.awaitLeader()
		require.NoError(t, err, fault.name)
		history, err := cs.halt()
		require.NoError(t, err, fault.name)
		picture := filepath.Join(os.TempDir(), fmt.Sprintf("seglog-raft-history-%d.html", seed))
		require.NoError(t, checkLinearizable(state, history, picture), "round %d, %s", round, fault.name)
		state, err = cs.checkLogs()
		require.NoError(t, err, "round %d, %s", round, fault.name)
		calls += len(history)
		t.Logf("round %d, %s: %d calls, %d records, %v", round+1, fault.name, len(history), state.End, time.Since(begin).Round(time.Millisecond))
	}
	t.Logf("%d rounds, %d calls, %d attempts repeated, %d appends acknowledged", n, calls, cs.failing.Load(), cs.total())
	require.Equal(t, int64(cs.total()), state.End)
}

// tellLogs logs the end of the servers' logs.
func tellLogs(t *testing.T, dir string) {
	for _, name := range []string{"raft.log", "stderr"} {
		paths, _ := filepath.Glob(filepath.Join(dir, "*", name))
		for _, path := range paths {
			text, _ := os.ReadFile(path)
			t.Logf("the end of %s:\n%s", path, text[max(0, len(text)-5000):])
		}
	}
}

// TestCheckLinearizable checks that histories that no single log can have are found, and drawn.
func TestCheckLinearizable(t *testing.T) {
	op := func(client int, begin, end int64, c call, r reply) porcupine.Operation {
		return porcupine.Operation{ClientId: client, Input: c, Output: r, Call: begin, Return: end}
	}
	push := func(client int, begin, end int64, value string, offset int64) porcupine.Operation {
		return op(client, begin, end, call{true, value}, reply{Offset: offset})
	}
	read := func(client int, begin, end int64, last string, length int64) porcupine.Operation {
		return op(client, begin, end, call{}, reply{view: view{length, last}})
	}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		good    bool
	}{
		"one after the other":      {[]porcupine.Operation{push(0, 0, 1, "a", 10), read(0, 2, 3, "a", 11), push(0, 4, 5, "b", 11)}, true},
		"side by side":             {[]porcupine.Operation{push(0, 0, 9, "a", 11), push(1, 1, 8, "b", 10), read(2, 2, 7, "b", 11)}, true},
		"a stale read":             {[]porcupine.Operation{push(0, 0, 1, "a", 10), read(1, 2, 3, "z", 10)}, false},
		"a read of the future":     {[]porcupine.Operation{read(1, 0, 1, "a", 11), push(0, 2, 3, "a", 10)}, false},
		"an offset twice":          {[]porcupine.Operation{push(0, 0, 9, "a", 10), push(1, 0, 9, "b", 10)}, false},
		"a lost append":            {[]porcupine.Operation{push(0, 0, 1, "a", 10), push(1, 2, 3, "b", 10)}, false},
		"two orders of two values": {[]porcupine.Operation{push(0, 0, 9, "a", 10), push(1, 0, 9, "b", 11), read(2, 1, 2, "b", 11)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			picture := filepath.Join(t.TempDir(), "picture.html")
			err := checkLinearizable(view{10, "z"}, c.history, picture)
			if c.good {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, picture)
			text, err := os.ReadFile(picture)
			require.NoError(t, err)
			require.Contains(t, string(text), "append")
		})
	}
}

// sink keeps a snapshot in memory.
type sink struct{ io.Writer }

func (sink) Close() error  { return nil }
func (sink) ID() string    { return "" }
func (sink) Cancel() error { return nil }

// TestReplica checks that a repeated append takes effect once, even after a snapshot was restored elsewhere.
func TestReplica(t *testing.T) {
	a, err := newReplica(filepath.Join(t.TempDir(), "a"))
	require.NoError(t, err)
	defer a.log.Close()
	apply := func(r *replica, index uint64, client string, number uint64) any {
		return r.Apply(&raft.Log{Index: index, Data: command{client, number, fmt.Appendf(nil, "%s-%d", client, number)}.encode()})
	}
	require.Equal(t, int64(0), apply(a, 1, "x", 1))
	require.Equal(t, int64(1), apply(a, 2, "y", 1))
	require.Equal(t, int64(0), apply(a, 3, "x", 1))
	require.Equal(t, int64(2), apply(a, 4, "x", 2))
	require.Error(t, apply(a, 5, "x", 1).(error))
	require.Error(t, a.Apply(&raft.Log{Index: 6, Data: []byte{200}}).(error))

	taken, err := a.Snapshot()
	require.NoError(t, err)
	require.Equal(t, int64(3), apply(a, 7, "y", 2)) // not in the snapshot
	r, w := io.Pipe()
	go func() { w.CloseWithError(taken.Persist(sink{w})) }()
	b, err := newReplica(filepath.Join(t.TempDir(), "b"))
	require.NoError(t, err)
	defer b.log.Close()
	require.Equal(t, int64(0), apply(b, 1, "z", 1)) // replaced by the snapshot
	require.NoError(t, b.Restore(r))
	taken.Release()
	require.Equal(t, view{3, "x-2"}, b.view())
	require.Equal(t, uint64(6), b.applied)
	require.Equal(t, int64(3), apply(b, 7, "y", 2))
	require.Equal(t, a.view(), b.view())
	left, err := filepath.Glob(filepath.Join(a.dir, "snapshot*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestNetwork checks that no bytes pass a path that is cut, that connections on it do not fail, and that they break once it is
// healed.
func TestNetwork(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	n, err := newNetwork("a", "b", "c")
	require.NoError(t, err)
	n.started("b", echo.Addr().String(), echo.Addr().String())
	p := n.paths[[2]string{"a", "b"}]
	passes := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.raft.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	before := dial()
	require.NoError(t, passes(before))
	n.isolate("c", "b")
	n.isolate("c", "b")
	during := dial()
	require.ErrorIs(t, passes(before), os.ErrDeadlineExceeded)
	require.ErrorIs(t, passes(during), os.ErrDeadlineExceeded)
	n.heal()
	n.heal()
	require.NoError(t, passes(dial()))
	for _, c := range []net.Conn{before, during} {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadFull(c, make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	n.cutOneWay("c")
	require.NoError(t, passes(dial()))
}

// TestKilledBeforeASnapshot checks that servers that were all killed before the first snapshot still know each other when they
// restart.
func TestKilledBeforeASnapshot(t *testing.T) {
	dir := t.TempDir()
	ids := []string{"n1", "n2", "n3"}
	c, err := newCluster(dir, 1<<20, func(string, ...any) {}, ids...)
	require.NoError(t, err)
	defer c.stop()
	for _, id := range ids {
		require.NoError(t, c.start(id, ids...))
	}
	_, err = c.awaitLeader()
	require.NoError(t, err)
	cs := newClients(c, time.Millisecond)
	cs.run(2)
	time.Sleep(200 * time.Millisecond)
	_, err = cs.halt()
	require.NoError(t, err)
	killSome(t, c, 0, c.running()...)
	_, err = c.awaitLeader()
	require.NoError(t, err)
}
