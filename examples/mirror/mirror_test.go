package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// newLog returns a log with records from an offset on.
func newLog(t *testing.T, from int64, values ...string) *seglog.Log {
	l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	if from > 0 {
		require.NoError(t, l.Reset(from))
	}
	for _, v := range values {
		_, err := l.Append(seglog.Record{Value: []byte(v), Time: time.UnixMilli(1)})
		require.NoError(t, err)
	}
	return l
}

// reply returns a leader's reply to one request.
func reply(length, second int64, body []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(length))
	return append(binary.BigEndian.AppendUint64(b, uint64(second)), body...)
}

// batches returns the batches of a log from an offset on.
func batches(t *testing.T, l *seglog.Log, from int64) []byte {
	s, err := l.Section(from, 1<<20)
	require.NoError(t, err)
	defer s.Close()
	var b bytes.Buffer
	_, err = s.WriteTo(&b)
	require.NoError(t, err)
	return b.Bytes()
}

// lead answers the requests of each connection with the replies in turn, repeats the last one, and sends the requested offsets
// to asked.
func lead(t *testing.T, replies ...[]byte) (addr string, asked chan int64) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	asked = make(chan int64, 1000)
	done := make(chan struct{})
	t.Cleanup(func() { listener.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			for i := 0; ; i++ {
				var b [16]byte
				if _, err := io.ReadFull(c, b[:]); err != nil {
					break
				}
				select {
				case asked <- int64(binary.BigEndian.Uint64(b[:])):
				default:
				}
				if _, err := c.Write(replies[min(i, len(replies)-1)]); err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	return listener.Addr().String(), asked
}

func follow(t *testing.T, copied *seglog.Log, reset bool, addr string) (said string, err error) {
	f := newFollower(copied, true, reset)
	var out bytes.Buffer
	f.live = &live{out: &out}
	f.patience = time.Second
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = f.follow(ctx, addr)
	return out.String(), err
}

func values(t *testing.T, l *seglog.Log) (vs []string) {
	for r, err := range l.Records(l.Offsets().Start) {
		require.NoError(t, err)
		vs = append(vs, fmt.Sprintf("%d%s", r.Offset, r.Value))
	}
	return vs
}

func TestLyingLeaders(t *testing.T) {
	have := newLog(t, 0, "a", "b", "c")
	same := batches(t, have, 0)
	other := batches(t, newLog(t, 0, "x", "y", "z"), 2)
	for name, c := range map[string]struct {
		replies [][]byte
		err     error
	}{
		"a length not asked for":     {[][]byte{reply(1<<40, 3, same)}, errLies},
		"a little more than allowed": {[][]byte{reply(mostBatch+1, 3, same)}, errLies},
		"a negative length":          {[][]byte{reply(-2, 3, nil)}, errLies},
		"a negative end":             {[][]byte{reply(0, -1, nil)}, errLies},
		"an end without records":     {[][]byte{reply(0, 1<<60, nil)}, errLies},
		"out of range, although not": {[][]byte{reply(-1, 0, nil)}, errLies},
		"another history":            {[][]byte{reply(int64(len(other)), 3, other)}, errDiverged},
		"a log that begins later":    {[][]byte{reply(-1, 100, nil)}, errShorter},
		"a log that ends earlier":    {[][]byte{reply(0, 1, nil)}, errShorter},
		"an empty log":               {[][]byte{reply(0, 0, nil)}, errShorter},
		"garbage":                    {[][]byte{reply(1000, 3, make([]byte, 1000))}, seglog.ErrCorrupt},
		"silence":                    {[][]byte{nil}, os.ErrDeadlineExceeded},
		"half an answer":             {[][]byte{{0, 0, 0}}, os.ErrDeadlineExceeded},
		"half a body":                {[][]byte{reply(int64(len(same))+100, 3, same)}, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			copied := newLog(t, 0, "a", "b", "c")
			addr, _ := lead(t, c.replies...)
			if name == "half a body" {
				copied = newLog(t, 0)
			}
			before := values(t, copied)
			f := newFollower(copied, false, false)
			f.live, f.patience = &live{out: io.Discard}, 300*time.Millisecond
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			err := f.follow(ctx, addr)
			require.ErrorIs(t, err, c.err)
			require.Subset(t, values(t, copied), before, "the copy must keep its records")
		})
	}
}

// TestResets checks that, with -reset, records that the leader no longer has are removed from the copy, and that the output
// says so.
func TestResets(t *testing.T) {
	later := batches(t, newLog(t, 100, "later"), 100)
	copied := newLog(t, 0, "a", "b", "c")
	addr, asked := lead(t, reply(-1, 100, nil), reply(int64(len(later)), 101, later))
	said, err := follow(t, copied, true, addr)
	require.ErrorIs(t, err, errCaughtUp)
	require.Equal(t, []string{"100later"}, values(t, copied))
	require.Contains(t, said, "the leader's retention has deleted what comes next, its log begins at offset 100")
	require.EqualValues(t, 2, <-asked)
	require.EqualValues(t, 100, <-asked)

	copied = newLog(t, 0, "a", "b", "c")
	addr, _ = lead(t, reply(0, 1, nil))
	said, err = follow(t, copied, true, addr)
	require.ErrorIs(t, err, errCaughtUp)
	require.Equal(t, []string{"0a"}, values(t, copied))
	require.Contains(t, said, "was cut to offset 1")

	empty := newLog(t, 0)
	addr, _ = lead(t, reply(-1, 100, nil), reply(int64(len(later)), 101, later))
	_, err = follow(t, empty, false, addr)
	require.ErrorIs(t, err, errCaughtUp, "an empty copy has nothing to lose")
	require.Equal(t, []string{"100later"}, values(t, empty))
}

// TestContinuesAfterABrokenConnection checks that the follower continues after a broken connection from the end of its copy.
func TestContinuesAfterABrokenConnection(t *testing.T) {
	leader := newLog(t, 0, "a", "b", "c")
	first := batches(t, leader, 0)
	// The first connection ends within the second batch; the next ones get the rest.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for i := 0; ; i++ {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			var b [16]byte
			if _, err := io.ReadFull(c, b[:]); err == nil && i == 0 {
				c.Write(reply(int64(len(first)), 3, first[:len(first)/2]))
			} else if err == nil {
				rest := batches(t, leader, int64(binary.BigEndian.Uint64(b[:])))
				c.Write(reply(int64(len(rest)), 3, rest))
			}
			c.Close()
		}
	}()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, mirror(ctx, listener.Addr().String(), dir, true, false))
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	require.NoError(t, err)
	defer l.Close()
	require.Equal(t, []string{"0a", "1b", "2c"}, values(t, l))
}

// TestGapBetweenSegments checks that the follower gets over a gap between two segments of its leader: each answer has batches
// of one segment, so no answer has both sides of the gap.
func TestGapBetweenSegments(t *testing.T) {
	below, above := newLog(t, 0, "a", "b"), newLog(t, 10, "c", "d")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			for {
				var b [16]byte
				if _, err := io.ReadFull(c, b[:]); err != nil {
					break
				}
				offset, segment := int64(binary.BigEndian.Uint64(b[:])), below
				if offset >= 2 {
					offset, segment = max(offset, 10), above
				}
				answer := batches(t, segment, offset)
				if _, err := c.Write(reply(int64(len(answer)), 12, answer)); err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, mirror(ctx, listener.Addr().String(), dir, true, false))
	require.NoError(t, ctx.Err())
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	require.NoError(t, err)
	defer l.Close()
	require.Equal(t, []string{"0a", "1b", "10c", "11d"}, values(t, l))
}
