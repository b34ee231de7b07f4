package seglog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// snapValue returns a value that contains its offset, so that a record in the wrong place shows.
func snapValue(offset int64) []byte {
	return fmt.Appendf(nil, "record %d %0*d", offset, int(offset%90), 0)
}

func snapAppend(t testing.TB, l *Log, n int) {
	t.Helper()
	for range n {
		_, err := l.Append(Record{Value: snapValue(l.Offsets().End), Time: time.UnixMilli(1700000000000 + l.Offsets().End)})
		require.NoError(t, err)
	}
}

// requireSnapshot checks all of a copy, appends to it, and returns the bounds that it had.
func requireSnapshot(t testing.TB, dir string) Offsets {
	t.Helper()
	r, err := Verify(dir, nil)
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	require.Equal(t, "closed", r.State)
	l, err := Open(dir, &Options{SegmentBytes: 8 << 10})
	require.NoError(t, err)
	o := l.Offsets()
	require.Zero(t, l.Stats().IndexRebuilds)
	next := o.Start
	for rec, err := range l.Records(o.Start) {
		require.NoError(t, err)
		require.Equal(t, next, rec.Offset)
		require.Equal(t, string(snapValue(next)), string(rec.Value))
		next++
	}
	require.Equal(t, o.End, next)
	snapAppend(t, l, 30)
	require.NoError(t, l.Close())
	return o
}

func snapOptions(p FlushPolicy) *Options {
	return &Options{Flush: p, SegmentBytes: 8 << 10}
}

// A snapshot must hold the log as of its time, and be independent of the log afterwards.
func TestSnapshot(t *testing.T) {
	for _, p := range []FlushPolicy{FlushSync, FlushAsync, FlushNone} {
		for _, n := range []int{0, 1, 50, 700} {
			t.Run(fmt.Sprintf("%v/%d", p, n), func(t *testing.T) {
				dir := t.TempDir()
				l, err := Open(filepath.Join(dir, "log"), snapOptions(p))
				require.NoError(t, err)
				defer l.Close()
				snapAppend(t, l, n)
				if n > 100 {
					require.NoError(t, l.DeleteBefore(int64(n/3)))
				}
				before := l.Offsets()
				copied := filepath.Join(dir, "a", "copy")
				require.NoError(t, l.Snapshot(copied))
				// Changes of the log must not show in the copy, nor the reverse.
				snapAppend(t, l, 20)
				require.NoError(t, l.TruncateTo(max(before.Start, before.End-5)))
				o := requireSnapshot(t, copied)
				require.Equal(t, before.Start, o.Start)
				require.Equal(t, before.HighWatermark, o.End)
				snapAppend(t, l, 40)
				require.NoError(t, l.Close())
				r, err := Verify(filepath.Join(dir, "log"), nil)
				require.NoError(t, err)
				require.Empty(t, r.Problems)
				require.ErrorIs(t, l.Snapshot(filepath.Join(dir, "closed")), ErrClosed)
			})
		}
	}
}

// awaitSeals waits until all rolled segments are sealed.
func awaitSeals(l *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.writer.sealing) > 0 {
		l.writer.sealed.Wait()
	}
}

// A snapshot must share the sealed segments with the log by hard links, but not the active segment.
func TestSnapshotLinks(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(filepath.Join(dir, "log"), snapOptions(FlushNone))
	require.NoError(t, err)
	defer l.Close()
	snapAppend(t, l, 500)
	awaitSeals(l)
	copied := filepath.Join(dir, "copy")
	require.NoError(t, l.Snapshot(copied))
	segs := l.view.Load().segs
	require.Greater(t, len(segs), 3)
	for i, s := range segs {
		for _, suffix := range []string{logSuffix, indexSuffix, timeSuffix} {
			a, err := os.Stat(l.path(s.base, suffix))
			if i+1 == len(segs) && suffix != logSuffix {
				continue // the active segment has no index files
			}
			require.NoError(t, err)
			b, err := os.Stat(filepath.Join(copied, fileName(s.base, suffix)))
			require.NoError(t, err)
			require.Equal(t, i+1 < len(segs), os.SameFile(a, b), "%d%s: the active segment must be a file of its own", s.base, suffix)
		}
	}
	err = l.Snapshot(copied)
	require.ErrorIs(t, err, ErrInvalid)
	err = l.Snapshot(l.dir)
	require.ErrorIs(t, err, ErrInvalid)
}

func TestSnapshotReadOnly(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(filepath.Join(dir, "log"), snapOptions(FlushSync))
	require.NoError(t, err)
	defer w.Close()
	snapAppend(t, w, 400)
	r, err := Open(filepath.Join(dir, "log"), &Options{ReadOnly: true})
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, r.Snapshot(filepath.Join(dir, "a")))
	require.EqualValues(t, 400, requireSnapshot(t, filepath.Join(dir, "a")).End)
	snapAppend(t, w, 100)
	require.NoError(t, w.DeleteBefore(222))
	require.NoError(t, r.Snapshot(filepath.Join(dir, "b")))
	o := requireSnapshot(t, filepath.Join(dir, "b"))
	require.EqualValues(t, 222, o.Start)
	require.EqualValues(t, 500, o.End)
	// A read-only log of a directory without seglog.state, as Kafka leaves it, can be copied as well.
	require.NoError(t, w.Close())
	require.NoError(t, os.Remove(filepath.Join(dir, "log", stateName)))
	k, err := Open(filepath.Join(dir, "log"), &Options{ReadOnly: true})
	require.NoError(t, err)
	defer k.Close()
	require.NoError(t, k.Snapshot(filepath.Join(dir, "c")))
	require.EqualValues(t, 500, requireSnapshot(t, filepath.Join(dir, "c")).End)
}

// Snapshots must be whole while the log appends, rolls, deletes and cuts.
func TestSnapshotConcurrent(t *testing.T) {
	for _, p := range []FlushPolicy{FlushSync, FlushNone} {
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/readonly=%v", p, readOnly), func(t *testing.T) {
				dir := t.TempDir()
				l, err := Open(filepath.Join(dir, "log"), snapOptions(p))
				require.NoError(t, err)
				defer l.Close()
				snapAppend(t, l, 200)
				var stop atomic.Bool
				var wg sync.WaitGroup
				wg.Add(1)
				go func() {
					defer wg.Done()
					cut := time.Now()
					for i := 1; !stop.Load(); i++ {
						o := l.Offsets()
						_, err := l.Append(Record{Value: snapValue(o.End)})
						if err == nil && i%97 == 0 {
							err = l.DeleteBefore(o.Start + (o.HighWatermark-o.Start)/2)
						}
						if pause := 300 * time.Millisecond; err == nil && (i%301 == 0 && !readOnly || time.Since(cut) > pause) {
							cut = time.Now()
							err = l.TruncateTo(l.Offsets().End - 3)
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				}()
				from := l
				if readOnly {
					from, err = Open(filepath.Join(dir, "log"), &Options{ReadOnly: true})
					require.NoError(t, err)
					defer from.Close()
				}
				for i := range 12 {
					low := l.Offsets().HighWatermark - 50 // less 50, since there may be cuts in between
					copied := filepath.Join(dir, fmt.Sprint(i))
					require.NoError(t, from.Snapshot(copied))
					require.GreaterOrEqual(t, requireSnapshot(t, copied).End, low)
				}
				stop.Store(true)
				wg.Wait()
			})
		}
	}
}

// countedFS passes operations on to another file system, but fails one of them, or all from one on, and may refuse links.
type countedFS struct {
	vfs.FS
	mu      sync.Mutex
	dir     string // only operations on this directory and its files count
	n       int
	fail    int // 0: none
	dead    bool
	linkErr error
}

var errCounted = errors.New("injected")

// arm makes the k-th operation in dir fail.
func (c *countedFS) arm(dir string, k int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dir, c.n, c.fail = dir, 0, k
}

func (c *countedFS) step(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if filepath.Dir(path) != c.dir && path != c.dir {
		return nil
	}
	c.n++
	if c.n == c.fail || c.dead && c.fail > 0 && c.n > c.fail {
		return errCounted
	}
	return nil
}

func (c *countedFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	if err := c.step(path); err != nil {
		return nil, err
	}
	f, err := c.FS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	if err := c.step(path); err != nil { // the file exists by now
		return nil, errors.Join(err, f.Close())
	}
	return &countedFile{f, c, path}, nil
}
func (c *countedFS) List(dir string) ([]string, error) {
	if err := c.step(dir); err != nil {
		return nil, err
	}
	return c.FS.List(dir)
}
func (c *countedFS) MkdirAll(dir string) error {
	if err := c.step(dir); err != nil {
		return err
	}
	return c.FS.MkdirAll(dir)
}
func (c *countedFS) Remove(path string) error {
	if err := c.step(path); err != nil {
		return err
	}
	return c.FS.Remove(path)
}
func (c *countedFS) Rename(from, to string) error {
	if err := c.step(to); err != nil {
		return err
	}
	return c.FS.Rename(from, to)
}
func (c *countedFS) Link(from, to string) error {
	if err := c.step(to); err != nil {
		return err
	}
	if c.linkErr != nil {
		return c.linkErr
	}
	return c.FS.Link(from, to)
}
func (c *countedFS) SyncDir(dir string) error {
	if err := c.step(dir); err != nil {
		return err
	}
	return c.FS.SyncDir(dir)
}
func (c *countedFS) OpenDir(dir string) (vfs.Directory, error) {
	if err := c.step(dir); err != nil {
		return nil, err
	}
	return sim.NewDirectory(c, dir), nil
}
func (c *countedFS) Lock(path string) (vfs.DirectoryLock, error) {
	if err := c.step(path); err != nil {
		return nil, err
	}
	l, err := c.FS.Lock(path)
	return countedLock{l, c, path}, err
}

type countedLock struct {
	vfs.DirectoryLock
	c    *countedFS
	path string
}

func (l countedLock) Close() error { return errors.Join(l.DirectoryLock.Close(), l.c.step(l.path)) }

type countedFile struct {
	vfs.File
	c    *countedFS
	path string
}

func (f *countedFile) WriteAt(p []byte, pos int64) (int, error) {
	if err := f.c.step(f.path); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], pos)
		return n, err
	}
	return f.File.WriteAt(p, pos)
}

func (f *countedFile) Close() error { return errors.Join(f.File.Close(), f.c.step(f.path)) }

func (f *countedFile) Flush() error {
	if err := f.c.step(f.path); err != nil {
		return err
	}
	return f.File.Flush()
}

// A failed snapshot must leave nothing, and a killed snapshot must leave nothing that opens.
func TestSnapshotInterrupted(t *testing.T) {
	t.Parallel()
	for _, links := range []bool{true, false} {
		for _, dead := range []bool{false, true} {
			dir := t.TempDir()
			fsys := &countedFS{FS: osFS{}, dead: dead}
			if !links {
				fsys.linkErr = &os.LinkError{Op: "link", Err: syscall.EXDEV}
			}
			l, err := openFS(fsys, filepath.Join(dir, "log"), snapOptions(FlushNone))
			require.NoError(t, err)
			snapAppend(t, l, 250)
			awaitSeals(l)
			for k := 1; ; k++ {
				copied := filepath.Join(dir, fmt.Sprint(k))
				fsys.arm(copied, k)
				err := l.Snapshot(copied)
				if err == nil && fsys.n < k {
					require.EqualValues(t, 250, requireSnapshot(t, copied).End)
					require.Greater(t, k, 20)
					break
				}
				if err == nil {
					require.EqualValues(t, 250, requireSnapshot(t, copied).End) // the link failed, and the file was copied instead
					continue
				}
				require.ErrorIs(t, err, errCounted)
				names, listErr := os.ReadDir(copied)
				if dead && listErr == nil && len(names) > 0 {
					// If there is no valid state file yet, there must be no segments either.
					if st, ok, _ := readState(osFS{}, filepath.Join(copied, stateName)); ok {
						if !st.clean {
							for _, readOnly := range []bool{false, true} {
								_, err = Open(copied, &Options{ReadOnly: readOnly})
								require.ErrorIs(t, err, ErrCorrupt, "operation %d, read-only %v, links %v, dead %v: %v, state %+v", k, readOnly, links, dead, names, st)
							}
						}
					} else {
						for _, name := range names {
							require.NotEqual(t, logSuffix, filepath.Ext(name.Name()))
						}
					}
				} else {
					require.Empty(t, names, "operation %d", k)
				}
			}
			fsys.arm("", 0)
			require.NoError(t, l.Close())
		}
	}
}

// A snapshot of a log whose cut had failed halfway succeeded, although it held only a part of the last batches.
func TestSnapshotAfterAFailedCut(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
	require.NoError(t, u.open())
	for u.log.Stats().Segments < 4 {
		require.NoError(t, u.append(2))
	}
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Remove && filepath.Dir(path) == u.log.dir {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	require.ErrorIs(t, u.log.TruncateTo(3), syscall.EIO)
	s.SetFault(nil)
	require.ErrorIs(t, u.log.Snapshot(sim.Copies+"1"), ErrFailed)
	names, err := s.List(sim.Copies + "1")
	require.NoError(t, err)
	require.Empty(t, names)
	ignore(u.log.Close())
	require.Empty(t, s.Left())
}

func TestSegmentsAndBatches(t *testing.T) {
	l, err := Open(t.TempDir(), snapOptions(FlushNone))
	require.NoError(t, err)
	defer l.Close()
	snapAppend(t, l, 300)
	require.NoError(t, l.DeleteBefore(40))
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Greater(t, len(segs), 3)
	for i, s := range segs[1:] {
		require.Equal(t, segs[i].Next, s.Base)
		require.Equal(t, time.UnixMilli(1700000000000+s.Next-1).UTC(), s.MaxTime)
	}
	require.EqualValues(t, 300, segs[len(segs)-1].Next)
	next, bytes := int64(40), int64(0)
	for b, err := range l.Batches(40) {
		require.NoError(t, err)
		require.Equal(t, next, b.Base)
		require.EqualValues(t, 1, b.Records)
		require.EqualValues(t, -1, b.ProducerID)
		require.Equal(t, time.UnixMilli(1700000000000+b.Base).UTC(), b.BaseTime)
		next, bytes = b.Next, bytes+b.Bytes
	}
	require.EqualValues(t, 300, next)
	require.Positive(t, bytes)
	for range l.Batches(300) {
		t.Fatal("a batch after the end")
	}
	for _, err := range l.Batches(39) {
		require.ErrorIs(t, err, ErrOutOfRange)
	}
}

// The error of a Snapshot of a log whose directory was moved away must name that cause rather than call its segments lost.
func TestSnapshotOfAMovedDirectory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open directory can't be moved there")
	}
	dir, to := filepath.Join(t.TempDir(), "log"), t.TempDir()
	l, err := Open(dir, &Options{SegmentBytes: minSegmentBytes, Flush: FlushNone})
	require.NoError(t, err)
	defer l.Close()
	for range 10 {
		_, err := l.Append(Record{Value: make([]byte, 3000)})
		require.NoError(t, err)
	}
	require.NoError(t, os.Rename(dir, dir+".moved"))
	err = l.Snapshot(to)
	require.ErrorContains(t, err, "the directory no longer belongs to this log")
	require.ErrorContains(t, err, dir)
	require.NotErrorIs(t, err, ErrCorrupt)
	left, err := os.ReadDir(to)
	require.NoError(t, err)
	require.Empty(t, left)
}

// The copy has the index files of small segments that the log has not sealed yet.
func TestSnapshotOfSmallSegmentsThatAreNotSealed(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
	for l.Stats().Segments < 4 {
		appendValues(t, l, 1)
	}
	require.NoError(t, l.Snapshot(sim.Copies))
	report, err := verifyFS(s, sim.Copies, nil)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.NoError(t, l.Close())
}
