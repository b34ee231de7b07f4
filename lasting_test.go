package seglog

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// These tests have the smallest workloads for faults that the schedules find only by luck. The patches in torture/bugs put the
// faults back.

// moment must not pair the end of the log from before a cut with the number of cuts from after it: a flush would then wait for
// an end that is never reached.
func TestMomentIsOfOneHistory(t *testing.T) {
	var b bounds
	for i := range int64(100) {
		b.beginCut()
		got := make(chan moment)
		go func() { got <- b.moment() }()
		time.Sleep(100 * time.Microsecond) // so that moment most likely waits for the cut
		b.end.Store(i + 1)
		b.endCut(0, false)
		require.Equal(t, moment{2 * (i + 1), i + 1}, <-got)
	}
}

// In a log that may leave out offsets, recovery must not take the lost end of a segment for a gap and keep the records after it.
func TestLostEndIsNoGap(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	_, err := l.Append(Record{})
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	// The stream leaves out ten offsets after its first batch.
	gap := l.Offsets().End + 1
	stream := encoded([]Record{{Time: time.UnixMilli(1)}}, gap-1)
	stream = append(stream, encoded([]Record{{Time: time.UnixMilli(1)}}, gap+10)...)
	_, err = l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	l.flushes.Lock() // so that no later record becomes durable
	for l.Stats().Segments < 4 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	w := s.Kill()
	l.flushes.Unlock()
	ignore(l.Close())
	for _, c := range append(sim.WholeCuts(), sim.SingleCuts(w, rand.New(rand.NewPCG(1, 1)))...) {
		l, err := openFS(sim.NewFS(c.Apply(w), true), sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone})
		require.NoError(t, err, c.What)
		next := int64(0)
		for r, err := range l.Records(0) {
			require.NoError(t, err, c.What)
			if next == gap {
				next = gap + 10
			}
			require.Equal(t, next, r.Offset, c.What)
			next++
		}
		require.NoError(t, l.Close())
	}
}

// Close flushes even if it can't remove the segment prepared for the next roll.
func TestCloseFlushesWhatItCan(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	require.Eventually(t, func() bool {
		_, err := l.Append(Record{Value: make([]byte, 100)})
		require.NoError(t, err)
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writer.next != nil
	}, 10*time.Second, time.Millisecond)
	end := l.Offsets().End
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Remove {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.Close(), syscall.EIO)
	l, err := openFS(sim.NewFS(cutNamed(t, s.Kill(), "nothing"), true), sim.Dir, nil)
	require.NoError(t, err)
	require.Equal(t, end, l.Offsets().End)
	require.NoError(t, l.Close())
}

// The append of a record must wake a WaitDurable that has been waiting for it, also under FlushNone, where the append flushes
// nothing.
func TestWaitDurableOfLaterRecord(t *testing.T) {
	for range 20 {
		_, l := smallSegments(t, true, FlushNone, 1)
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		waited := make(chan error)
		go func() { waited <- l.WaitDurable(ctx, 0) }()
		for waits := false; !waits; runtime.Gosched() {
			l.durableWaiters.mu.Lock()
			waits = l.durableWaiters.ch != nil
			l.durableWaiters.mu.Unlock()
		}
		_, err := l.Append(Record{})
		require.NoError(t, err)
		require.NoError(t, <-waited)
		stop()
		require.NoError(t, l.Close())
	}
}

// Once a segment is sealed, the writer's handle with its mapping, buffers and index must be closed.
func TestSealedSegmentsAreClosed(t *testing.T) {
	_, l := smallSegments(t, true, FlushSync, 6)
	require.Eventually(t, func() bool { return l.Stats().Seals >= 5 }, 10*time.Second, time.Millisecond)
	segs := l.view.Load().segs
	require.Eventually(t, func() bool {
		for _, s := range segs[:5] {
			if s.h.Load() != nil {
				return false
			}
		}
		return true
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
}

// Neither a flush of only the older segments, as a seal needs it, nor a deletion up to a lower offset may lower a bound.
func TestBoundsOnlyGrow(t *testing.T) {
	_, l := smallSegments(t, true, FlushNone, 4)
	require.NoError(t, l.Sync())
	before := l.Offsets()
	require.NoError(t, l.flushBelow(1))
	require.Equal(t, before, l.Offsets())
	require.NoError(t, l.DeleteBefore(6))
	_, err := l.moveStart(4, anyHistory) // as a concurrent DeleteBefore would that began earlier
	require.NoError(t, err)
	require.EqualValues(t, 6, l.Offsets().Start)
	require.NoError(t, l.Close())
}

// An unreadable page of seglog.state must cost only one of the two slots.
func TestUnreadablePageOfTheState(t *testing.T) {
	for page := range int64(2) {
		s, l := smallSegments(t, true, FlushSync, 2)
		end := l.Offsets().End
		require.NoError(t, l.Close())
		s.Bad = map[string]int64{stateName: page}
		l, err := openFS(s, sim.Dir, nil)
		require.NoError(t, err)
		require.Equal(t, end, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

// On ext4, a block whose first write-back failed loses all later writes, flushed or not. The records that an Open after that
// keeps and shows must survive a power cut all the same.
func TestFailedFlushThenPowerCut(t *testing.T) {
	w := sim.NewWorld()
	w.Ext4 = true
	s := sim.NewFS(w, false)
	l, err := openFS(s, sim.Dir, nil)
	require.NoError(t, err)
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Flush && isLog(filepath.Base(path)) {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	_, err = l.Append(Record{Value: []byte("in doubt")})
	require.Error(t, err)
	s.SetFault(nil)
	require.ErrorIs(t, l.Close(), ErrFailed)
	l, err = openFS(s, sim.Dir, nil)
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("acknowledged")})
	require.NoError(t, err)
	end := l.Offsets().End
	w = s.Kill()
	ignore(l.Close())
	l, err = openFS(sim.NewFS(cutNamed(t, w, "nothing"), false), sim.Dir, nil)
	require.NoError(t, err)
	require.Equal(t, end, l.Offsets().End)
	_, err = l.Read(end - 1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// The trim of a rolled segment flushes a file with records. If the flush fails, the records are in doubt, so the log must latch.
func TestFailedTrimLatches(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	flushes := 0
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Flush && isLog(filepath.Base(path)) {
			if flushes++; flushes == 2 { // the first flushes the records, before the seal
				return &sim.Fault{Err: syscall.EIO}
			}
		}
		return nil
	})
	require.Eventually(t, func() bool {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		return err != nil
	}, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, l.Sync(), ErrFailed)
	require.Equal(t, 2, flushes)
	ignore(l.Close())
}

// copyOf copies a directory, as a kill of the process would leave it.
func copyOf(t *testing.T, dir string) string {
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// After a lost write, a disk may show the old contents of its blocks: batches that a cut or a recovery had removed. They are
// whole and their offsets join, and still they must not come back.
func TestStaleBatchesStayAway(t *testing.T) {
	fill := func(o *Options) (l *Log, dir string, sizes []int64) {
		dir = t.TempDir()
		l, err := Open(dir, o)
		require.NoError(t, err)
		for range 3 {
			_, err := l.Append(Record{Value: []byte("a value of some length")})
			require.NoError(t, err)
			sizes = append(sizes, l.writer.tail.seg.stored.load().pos())
		}
		return l, dir, sizes
	}
	read := func(dir string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, fileName(0, logSuffix)))
		require.NoError(t, err)
		return b
	}
	reopen := func(dir string) *Log {
		l, err := Open(dir, nil)
		require.NoError(t, err)
		require.EqualValues(t, 1, l.Offsets().End)
		return l
	}
	putBack := func(dir string, old []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, logSuffix)), old, 0o644))
	}

	l, dir, _ := fill(nil)
	old := read(dir)
	require.NoError(t, l.TruncateTo(1))
	killed := copyOf(t, dir)
	require.NoError(t, l.Close())
	putBack(killed, old)
	require.NoError(t, reopen(killed).Close())

	l, dir, sizes := fill(&Options{Flush: FlushNone})
	killed = copyOf(t, dir)
	require.NoError(t, l.Close())
	old = read(killed)
	torn := append([]byte(nil), old...)
	torn[sizes[0]+headerLen] ^= 1
	putBack(killed, torn)
	l = reopen(killed)
	again := copyOf(t, killed)
	require.NoError(t, l.Close())
	putBack(again, old)
	require.NoError(t, reopen(again).Close())
}

// Recovery must keep the bytes of a torn tail in a file beside the log, unless they are all zeros.
func TestTornTailIsKept(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone})
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("good")})
	require.NoError(t, err)
	killed := copyOf(t, dir)
	require.NoError(t, l.Close())
	path := filepath.Join(killed, fileName(0, logSuffix))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	size := batch(b).size()
	torn := []byte("the first half of a batch, or what once was one")
	copy(b[size:], torn)
	require.NoError(t, os.WriteFile(path, b, 0o644))
	l, err = Open(killed, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, l.Offsets().End)
	require.NoError(t, l.Close())
	saved, err := filepath.Glob(filepath.Join(killed, repairPrefix+"*"))
	require.NoError(t, err)
	require.Len(t, saved, 1)
	kept, err := os.ReadFile(saved[0])
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(kept, torn))
	// Another one at the same place is kept beside it.
	copy(b[size:], bytes.ToUpper(torn))
	require.NoError(t, os.WriteFile(path, b, 0o644))
	l, err = Open(killed, nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	for _, want := range [][]byte{torn, bytes.ToUpper(torn)} {
		saved, err := filepath.Glob(filepath.Join(killed, repairPrefix+"*"))
		require.NoError(t, err)
		require.Len(t, saved, 2)
		require.True(t, slices.ContainsFunc(saved, func(name string) bool {
			kept, err := os.ReadFile(name)
			return err == nil && bytes.HasPrefix(kept, want)
		}))
	}
}

// A record must not count as durable before the name of its segment is.
func TestNothingIsDurableBeforeItsName(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	require.NoError(t, l.Sync())
	l.flushes.Lock() // so that the keeper does not flush
	for l.Stats().Segments < 2 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	before := l.Offsets().RecoveryPoint
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.SyncDir {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.flushOnce(math.MaxInt64), syscall.EIO)
	require.Equal(t, before, l.Offsets().RecoveryPoint)
	for _, seg := range l.view.Load().segs {
		require.Equal(t, max(0, before-seg.base), seg.flushed.load().rel())
	}
	s.SetFault(nil) // before the keeper may flush
	l.flushes.Unlock()
	require.NoError(t, l.Close())
}

// After a failed write-back, pages of a killed process may be clean in the cache and absent from the disk, so the first flush
// must rewrite the records that recovery kept.
func TestRecoveredTailIsWrittenAgain(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	_, err := l.Append(Record{Value: []byte("kept")})
	require.NoError(t, err)
	w := s.Kill()
	ignore(l.Close())
	s = sim.NewFS(w, true)
	written := 0
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Write && isLog(filepath.Base(path)) {
			written++
		}
		return nil
	})
	l, err = openFS(s, sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone})
	require.NoError(t, err)
	require.Zero(t, written)
	require.NoError(t, l.Sync())
	s.SetFault(nil)
	require.Equal(t, 1, written)
	require.NoError(t, l.Close())
}

// A cut overwrites the removed bytes with zeros. If the blocks are shared with a copy and the disk is full, there is no room
// for the zeros; the cut must then truncate the file, which needs none.
func TestCutOnAFullDiskOfSharedBlocks(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
		s := sim.NewFS(sim.NewWorld(), true)
		l, err := openFS(s, sim.Dir, &Options{Flush: policy})
		require.NoError(t, err)
		for range 3 {
			_, err = l.Append(Record{Value: []byte("record")})
			require.NoError(t, err)
		}
		refused := 0
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Zero && isLog(filepath.Base(path)) {
				refused++
				return &sim.Fault{Err: syscall.ENOSPC}
			}
			return nil
		})
		require.NoError(t, l.TruncateTo(1))
		s.SetFault(nil)
		require.Positive(t, refused)
		base, err := l.Append(Record{Value: []byte("after the cut")})
		require.NoError(t, err)
		require.EqualValues(t, 1, base)
		require.NoError(t, l.Sync())
		s = sim.NewFS(s.Kill(), true)
		ignore(l.Close())
		l, err = openFS(s, sim.Dir, &Options{Flush: policy})
		require.NoError(t, err)
		require.EqualValues(t, 2, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

// The first flush rewrites the records that recovery kept. On a file system that writes every block to a new place, the disk may
// have no room for that. No byte is in doubt then, so the flush must fail with the cause, and work once there is room.
func TestShortageWhileWrittenAgainPasses(t *testing.T) {
	for _, c := range []struct {
		policy FlushPolicy
		call   func(*Log) error
	}{
		{FlushNone, func(l *Log) error { return l.Sync() }},
		{FlushNone, func(l *Log) error { return l.WaitDurable(context.Background(), 1) }},
		{FlushAsync, func(l *Log) error { return l.TruncateTo(2) }},
	} {
		policy, call := c.policy, c.call
		s := sim.NewFS(sim.NewWorld(), false)
		l, err := openFS(s, sim.Dir, &Options{Flush: policy})
		require.NoError(t, err)
		for range 3 {
			_, err = l.Append(Record{Value: []byte("in the page cache")})
			require.NoError(t, err)
		}
		s = sim.NewFS(s.Kill(), false)
		ignore(l.Close())
		l, err = openFS(s, sim.Dir, &Options{Flush: policy})
		require.NoError(t, err)
		require.Len(t, l.flusher.rewrites, 1)
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Write && isLog(filepath.Base(path)) {
				return &sim.Fault{Err: syscall.ENOSPC}
			}
			return nil
		})
		for range 2 {
			err = call(l)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.NotErrorIs(t, err, ErrFailed)
		}
		s.SetFault(nil)
		require.NoError(t, call(l))
		_, err = l.Append(Record{Value: []byte("after it")})
		require.NoError(t, err)
		require.NoError(t, l.Sync())
		require.NoError(t, l.Close())
	}
}

// Close must flush only what changed: a process that stops may have thousands of logs to close.
func TestCloseFlushesWhatChanged(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushAsync, FlushNone} {
		s := sim.NewFS(sim.NewWorld(), true)
		var flushed []string
		closes := func(l *Log) []string {
			flushed = nil
			l.preparer.Close() // its flushes of zeros don't count
			s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
				if kind == sim.Flush || kind == sim.SyncDir {
					flushed = append(flushed, filepath.Base(path))
				}
				return nil
			})
			defer s.SetFault(nil)
			require.NoError(t, l.Close())
			return flushed
		}
		opened := func() *Log {
			l, err := openFS(s, sim.Dir, &Options{Flush: policy, SegmentBytes: 1 << 20})
			require.NoError(t, err)
			return l
		}
		require.NoError(t, opened().Close()) // from now on the file is opened by its last name
		l := opened()
		_, err := l.Append(Record{Value: []byte("small")})
		require.NoError(t, err)
		require.NoError(t, l.Sync())
		require.Equal(t, []string{stateName}, closes(l), "after an append")
		l = opened()
		for range 10 {
			_, err := l.Append(Record{Value: make([]byte, 1000)})
			require.NoError(t, err)
		}
		require.NoError(t, l.Sync())
		index := tmpPrefix + fileName(0, indexSuffix)
		require.Equal(t, []string{index, tmpPrefix + fileName(0, timeSuffix), stateName}, closes(l), "with index entries")
		l = opened()
		for l.Stats().Rolls == 0 {
			_, err := l.Append(Record{Value: make([]byte, 1000)})
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool { return l.Stats().Seals == 1 }, 10*time.Second, time.Millisecond)
		require.NoError(t, l.Sync())
		require.Equal(t, []string{stateName}, closes(l), "after a roll")
		require.Empty(t, closes(opened()), "of a log that was only opened")
		l = opened()
		require.NoError(t, l.TruncateTo(0))
		require.Equal(t, []string{stateName}, closes(l), "after a cut")
		l = opened()
		require.EqualValues(t, 0, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

// The append whose error makes the log fail must return ErrFailed itself, and not just the appends after it: callers go by it.
func TestFirstErrorOfAFailedAppendIsErrFailed(t *testing.T) {
	for kind, mapped := range map[sim.Kind]bool{sim.Reserve: true, sim.Write: false} {
		s := sim.NewFS(sim.NewWorld(), mapped)
		l, err := openFS(s, sim.Dir, &Options{Flush: FlushNone})
		require.NoError(t, err)
		s.SetFault(func(k sim.Kind, _ int, path string) *sim.Fault {
			if k == kind && filepath.Base(path) != stateName {
				return &sim.Fault{Err: syscall.EIO}
			}
			return nil
		})
		for err == nil {
			_, err = l.Append(Record{Value: make([]byte, 10_000)})
		}
		require.ErrorIs(t, err, ErrFailed, "%v", kind)
		require.ErrorIs(t, err, syscall.EIO)
		require.ErrorContains(t, err, fmt.Sprintf("append at offset %d", l.Offsets().End))
		ignore(l.Close())
	}
}

// The list of cuts is bounded. An iterator that was idle over more of them than it holds must not take the lowest of those for the
// lowest of all.
func TestForgottenCuts(t *testing.T) {
	var b bounds
	b.end.Store(1 << 20)
	for i := range int64(maxCuts + 1) {
		b.beginCut()
		b.endCut(10+i, false)
	}
	require.LessOrEqual(t, len(b.cutLog.last), maxCuts)
	for i := range int64(maxCuts + 1) {
		want := 10 + i
		if i < maxCuts/2 {
			want = -1
		}
		require.Equal(t, want, b.lowestCut(2*i))
	}
	require.EqualValues(t, 1<<20, b.lowestCut(b.cuts.Load()))
}

// A Reset ends an iteration, also one that stands just at its offset: the records from there on are those of another history.
func TestIterationEndsAtAReset(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{Flush: FlushNone})
	require.NoError(t, err)
	for range 10 {
		appendNumbered(t, l)
	}
	n := 0
	for _, err := range l.Records(0) {
		if n++; n == 5 {
			require.NoError(t, l.Reset(5))
			appendNumbered(t, l)
			continue
		}
		if n == 6 {
			require.ErrorIs(t, err, ErrOutOfRange)
			continue
		}
		require.NoError(t, err)
	}
	require.Equal(t, 6, n)
	require.NoError(t, l.Close())
}

// If what is waited for comes about, or can't any more, as the context ends, wait must say so.
func TestWaitPrefersItsReason(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, want := range []error{nil, ErrClosed, context.Canceled} {
		looks := 0
		err := new(waiters).wait(ctx, func() (bool, error) {
			if looks++; looks < 3 || want == context.Canceled {
				return false, nil
			}
			return want == nil, want
		})
		require.Equal(t, want, err)
		require.Equal(t, 3, looks)
	}
}
