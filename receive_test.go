package seglog_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// A batch that DeleteBefore deleted in part is still in the log, so TransferFrom must accept it when a leader sends it again.
func TestTransferFromAcrossTheStart(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	stream := append(plainBatch(0, "a", "b", "c"), plainBatch(3, "d", "e", "f")...)
	_, err := l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.DeleteBefore(4))
	// The offsets of the leader have a gap at 6.
	behind := plainBatch(10, "g")
	_, err = l.TransferFrom(bytes.NewReader(append(plainBatch(3, "d", "e", "f"), behind...)), -1)
	require.NoError(t, err)
	require.EqualValues(t, 11, l.Offsets().End)
	for _, other := range [][]byte{plainBatch(3, "d", "e", "x"), plainBatch(2, "c", "d", "e", "f"), plainBatch(0, "a", "b", "c")} {
		_, err := l.TransferFrom(bytes.NewReader(other), -1)
		require.ErrorIs(t, err, seglog.ErrNotJoined)
	}
	// A log that starts with a new segment never had a batch from below its start.
	require.NoError(t, l.Reset(20))
	_, err = l.TransferFrom(bytes.NewReader(plainBatch(20, "a", "b")), -1)
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(plainBatch(19, "x", "a")), -1)
	require.ErrorIs(t, err, seglog.ErrNotJoined)
}

// An emptied log keeps its start, so batches of the leader from below it must be refused.
func TestTransferFromKeepsStart(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	appendN(t, l, 0, 10)
	require.NoError(t, l.DeleteBefore(10))
	want := l.Offsets()
	for _, base := range []int64{0, 5, 9} {
		_, err := l.TransferFrom(bytes.NewReader(plainBatch(base, "a", "b")), -1)
		require.ErrorIs(t, err, seglog.ErrNotJoined)
		require.Contains(t, err.Error(), "10")
		require.Equal(t, want, l.Offsets())
	}
	_, err := l.TransferFrom(bytes.NewReader(plainBatch(15, "a", "b")), -1)
	require.NoError(t, err)
	require.Equal(t, seglog.Offsets{Start: 15, RecoveryPoint: 17, HighWatermark: 17, End: 17}, l.Offsets())
}

// A refused batch must neither change the bounds of the log nor mark it as a log with gaps.
func TestTransferFromRefusesBeforeItMoves(t *testing.T) {
	const last = math.MaxInt64 - math.MaxInt32 // the greatest base offset that passes the checks of the format
	dir := t.TempDir()
	l := open(t, dir, nil)
	_, err := l.TransferFrom(bytes.NewReader(plainBatch(last, "x")), -1)
	require.ErrorIs(t, err, seglog.ErrTooLarge)
	require.Equal(t, seglog.Offsets{}, l.Offsets())
	appendN(t, l, 0, 2)
	_, err = l.TransferFrom(bytes.NewReader(append(plainBatch(2, "v"), plainBatch(last, "x")...)), -1)
	require.ErrorIs(t, err, seglog.ErrTooLarge)
	require.EqualValues(t, 3, l.Offsets().End)
	require.NoError(t, l.Close())
	report, err := seglog.Repair(dir, nil)
	require.NoError(t, err)
	require.True(t, report.Sound())
	require.False(t, report.Gaps)
}

func inEpoch(base int64, epoch int32, values ...string) []byte {
	b := plainBatch(base, values...)
	binary.BigEndian.PutUint32(b[12:], uint32(epoch))
	return b
}

// Leader epochs must never go back in a log, whether the last batch is the log's own or a leader's.
func TestTransferFromEpochs(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	from := func(b []byte) error {
		_, err := l.TransferFrom(bytes.NewReader(b), -1)
		return err
	}
	require.NoError(t, from(append(inEpoch(0, 3, "a"), inEpoch(1, 5, "b")...)))
	check := func() {
		t.Helper()
		end := l.Offsets().End
		for _, epoch := range []int32{0, 4} {
			err := from(inEpoch(end, epoch, "x"))
			require.ErrorIs(t, err, seglog.ErrNotJoined)
			require.ErrorContains(t, err, fmt.Sprintf("epoch %d", epoch))
			require.Equal(t, end, l.Offsets().End)
		}
	}
	check()
	require.NoError(t, l.Close())
	l = open(t, dir, nil)
	check()
	_, err := l.Append(seglog.Record{Value: []byte("own")})
	require.NoError(t, err)
	check()
	require.ErrorIs(t, from(append(inEpoch(3, 7, "c"), inEpoch(4, 6, "x")...)), seglog.ErrNotJoined)
	require.EqualValues(t, 4, l.Offsets().End, "the batch before is stored")
	require.NoError(t, from(inEpoch(4, -1, "no epoch")))
	require.NoError(t, from(inEpoch(5, 0, "after none")))
	require.NoError(t, l.TruncateTo(1))
	require.NoError(t, from(inEpoch(1, 3, "as the batch at 0")))
	require.NoError(t, l.Reset(50))
	require.NoError(t, from(inEpoch(50, 0, "another history")))
	require.NoError(t, from(inEpoch(51, 9, "deleted")))
	require.NoError(t, l.DeleteBefore(52))
	require.NoError(t, from(inEpoch(52, 1, "in an empty log")))
}

// A stream that ends before the announced number of bytes is an error, but no corruption.
func TestTransferFromShortStream(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	b := append(plainBatch(0, "a"), plainBatch(1, "b")...)
	read, err := l.TransferFrom(bytes.NewReader(b), int64(len(b))+1)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorIs(t, err, seglog.ErrCorrupt)
	require.EqualValues(t, len(b), read, "the whole batches are stored")
	require.EqualValues(t, 2, l.Offsets().End)
	_, err = l.TransferFrom(bytes.NewReader(nil), 1)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = l.TransferFrom(bytes.NewReader(nil), 0)
	require.NoError(t, err)
}

// Whole batches must be stored, shown and flushed while the peer stalls, even in the middle of the next batch or after a gap.
func TestTransferFromStalls(t *testing.T) {
	next := plainBatch(11, "next")
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			for name, part := range map[string]int{"between batches": 0, "in a header": 20, "in a record": 70} {
				l := open(t, t.TempDir(), &seglog.Options{Flush: p})
				here, there := net.Pipe()
				done := make(chan error, 1)
				go func() {
					_, err := l.TransferFrom(here, -1)
					done <- err
				}()
				stream := append(plainBatch(0, "a"), plainBatch(10, "after a gap")...)
				_, err := there.Write(append(stream, next[:part]...))
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				require.NoError(t, l.Wait(ctx, 10), name)
				r, err := l.Read(10)
				require.NoError(t, err)
				require.Equal(t, "after a gap", string(r.Value))
				if p == seglog.FlushSync {
					require.EqualValues(t, 11, l.Offsets().RecoveryPoint)
				}
				_, err = there.Write(next[part:])
				require.NoError(t, err)
				require.NoError(t, l.Wait(ctx, 11), name)
				cancel()
				require.NoError(t, there.Close())
				require.NoError(t, <-done)
			}
		})
	}
}

// Decode must yield a batch after a gap at once, without waiting for the next batch to confirm the gap.
func TestDecodeDoesNotWaitBehindGap(t *testing.T) {
	here, there := net.Pipe()
	got := make(chan int64, 2)
	done := make(chan error, 1)
	go func() {
		for r, err := range seglog.Decode(here) {
			if err != nil {
				done <- err
				return
			}
			got <- r.Offset
		}
		done <- nil
	}()
	_, err := there.Write(append(plainBatch(0, "a"), plainBatch(10, "b")...))
	require.NoError(t, err)
	require.EqualValues(t, 0, <-got)
	select {
	case offset := <-got:
		require.EqualValues(t, 10, offset)
	case <-time.After(time.Minute):
		require.Fail(t, "Decode holds back the batch after the gap")
	}
	require.NoError(t, there.Close())
	require.NoError(t, <-done)
}

// throughBuffer reads a connection through a buffer, but can still be interrupted.
type throughBuffer struct {
	*bufio.Reader
	conn net.Conn
}

func (r throughBuffer) SetReadDeadline(at time.Time) error { return r.conn.SetReadDeadline(at) }

// Close must end a TransferFrom that waits for its peer.
func TestTransferFromEndsWithClose(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) io.Reader{
		"connection": func(c net.Conn) io.Reader { return c },
		"buffered":   func(c net.Conn) io.Reader { return throughBuffer{bufio.NewReader(c), c} },
	} {
		l := open(t, t.TempDir(), nil)
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := l.TransferFrom(wrap(here), -1)
			done <- err
		}()
		_, err := there.Write(append(plainBatch(0, "a"), plainBatch(1, "b")[:30]...))
		require.NoError(t, err)
		require.NoError(t, l.Wait(context.Background(), 0))
		require.NoError(t, l.Close())
		require.ErrorIs(t, <-done, seglog.ErrClosed, name)
	}
	// A Read that can't be interrupted may return after Close, but TransferFrom must not store its bytes.
	l := open(t, t.TempDir(), nil)
	here, there := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := l.TransferFrom(here, -1)
		done <- err
	}()
	_, err := there.Write(plainBatch(0, "a"))
	require.NoError(t, err)
	require.NoError(t, l.Wait(context.Background(), 0))
	require.NoError(t, l.Close())
	go there.Write(plainBatch(1, "b")) // in a goroutine because nobody reads this if TransferFrom was not reading when the log was closed
	require.ErrorIs(t, <-done, seglog.ErrClosed)
	require.NoError(t, here.Close())
	require.EqualValues(t, 1, l.Offsets().End)
}

// brokenReader returns some bytes, and then a count that io.Reader forbids or discourages.
type brokenReader struct {
	good []byte
	n    func(p []byte) int
}

func (r *brokenReader) Read(p []byte) (int, error) {
	if len(r.good) > 0 {
		n := copy(p, r.good)
		r.good = r.good[n:]
		return n, nil
	}
	return r.n(p), nil
}

// Counts that io.Reader does not allow must cause an error, not a panic or an endless loop.
func TestReadersThatBreakTheirContract(t *testing.T) {
	for name, c := range map[string]struct {
		n    func(p []byte) int
		want error
	}{
		"negative": {func([]byte) int { return -1 }, seglog.ErrInvalid},
		"too many": {func(p []byte) int { return len(p) + 1 }, seglog.ErrInvalid},
		"nothing":  {func([]byte) int { return 0 }, io.ErrNoProgress},
	} {
		for _, n := range []int64{-1, 1 << 20} {
			l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
			read, err := l.TransferFrom(&brokenReader{good: plainBatch(0, "a"), n: c.n}, n)
			require.ErrorIs(t, err, c.want, name)
			require.EqualValues(t, len(plainBatch(0, "a")), read)
			require.EqualValues(t, 1, l.Offsets().End)
		}
		var got []string
		var err error
		for r, e := range seglog.Decode(&brokenReader{good: plainBatch(0, "a"), n: c.n}) {
			if err = e; e == nil {
				got = append(got, string(r.Value))
			}
		}
		require.ErrorIs(t, err, c.want, name)
		require.Equal(t, []string{"a"}, got)
		seglog.RegisterDecompressor(7, func(r io.Reader) (io.ReadCloser, error) {
			return io.NopCloser(&brokenReader{good: rawRecord(0, 0, nil), n: c.n}), nil
		})
		_, err = decoded(rawBatch{attributes: 7, count: 1, body: []byte("x")}.bytes())
		require.ErrorIs(t, err, c.want, name)
	}
}

type brokenWriter func(p []byte) (int, error)

func (w brokenWriter) Write(p []byte) (int, error) { return w(p) }

// Counts that io.Writer does not allow must cause an error, not a panic or bytes sent twice.
func TestWritersThatBreakTheirContract(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	appendN(t, l, 0, 100)
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		write brokenWriter
		want  error
		sent  int64
	}{
		"negative":  {func([]byte) (int, error) { return -1, nil }, seglog.ErrInvalid, 0},
		"too many":  {func(p []byte) (int, error) { return len(p) + 1, nil }, seglog.ErrInvalid, 0},
		"nothing":   {func([]byte) (int, error) { return 0, nil }, io.ErrShortWrite, 0},
		"too few":   {func(p []byte) (int, error) { return 20, nil }, io.ErrShortWrite, 20},
		"and fails": {func(p []byte) (int, error) { return 20, failed }, failed, 20},
	} {
		for _, header := range []string{"", "header"} {
			s, err := l.Section(0, math.MaxInt64)
			require.NoError(t, err)
			s.SetHeader([]byte(header))
			sent, err := s.WriteTo(c.write)
			require.ErrorIs(t, err, c.want, name)
			require.Equal(t, c.sent, sent, name)
			// The next WriteTo must continue after the bytes that were taken.
			var rest bytes.Buffer
			n, err := s.WriteTo(&rest)
			require.NoError(t, err)
			require.Equal(t, s.Len()+int64(len(header)), sent+n)
			require.NoError(t, s.Close())
		}
	}
}

// Follow must check its context before each record, even before it has caught up.
func TestFollowEndsOnTheWay(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	appendN(t, l, 0, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	for _, err := range l.Follow(ctx, 0) {
		require.NoError(t, err)
		if n++; n == 5 {
			cancel()
		}
	}
	require.Equal(t, 5, n)
}
