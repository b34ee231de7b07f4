package seglog_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// followOptions returns the options that leader and follower must share for their files to be equal.
func followOptions(p seglog.FlushPolicy) *seglog.Options {
	return &seglog.Options{Flush: p, SegmentBytes: 32 << 10, IndexBytes: 1024}
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// leaderStream returns a stream as of a leader with a long history, from offset 100 on: plain, compressed, control and empty
// batches, and gaps. No two batches have the same records.
func leaderStream(n int) (stream []byte, next int64) {
	rng := rand.New(rand.NewPCG(4, 4))
	next = 100
	for i := range n {
		ms := 1700000000000 + int64(i*10-rng.IntN(50))
		b := rawBatch{base: next, epoch: int32(i / 100), baseTime: ms, maxTime: ms + 5}
		for k := range 1 + rng.IntN(4) {
			b.body = append(b.body, rawRecord(int64(k), int64(k%6), fmt.Appendf(nil, "%d %d %s", i, k, bytes.Repeat([]byte{'z'}, rng.IntN(300))))...)
			b.count, b.lastDelta = k+1, k
		}
		switch i % 10 {
		case 3, 4:
			b.attributes, b.body = 1, gzipped(b.body)
		case 5: // a compaction removed the first records and the last one
			b.body, b.count, b.lastDelta = rawRecord(2, 0, []byte("survivor")), 1, 9
		case 6: // a compaction removed all records
			b.body, b.count, b.lastDelta = nil, 0, 3
		case 7:
			b.attributes, b.count, b.lastDelta = 0x30, 1, 0
			b.body = rawRecord(0, 0, []byte{0, 0, 0, 0, 0, 0})
		case 8: // a compaction removed whole batches
			b.base += int64(rng.IntN(1000))
		}
		stream = append(stream, b.bytes()...)
		next = b.base + int64(b.lastDelta) + 1
	}
	return stream, next
}

func newLeader(t testing.TB, batches int) (l *seglog.Log, dir string) {
	t.Helper()
	dir = t.TempDir()
	l = open(t, dir, followOptions(seglog.FlushNone))
	stream, next := leaderStream(batches)
	n, err := l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.EqualValues(t, len(stream), n)
	require.Equal(t, seglog.Offsets{Start: 100, RecoveryPoint: l.Offsets().RecoveryPoint, HighWatermark: next, End: next}, l.Offsets())
	for i := range batches {
		_, err := l.Append(seglog.Record{Value: value(i)}, seglog.Record{Key: []byte("k")})
		require.NoError(t, err)
	}
	return l, dir
}

// slowConn sends in small pieces that are not aligned with batches.
type slowConn struct{ net.Conn }

// slowlySent counts the bytes that all slowConns have sent.
var slowlySent atomic.Int64

func (c slowConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = c.Conn.Write(p[n:min(len(p), n+300+n%101)])
		n += k
		slowlySent.Add(int64(k))
		time.Sleep(10 * time.Microsecond)
	}
	return n, err
}

// serveFrom serves l: each connection asks for an offset and gets all batches from there on.
func serveFrom(t testing.TB, l *seglog.Log, slow bool) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if slow {
					c = slowConn{c}
				}
				var at int64
				if _, err := fmt.Fscanln(c, &at); err == nil {
					l.TransferTo(at, math.MaxInt64, c)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// catchUp makes one connection as a follower. It asks for one offset less than it needs, since the leader may have a gap at
// its end, which TransferFrom accepts only after a batch that it knows.
func catchUp(l *seglog.Log, address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	o := l.Offsets()
	if o.End == o.Start {
		o.End = 101
	}
	if _, err := fmt.Fprintln(c, o.End-1); err != nil {
		return err
	}
	_, err = l.TransferFrom(c, -1)
	return err
}

func killedFollower(args []string) error {
	l, err := seglog.Open(args[0], followOptions(seglog.FlushNone))
	if err != nil {
		return err
	}
	report("at %d", l.Offsets().End)
	if err := catchUp(l, args[1]); err != nil {
		return err
	}
	report("done")
	return l.Close()
}

// A follower that is killed a hundred times while it catches up must end with the same files as its leader.
func TestFollowerKilled(t *testing.T) {
	l, dir := newLeader(t, 3000)
	address := serveFrom(t, l, true)
	follower := t.TempDir()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	deaths := 100
	if race.On {
		deaths = 25
	}
	size := l.Stats().Bytes
	var ends []string // the end of the follower's log after each kill
	for range deaths {
		sent := slowlySent.Load()
		c := startChild(t, "follow", follower, address)
		require.True(t, c.lines.Scan(), "the child died")
		ends = append(ends, c.lines.Text())
		// Let it receive its share of the bytes, and a little more, so that the kill hits the middle of a batch.
		want := sent + size/int64(deaths)
		for start := time.Now(); slowlySent.Load() < want && time.Since(start) < 200*time.Millisecond; {
			time.Sleep(20 * time.Microsecond)
		}
		time.Sleep(time.Duration(rng.IntN(500)) * time.Microsecond)
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
	slices.Sort(ends)
	require.Greater(t, len(slices.Compact(ends)), deaths/2, "most kills came before any progress: %q", ends)
	f := open(t, follower, followOptions(seglog.FlushNone))
	require.NoError(t, catchUp(f, address))
	require.Equal(t, l.Offsets().End, f.Offsets().End)
	require.Equal(t, l.Offsets().Start, f.Offsets().Start)
	require.NoError(t, f.Close())
	require.NoError(t, l.Close())
	sameFiles(t, dir, follower)
}

// A follower that receives its leader's batches in sections of any size, with restarts in between, must end with the same
// files.
func TestFollowerInPieces(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			l, dir := newLeader(t, 300)
			follower := t.TempDir()
			f := open(t, follower, followOptions(p))
			rng := rand.New(rand.NewPCG(1, 1))
			var sum int64
			for f.Offsets().End < l.Offsets().End {
				o := f.Offsets()
				at := max(o.End-1, 100)
				s, err := l.Section(at, rng.Int64N(10000))
				require.NoError(t, err)
				var b bytes.Buffer
				_, err = s.WriteTo(&b)
				require.NoError(t, err)
				if o.End == s.Next() { // the follower has this batch, so ask for more than one
					require.NoError(t, s.Close())
					s, err = l.Section(at, 20000)
					require.NoError(t, err)
					b.Reset()
					_, err = s.WriteTo(&b)
					require.NoError(t, err)
				}
				n := int64(b.Len())
				b.WriteString("what follows on the connection")
				read, err := f.TransferFrom(&b, n)
				require.NoError(t, err)
				require.Equal(t, n, read)
				require.Equal(t, "what follows on the connection", b.String(), "read past n bytes")
				require.Equal(t, s.Next(), f.Offsets().End)
				sum += read
				require.NoError(t, s.Close())
				if o.End == f.Offsets().End { // the last batch of a segment; the next segment begins after a gap
					s, err := l.Section(f.Offsets().End, 1)
					require.NoError(t, err)
					require.NoError(t, s.Close())
					require.NoError(t, catchUp(f, serveFrom(t, l, false)))
				}
				if rng.IntN(5) == 0 {
					require.NoError(t, f.Close())
					f = open(t, follower, followOptions(p))
				}
			}
			require.NoError(t, l.Close())
			require.NoError(t, f.Close())
			sameFiles(t, dir, follower)
			l, f = open(t, dir, followOptions(p)), open(t, follower, followOptions(p))
			requireEqualRecords(t, l, f)
		})
	}
}

func requireEqualRecords(t *testing.T, a, b *seglog.Log) {
	t.Helper()
	var want []seglog.Record
	for r, err := range a.Records(a.Offsets().Start) {
		require.NoError(t, err)
		want = append(want, r.Clone())
	}
	require.NotEmpty(t, want)
	i := 0
	for r, err := range b.Records(b.Offsets().Start) {
		require.NoError(t, err)
		require.Equal(t, want[i], r.Clone())
		i++
	}
	require.Len(t, want, i)
}

// A stream that breaks off or is damaged at any byte must leave the follower with the whole batches before that byte.
func TestTransferFromTornAndDamaged(t *testing.T) {
	f := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	var ends []int64
	stream := func() (b []byte) {
		ends = ends[:0]
		at := f.Offsets().End
		for i := range int64(3) {
			b = append(b, plainBatch(at+2*i, fmt.Sprint("first of ", at+2*i), "second")...)
			ends = append(ends, int64(len(b)))
		}
		return b
	}
	wholeBelow := func(n int64) (bytes, records int64) {
		for i, e := range ends {
			if e <= n {
				bytes, records = e, int64(2*i+2)
			}
		}
		return bytes, records
	}
	size := int64(len(stream()))
	for cut := int64(0); cut <= size; cut++ {
		before, all := f.Offsets().End, stream()
		read, err := f.TransferFrom(bytes.NewReader(all[:min(cut, int64(len(all)))]), -1)
		whole, records := wholeBelow(cut)
		require.Equal(t, whole, read)
		if cut == whole {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, seglog.ErrCorrupt)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}
		require.Equal(t, before+records, f.Offsets().End)
		if before == 0 && records == 0 {
			continue // an empty log has nothing to compare with
		}
		// Send the whole stream; the follower has a part of it already.
		read, err = f.TransferFrom(bytes.NewReader(all), -1)
		require.NoError(t, err)
		require.EqualValues(t, len(all), read)
		require.Equal(t, before+6, f.Offsets().End)
	}
	for at := range size {
		before, spoilt := f.Offsets().End, stream()
		whole, records := wholeBelow(at)
		if at-whole < 16 {
			continue // base offset, length and epoch lie outside the CRC
		}
		spoilt[at] ^= 0x10
		read, err := f.TransferFrom(bytes.NewReader(spoilt), -1)
		require.ErrorIs(t, err, seglog.ErrCorrupt, "byte %d", at)
		require.Equal(t, whole, read)
		require.Equal(t, before+records, f.Offsets().End)
	}
	for r, err := range f.Records(0) {
		require.NoError(t, err)
		if r.Offset%2 == 0 {
			require.Equal(t, fmt.Sprint("first of ", r.Offset), string(r.Value))
		}
	}
}

// TransferFrom must refuse batches that do not continue the log or that differ from those that it has, and name both offsets.
func TestTransferFromThatDoesNotJoin(t *testing.T) {
	for _, p := range policies {
		f := open(t, t.TempDir(), &seglog.Options{Flush: p})
		read, err := f.TransferFrom(bytes.NewReader(append(plainBatch(50, "a", "b"), plainBatch(52, "c")...)), -1)
		require.NoError(t, err)
		require.Positive(t, read)
		want := f.Offsets()
		require.EqualValues(t, 53, want.End)
		refused := map[string][]byte{
			"a gap at first":   plainBatch(54, "x"),
			"far ahead":        plainBatch(1000, "x"),
			"into the last":    plainBatch(52, "c", "d"),
			"another batch":    plainBatch(52, "X"),
			"other borders":    plainBatch(51, "b", "c"),
			"below the start":  plainBatch(48, "x"),
			"across the start": plainBatch(49, "x", "a", "b"),
		}
		for name, b := range refused {
			read, err := f.TransferFrom(bytes.NewReader(b), -1)
			require.ErrorIs(t, err, seglog.ErrNotJoined, name)
			require.Zero(t, read, name)
			require.Regexp(t, `\b(4[89]|5[0-4]|1000)\b.*\b5[0-4]\b`, err.Error(), name)
			require.Equal(t, want.End, f.Offsets().End, name)
		}
		err = nil
		for r, e := range f.Records(50) {
			require.NoError(t, e)
			require.Equal(t, string("abc"[r.Offset-50]), string(r.Value))
		}
		read, err = f.TransferFrom(bytes.NewReader(plainBatch(53, "d")), -1)
		require.NoError(t, err)
		require.Positive(t, read)
	}
}

// A cut beside a TransferFrom must not become a gap: the rest of the stream does not continue the log then.
func TestTransferFromBesideACut(t *testing.T) {
	for name, cut := range map[string]func(l *seglog.Log) error{
		"cut":        func(l *seglog.Log) error { return l.TruncateTo(5) },
		"cut to 0":   func(l *seglog.Log) error { return l.TruncateTo(0) },
		"reset":      func(l *seglog.Log) error { return l.Reset(0) },
		"reset to 7": func(l *seglog.Log) error { return l.Reset(7) },
	} {
		t.Run(name, func(t *testing.T) {
			var stream []byte
			for o := range int64(10) {
				stream = append(stream, plainBatch(o, "value")...)
			}
			l := open(t, t.TempDir(), nil)
			in, out := io.Pipe()
			done := make(chan error, 1)
			go func() { _, err := l.TransferFrom(in, -1); done <- err }()
			_, err := out.Write(stream)
			require.NoError(t, err)
			eventually(t, "the stream is stored", func() bool { return l.Offsets().HighWatermark == 10 })
			require.NoError(t, cut(l))
			was := l.Offsets()
			go func() {
				out.Write(append(plainBatch(10, "value"), plainBatch(11, "value")...))
				out.Close()
			}()
			require.ErrorIs(t, <-done, seglog.ErrNotJoined)
			in.Close()
			require.Equal(t, was, l.Offsets())
			require.NoError(t, l.Close())
		})
	}
}

// A record that a Reset has passed was never durable, and nobody may wait for it any longer.
func TestWaitDurableBesideAReset(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	appendN(t, l, 0, 5)
	errs := make(chan error, 3)
	waiting := func(offset int64) { errs <- l.WaitDurable(context.Background(), offset) }
	go waiting(7)
	go waiting(seglog.Newest)
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, l.Reset(10))
	for range 2 {
		var gone *seglog.OffsetError
		require.ErrorAs(t, <-errs, &gone)
	}
	l2 := open(t, t.TempDir(), nil)
	go func() { errs <- l2.WaitDurable(context.Background(), seglog.Oldest) }()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, l2.Reset(10))
	select {
	case err := <-errs:
		require.Fail(t, "there is no record", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_, err := l2.Append(seglog.Record{Value: []byte("first")})
	require.NoError(t, err)
	require.NoError(t, <-errs)
	require.NoError(t, l.Close())
	require.NoError(t, l2.Close())
}
