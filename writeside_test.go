package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// These tests are for faults of the write side that the schedules do not find by themselves. The patches in torture/bugs put
// them back.

// smallSegments returns a log on a simulated disk, filled to the given number of small segments.
func smallSegments(t *testing.T, mapped bool, policy FlushPolicy, segments int) (*sim.FS, *Log) {
	s := sim.NewFS(sim.NewWorld(), mapped)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096, Flush: policy})
	require.NoError(t, err)
	for l.Stats().Segments < segments {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	return s, l
}

// If the active segment is rolled, sealed and trimmed after the preparer has looked it up, the preparer must not touch it:
// zeros after the end of a sealed segment are damage.
func TestPreparerLeavesRolledSegmentsAlone(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
		s, l := smallSegments(t, true, policy, 1)
		l.mu.Lock()
		old := l.writer.tail
		l.mu.Unlock()
		require.True(t, old.h.ref()) // as the preparer does
		for l.Stats().Seals == 0 {
			_, err := l.Append(Record{Value: make([]byte, 100)})
			require.NoError(t, err)
		}
		pos := old.seg.stored.load().pos()
		old.reserved.Store(pos) // the segment was trimmed before it was full
		ignore(old.zeroAhead(pos + 1000))
		ignore(old.reserve(pos + 1000))
		st, err := s.Stat(old.h.path)
		require.NoError(t, err)
		require.Equal(t, pos, st.Size)
		require.NoError(t, old.h.unref())
		require.Eventually(t, func() bool { return old.seg.h.Load() == nil }, 10*time.Second, time.Millisecond)
		require.NoError(t, l.prepareTail(old), "of a segment that is closed by now")
		require.NoError(t, l.Close())
		require.Empty(t, s.Misuse)
	}
}

// The kernel reports a failed write-back once to each open file description. If the preparer gets the error when it writes
// zeros, it must return the error, and the flusher must still get it too.
func TestPreparerTakesNoErrorFromTheFlusher(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	tail := l.writer.tail
	l.preparing.Lock()                                              // keeps the real preparer out
	_, err = tail.h.f.WriteAt([]byte("what an append stored"), 500) // as the flusher does before it flushes
	require.NoError(t, err)
	failed := false
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Zero && !failed {
			failed = true
			return &sim.Fault{Err: syscall.EIO, Late: true}
		}
		return nil
	})
	tail.reserved.Store(4096)
	err = tail.prepare()
	require.ErrorIs(t, err, syscall.EIO)
	require.NotNil(t, inDoubt(err))
	require.ErrorIs(t, tail.h.f.Flush(), syscall.EIO)
	s.SetFault(nil)
	l.preparing.Unlock()
	require.NoError(t, l.Close())
}

// A TruncateTo that finds out that it can't cut must have changed nothing. Once, its intent was durable by then, and every
// later Open failed like the cut.
func TestCutThatCannotBePlanned(t *testing.T) {
	const snappy = 2 // no decompressor is registered for it
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	b := encoded([]Record{{Time: time.UnixMilli(1), Value: []byte("a")}, {Time: time.UnixMilli(1), Value: []byte("b")}}, 0)
	binary.BigEndian.PutUint16(b[21:], snappy)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	_, err = l.AppendBatch(b)
	require.NoError(t, err)
	require.ErrorIs(t, l.TruncateTo(1), ErrCodec)
	_, err = l.Append(Record{Value: []byte("c")})
	require.NoError(t, err, "the failed TruncateTo must change nothing")
	require.NoError(t, l.Close())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.EqualValues(t, 3, l.Offsets().End)
	require.NoError(t, l.Close())

	// The same holds if there is no descriptor to open the segment.
	s, l := smallSegments(t, true, FlushSync, 2)
	end := l.Offsets().End
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Open && isLog(filepath.Base(path)) {
			return &sim.Fault{Err: syscall.EMFILE}
		}
		return nil
	})
	require.ErrorIs(t, l.TruncateTo(end-1), syscall.EMFILE)
	s.SetFault(nil)
	_, err = l.Append(Record{})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	l, err = openFS(s, sim.Dir, nil)
	require.NoError(t, err)
	require.Equal(t, end+1, l.Offsets().End)
	require.NoError(t, l.Close())
}

// A roll must wait while too many segments are unsealed. If the seals fail, the append must return their error, and appends must
// succeed once seals work again.
func TestRollsWaitForSeals(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	said := &warnings{Handler: slog.DiscardHandler}
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone, Logger: slog.New(said)})
	require.NoError(t, err)
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Create && strings.Contains(path, "index") {
			return &sim.Fault{Err: syscall.ENOSPC}
		}
		return nil
	})
	for n := 0; err == nil; n++ {
		require.Less(t, n, 40*maxUnsealed, "the number of unsealed segments must be bounded")
		_, err = l.Append(Record{Value: make([]byte, 1000)})
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.LessOrEqual(t, l.Stats().Segments, 1+maxUnsealed)
	_, err = l.TransferFrom(bytes.NewReader(encoded([]Record{{Time: time.UnixMilli(1), Value: make([]byte, 1000)}}, l.Offsets().End)), -1)
	require.ErrorIs(t, err, syscall.ENOSPC)
	s.SetFault(nil)
	_, err = l.Append(Record{Value: make([]byte, 1000)})
	require.NoError(t, err, "an attempt to seal from before the append is no reason for it to fail")
	l.keeper.Close()
	require.EqualValues(t, len(said.lines)+2, l.Stats().Errors, "the attempts, the append and the transfer")
	require.NoError(t, l.Close())
}

// A roll that fails on a full disk must not leave the name of a new segment. A smaller batch may still fit into the old
// segment, and a power cut must not bring back an empty segment with the offset of that batch.
func TestFailedRollLeavesNoName(t *testing.T) {
	crashedAtEveryPoint(t, Options{SegmentBytes: 4096}, appends(1, 1), func(u *simUser) error {
		u.sim.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Reserve || kind == sim.Rename && isLog(filepath.Base(path)) {
				return &sim.Fault{Err: syscall.ENOSPC}
			}
			return nil
		})
		if _, err := u.log.Append(Record{Value: make([]byte, 3900)}); !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the roll did not fail on the full disk: %v", err)
		}
		u.sim.SetFault(nil)
		return errors.Join(u.append(1), u.append(1))
	})
}

// heldNext is a simulated disk on which the preparer's creation of the next segment waits.
type heldNext struct {
	*sim.FS
	began, letGo chan struct{}
}

func (h *heldNext) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	if filepath.Base(path) == nextName {
		close(h.began)
		<-h.letGo
	}
	return h.FS.Open(path, mode)
}

// A roll that needs a segment while the preparer is making one makes its own and, if it fails then, keeps that for the next roll.
// The preparer must remove the one it has made.
func TestPreparerBesideAFailedRoll(t *testing.T) {
	h := &heldNext{sim.NewFS(sim.NewWorld(), true), make(chan struct{}), make(chan struct{})}
	l, err := openFS(h, sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone})
	require.NoError(t, err)
	for range 2 {
		_, err = l.Append(Record{Value: make([]byte, 1200)})
		require.NoError(t, err)
	}
	l.preparer.Kick() // its round for the first append may have looked before the second
	<-h.began
	h.SetFault(fails(sim.Rename, logSuffix, syscall.ENOSPC))
	_, err = l.Append(Record{Value: make([]byte, 2000)})
	require.ErrorIs(t, err, syscall.ENOSPC)
	close(h.letGo)
	l.preparer.Close()
	_, err = h.Stat(filepath.Join(sim.Dir, nextName))
	require.ErrorIs(t, err, fs.ErrNotExist)
	h.SetFault(nil)
	_, err = l.Append(Record{Value: make([]byte, 2000)})
	require.NoError(t, err)
	require.Equal(t, 2, l.Stats().Segments)
	require.NoError(t, l.Close())
	require.Empty(t, h.Left())
}

// What a failed write has left behind the end must be gone before the next batch is stored, which may be shorter.
func TestFailedWriteLeavesNothing(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		s := sim.NewFS(sim.NewWorld(), mapped)
		l, _ := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: 1 << 20})
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Write && isLog(filepath.Base(path)) {
				return &sim.Fault{Err: syscall.ENOSPC, Short: true}
			}
			return nil
		})
		_, err := l.Append(Record{Value: bytes.Repeat([]byte("torn"), largeBatch/4)})
		require.ErrorIs(t, err, syscall.ENOSPC)
		s.SetFault(nil)
		_, err = l.Append(Record{Value: []byte("short")})
		require.NoError(t, err)
		b := s.World.Get(fileName(0, logSuffix))
		require.Empty(t, bytes.Trim(b[batch(b).size():], "\x00"))
		cuts := s.Count[sim.Truncate]
		_, err = l.Append(Record{Value: []byte("once more")})
		require.NoError(t, err)
		require.Equal(t, cuts, s.Count[sim.Truncate], "the file is cut once")
		require.NoError(t, l.Close())
	}
}

// Another program may truncate the active segment at any moment, also just before the batch is published. That is an error.
func TestFaultBeforeTheBatchIsPublished(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{Flush: FlushNone})
	require.NoError(t, err)
	l.preparer.Close()
	tail := l.writer.tail
	if tail.h.m == nil || runtime.GOOS == "windows" {
		require.NoError(t, l.Close())
		t.Skip("the segment is not mapped, or can't be truncated")
	}
	dst, err := tail.begin(100, largeBatch)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(tail.h.path, 0))
	var at *fs.PathError
	require.ErrorAs(t, tail.commit(dst), &at)
	require.Equal(t, tail.h.path, at.Path)
	require.Zero(t, l.Offsets().End)
	require.NoError(t, l.Close())
}

// If an append under FlushAsync has to flush and the flush fails on a full disk, the batch is stored. The error must be
// ErrFailed, as the error of a full disk means that the batch was not stored.
func TestShortageInAFlushLatches(t *testing.T) {
	for range 10 {
		s := sim.NewFS(sim.NewWorld(), true)
		l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 1 << 20, Flush: FlushAsync, FlushBytes: 1000, FlushInterval: time.Hour})
		require.NoError(t, err)
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Flush && isLog(filepath.Base(path)) {
				return &sim.Fault{Err: syscall.ENOSPC}
			}
			return nil
		})
		_, err = l.Append(Record{Value: make([]byte, 10_000)})
		require.ErrorIs(t, err, ErrFailed)
		require.ErrorIs(t, l.Close(), ErrFailed)
	}
}

// If the file of a deleted segment can't be removed, the segment and the later deleted ones must be closed all the same.
func TestFailedRemovalReleasesTheSegments(t *testing.T) {
	s, l := smallSegments(t, true, FlushSync, 6)
	require.Eventually(t, func() bool { return l.Stats().Seals >= 5 }, 10*time.Second, time.Millisecond)
	for offset := range l.Offsets().End {
		_, err := l.Read(offset) // opens its segment
		require.NoError(t, err)
	}
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Remove && isLog(filepath.Base(path)) {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.DeleteBefore(l.Offsets().End-1), syscall.EIO)
	require.LessOrEqual(t, l.Stats().OpenSegments, 1)
	s.SetFault(nil)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
}

// The number of directory syncs of a cut, which holds the writer's lock, must not grow with the number of segments.
func TestCutSyncsTheDirectoryOnce(t *testing.T) {
	var syncs [2]int
	for i, segments := range []int{3, 30} {
		s, l := smallSegments(t, true, FlushSync, segments)
		require.Eventually(t, func() bool { return l.Stats().Seals >= int64(segments-1) }, 10*time.Second, time.Millisecond)
		s.Mu.Lock()
		before := s.Count[sim.SyncDir]
		s.Mu.Unlock()
		require.NoError(t, l.TruncateTo(1))
		s.Mu.Lock()
		syncs[i] = s.Count[sim.SyncDir] - before
		s.Mu.Unlock()
		require.NoError(t, l.Close())
	}
	require.Equal(t, syncs[0], syncs[1])
}

// requireFailure appends to a log of small segments until a roll checks the directory, after which the log must have failed.
func requireFailure(t *testing.T, l *Log) {
	for range 100 {
		if _, err := l.Append(Record{Value: bytes.Repeat([]byte("x"), 1000)}); err != nil {
			require.ErrorIs(t, l.Sync(), ErrFailed)
			return
		}
	}
	require.Fail(t, "100 appends did not fail")
}

// If another directory takes the place of the log's, the log must fail at its next roll and create no file in that directory.
func TestDirectoryReplaced(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory with open files can't be renamed here")
	}
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Open(dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	require.NoError(t, os.Rename(dir, dir+".old"))
	require.NoError(t, os.Mkdir(dir, 0o755))
	requireFailure(t, l)
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, names)
	require.ErrorIs(t, l.Close(), ErrFailed)
	l, err = Open(dir+".old", nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// If the file LOCK is removed, a second writer must still be kept out, and the first must fail at its next roll.
func TestLockRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file can't be removed here")
	}
	dir := t.TempDir()
	l, err := Open(dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "LOCK")))
	second, err := Open(dir, nil)
	if err == nil {
		err = errors.Join(second.Close(), errors.New("a second writer"))
	}
	require.ErrorIs(t, err, ErrLocked)
	requireFailure(t, l)
	require.ErrorIs(t, l.Close(), ErrFailed)
}

// The first call that finds LOCK or the directory replaced must return ErrFailed, as all later calls do.
func TestFirstErrorAfterAnExchangeIsErrFailed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file can't be removed here")
	}
	for what, exchange := range map[string]func(dir string) error{
		"LOCK":      func(dir string) error { return os.Remove(filepath.Join(dir, "LOCK")) },
		"directory": func(dir string) error { return errors.Join(os.Rename(dir, dir+".moved"), os.Mkdir(dir, 0o755)) },
	} {
		for name, call := range map[string]func(l *Log) error{
			"TruncateTo":   func(l *Log) error { return l.TruncateTo(1) },
			"Reset":        func(l *Log) error { return l.Reset(7) },
			"DeleteBefore": func(l *Log) error { return l.DeleteBefore(1) },
			"Append": func(l *Log) error {
				for {
					if _, err := l.Append(Record{Value: make([]byte, 1000)}); err != nil {
						return err
					}
				}
			},
		} {
			dir := filepath.Join(t.TempDir(), "log")
			l, err := Open(dir, &Options{SegmentBytes: 4096})
			require.NoError(t, err)
			for range 3 {
				_, err = l.Append(Record{Value: []byte("v")})
				require.NoError(t, err)
			}
			require.NoError(t, exchange(dir))
			require.ErrorIs(t, call(l), ErrFailed, "%s, %s", what, name)
			require.ErrorIs(t, l.Close(), ErrFailed)
		}
	}
}

// When Open takes over a directory without a state file, it must sync the names of the segments before the state file counts
// them: the program that created them may have been killed before it synced the names.
func TestNamesAreDurableBeforeTheyAreCounted(t *testing.T) {
	s, l := smallSegments(t, true, FlushSync, 2)
	require.NoError(t, l.Close())
	require.NoError(t, s.Remove(filepath.Join(sim.Dir, stateName)))
	synced, counted, early := false, false, false
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		switch name := filepath.Base(path); {
		case kind == sim.SyncDir && name == sim.Dir:
			synced = true
		case kind == sim.Write && name == stateName && !counted:
			counted = true
			early = !synced
		}
		return nil
	})
	l, err := openFS(s, sim.Dir, nil)
	require.NoError(t, err)
	s.SetFault(nil)
	require.True(t, counted)
	require.False(t, early)
	require.NoError(t, l.Close())
}

// A cut that fails halfway must leave the records below its offset readable.
func TestFailedCutLeavesWhatLiesBelow(t *testing.T) {
	s, l := smallSegments(t, true, FlushSync, 4)
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Truncate && isLog(filepath.Base(path)) {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, l.TruncateTo(2), syscall.EIO)
	s.SetFault(nil)
	next := int64(0)
	for r, err := range l.Records(0) {
		require.NoError(t, err)
		require.Equal(t, next, r.Offset)
		next++
	}
	require.EqualValues(t, 2, next)
	require.ErrorIs(t, l.Close(), ErrFailed)
}

// The intent of a cut may reach the disk without the batch that belongs to it. The cut has not begun then, and recovery must
// not take the records above its offset for old ones that the cut removed.
func TestIntentWithoutItsRest(t *testing.T) {
	crashedAtEveryPoint(t, Options{SegmentBytes: 4096}, func(u *simUser) error {
		u.sim.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Write && filepath.Base(path) == stateName { // no state is noted, so recovery has to check all records
				return &sim.Fault{Err: syscall.EIO}
			}
			return nil
		})
		err := appends(1, 2, 2)(u)
		u.sim.SetFault(nil)
		return err
	}, func(u *simUser) error { return u.truncateTo(2) })
}

// zeroFS counts the zeros that are written ahead of the appends.
type zeroFS struct {
	osFS
	laid atomic.Int64
}

type zeroFile struct {
	vfs.File
	fs *zeroFS
}

func (f zeroFile) Zero(pos, n int64) error {
	f.fs.laid.Add(n)
	return f.File.Zero(pos, n)
}

func (f *zeroFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	g, err := f.osFS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return zeroFile{g, f}, nil
}

// Zeros must be written ahead of small flushes, and not of large ones.
func TestLargeFlushesGetNoZeros(t *testing.T) {
	for _, c := range []struct {
		size, least, most int
	}{
		{16 << 10, 1, 64 << 20},
		{largeFlush, 0, 4 << 20},
	} {
		fsys := new(zeroFS)
		dir := t.TempDir()
		l, err := openFS(fsys, dir, &Options{SegmentBytes: 32 << 20})
		require.NoError(t, err)
		if l.writer.tail.h.m == nil {
			require.NoError(t, l.Close())
			t.Skip("this platform does not reserve blocks")
		}
		value := bytes.Repeat([]byte{7}, c.size)
		n := 20 << 20 / c.size
		for range n {
			_, err := l.Append(Record{Value: value})
			require.NoError(t, err)
		}
		laid := int(fsys.laid.Load())
		require.GreaterOrEqual(t, laid, c.least)
		require.LessOrEqual(t, laid, c.most)
		require.NoError(t, l.Close())
		l, err = Open(dir, nil)
		require.NoError(t, err)
		count := 0
		for r, err := range l.Records(0) {
			require.NoError(t, err)
			require.Equal(t, value, r.Value)
			count++
		}
		require.Equal(t, n, count)
		require.NoError(t, l.Close())
	}
}

// A sealed segment must keep neither the buffers in which its batches were gathered nor the writer's handle.
func TestSealedSegmentsKeepNoBuffers(t *testing.T) {
	l, err := Open(t.TempDir(), &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	value := make([]byte, 20<<10)
	for range 30 {
		_, err := l.Append(Record{Value: value})
		require.NoError(t, err)
	}
	keeps := func() (sealed int, kept bool) {
		for _, s := range l.view.Load().segs {
			if !s.is(phaseSealed) {
				continue
			}
			sealed++
			s.gather.mu.Lock()
			kept = kept || s.h.Load() != nil || cap(s.gather.buf)+cap(s.gather.spare) > 0
			s.gather.mu.Unlock()
		}
		return sealed, kept
	}
	if l.writer.tail.seg.gather == nil {
		require.NoError(t, l.Close())
		t.Skip("this platform does not gather batches")
	}
	require.Eventually(t, func() bool {
		sealed, kept := keeps()
		return sealed > 5 && !kept
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
}

// A Reset for which a full disk has no room for the name of the new segment must leave the log as it was.
func TestResetWithoutRoomForAName(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{SegmentBytes: 1 << 20})
	appendValues(t, l, 200)
	r, err := openFS(s, sim.Dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Rename {
			return &sim.Fault{Err: syscall.ENOSPC}
		}
		return nil
	})
	for range 2 {
		err = l.Reset(1000)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.NotErrorIs(t, err, ErrFailed)
	}
	s.SetFault(nil)
	for _, l := range []*Log{l, r} {
		got, err := readLog(l)
		require.NoError(t, err)
		require.Len(t, got.recs, 200)
	}
	appendValues(t, l, 1)
	killed := sim.NewFS(s.World.Clone(), true)
	again, err := openFS(killed, sim.Dir, nil)
	require.NoError(t, err)
	require.EqualValues(t, 201, again.Offsets().End)
	require.NoError(t, again.Close())
	require.NoError(t, l.Reset(1000))
	require.Equal(t, Offsets{1000, 1000, 1000, 1000}, r.Offsets())
	require.NoError(t, r.Close())
	require.NoError(t, l.Close())
	require.Empty(t, verifyWorld(t, s.World, nil).Problems)
}
