package seglog

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What lasts over a failure, a crash or another call: the smallest workload for each of some faults that the schedules need
// luck to meet. torture/bugs puts them back.

// The end of a log and the number of its cuts, as a flush waits for them, belong together.
func TestMomentIsOfOneHistory(t *testing.T) {
	var b bounds
	for i := range int64(100) {
		b.beginCut()
		got := make(chan moment)
		go func() { got <- b.moment() }()
		time.Sleep(100 * time.Microsecond) // the longer, the surer it waits for the cut by now
		b.end.Store(i + 1)
		b.endCut(0, false)
		require.Equal(t, moment{2 * (i + 1), i + 1}, <-got)
	}
}

// In a log that may leave offsets out, records behind a lost end are no gap.
func TestLostEndIsNoGap(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	_, err := l.Append(Record{})
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	// A stream that leaves out ten offsets behind its first batch.
	gap := l.Offsets().End + 1
	stream := encoded([]Record{{Time: time.UnixMilli(1)}}, gap-1)
	stream = append(stream, encoded([]Record{{Time: time.UnixMilli(1)}}, gap+10)...)
	_, err = l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	l.flushes.Lock() // so that nothing more is durable
	for l.Stats().Segments < 4 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	w := s.kill()
	l.flushes.Unlock()
	ignore(l.Close())
	for _, c := range append(wholeCuts(), singleCuts(w, rand.New(rand.NewPCG(1, 1)))...) {
		l, err := openFS(newSimFS(c.apply(w), true), simDir, &Options{SegmentBytes: 4096, Flush: FlushNone})
		require.NoError(t, err, c.what)
		next := int64(0)
		for r, err := range l.Records(0) {
			require.NoError(t, err, c.what)
			if next == gap {
				next = gap + 10
			}
			require.Equal(t, next, r.Offset, c.what)
			next++
		}
		require.NoError(t, l.Close())
	}
}

// Close flushes although the segment made ready for the next roll can't be removed.
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
	s.setFault(func(kind simKind, _ int, path string) *simFault {
		if kind == simRemove {
			return &simFault{err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.Close(), syscall.EIO)
	l, err := openFS(newSimFS(cutNamed(t, s.kill(), "nothing"), true), simDir, nil)
	require.NoError(t, err)
	require.Equal(t, end, l.Offsets().End)
	require.NoError(t, l.Close())
}

// WaitDurable of a record that is appended later is woken by its append, under policies without a flush, too.
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

// A sealed segment is closed: the mapping, the buffers and the index of its writer go.
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

// A flush of older segments, as a seal needs it, and a deletion up to a lower offset leave bounds that are further already.
func TestBoundsOnlyGrow(t *testing.T) {
	_, l := smallSegments(t, true, FlushNone, 4)
	require.NoError(t, l.Sync())
	before := l.Offsets()
	require.NoError(t, l.flushBelow(1))
	require.Equal(t, before, l.Offsets())
	require.NoError(t, l.DeleteBefore(6))
	_, err := l.moveStart(4, anyHistory) // which another DeleteBefore had begun
	require.NoError(t, err)
	require.EqualValues(t, 6, l.Offsets().Start)
	require.NoError(t, l.Close())
}

// One page of seglog.state that can't be read takes one slot.
func TestUnreadablePageOfTheState(t *testing.T) {
	for page := range int64(2) {
		s, l := smallSegments(t, true, FlushSync, 2)
		end := l.Offsets().End
		require.NoError(t, l.Close())
		s.bad = map[string]int64{stateName: page}
		l, err := openFS(s, simDir, nil)
		require.NoError(t, err)
		require.Equal(t, end, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

// On ext4 a block whose first write failed loses what is written to it later, flushed or not. What an Open in the same boot
// keeps, and so shows, is on the disk all the same.
func TestFailedFlushThenPowerCut(t *testing.T) {
	w := newSimWorld()
	w.ext4 = true
	s := newSimFS(w, false)
	l, err := openFS(s, simDir, nil)
	require.NoError(t, err)
	s.setFault(func(kind simKind, _ int, path string) *simFault {
		if kind == simFlush && isLog(filepath.Base(path)) {
			return &simFault{err: syscall.EIO}
		}
		return nil
	})
	_, err = l.Append(Record{Value: []byte("in doubt")})
	require.Error(t, err)
	s.setFault(nil)
	require.ErrorIs(t, l.Close(), ErrFailed)
	l, err = openFS(s, simDir, nil)
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("acknowledged")})
	require.NoError(t, err)
	end := l.Offsets().End
	w = s.kill()
	ignore(l.Close())
	l, err = openFS(newSimFS(cutNamed(t, w, "nothing"), false), simDir, nil)
	require.NoError(t, err)
	require.Equal(t, end, l.Offsets().End)
	_, err = l.Read(end - 1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// The trim of a rolled segment flushes a file with records: if that fails they are in doubt, and the log says so.
func TestFailedTrimLatches(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	flushes := 0
	s.setFault(func(kind simKind, _ int, path string) *simFault {
		if kind == simFlush && isLog(filepath.Base(path)) {
			if flushes++; flushes == 2 { // the first is of the records, before the seal
				return &simFault{err: syscall.EIO}
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

// copyOf is a directory as a killed process leaves it.
func copyOf(t *testing.T, dir string) string {
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// A disk may show again what the blocks of a lost write held before: batches that a cut took away, or that recovery did. They
// are whole, and their offsets join.
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

// What recovery cuts off as torn is kept beside the log, unless it is only zeros.
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
}

// A record is not durable before the name of its segment is.
func TestNothingIsDurableBeforeItsName(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	require.NoError(t, l.Sync())
	l.flushes.Lock() // so that the keeper stays away
	for l.Stats().Segments < 2 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	before := l.Offsets().RecoveryPoint
	s.setFault(func(kind simKind, _ int, path string) *simFault {
		if kind == simSyncDir {
			return &simFault{err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.flushOnce(math.MaxInt64), syscall.EIO)
	require.Equal(t, before, l.Offsets().RecoveryPoint)
	for _, seg := range l.view.Load().segs {
		require.Equal(t, max(0, before-seg.base), seg.flushed.load().rel())
	}
	l.flushes.Unlock()
	s.setFault(nil)
	require.NoError(t, l.Close())
}

// Pages that a killed process stored may be clean in the cache and absent from the disk, so what recovery keeps of them is
// written again before the first flush.
func TestRecoveredTailIsWrittenAgain(t *testing.T) {
	s, l := smallSegments(t, true, FlushNone, 1)
	_, err := l.Append(Record{Value: []byte("kept")})
	require.NoError(t, err)
	w := s.kill()
	ignore(l.Close())
	s = newSimFS(w, true)
	written := 0
	s.setFault(func(kind simKind, _ int, path string) *simFault {
		if kind == simWrite && isLog(filepath.Base(path)) {
			written++
		}
		return nil
	})
	l, err = openFS(s, simDir, &Options{SegmentBytes: 4096, Flush: FlushNone})
	require.NoError(t, err)
	require.Zero(t, written)
	require.NoError(t, l.Sync())
	s.setFault(nil)
	require.Equal(t, 1, written)
	require.NoError(t, l.Close())
}

// A cut overwrites what goes by zeros. Where a full disk has no room for those, since the blocks are shared with a copy, the
// file is truncated, which needs none.
func TestCutOnAFullDiskOfSharedBlocks(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
		s := newSimFS(newSimWorld(), true)
		l, err := openFS(s, simDir, &Options{Flush: policy})
		require.NoError(t, err)
		for range 3 {
			_, err = l.Append(Record{Value: []byte("record")})
			require.NoError(t, err)
		}
		refused := 0
		s.setFault(func(kind simKind, _ int, path string) *simFault {
			if kind == simZero && isLog(filepath.Base(path)) {
				refused++
				return &simFault{err: syscall.ENOSPC}
			}
			return nil
		})
		require.NoError(t, l.TruncateTo(1))
		s.setFault(nil)
		require.Positive(t, refused)
		base, err := l.Append(Record{Value: []byte("behind the cut")})
		require.NoError(t, err)
		require.EqualValues(t, 1, base)
		require.NoError(t, l.Sync())
		s = newSimFS(s.kill(), true)
		ignore(l.Close())
		l, err = openFS(s, simDir, &Options{Flush: policy})
		require.NoError(t, err)
		require.EqualValues(t, 2, l.Offsets().End)
		require.NoError(t, l.Close())
	}
}

// What a recovery keeps is written again by the first flush. A disk that has no room for that, as one that writes every block
// to a new place, puts no byte in doubt: the flush fails with the cause, and works once there is room.
func TestShortageWhileWrittenAgainPasses(t *testing.T) {
	for policy, call := range map[FlushPolicy]func(*Log) error{
		FlushNone:  func(l *Log) error { return l.Sync() },
		FlushAsync: func(l *Log) error { return l.TruncateTo(2) },
	} {
		s := newSimFS(newSimWorld(), false)
		l, err := openFS(s, simDir, &Options{Flush: policy})
		require.NoError(t, err)
		for range 3 {
			_, err = l.Append(Record{Value: []byte("in the page cache")})
			require.NoError(t, err)
		}
		s = newSimFS(s.kill(), false)
		ignore(l.Close())
		l, err = openFS(s, simDir, &Options{Flush: policy})
		require.NoError(t, err)
		require.Len(t, l.flusher.rewrites, 1)
		s.setFault(func(kind simKind, _ int, path string) *simFault {
			if kind == simWrite && isLog(filepath.Base(path)) {
				return &simFault{err: syscall.ENOSPC}
			}
			return nil
		})
		for range 2 {
			err = call(l)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.NotErrorIs(t, err, ErrFailed)
		}
		s.setFault(nil)
		require.NoError(t, call(l))
		_, err = l.Append(Record{Value: []byte("behind it")})
		require.NoError(t, err)
		require.NoError(t, l.Sync())
		require.NoError(t, l.Close())
	}
}
