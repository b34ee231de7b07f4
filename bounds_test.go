package seglog_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// All reading methods except Read must accept each offset up to the end of the log, even above the high watermark.
func TestOffsetsUpToEndAreAccepted(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	appendN(t, l, 0, 10)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for range 3 { // so that the end is above the high watermark most of the time
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				if _, err := l.Append(seglog.Record{Value: []byte("concurrent")}); err != nil {
					panic(err)
				}
			}
		}()
	}
	ahead := 0
	for i := 0; i < 3000 && (ahead < 300 || i < 300); i++ {
		o := l.Offsets()
		if o.End > o.HighWatermark {
			ahead++
		}
		for r, err := range l.Records(o.End) {
			require.NoError(t, err)
			require.GreaterOrEqual(t, r.Offset, o.End)
		}
		for b, err := range l.Batches(o.End) {
			require.NoError(t, err)
			require.GreaterOrEqual(t, b.Next, o.End)
		}
		s, err := l.Section(o.End, 1)
		require.NoError(t, err)
		require.GreaterOrEqual(t, s.Next(), o.End)
		require.NoError(t, s.Close())
		for r, err := range l.Follow(ctx, o.End) {
			require.NoError(t, err)
			require.Equal(t, o.End, r.Offset)
			break
		}
	}
	require.NotZero(t, ahead)
	cancel()
	wg.Wait()
	end := l.Offsets().End
	for _, offset := range []int64{-1, end + 1, math.MaxInt64} {
		for _, err := range l.Records(offset) {
			require.ErrorIs(t, err, seglog.ErrOutOfRange)
		}
		for _, err := range l.Follow(context.Background(), offset) {
			require.ErrorIs(t, err, seglog.ErrOutOfRange)
		}
		_, err := l.Section(offset, 1)
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
	}
}

// Oldest must never be out of range, however fast segments are deleted.
func TestOldestBesideRetention(t *testing.T) {
	for name, readOnly := range map[string]bool{"own": false, "read-only": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
			appendN(t, l, 0, 100)
			r := l
			if readOnly {
				r = open(t, dir, &seglog.Options{ReadOnly: true})
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var wg sync.WaitGroup
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := 100; ctx.Err() == nil; i++ {
					_, err := l.Append(seglog.Record{Value: value(i)})
					if err == nil && i%7 == 0 {
						err = l.DeleteBefore(l.Offsets().End - 1)
					}
					if err != nil {
						panic(err)
					}
				}
			}()
			for range 300 {
				for _, err := range r.Records(seglog.Oldest) {
					require.NoError(t, err)
					break
				}
				for _, err := range r.Follow(ctx, seglog.Oldest) {
					require.NoError(t, err)
					break
				}
				s, err := r.Section(seglog.Oldest, 1)
				require.NoError(t, err)
				require.NoError(t, s.Close())
			}
			cancel()
			wg.Wait()
			require.NoError(t, l.DeleteBefore(l.Offsets().End))
			for range r.Records(seglog.Oldest) {
				require.FailNow(t, "a record of an empty log")
			}
		})
	}
}

// Newest is the end at the time of the call: all records appended after the call must follow.
func TestNewest(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	appendN(t, l, 0, 10)
	for range l.Records(seglog.Newest) {
		require.FailNow(t, "a record")
	}
	follow := l.Follow(context.Background(), seglog.Newest)
	appendN(t, l, 10, 5)
	want := int64(10)
	for r, err := range follow {
		require.NoError(t, err)
		require.Equal(t, want, r.Offset)
		if want++; want == 15 {
			break
		}
	}
	s, err := l.Section(seglog.Newest, 100)
	require.NoError(t, err)
	require.Zero(t, s.Len())
	require.EqualValues(t, 15, s.Next())
	s.SetHeader([]byte("header"))
	var got net.Conn
	here, there := connected(t, "tcp")
	got = there
	n, err := s.WriteTo(here)
	require.NoError(t, err)
	require.EqualValues(t, 6, n)
	b, err := readTo(got, 6)
	require.NoError(t, err)
	require.Equal(t, "header", string(b))
	require.NoError(t, s.Close())
}

// Follow(Oldest) of an empty log must yield the first record, even if a Reset changes its offset meanwhile.
func TestFollowOldestOfEmptyLog(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	first := make(chan int64)
	go func() {
		for r, err := range l.Follow(context.Background(), seglog.Oldest) {
			if err != nil {
				panic(err)
			}
			first <- r.Offset
			return
		}
	}()
	require.NoError(t, l.Reset(1000))
	_, err := l.Append(seglog.Record{Value: []byte("first")})
	require.NoError(t, err)
	require.EqualValues(t, 1000, <-first)
}

// A DurableReader must show only records below the recovery point.
func TestDurableReader(t *testing.T) {
	for _, p := range []seglog.FlushPolicy{seglog.FlushAsync, seglog.FlushNone} {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := seglog.Options{Flush: p}
			if p == seglog.FlushAsync {
				o.FlushInterval = time.Hour
			}
			l := open(t, dir, &o)
			appendN(t, l, 0, 100)
			require.NoError(t, l.Sync())
			appendN(t, l, 100, 50)
			d := l.Durable()
			require.Equal(t, 100, count(t, d.Records(0)))
			require.Equal(t, 150, count(t, l.Records(0)))
			require.Zero(t, count(t, d.Records(120)))
			_, err := d.Read(99)
			require.NoError(t, err)
			_, err = d.Read(100)
			require.ErrorIs(t, err, seglog.ErrOutOfRange)
			s, err := d.Section(0, math.MaxInt64)
			require.NoError(t, err)
			require.EqualValues(t, 100, s.Next())
			require.NoError(t, s.Close())
			s, err = d.Section(120, 10)
			require.NoError(t, err)
			require.Zero(t, s.Len())
			require.NoError(t, s.Close())
			here, there := connected(t, "tcp")
			go func() {
				if _, err := d.TransferTo(0, math.MaxInt64, here); err != nil {
					panic(err)
				}
				here.Close()
			}()
			require.Equal(t, 100, count(t, seglog.Decode(there)))
			r := open(t, dir, &seglog.Options{ReadOnly: true})
			require.Equal(t, 100, count(t, r.Durable().Records(0)))
			require.Equal(t, 150, count(t, r.Records(0)))

			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			require.ErrorIs(t, d.Wait(expired(), 100), context.Canceled)
			followed := make(chan int64, 1000)
			for _, f := range []seglog.DurableReader{d, r.Durable()} {
				go func() {
					for rec, err := range f.Follow(ctx, 98) {
						if err != nil {
							panic(err)
						}
						followed <- rec.Offset
						if rec.Offset == 149 {
							return
						}
					}
				}()
			}
			for range 4 {
				require.Less(t, <-followed, int64(100))
			}
			require.NoError(t, l.Sync())
			require.NoError(t, d.Wait(context.Background(), 149))
			for range 2 * 50 {
				require.GreaterOrEqual(t, <-followed, int64(100))
			}
		})
	}
}

func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func count(t *testing.T, records func(func(seglog.Record, error) bool)) (n int) {
	t.Helper()
	for _, err := range records {
		require.NoError(t, err)
		n++
	}
	return n
}

// cuttingConn truncates the log when the first bytes are sent.
type cuttingConn struct {
	net.Conn
	cut func()
}

func (c *cuttingConn) Write(p []byte) (int, error) {
	if c.cut != nil {
		c.cut()
		c.cut = nil
	}
	return len(p), nil
}

// A transfer must end if a cut removes records that it has sent: later records belong to another history.
func TestTransferToEndsAtCut(t *testing.T) {
	for name, reset := range map[string]bool{"truncate": false, "reset": true} {
		t.Run(name, func(t *testing.T) {
			l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
			appendN(t, l, 0, 500)
			first, err := l.Section(0, math.MaxInt64)
			require.NoError(t, err)
			require.NoError(t, first.Close())
			again := func() {
				if reset {
					require.NoError(t, l.Reset(0))
				} else {
					require.NoError(t, l.TruncateTo(first.Next()/2))
				}
				for range 600 {
					_, err := l.Append(seglog.Record{Value: []byte("another history")})
					require.NoError(t, err)
				}
			}
			n, err := l.TransferTo(0, math.MaxInt64, &cuttingConn{cut: again})
			require.ErrorIs(t, err, seglog.ErrOutOfRange)
			require.Equal(t, first.Len(), n, "all bytes sent must be of one history")

			batches := 0
			for b, err := range l.Batches(0) {
				if err != nil {
					require.ErrorIs(t, err, seglog.ErrOutOfRange)
					break
				}
				if batches++; batches == 1 {
					require.NoError(t, l.Reset(0))
					_ = b
				}
			}
			// A cut above the last offset sent must not end the transfer.
			require.NoError(t, l.Reset(0))
			appendN(t, l, 0, 500)
			_, err = l.TransferTo(0, math.MaxInt64, &cuttingConn{cut: func() { require.NoError(t, l.TruncateTo(400)) }})
			require.NoError(t, err)
		})
	}
}

type panickingConn struct{ net.Conn }

func (panickingConn) Write([]byte) (int, error) { panic("by the connection") }

// A panic in code of the caller must leave no segment pinned: the log must be able to close segments and delete their files.
func TestPanicsLeaveNoPins(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{SegmentBytes: 4096})
	appendN(t, l, 0, 200)
	ways := map[string]func(){
		"Records": func() {
			for range l.Records(0) {
				panic("by the body")
			}
		},
		"Follow": func() {
			for range l.Follow(context.Background(), 0) {
				panic("by the body")
			}
		},
		"Batches": func() {
			for range l.Batches(0) {
				panic("by the body")
			}
		},
		"TransferTo": func() { _, _ = l.TransferTo(0, math.MaxInt64, panickingConn{}) },
	}
	for _, way := range ways {
		require.Panics(t, way)
	}
	require.NoError(t, l.DeleteBefore(200))
	eventually(t, "the deleted segments are released", func() bool { return l.Stats().Segments == 1 })
	require.Zero(t, l.Stats().PinnedBytes)
	require.NoError(t, l.Close())
	requireReleased(t, dir)
}

// Stats.PinnedBytes counts the bytes of deleted segments that readers keep on the disk.
func TestPinnedBytes(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096})
	appendN(t, l, 0, 200)
	first, err := l.Section(0, math.MaxInt64)
	require.NoError(t, err)
	again, err := l.Section(0, 1)
	require.NoError(t, err)
	require.Zero(t, l.Stats().PinnedBytes)
	require.NoError(t, l.DeleteBefore(200))
	eventually(t, "the segments are deleted", func() bool { return l.Stats().Segments == 1 })
	require.Equal(t, first.Len(), l.Stats().PinnedBytes)
	require.NoError(t, first.Close())
	require.Equal(t, first.Len(), l.Stats().PinnedBytes, "another section holds the segment")
	require.NoError(t, again.Close())
	require.Zero(t, l.Stats().PinnedBytes)
	last, err := l.Section(seglog.Newest, 1)
	require.NoError(t, err)
	require.NoError(t, l.Reset(1000))
	require.NoError(t, last.Close())
	require.Zero(t, l.Stats().PinnedBytes)
	require.False(t, errors.Is(err, io.EOF))
}

// A read-only log opened in a directory without seglog.state must notice when the file appears, and when another replaces it.
func TestReadOnlyFindsState(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, nil)
	appendN(t, w, 0, 20)
	require.NoError(t, w.Close())
	statePath := filepath.Join(dir, "seglog.state")
	state, err := os.ReadFile(statePath)
	require.NoError(t, err)
	require.NoError(t, os.Remove(statePath))
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	require.Equal(t, 20, count(t, r.Records(0)))
	require.NoError(t, os.WriteFile(statePath, state, 0o644))
	w = open(t, dir, nil)
	cut := func(at int64, text string) {
		require.NoError(t, w.TruncateTo(at))
		_, err := w.Append(seglog.Record{Value: []byte(text)})
		require.NoError(t, err)
		eventually(t, "the cut is seen", func() bool {
			rec, err := r.Read(at)
			return err == nil && string(rec.Value) == text
		})
		require.Equal(t, at+1, r.Offsets().End)
	}
	cut(10, "another history")
	// Replace the file by a copy, as a restored backup would.
	require.NoError(t, w.Close())
	state, err = os.ReadFile(statePath)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(statePath+".copy", state, 0o644))
	require.NoError(t, os.Rename(statePath+".copy", statePath))
	w = open(t, dir, nil)
	cut(5, "a third")
}

// Offsets and Stats of a read-only log must notice changes by the writer without a read.
func TestReadOnlyOffsetsAreFresh(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	appendN(t, w, 0, 200)
	eventually(t, "the end moves", func() bool { return r.Offsets().End == 200 })
	require.Greater(t, r.Stats().Segments, 1)
	require.NoError(t, w.DeleteBefore(150))
	eventually(t, "the start moves", func() bool { return r.Offsets().Start == 150 })
}

// Readable records must stay readable during rolls, deletions below them and cuts above them.
func TestReadOnlyKnownOffsetsStayReadable(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
	appendN(t, w, 0, 100)
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := int64(0); ctx.Err() == nil; i++ {
				if _, err := r.Read(80 + i%20); err != nil {
					panic(err)
				}
			}
		}()
	}
	next := 100
	for i := range 60 {
		appendN(t, w, next, 50)
		next += 50
		_, err := r.Read(int64(next - 1)) // must notice the appended records
		require.NoError(t, err)
		if i%3 == 0 {
			next = 100 + i
			require.NoError(t, w.TruncateTo(int64(next)))
		}
		require.NoError(t, w.DeleteBefore(int64(min(i, 80))))
	}
	cancel()
	wg.Wait()
}

// Offsets of a segment that was deleted in a directory without seglog.state, as by Kafka's retention, must be out of range.
func TestReadOnlyDeletedWithoutState(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{SegmentBytes: 4096})
	appendN(t, w, 0, 200)
	require.NoError(t, w.Close())
	require.NoError(t, os.Remove(filepath.Join(dir, "seglog.state")))
	r := open(t, dir, &seglog.Options{ReadOnly: true})
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(names[0]))
	_, err = r.Read(0)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	require.NotZero(t, r.Offsets().Start)
	for _, err := range r.Records(seglog.Oldest) {
		require.NoError(t, err)
	}
}

// The number of descriptors of a read-only log must stay bounded, however many segments the writer rolls.
func TestReadOnlyDescriptorsAreBounded(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
	r := open(t, dir, &seglog.Options{ReadOnly: true, MaxOpenSegments: 4})
	appendN(t, w, 0, 10)
	for next := 10; r.Stats().Segments < 40; next += 50 {
		appendN(t, w, next, 50)
		require.Equal(t, next+50, count(t, r.Records(0)))
	}
	require.LessOrEqual(t, r.Stats().OpenSegments, 4)
	require.NoError(t, w.Close()) // because its descriptors come and go
	before, _ := held(t, dir)
	require.NoError(t, r.Close())
	after, _ := held(t, dir)
	require.LessOrEqual(t, before-after, 4+3, "MaxOpenSegments, plus the last segment, the state file and the directory")
}
