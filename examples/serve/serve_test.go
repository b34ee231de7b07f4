package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// start serves a log of 40 MiB.
func start(t *testing.T, change func(*server)) (*server, string) {
	l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	require.NoError(t, err)
	for range 40 {
		_, err := l.Append(seglog.Record{Value: make([]byte, 1<<20)})
		require.NoError(t, err)
	}
	s := newServer(l, false)
	s.live.out = io.Discard
	if change != nil {
		change(s)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- s.accept(listener) }()
	t.Cleanup(func() {
		listener.Close()
		require.ErrorIs(t, <-done, net.ErrClosed)
		require.NoError(t, l.Close())
	})
	return s, listener.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func ask(t *testing.T, c net.Conn, offset, most int64) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(offset))
	binary.BigEndian.PutUint64(b[8:], uint64(most))
	_, err := c.Write(b[:])
	require.NoError(t, err)
}

func answer(t *testing.T, c net.Conn) (length, second int64) {
	var b [16]byte
	_, err := io.ReadFull(c, b[:])
	require.NoError(t, err)
	return int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint64(b[8:]))
}

// TestRequests checks that every request gets an answer of bounded size.
func TestRequests(t *testing.T) {
	_, addr := start(t, nil)
	c := dial(t, addr)
	for _, most := range []int64{math.MaxInt64, math.MinInt64, -1, 0, 1, 5 << 20} {
		ask(t, c, 0, most)
		length, end := answer(t, c)
		require.EqualValues(t, 40, end)
		require.Positive(t, length)
		require.LessOrEqual(t, length, max(min(most, mostBytes), 1<<20+100), "at most the limit, or one batch")
		_, err := io.CopyN(io.Discard, c, length)
		require.NoError(t, err)
	}
	for _, offset := range []int64{-1, math.MinInt64} {
		ask(t, c, offset, 1)
		length, start := answer(t, c)
		require.EqualValues(t, -1, length)
		require.Zero(t, start)
	}
	ask(t, c, 40, 1) // at the end there are no records
	length, end := answer(t, c)
	require.Zero(t, length)
	require.EqualValues(t, 40, end)
}

// TestSlowClients checks that a client loses its connection if it sends no request or half of one, or does not read its answers.
func TestSlowClients(t *testing.T) {
	s, addr := start(t, func(s *server) { s.patience = 300 * time.Millisecond })
	for name, sent := range map[string]int{"silent": 0, "half a request": 7} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, addr)
			_, err := c.Write(make([]byte, sent))
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, c)
			require.Zero(t, n)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		})
	}
	t.Run("does not read", func(t *testing.T) {
		c := dial(t, addr)
		for range 12 { // more than the buffers of two sockets hold
			ask(t, c, 0, 1<<20)
		}
		answer(t, c)
		require.Eventually(t, func() bool { return s.conns.Load() == 0 }, 30*time.Second, time.Millisecond)
	})
}

func TestConnectionLimit(t *testing.T) {
	s, addr := start(t, func(s *server) { s.mostConns = 2 })
	first := dial(t, addr)
	for _, c := range []net.Conn{first, dial(t, addr)} {
		ask(t, c, 0, 1)
		answer(t, c)
	}
	n, err := dial(t, addr).Read(make([]byte, 1))
	require.Zero(t, n)
	require.Error(t, err)
	first.Close()
	require.Eventually(t, func() bool { return s.conns.Load() == 1 }, 20*time.Second, time.Millisecond)
	c := dial(t, addr)
	ask(t, c, 0, 1)
	answer(t, c)
}

// TestKilledClient checks that the server does not report a client that leaves, even in the middle of an answer.
func TestKilledClient(t *testing.T) {
	var out bytes.Buffer
	s, addr := start(t, func(s *server) { s.live = &live{out: &out} })
	c := dial(t, addr)
	ask(t, c, 0, mostBytes)
	answer(t, c)
	c.(*net.TCPConn).SetLinger(0) // reset the connection, as the kernel does for a killed process with unread bytes
	c.Close()
	require.Eventually(t, func() bool { return s.conns.Load() == 0 }, 20*time.Second, time.Millisecond)
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	require.Empty(t, out.String())
	require.True(t, hasLeft(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}))
	require.False(t, hasLeft(&net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}), "a slow client has not left")
	require.False(t, hasLeft(io.ErrShortWrite))
}

// TestProgress checks that a terminal shows one line that changes, and that a file gets separate lines.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	l := &live{out: &out}
	l.show("one %d", 1)
	l.say("news")
	l.show("two")
	require.Equal(t, "one 1\nnews\ntwo\n", out.String())
	out.Reset()
	l.terminal = true
	l.show("one")
	l.show("two")
	l.say("news")
	require.Equal(t, "\r\x1b[Kone\r\x1b[Ktwo\nnews\n", out.String())
}
