package seglog_test

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// segmentSizes returns the base offset of each segment of a directory and the size of its batches, oldest first.
func segmentSizes(t testing.TB, dir string) (bases, sizes []int64) {
	t.Helper()
	for _, b := range storedBatches(t, dir) {
		if name := strings.TrimSuffix(filepath.Base(b.segment), ".log"); len(bases) == 0 || b.base == baseOf(name) {
			bases, sizes = append(bases, baseOf(name)), append(sizes, 0)
		}
		sizes[len(sizes)-1] += int64(len(b.bytes))
	}
	return bases, sizes
}

func baseOf(name string) int64 {
	n, _ := strconv.ParseInt(name, 10, 64)
	return n
}

// Retention must follow Kafka's rule: the oldest segment is deleted as long as the others have at least RetentionBytes.
func TestRetentionBytes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10})
	appendN(t, l, 0, 600)
	require.NoError(t, l.Close())
	bases, sizes := segmentSizes(t, dir)
	for k := 1; k < len(sizes)-1; k += 3 {
		left := int64(0)
		for _, n := range sizes[k:] {
			left += n
		}
		for _, c := range []struct{ keep, start int64 }{{left, bases[k]}, {left + 1, bases[k-1]}, {left - 1, bases[k]}} {
			copied := copyDir(t, dir)
			l := open(t, copied, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10, RetentionBytes: c.keep})
			eventually(t, "retention runs in the background", func() bool { return l.Offsets().Start >= c.start })
			deleted, err := l.Retain()
			require.NoError(t, err)
			require.Zero(t, deleted, "the background retention left something to delete")
			require.Equal(t, c.start, l.Offsets().Start)
			requireN(t, l, int(c.start), 600)
			require.NoError(t, l.Close())
			require.Equal(t, c.start, baseOf(strings.TrimSuffix(filepath.Base(files(t, copied, "*.log")[0]), ".log")))
		}
	}
	// Retention must keep up with appends.
	l = open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10, RetentionBytes: 20 << 10})
	appendN(t, l, 600, 2000)
	eventually(t, "retention follows", func() bool { return l.Stats().Bytes < 24<<10 })
	require.GreaterOrEqual(t, l.Stats().Bytes, int64(20<<10))
	requireN(t, l, int(l.Offsets().Start), 2600)
}

func TestRetentionAge(t *testing.T) {
	dir := t.TempDir()
	o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10}
	l := open(t, dir, o)
	now := time.Now()
	age := func(i int) time.Duration { return time.Duration(600-i) * time.Minute }
	for i := range 600 {
		at := now.Add(-age(i))
		if i == 100 {
			at = now // a single new record keeps its segment and all later ones
		}
		_, err := l.Append(seglog.Record{Time: at, Value: value(i)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	bases, _ := segmentSizes(t, dir)
	k, _ := slices.BinarySearch(bases, 101)
	held := bases[k-1]
	o.RetentionAge = 10 * time.Minute
	l = open(t, dir, o)
	eventually(t, "retention runs in the background", func() bool { return l.Offsets().Start == held })
	deleted, err := l.Retain()
	require.NoError(t, err)
	require.Zero(t, deleted)
	requireN(t, l, int(held), 600)
	require.NoError(t, l.Close())

	// A log whose records are all too old must end up empty, and its offsets continue.
	o.RetentionAge = 300 * time.Millisecond
	dir = t.TempDir()
	l = open(t, dir, o)
	appendN(t, l, 0, 300)
	eventually(t, "all is deleted", func() bool { o := l.Offsets(); return o.Start == o.End })
	require.EqualValues(t, 300, l.Offsets().End)
	appendN(t, l, 300, 10)
	require.NoError(t, l.Close())
	l = open(t, dir, &seglog.Options{})
	require.EqualValues(t, 310, l.Offsets().End)
}

// segmentsOf makes a log of n segments or more. It is not closed.
func segmentsOf(t *testing.T, o *seglog.Options, n int) *seglog.Log {
	t.Helper()
	o.SegmentBytes = 4096
	l := open(t, t.TempDir(), o)
	for l.Stats().Segments < n {
		_, err := l.Append(seglog.Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	return l
}

// Flushes by time, and seals, must not wait for a MayDelete that takes long.
func TestSlowMayDelete(t *testing.T) {
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	l := segmentsOf(t, &seglog.Options{Flush: seglog.FlushAsync, FlushInterval: time.Millisecond, RetentionBytes: 1, MayDelete: func(seglog.SegmentInfo) bool {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-answer
		return true
	}}, 3)
	<-asked
	for range 40 { // many more than may wait for their seal
		offset, err := l.Append(seglog.Record{Value: make([]byte, 3000)})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return l.Offsets().RecoveryPoint > offset }, 10*time.Second, time.Millisecond)
	}
	close(answer)
	require.Eventually(t, func() bool { return l.Stats().Segments == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
}

// MayDelete must not be asked about a segment that another call of Retain is deleting.
func TestMayDeleteOfConcurrentRetains(t *testing.T) {
	var mu sync.Mutex
	agreed := map[int64]int{}
	l := segmentsOf(t, &seglog.Options{Flush: seglog.FlushNone, RetentionBytes: 8 << 10, OnSeal: func(seglog.SegmentInfo) {}, MayDelete: func(info seglog.SegmentInfo) bool {
		mu.Lock()
		defer mu.Unlock()
		agreed[info.Base]++
		return true
	}}, 3)
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 200 {
				_, err := l.Append(seglog.Record{Value: make([]byte, 1500)})
				assert.NoError(t, err)
				_, err = l.Retain()
				assert.NoError(t, err)
			}
		}()
	}
	wg.Wait()
	require.NoError(t, l.Close())
	require.Greater(t, len(agreed), 100)
	for base, times := range agreed {
		require.Equal(t, 1, times, "segment %d", base)
	}
}

// A segment that stays only because OnSeal was not called for it yet must go once it was, without an append.
func TestRetentionAfterASlowOnSeal(t *testing.T) {
	answer := make(chan struct{})
	l := segmentsOf(t, &seglog.Options{RetentionBytes: 1, RetentionAge: 24 * time.Hour, OnSeal: func(seglog.SegmentInfo) { <-answer }}, 5)
	require.Eventually(t, func() bool { return l.Stats().Seals >= 4 }, 10*time.Second, time.Millisecond)
	require.GreaterOrEqual(t, l.Stats().Segments, 5)
	close(answer)
	require.Eventually(t, func() bool { return l.Stats().Segments == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
}

// Close must wait for a MayDelete that a call of Retain asked in another goroutine, and none may be asked after it.
func TestCloseWaitsForMayDelete(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	var block atomic.Bool
	var calls atomic.Int32
	l := segmentsOf(t, &seglog.Options{RetentionBytes: 1, MayDelete: func(seglog.SegmentInfo) bool {
		if block.Load() {
			calls.Add(1)
			asked <- struct{}{}
			<-answer
			return true
		}
		return false
	}}, 5)
	require.Eventually(t, func() bool { return l.Stats().Seals >= 4 }, 10*time.Second, time.Millisecond)
	block.Store(true)
	retained := make(chan struct{})
	go func() {
		_, _ = l.Retain()
		close(retained)
	}()
	<-asked
	closed := make(chan error)
	go func() { closed <- l.Close() }()
	for !errors.Is(l.Sync(), seglog.ErrClosed) {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-closed:
		require.Fail(t, "Close returned while the hook ran")
	case <-time.After(20 * time.Millisecond):
	}
	close(answer)
	require.NoError(t, <-closed)
	<-retained
	require.EqualValues(t, 1, calls.Load())
}

// If OnSeal panics in Close and the caller recovers, the directory must be free again, and another Close must say what was.
func TestCloseAfterAPanickingHook(t *testing.T) {
	l := segmentsOf(t, &seglog.Options{}, 3)
	end, dir := l.Offsets().End, segmentDir(t, l)
	require.NoError(t, l.Close())
	l = open(t, dir, &seglog.Options{OnSeal: func(seglog.SegmentInfo) { panic("hook") }}) // Close makes the first call
	require.PanicsWithValue(t, "hook", func() { _ = l.Close() })
	require.ErrorIs(t, l.Close(), seglog.ErrFailed)
	l = open(t, dir, nil)
	require.Equal(t, end, l.Offsets().End)
	require.NoError(t, l.Close())
}

func segmentDir(t *testing.T, l *seglog.Log) string {
	segs, err := l.Segments()
	require.NoError(t, err)
	return filepath.Dir(segs[0].Path)
}

func TestMayDeleteAndOnSeal(t *testing.T) {
	dir := t.TempDir()
	sealed := make(chan seglog.SegmentInfo, 1000)
	allowed := make(chan int64, 1)
	allowed <- 0
	limit := func() int64 { n := <-allowed; allowed <- n; return n }
	l := open(t, dir, &seglog.Options{
		Flush: seglog.FlushNone, SegmentBytes: 4 << 10, RetentionBytes: 1,
		OnSeal:    func(s seglog.SegmentInfo) { sealed <- s },
		MayDelete: func(s seglog.SegmentInfo) bool { return s.Next <= limit() },
	})
	appendN(t, l, 0, 300)
	eventually(t, "all are sealed", func() bool { s := l.Stats(); return s.Seals == s.Rolls })
	deleted, err := l.Retain()
	require.NoError(t, err)
	require.Zero(t, deleted)
	require.Zero(t, l.Offsets().Start)
	next := int64(0)
	var infos []seglog.SegmentInfo
	for range l.Stats().Seals {
		s := <-sealed
		require.Equal(t, next, s.Base)
		st, err := os.Stat(s.Path)
		require.NoError(t, err)
		require.Equal(t, st.Size(), s.Bytes)
		require.False(t, s.MaxTime.IsZero())
		next = s.Next
		infos = append(infos, s)
	}
	require.Greater(t, len(infos), 3)
	for _, s := range infos {
		<-allowed
		allowed <- s.Next
		_, err := l.Retain()
		require.NoError(t, err)
		require.Equal(t, s.Next, l.Offsets().Start)
		_, err = os.Stat(s.Path)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	requireN(t, l, int(next), 300)
}

// OnSeal must be called after Open for the segments that were sealed without a call, as soon as the program uses the log, and not
// only with the next roll: until then retention keeps these segments.
func TestOnSealAfterOpen(t *testing.T) {
	sealed := t.TempDir()
	l := open(t, sealed, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10})
	appendN(t, l, 0, 300)
	require.NoError(t, l.Close())
	bases, _ := segmentSizes(t, sealed)
	for name, use := range map[string]func(l *seglog.Log) error{
		"Append":      func(l *seglog.Log) error { _, err := l.Append(seglog.Record{}); return err },
		"AppendBatch": func(l *seglog.Log) error { _, err := l.AppendBatch(plainBatch(0, "a")); return err },
		"TransferFrom": func(l *seglog.Log) error {
			_, err := l.TransferFrom(bytes.NewReader(plainBatch(300, "a")), -1)
			return err
		},
		"Read":         func(l *seglog.Log) error { _, err := l.Read(0); return err },
		"DeleteBefore": func(l *seglog.Log) error { return l.DeleteBefore(1) },
		"Retain":       func(l *seglog.Log) error { _, err := l.Retain(); return err },
		"Offsets":      func(l *seglog.Log) error { l.Offsets(); return nil },
	} {
		told := make(chan int64, len(bases))
		l := open(t, copyDir(t, sealed), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 16 << 10, OnSeal: func(s seglog.SegmentInfo) { told <- s.Base }})
		require.NoError(t, use(l), name)
		for _, base := range bases[:len(bases)-1] {
			select {
			case got := <-told:
				require.Equal(t, base, got, name)
			case <-time.After(10 * time.Second):
				require.Fail(t, "OnSeal is not called", "%s, segment %d", name, base)
			}
		}
		require.NoError(t, l.Close())
	}
}

// Retention by age must delete the active segment too, but only after OnSeal was called for it, and MayDelete has agreed then.
func TestRetentionAgeBesideOnSeal(t *testing.T) {
	var l *seglog.Log
	var sealed atomic.Bool
	called := make(chan error, 10)
	l = open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, RetentionAge: time.Hour,
		OnSeal: func(s seglog.SegmentInfo) {
			_, err := l.Read(s.Base)
			called <- err
			sealed.Store(true)
		},
		MayDelete: func(s seglog.SegmentInfo) bool {
			if !sealed.Load() || !s.Sealed {
				called <- errors.New("MayDelete was asked before OnSeal was called")
			}
			return true
		}})
	_, err := l.Append(seglog.Record{Time: time.Now().Add(-2 * time.Hour)})
	require.NoError(t, err)
	_, err = l.Retain()
	require.NoError(t, err)
	eventually(t, "the segment goes after OnSeal", func() bool { return l.Offsets().Start == 1 })
	require.NoError(t, l.Close())
	close(called)
	require.NotEmpty(t, called)
	for err := range called {
		require.NoError(t, err)
	}
}

// Records that are appended while MayDelete is asked about the active segment must not be taken away with it, nor may the
// segment's own before them: retention deletes whole segments.
func TestRetentionDeletesWholeSegments(t *testing.T) {
	var l *seglog.Log
	var appends atomic.Bool
	asked := make(chan bool)
	l = open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, MayDelete: func(seglog.SegmentInfo) bool {
		if appends.Load() {
			asked <- true
			<-asked
		}
		return true
	}, RetentionAge: time.Hour})
	seglog.StopRetention(l) // its first round may come late
	appends.Store(true)
	go func() {
		<-asked
		_, err := l.Append(seglog.Record{Time: time.Now().Add(-2 * time.Hour)})
		appends.Store(false)
		asked <- err == nil
	}()
	_, err := l.Append(seglog.Record{Time: time.Now().Add(-2 * time.Hour)})
	require.NoError(t, err)
	_, err = l.Retain()
	require.NoError(t, err)
	require.Zero(t, l.Offsets().Start)
	require.EqualValues(t, 2, l.Offsets().End)
	_, err = l.Retain()
	require.NoError(t, err)
	require.EqualValues(t, 2, l.Offsets().Start)
}

// OnSeal must be called for the segments that follow a cut, also where it ran for a segment with their offsets meanwhile.
func TestOnSealBesideACut(t *testing.T) {
	for name, cut := range map[string]func(l *seglog.Log) error{
		"TruncateTo": func(l *seglog.Log) error { return l.TruncateTo(1) },
		"Reset":      func(l *seglog.Log) error { return l.Reset(0) },
	} {
		t.Run(name, func(t *testing.T) {
			runs, goOn, told := make(chan bool, 1), make(chan bool), make(chan seglog.SegmentInfo, 100)
			first := true
			dir := t.TempDir()
			l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096, OnSeal: func(s seglog.SegmentInfo) {
				if first {
					first = false
					runs <- true
					<-goOn
					return
				}
				told <- s
			}})
			appendN(t, l, 0, 300)
			<-runs
			require.NoError(t, cut(l))
			goOn <- true
			from := int(l.Offsets().End)
			for l.Stats().Segments < 4 {
				_, err := l.Append(seglog.Record{Value: make([]byte, 2500)})
				require.NoError(t, err)
			}
			require.LessOrEqual(t, from, 1)
			require.NoError(t, l.Close())
			segs, err := open(t, dir, &seglog.Options{ReadOnly: true}).Segments()
			require.NoError(t, err)
			for _, s := range segs[:len(segs)-1] {
				select {
				case got := <-told:
					require.Equal(t, s.Base, got.Base)
					require.Equal(t, s.Next, got.Next)
				case <-time.After(10 * time.Second):
					require.Fail(t, "OnSeal was not called", "segment %d", s.Base)
				}
			}
		})
	}
}

// A segment that a reader uses must stay readable for it after a deletion, and its file be closed once the reader is done.
func TestPinnedReadersKeepTheirData(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10})
	appendN(t, l, 0, 600)
	require.NoError(t, l.Sync()) // which names each segment
	all := storedBatches(t, dir)
	s, err := l.Section(10, math.MaxInt64)
	require.NoError(t, err)
	want, _ := expected(all, 10, math.MaxInt64, true)
	i := 0
	for r, err := range l.Records(0) {
		if i == 3 {
			require.NoError(t, l.DeleteBefore(400))
			appendN(t, l, 600, 100)
		}
		if err != nil { // the iterator has come to the end of its segment
			require.ErrorIs(t, err, seglog.ErrOutOfRange)
			break
		}
		require.EqualValues(t, i, r.Offset)
		require.Equal(t, string(value(i)), string(r.Value))
		i++
	}
	require.Greater(t, i, 20, "the iterator reads its segment to the end")
	require.Less(t, i, 400)
	_, err = l.Read(399)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	_, err = l.Section(10, 1)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	var got bytes.Buffer
	_, err = s.WriteTo(&got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got.Bytes()))
	deleted := func() (n int) {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		for _, e := range entries {
			if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, dir) && strings.HasSuffix(to, "(deleted)") {
				n++
			}
		}
		return n
	}
	held(t, dir) // skips where there is no /proc
	eventually(t, "only the section's file is held", func() bool { return deleted() == 1 })
	require.NoError(t, s.Close())
	require.Zero(t, deleted())
}

// DeleteBefore must take effect at exactly its offset, wherever segments and batches end, and survive a kill and a Close.
func TestDeleteBeforeIsExact(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := &seglog.Options{Flush: p, SegmentBytes: 4 << 10}
			l := open(t, dir, o)
			var batch []seglog.Record
			for n := 0; n < 400; n++ {
				batch = append(batch, seglog.Record{Value: value(n)})
				if len(batch) == 4 || n%5 == 0 || n == 399 {
					_, err := l.Append(batch...)
					require.NoError(t, err)
					batch = nil
				}
			}
			rng := rand.New(rand.NewPCG(3, uint64(p)))
			for start := 0; start < 400; {
				start = min(400, start+1+rng.IntN(40))
				require.NoError(t, l.DeleteBefore(int64(start)))
				require.NoError(t, l.DeleteBefore(int64(start-1)), "an offset below the start is no error")
				check := func() {
					t.Helper()
					require.EqualValues(t, start, l.Offsets().Start)
					require.EqualValues(t, 400, l.Offsets().End)
					requireN(t, l, start, 400)
					for _, below := range []int64{0, int64(start) - 1} {
						_, err := l.Read(below)
						require.ErrorIs(t, err, seglog.ErrOutOfRange)
						_, err = l.Section(below, 1)
						require.ErrorIs(t, err, seglog.ErrOutOfRange)
						for _, err := range l.Records(below) {
							require.ErrorIs(t, err, seglog.ErrOutOfRange)
						}
					}
					at, err := l.OffsetForTime(time.UnixMilli(0))
					require.NoError(t, err)
					require.EqualValues(t, start, at)
				}
				check()
				if rng.IntN(2) == 0 {
					dir = copyDir(t, dir) // killed
				}
				require.NoError(t, l.Close())
				l = open(t, dir, o)
				check()
			}
			require.ErrorIs(t, l.DeleteBefore(401), seglog.ErrOutOfRange)
			appendN(t, l, 400, 5)
			requireN(t, l, 400, 405)
			eventually(t, "all segments but the active one are gone", func() bool { return len(files(t, dir, "*.log")) == 1 })
		})
	}
}
