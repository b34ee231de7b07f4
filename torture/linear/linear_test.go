package linear

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

var (
	runFor  = flag.Duration("for", 2*time.Second, "how long to make histories under each flush policy")
	runSeed = flag.Uint64("seed", 0, "seed of the first history; 0 takes one from the clock")
)

// histories makes many small histories of calls on one log.
type histories struct {
	t     *testing.T
	l     *seglog.Log
	ids   atomic.Uint32
	clock atomic.Int64
}

// client makes calls, and notes when each began and ended.
type client struct {
	h   *histories
	id  int
	rng *rand.Rand
	ops []porcupine.Operation
}

func (h *histories) record(id uint32, rng *rand.Rand) seglog.Record {
	return seglog.Record{Value: append(binary.BigEndian.AppendUint32(nil, id), make([]byte, rng.IntN(1200))...)}
}

// do makes one call. It reports an error that the model does not know as a failure of the test.
func (c *client) do(in call) {
	l := c.h.l
	recs := make([]seglog.Record, in.count)
	for i := range recs {
		recs[i] = c.h.record(in.id+uint32(i), c.rng)
	}
	var out result
	var err error
	begun := c.h.clock.Add(1)
	switch in.kind {
	case doAppend:
		out.base, err = l.Append(recs...)
	case doAppendAt:
		out.base, err = in.offset, l.AppendAt(in.offset, recs...)
	case doRead:
		var r seglog.Record
		if r, err = l.Read(in.offset); err == nil {
			out.id = binary.BigEndian.Uint32(r.Value)
		}
	case doOffsets:
		o := l.Offsets()
		out.start, out.readable, out.end = o.Start, o.HighWatermark, o.End
		if o.RecoveryPoint < o.Start || o.RecoveryPoint > o.HighWatermark {
			err = fmt.Errorf("offsets out of order: %+v", o)
		}
	case doTruncateTo:
		err = l.TruncateTo(in.offset)
	case doReset:
		err = l.Reset(in.offset)
	case doDeleteBefore:
		err = l.DeleteBefore(in.offset)
	}
	ended := c.h.clock.Add(1)
	out.refused = errors.Is(err, seglog.ErrConflict) || errors.Is(err, seglog.ErrOutOfRange)
	if err != nil && !out.refused {
		c.h.t.Errorf("%s %+v: %v", kindNames[in.kind], in, err)
		return
	}
	c.ops = append(c.ops, porcupine.Operation{ClientId: c.id, Input: in, Call: begun, Output: out, Return: ended})
	if (in.kind == doAppend || in.kind == doAppendAt) && !out.refused {
		ack := call{kind: doAck, offset: out.base, id: in.id, count: in.count}
		c.ops = append(c.ops, porcupine.Operation{ClientId: c.id, Input: ack, Call: c.h.clock.Add(1), Output: result{}, Return: c.h.clock.Add(1)})
	}
}

// step makes a random call, mostly near the current start or end of the log.
func (c *client) step() {
	o := c.h.l.Offsets()
	near := func(offset int64) int64 { return max(0, offset+c.rng.Int64N(5)-3) }
	in := call{}
	switch n := c.rng.IntN(20); {
	case n < 5:
		in.kind = doAppend
	case n < 8:
		in.kind, in.offset = doAppendAt, near(o.End+1)
	case n < 13:
		in.kind, in.offset = doRead, near(o.End)
	case n < 16:
		in.kind = doOffsets
	case n < 18:
		in.kind, in.offset = doTruncateTo, near(o.End)
	case n < 19:
		in.kind, in.offset = doDeleteBefore, near(o.Start+3)
	default:
		in.kind, in.offset = doReset, c.rng.Int64N(10)
	}
	if in.kind == doAppend || in.kind == doAppendAt {
		in.count = 1 + c.rng.Int64N(2)
		in.id = c.h.ids.Add(uint32(in.count)) - uint32(in.count) // no two records have the same number, so that one at the same offset after a cut shows
	}
	c.do(in)
}

// one makes a history of several clients, on a log that is empty at first.
func (h *histories) one(seed uint64) []porcupine.Operation {
	rng := rand.New(rand.NewPCG(seed, 1))
	first := &client{h: h, rng: rng}
	first.do(call{kind: doReset})
	clients := make([]*client, 2+rng.IntN(4))
	calls := 2 + rng.IntN(7)
	var group sync.WaitGroup
	for i := range clients {
		clients[i] = &client{h: h, id: i + 1, rng: rand.New(rand.NewPCG(seed, uint64(i+2)))}
		group.Add(1)
		go func() {
			defer group.Done()
			for range calls {
				clients[i].step()
			}
		}()
	}
	group.Wait()
	first.do(call{kind: doOffsets})
	ops := first.ops
	for _, c := range clients {
		ops = append(ops, c.ops...)
	}
	return ops
}

// show returns a history as text, in the order in which the calls began.
func show(m porcupine.Model, ops []porcupine.Operation) string {
	sort.Slice(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, "%d to %d, client %d: %s\n", op.Call, op.Return, op.ClientId, m.DescribeOperation(op.Input, op.Output))
	}
	return b.String()
}

func TestLinearizable(t *testing.T) {
	for _, policy := range []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			o := seglog.Options{Flush: policy, SegmentBytes: 8192}
			if policy == seglog.FlushAsync {
				o.FlushInterval, o.FlushBytes = time.Millisecond, 4000
			}
			dir, m := t.TempDir(), model(policy != seglog.FlushSync)
			l, err := seglog.Open(dir, &o)
			require.NoError(t, err)
			h := &histories{t: t, l: l}
			seed := *runSeed
			if seed == 0 {
				seed = uint64(time.Now().UnixNano())
			}
			count, calls, unknown := 0, 0, 0
			for until := time.Now().Add(*runFor); time.Now().Before(until) && !t.Failed(); count++ {
				ops := h.one(seed + uint64(count))
				calls += len(ops)
				switch porcupine.CheckOperationsTimeout(m, ops, 10*time.Second) {
				case porcupine.Illegal:
					t.Errorf("no order of these calls explains what they returned (seed %d):\n%s", seed+uint64(count), show(m, ops))
				case porcupine.Unknown:
					unknown++
				}
				if count%50 == 49 {
					require.NoError(t, h.l.Close())
					h.l, err = seglog.Open(dir, &o)
					require.NoError(t, err)
				}
			}
			require.NoError(t, h.l.Close())
			require.LessOrEqual(t, unknown, count/10, "too many histories took too long to check")
			t.Logf("%d histories of %d calls; %d took too long to check", count, calls, unknown)
		})
	}
}

// TestWrongHistories checks the checker: it must refuse each wrong history, and accept the corresponding right one.
func TestWrongHistories(t *testing.T) {
	type op struct {
		c    call
		r    result
		from int64
		to   int64
	}
	history := func(ops []op) (out []porcupine.Operation) {
		for i, o := range ops {
			if o.to == 0 {
				o.from, o.to = int64(10*i), int64(10*i+5)
			}
			out = append(out, porcupine.Operation{ClientId: i, Input: o.c, Call: o.from, Output: o.r, Return: o.to})
		}
		return out
	}
	appended := func(base int64, id uint32) op {
		return op{c: call{kind: doAppend, id: id, count: 1}, r: result{base: base}}
	}
	acked := func(base int64, id uint32) op { return op{c: call{kind: doAck, offset: base, id: id, count: 1}} }
	read := func(offset int64, id uint32) op { return op{c: call{kind: doRead, offset: offset}, r: result{id: id}} }
	missing := func(offset int64) op { return op{c: call{kind: doRead, offset: offset}, r: result{refused: true}} }
	offsets := func(start, readable, end int64) op {
		return op{c: call{kind: doOffsets}, r: result{start: start, readable: readable, end: end}}
	}
	cut := func(offset int64) op { return op{c: call{kind: doTruncateTo, offset: offset}} }
	at := func(from, to int64, o op) op { o.from, o.to = from, to; return o }
	deleted := op{c: call{kind: doDeleteBefore, offset: 1}}
	conflict := op{c: call{kind: doAppendAt, offset: 1, id: 9, count: 1}, r: result{refused: true}}
	two := []op{appended(0, 1), acked(0, 1), appended(1, 2), acked(1, 2)}
	for _, c := range []struct {
		what         string
		right, wrong []op
	}{
		{"an offset assigned twice", two, []op{appended(0, 1), appended(0, 2)}},
		{"an acknowledged record lost", append(two[:4:4], read(1, 2)), append(two[:4:4], missing(1))},
		{"the record of another offset", append(two[:4:4], read(1, 2)), append(two[:4:4], read(1, 1))},
		{"a record that a cut removed", append(two[:4:4], cut(1), missing(1)), append(two[:4:4], cut(1), read(1, 2))},
		{"a deleted record", append(two[:4:4], deleted, missing(0)), append(two[:4:4], deleted, read(0, 1))},
		{"a start that goes back", append(two[:4:4], deleted, offsets(1, 2, 2)), append(two[:4:4], deleted, offsets(0, 2, 2))},
		{"an end that goes back", append(two[:4:4], offsets(0, 2, 2)), append(two[:4:4], offsets(0, 1, 1))},
		{"bounds of two moments", append(two[:4:4], deleted, appended(2, 3), offsets(1, 2, 3)),
			[]op{at(0, 1, two[0]), at(2, 3, two[1]), at(4, 5, two[2]), at(6, 7, two[3]), at(10, 11, deleted), at(12, 13, appended(2, 3)), at(8, 20, offsets(0, 2, 3))}},
		{"a conflict without a reason", append(two[:4:4], conflict), append(two[:2:2], conflict)},
		{"readable, then not", []op{at(0, 50, appended(0, 1)), at(1, 2, missing(0)), at(3, 4, read(0, 1))},
			[]op{at(0, 50, appended(0, 1)), at(1, 2, read(0, 1)), at(3, 4, missing(0))}},
	} {
		require.True(t, porcupine.CheckOperations(model(false), history(c.right)), "the right history: %s", c.what)
		require.False(t, porcupine.CheckOperations(model(false), history(c.wrong)), "not seen: %s", c.what)
	}
}
