package seglog_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// connected returns both ends of a connection.
func connected(t testing.TB, network string) (here, there net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "socket")
	}
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	defer ln.Close()
	here, err = net.Dial(network, ln.Addr().String())
	require.NoError(t, err)
	there, err = ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// countingConn embeds a connection and overrides Write, as a service does that measures or throttles its traffic.
type countingConn struct {
	*net.TCPConn
	wrote int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.wrote += int64(n)
	return n, err
}

// encrypted makes a TLS connection out of a connection.
func encrypted(t testing.TB, here, there net.Conn) (client, server *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server = tls.Server(there, &tls.Config{Certificates: []tls.Certificate{cert}})
	client = tls.Client(here, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	require.NoError(t, client.Handshake())
	require.NoError(t, <-done)
	return client, server
}

// transferLog returns a log with batches of many sizes in several segments, its directory and its batches.
func transferLog(t testing.TB, o *seglog.Options) (l *seglog.Log, dir string, all []stored) {
	t.Helper()
	dir = t.TempDir()
	l = open(t, dir, o)
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	for n := 0; n < 400; {
		var records []seglog.Record
		for range 1 + rng.IntN(5) {
			records = append(records, seglog.Record{Value: value(n)})
			n++
		}
		records[0].Key = bytes.Repeat([]byte{'k'}, rng.IntN(600))
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	return l, dir, storedBatches(t, dir)
}

func readTo(c io.Reader, n int64) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return b, err
}

// TransferTo must send the same whole batches over every kind of connection, and bypass user space only where nothing else
// handles the bytes.
func TestTransferToSendsWholeBatches(t *testing.T) {
	l, _, all := transferLog(t, &seglog.Options{SegmentBytes: 16 << 10, IndexBytes: 512})
	end := l.Offsets().End
	type way struct {
		conn     func(t *testing.T) (here, there net.Conn)
		zeroCopy bool
	}
	ways := map[string]way{
		"tcp":  {func(t *testing.T) (net.Conn, net.Conn) { return connected(t, "tcp") }, runtime.GOOS == "linux"},
		"unix": {func(t *testing.T) (net.Conn, net.Conn) { return connected(t, "unix") }, runtime.GOOS == "linux"},
		"wrapper": {func(t *testing.T) (net.Conn, net.Conn) {
			here, there := connected(t, "tcp")
			return &countingConn{TCPConn: here.(*net.TCPConn)}, there
		}, false},
		"tls": {func(t *testing.T) (net.Conn, net.Conn) {
			here, there := connected(t, "tcp")
			client, server := encrypted(t, here, there)
			return client, server
		}, false},
		"pipe": {func(*testing.T) (net.Conn, net.Conn) { return net.Pipe() }, false},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			here, there := way.conn(t)
			before := l.Stats()
			var total int64
			for _, offset := range []int64{0, 1, 2, 37, 199, 200, end - 2, end - 1} {
				for _, n := range []int64{math.MinInt64, -1, 0, 1, 100, 500, 5000, 20000, 1 << 20, math.MaxInt64} {
					want, _ := expected(all, offset, n, false)
					got := make(chan []byte, 1)
					go func() {
						b, _ := readTo(there, int64(len(want)))
						got <- b
					}()
					written, err := l.TransferTo(offset, n, here)
					require.NoError(t, err)
					require.EqualValues(t, len(want), written)
					require.True(t, bytes.Equal(want, <-got), "offset %d, n %d", offset, n)
					total += written
				}
			}
			after := l.Stats()
			zeroCopy, copied := after.SentZeroCopy-before.SentZeroCopy, after.SentCopied-before.SentCopied
			if way.zeroCopy {
				require.Equal(t, [2]int64{total, 0}, [2]int64{zeroCopy, copied})
			} else {
				require.Equal(t, [2]int64{0, total}, [2]int64{zeroCopy, copied})
			}
			if c, ok := here.(*countingConn); ok {
				require.Equal(t, total, c.wrote, "some bytes bypassed the wrapper")
			}
			for _, offset := range []int64{-1, end + 1, math.MaxInt64} {
				written, err := l.TransferTo(offset, 1<<20, here)
				require.ErrorIs(t, err, seglog.ErrOutOfRange)
				require.Zero(t, written)
			}
			written, err := l.TransferTo(end, 1<<20, here)
			require.NoError(t, err, "at the end there is nothing to send yet")
			require.Zero(t, written)
		})
	}
}

func TestSection(t *testing.T) {
	l, dir, all := transferLog(t, &seglog.Options{SegmentBytes: 16 << 10, IndexBytes: 512})
	end := l.Offsets().End
	for offset := int64(0); offset < end; {
		for _, n := range []int64{-1, 0, 1, 700, 9000, math.MaxInt64} {
			s, err := l.Section(offset, n)
			require.NoError(t, err)
			want, next := expected(all, offset, n, true)
			require.EqualValues(t, len(want), s.Len())
			require.Equal(t, next, s.Next())
			require.LessOrEqual(t, s.Base(), offset)
			var got bytes.Buffer
			sent, err := s.WriteTo(&got)
			require.NoError(t, err)
			require.EqualValues(t, len(want), sent)
			require.True(t, bytes.Equal(want, got.Bytes()))
			again, err := s.WriteTo(&got)
			require.NoError(t, err)
			require.Zero(t, again, "a second WriteTo must send nothing")
			require.NoError(t, s.Close())
			require.NoError(t, s.Close())
			_, err = s.WriteTo(&got)
			require.ErrorIs(t, err, seglog.ErrClosed)
			if n == math.MaxInt64 {
				offset = next // whole segments, one after another
			}
		}
	}
	// The destination may also be an *os.File that is a pipe.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	s, err := l.Section(0, math.MaxInt64)
	require.NoError(t, err)
	want, _ := expected(all, 0, math.MaxInt64, true)
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r)
		got <- b
	}()
	sent, err := s.WriteTo(w)
	require.NoError(t, err)
	require.EqualValues(t, len(want), sent)
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(want, <-got))
	require.NoError(t, s.Close())
	require.NoError(t, l.Close())
	requireReleased(t, dir)
}

// A section must keep its bytes, whatever happens to the log.
func TestSectionKeepsItsBytes(t *testing.T) {
	changes := map[string]func(l *seglog.Log) error{
		"delete":   func(l *seglog.Log) error { return l.DeleteBefore(l.Offsets().End) },
		"truncate": func(l *seglog.Log) error { return l.TruncateTo(1) },
		"reset":    func(l *seglog.Log) error { return l.Reset(1 << 40) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			l, dir, all := transferLog(t, &seglog.Options{SegmentBytes: 16 << 10})
			end := l.Offsets().End
			var sections []*seglog.Section
			var want [][]byte
			for _, offset := range []int64{0, 5, 150, end - 1} {
				s, err := l.Section(offset, math.MaxInt64)
				require.NoError(t, err)
				sections = append(sections, s)
				b, _ := expected(all, offset, math.MaxInt64, true)
				want = append(want, b)
			}
			require.NoError(t, change(l))
			for range 300 {
				_, err := l.Append(seglog.Record{Value: bytes.Repeat([]byte{'n'}, 100)})
				require.NoError(t, err)
			}
			for i, s := range sections {
				var got bytes.Buffer
				_, err := s.WriteTo(&got)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want[i], got.Bytes()))
				require.NoError(t, s.Close())
			}
			require.NoError(t, l.Close())
			requireReleased(t, dir)
		})
	}
}

// Bytes that a socket has accepted must not change, even if the sending log is closed and the log is then cut before the peer
// reads them.
func TestCutBehindAClosedLog(t *testing.T) {
	for name, sender := range map[string]func(t *testing.T, l *seglog.Log, dir string) *seglog.Log{
		"reopened": func(t *testing.T, l *seglog.Log, dir string) *seglog.Log { return l },
		"read-only": func(t *testing.T, l *seglog.Log, dir string) *seglog.Log {
			return open(t, dir, &seglog.Options{ReadOnly: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := &seglog.Options{Flush: seglog.FlushNone}
			l := open(t, dir, o)
			for i := range 200 {
				_, err := l.Append(seglog.Record{Value: bytes.Repeat([]byte{byte(i + 1)}, 1000)})
				require.NoError(t, err)
			}
			here, there := connected(t, "tcp")
			from := sender(t, l, dir)
			sent, err := from.TransferTo(0, 100_000, here)
			require.NoError(t, err)
			require.NoError(t, here.Close())
			require.NoError(t, from.Close())
			if from == l {
				l = open(t, dir, o)
			}
			require.NoError(t, l.TruncateTo(5))
			_, err = l.Append(seglog.Record{Value: make([]byte, 50_000)})
			require.NoError(t, err)
			got, err := io.ReadAll(there)
			require.NoError(t, err)
			require.Len(t, got, int(sent))
			n := 0
			for r, err := range seglog.Decode(bytes.NewReader(got)) {
				require.NoError(t, err, "record %d", n)
				require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(n + 1)}, 1000), r.Value), "record %d of %d bytes", n, len(r.Value))
				n++
			}
			require.Greater(t, n, 80)
			require.NoError(t, l.Close())
		})
	}
}

// stamped returns a value that contains its offset and the generation of the log, which each TruncateTo increases.
func stamped(offset, generation int64) []byte {
	s := fmt.Sprintf("%d/%d ", offset, generation)
	return []byte(s + strings.Repeat(s, int(offset*7%40)))
}

// Transfers over 64 connections from 64 offsets must send whole, consecutive batches while one goroutine appends, rolls,
// deletes and truncates.
func TestTransferToConcurrently(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 32 << 10, IndexBytes: 512})
	var generation atomic.Int64
	fill := func(n int) {
		for range n {
			at, g := l.Offsets().End, generation.Load()
			base, err := l.Append(seglog.Record{Value: stamped(at, g)}, seglog.Record{Value: stamped(at+1, g)})
			if err != nil || base != at {
				panic(fmt.Sprint(base, at, err))
			}
		}
	}
	fill(2000)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var sent, transfers atomic.Int64
	for i := range 64 {
		here, there := connected(t, "tcp")
		wg.Add(2)
		go func() { // the sending side
			defer wg.Done()
			defer here.Close()
			rng := mathrand.New(mathrand.NewPCG(uint64(i), 3))
			for ctx.Err() == nil {
				o := l.Offsets()
				if o.Start == o.HighWatermark {
					continue
				}
				offset := o.Start + (o.HighWatermark-o.Start)*int64(i)/64
				s, err := l.Section(offset, rng.Int64N(50000))
				if err != nil {
					if !isRange(err) {
						panic(err)
					}
					continue
				}
				if _, err := fmt.Fprintf(here, "%20d", s.Len()); err != nil {
					panic(err)
				}
				if n, err := s.WriteTo(here); err != nil || n != s.Len() {
					panic(fmt.Sprint(n, err))
				}
				sent.Add(s.Len())
				transfers.Add(1)
				s.Close()
				time.Sleep(time.Millisecond) // so that the writer does not starve
			}
		}()
		go func() { // the receiving side
			defer wg.Done()
			for {
				head, err := readTo(there, 20)
				if err != nil {
					return
				}
				var n int64
				fmt.Sscan(string(head), &n)
				left := &io.LimitedReader{R: there, N: n}
				next := int64(-1)
				for r, err := range seglog.Decode(left) {
					if err != nil {
						panic(err)
					}
					if next >= 0 && r.Offset != next {
						panic(fmt.Sprint("offset ", r.Offset, " after ", next-1))
					}
					next = r.Offset + 1
					var g int64
					if _, err := fmt.Sscanf(string(r.Value), fmt.Sprintf("%d/%%d ", r.Offset), &g); err != nil || !bytes.Equal(r.Value, stamped(r.Offset, g)) {
						panic(fmt.Sprintf("record %d holds %q", r.Offset, r.Value))
					}
				}
				if left.N != 0 {
					panic(fmt.Sprint("bytes left: ", left.N))
				}
			}
		}()
	}
	rng := mathrand.New(mathrand.NewPCG(9, 9))
	rounds := 20
	if race.On {
		rounds = 8
	}
	for range rounds {
		fill(150)
		o := l.Offsets()
		if rng.IntN(2) == 0 {
			require.NoError(t, l.DeleteBefore(o.Start+(o.End-o.Start)/8))
		} else {
			generation.Add(1)
			require.NoError(t, l.TruncateTo(o.End-rng.Int64N((o.End-o.Start)/8)))
		}
	}
	cancel()
	wg.Wait()
	require.NoError(t, l.Close())
	requireReleased(t, dir)
	require.Greater(t, transfers.Load(), int64(64))
	t.Logf("%d transfers, %d bytes", transfers.Load(), sent.Load())
}
