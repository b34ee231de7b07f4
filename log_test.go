package seglog_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

func TestAppendReadReopen(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := &seglog.Options{Flush: p, SegmentBytes: 16 << 10, IndexBytes: 512}
			n := 0
			for range 4 {
				l := open(t, dir, o)
				appendN(t, l, n, 300)
				n += 300
				requireN(t, l, 0, n)
				require.NoError(t, l.Close())
				l = open(t, dir, o)
				requireN(t, l, 0, n)
				require.Equal(t, seglog.Offsets{Start: 0, RecoveryPoint: int64(n), HighWatermark: int64(n), End: int64(n)}, l.Offsets())
				require.NoError(t, l.Close())
			}
		})
	}
}

func TestRecordShapes(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	at := time.UnixMilli(1700000000123).UTC()
	in := []seglog.Record{
		{Time: at},
		{Time: at.Add(-time.Second), Key: []byte{}, Value: []byte{}},
		{Time: at.Add(time.Hour), Key: []byte("k"), Value: []byte("v"), Headers: []seglog.Header{{Key: "a", Value: []byte("b")}, {Key: "", Value: nil}, {Key: "e", Value: []byte{}}}},
	}
	base, err := l.Append(in...)
	require.NoError(t, err)
	for i := range in {
		r, err := l.Read(base + int64(i))
		require.NoError(t, err)
		in[i].Offset = base + int64(i)
		require.Equal(t, in[i], r)
	}
}

func TestOffsetErrors(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096})
	appendN(t, l, 0, 200)
	require.NoError(t, l.DeleteBefore(101))
	for _, off := range []int64{-1, 0, 100, 200, 1 << 40} {
		_, err := l.Read(off)
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
		var oe *seglog.OffsetError
		require.ErrorAs(t, err, &oe)
		require.Equal(t, off, oe.Offset)
		require.Equal(t, l.Offsets(), oe.Offsets)
	}
	requireN(t, l, 101, 200)
}

// The batches that TransferTo sends must be readable by Decode and acceptable to TransferFrom.
func TestTransferToDecodeTransferFrom(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 64 << 10})
	appendN(t, l, 0, 3000)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n, err := l.TransferTo(0, 1<<40, c)
			if err != nil || n != l.Stats().Bytes {
				panic(fmt.Sprint(n, err))
			}
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	i := 0
	for r, err := range seglog.Decode(c) {
		require.NoError(t, err)
		require.Equal(t, string(value(i)), string(r.Value))
		i++
	}
	require.Equal(t, 3000, i)
	c.Close()
	c, err = net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	f := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 64 << 10})
	n, err := f.TransferFrom(c, -1)
	require.NoError(t, err)
	require.Equal(t, l.Stats().Bytes, n)
	requireN(t, f, 0, 3000)
}

func TestFollowAndWait(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 8 << 10})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			i := 0
			for r, err := range l.Follow(ctx, 0) {
				if err != nil || string(r.Value) != string(value(i)) {
					panic(fmt.Sprint(i, r, err))
				}
				if i++; i == 500 {
					return
				}
			}
		}()
	}
	appendN(t, l, 0, 500)
	wg.Wait()
	require.ErrorIs(t, func() error { c, f := context.WithTimeout(ctx, time.Millisecond); defer f(); return l.Wait(c, 500) }(), context.DeadlineExceeded)
	done := make(chan error)
	go func() { done <- l.Wait(ctx, 1000) }()
	time.Sleep(10 * time.Millisecond)
	l.Close()
	require.ErrorIs(t, <-done, seglog.ErrClosed)
}

func TestTruncateTo(t *testing.T) {
	dir := t.TempDir()
	o := &seglog.Options{SegmentBytes: 4 << 10, Flush: seglog.FlushNone}
	l := open(t, dir, o)
	appendN(t, l, 0, 300)
	for _, to := range []int{300, 299, 150, 149, 1, 0} {
		require.NoError(t, l.TruncateTo(int64(to)))
		require.EqualValues(t, to, l.Offsets().End)
		requireN(t, l, 0, to)
		appendN(t, l, to, 40)
		requireN(t, l, 0, to+40)
		require.NoError(t, l.Close())
		l = open(t, dir, o)
		requireN(t, l, 0, to+40)
	}
	var batch []seglog.Record
	for i := range 10 {
		batch = append(batch, seglog.Record{Value: value(40 + i)})
	}
	_, err := l.Append(batch...)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(43))
	requireN(t, l, 0, 43)
	require.NoError(t, l.Reset(1000))
	appendN(t, l, 1000, 10)
	requireN(t, l, 1000, 1010)
	require.NoError(t, l.Close())
	l = open(t, dir, o)
	requireN(t, l, 1000, 1010)
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err := seglog.Open(file, nil)
	require.Error(t, err)
	l := open(t, filepath.Join(dir, "a", "b"), nil)
	_, err = seglog.Open(filepath.Join(dir, "a", "b"), nil)
	require.ErrorIs(t, err, seglog.ErrLocked)
	require.Contains(t, err.Error(), fmt.Sprint(os.Getpid()))
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = l.Append(seglog.Record{})
	require.ErrorIs(t, err, seglog.ErrClosed)
	_, err = l.Read(0)
	require.ErrorIs(t, err, seglog.ErrClosed)
	for _, o := range []seglog.Options{{SegmentBytes: 1 << 31}, {MaxBatchBytes: 8192, SegmentBytes: 4096}, {FlushInterval: time.Second}, {Flush: 7}, {IndexBytes: -1}} {
		_, err = seglog.Open(dir, &o)
		require.ErrorIs(t, err, seglog.ErrInvalid)
	}
}

// An empty directory name is an error; it must not mean the working directory.
func TestNoDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, readOnly := range []bool{false, true} {
		_, err := seglog.Open("", &seglog.Options{ReadOnly: readOnly})
		require.ErrorIs(t, err, seglog.ErrInvalid)
	}
	_, err := seglog.Verify("", nil)
	require.ErrorIs(t, err, seglog.ErrInvalid)
	_, err = seglog.Repair("", nil)
	require.ErrorIs(t, err, seglog.ErrInvalid)
	l := open(t, t.TempDir(), nil)
	require.ErrorIs(t, l.Snapshot(""), seglog.ErrInvalid)
	require.NoError(t, l.Close())
	require.Empty(t, files(t, ".", "*"))
}

func TestReadOnlyBesideWriter(t *testing.T) {
	for _, p := range policies {
		dir := t.TempDir()
		w := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 4 << 10})
		r := open(t, dir, &seglog.Options{ReadOnly: true})
		_, err := r.Append(seglog.Record{})
		require.ErrorIs(t, err, seglog.ErrReadOnly)
		see := func(offset int64) { // what the writer notes beside a flush of the state file may come a moment later
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, r.Wait(ctx, offset))
		}
		appendN(t, w, 0, 300)
		see(299)
		requireN(t, r, 0, 300)
		require.NoError(t, w.TruncateTo(200))
		requireN(t, r, 0, 200)
		appendN(t, w, 200, 300)
		see(499)
		requireN(t, r, 0, 500)
		require.NoError(t, w.DeleteBefore(333))
		requireN(t, r, 333, 500)
		_, err = r.Read(332)
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
		require.NoError(t, w.Close())
		requireN(t, r, 333, 500)
		require.NoError(t, r.Close())
	}
}

func TestConcurrentAppends(t *testing.T) {
	for _, p := range policies {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 32 << 10})
		const writers, each = 32, 100
		var wg sync.WaitGroup
		for w := range writers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range each {
					off, err := l.Append(seglog.Record{Key: fmt.Appendf(nil, "%d-%d", w, i)})
					if err != nil {
						panic(err)
					}
					if r, err := l.Read(off); err != nil || string(r.Key) != fmt.Sprintf("%d-%d", w, i) {
						panic(fmt.Sprint(r, err))
					}
				}
			}()
		}
		wg.Wait()
		require.EqualValues(t, writers*each, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

func TestOpenAfterKill(t *testing.T) {
	// A copy of the files of an open log is what a kill of its process would leave.
	for _, p := range policies {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 4 << 10})
		appendN(t, l, 0, 500)
		time.Sleep(50 * time.Millisecond)
		appendN(t, l, 500, 10)
		copied := copyDir(t, dir)
		c := open(t, copied, &seglog.Options{Flush: p, SegmentBytes: 4 << 10})
		requireN(t, c, 0, 510)
		appendN(t, c, 510, 10)
		requireN(t, c, 0, 520)
		require.NoError(t, c.Close())
	}
}

func TestOffsetForTime(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4 << 10, IndexBytes: 256, Flush: seglog.FlushNone})
	base := time.UnixMilli(1700000000000)
	times := []int{5, 1, 9, 9, 3, 20, 15, 30, 30, 2}
	var all []int
	for rep := range 60 {
		for _, x := range times {
			all = append(all, rep*25+x)
			_, err := l.Append(seglog.Record{Time: base.Add(time.Duration(rep*25+x) * time.Millisecond), Value: make([]byte, 20)})
			require.NoError(t, err)
		}
	}
	for ms := -5; ms < 60*25+40; ms++ {
		want := len(all)
		for i, x := range all {
			if x >= ms {
				want = i
				break
			}
		}
		got, err := l.OffsetForTime(base.Add(time.Duration(ms) * time.Millisecond))
		require.NoError(t, err)
		require.EqualValues(t, want, got, ms)
	}
}

// Durable waits must accept Newest and Oldest, with the same meaning as other waits.
func TestDurableWaitsTakePositions(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	waits := map[string]func(context.Context, int64) error{"WaitDurable": l.WaitDurable, "Durable().Wait": l.Durable().Wait}
	for name, wait := range waits {
		_, err := l.Append(seglog.Record{Value: []byte("there")})
		require.NoError(t, err)
		require.NoError(t, l.DeleteBefore(l.Offsets().End)) // no record is left
		for _, position := range []int64{seglog.Oldest, seglog.Newest} {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			require.ErrorIs(t, wait(ctx, position), context.Canceled, "%s of %d", name, position)
			got := make(chan error, 1)
			go func() { got <- wait(context.Background(), position) }()
			for done := false; !done; {
				_, err := l.Append(seglog.Record{Value: []byte("next")})
				require.NoError(t, err)
				require.NoError(t, l.Sync())
				select {
				case err := <-got:
					require.NoError(t, err)
					done = true
				default:
				}
			}
			require.NoError(t, l.DeleteBefore(l.Offsets().End))
		}
	}
}

// A log that has done its work must have no goroutine, so that a process can have thousands of logs.
func TestLogAtRestHasNoGoroutine(t *testing.T) {
	leftBefore()
	for _, o := range []*seglog.Options{nil, {Flush: seglog.FlushAsync, FlushInterval: time.Millisecond}, {Flush: seglog.FlushNone, RetentionAge: time.Hour, OnSeal: func(seglog.SegmentInfo) {}, SegmentBytes: 16 << 10}} {
		l, err := seglog.Open(t.TempDir(), o)
		require.NoError(t, err)
		defer l.Close()
		for range 10 {
			_, err = l.Append(seglog.Record{Value: make([]byte, 4<<10)})
			require.NoError(t, err)
		}
	}
	eventually(t, "no goroutine is left", func() bool { return inEngine() <= leftBefore() })
}
