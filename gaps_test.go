package seglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// countingFS is the file system of the operating system, without mappings of .log files, and counts the bytes read from them.
type countingFS struct {
	osFS
	read *atomic.Int64
}

type countingFile struct {
	vfs.File
	read *atomic.Int64
}

func newCountingFS() countingFS { return countingFS{read: new(atomic.Int64)} }

func (c countingFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := c.osFS.Open(path, mode)
	if err != nil || filepath.Ext(path) != logSuffix {
		return f, err
	}
	return countingFile{f, c.read}, nil
}

func (f countingFile) ReadAt(p []byte, pos int64) (int, error) {
	n, err := f.File.ReadAt(p, pos)
	f.read.Add(int64(n))
	return n, err
}

func (f countingFile) Mmap(int64, bool) (*vfs.Mapping, error) { return nil, errors.ErrUnsupported }

// took returns the number of bytes that f reads.
func (c countingFS) took(f func()) int64 {
	before := c.read.Load()
	f()
	return c.read.Load() - before
}

// spaced returns a stream of n batches of one record each, whose offsets are step apart.
func spaced(from int64, n int, step int64) []byte {
	var b []byte
	for i := range int64(n) {
		rec := Record{Time: time.UnixMilli(1_700_000_000_000 + i), Value: fmt.Appendf(nil, "record %d of a log with gaps", i)}
		b = append(b, encoded([]Record{rec}, from+i*step)...)
	}
	return b
}

// copyFiles copies the directory of an open log, as a kill would leave it.
func copyFiles(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to+"/log", os.DirFS(dir)))
	return to + "/log"
}

// Missing offsets must not make an operation read more than a small multiple of the log. The bound is loose, because the
// number of walks by the keeper, Retain and Close depends on timing; a search that tried every missing offset would read the
// log thousands of times.
func TestGapsAreLinear(t *testing.T) {
	const n = 8000
	costs := func(step int64) (c map[string]int64, size int64) {
		c = map[string]int64{}
		fsys := newCountingFS()
		dir := t.TempDir()
		o := Options{Flush: FlushNone, IndexBytes: 1 << 30}
		l, err := openFS(fsys, dir, &o)
		require.NoError(t, err)
		defer l.Close()
		_, err = l.TransferFrom(bytes.NewReader(spaced(0, n, step)), -1)
		require.NoError(t, err)
		require.NoError(t, l.Sync())
		last := l.Offsets().End - 1
		size = l.Stats().Bytes
		c["read"] = fsys.took(func() {
			for i := range int64(8) {
				_, err := l.Read(last - i*step)
				require.NoError(t, err)
			}
		})
		c["section"] = fsys.took(func() {
			s, err := l.Section(last/2, 100_000)
			require.NoError(t, err)
			require.NoError(t, s.Close())
		})
		c["time"] = fsys.took(func() {
			offset, err := l.OffsetForTime(time.UnixMilli(1_700_000_000_000 + n - 2))
			require.NoError(t, err)
			require.EqualValues(t, (n-2)*step, offset)
		})
		// The number of zeros ahead of the end depends on timing. Without them, Open reads only batches.
		killed := copyFiles(t, dir)
		require.NoError(t, os.Truncate(filepath.Join(killed, fileName(0, logSuffix)), size))
		c["open"] = fsys.took(func() {
			l, err := openFS(fsys, killed, &o)
			require.NoError(t, err)
			require.Equal(t, last+1, l.Offsets().End)
			require.NoError(t, l.Close())
		})
		// Seal the segment with an index interval so large that the greatest time must be looked up batch by batch.
		require.NoError(t, l.Close())
		o.RetentionAge = time.Hour
		o.SegmentBytes = minSegmentBytes
		l, err = openFS(fsys, dir, &o)
		require.NoError(t, err)
		_, err = l.Append(Record{Value: []byte("in the next segment")})
		require.NoError(t, err)
		require.NoError(t, l.Close())
		l, err = openFS(fsys, dir, &o)
		require.NoError(t, err)
		c["retain"] = fsys.took(func() {
			_, err := l.Retain()
			require.NoError(t, err)
		})
		require.NoError(t, l.Close())
		return c, size
	}
	for step := int64(1); step <= 2; step++ {
		c, size := costs(step)
		t.Logf("step %d, %d bytes: %v", step, size, c)
		for what, read := range c {
			require.LessOrEqual(t, read, 6*size, what)
		}
	}
}

// trailing returns a log with batches at 0 and 1 that ends with a gap, at 10: a cut removed the batches after the gap.
func trailing(t *testing.T, dir string, o *Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(0, 2, 1), spaced(20, 3, 1)...)), -1)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(10))
	return l
}

// requireOffsets checks the offsets of the records from an offset on.
func requireOffsets(t *testing.T, l *Log, from int64, want ...int64) {
	t.Helper()
	var got []int64
	for r, err := range l.Records(from) {
		require.NoError(t, err)
		got = append(got, r.Offset)
	}
	require.Equal(t, want, got)
}

// TruncateTo to a missing offset leaves a log that ends with a gap. Readers must stop at that end, and every way to open the
// log must find the same end.
func TestTrailingGap(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
		t.Run(policy.String(), func(t *testing.T) {
			dir := t.TempDir()
			l := trailing(t, dir, &Options{Flush: policy})
			check := func(l *Log) {
				t.Helper()
				require.EqualValues(t, 10, l.Offsets().End)
				require.EqualValues(t, 10, l.Offsets().HighWatermark)
				requireOffsets(t, l, 0, 0, 1)
				requireOffsets(t, l, 5)
				requireOffsets(t, l, 10)
				_, err := l.Read(5)
				require.ErrorIs(t, err, ErrOutOfRange)
				s, err := l.Section(5, 1000)
				require.NoError(t, err)
				require.Zero(t, s.Len())
				require.EqualValues(t, 10, s.Next())
				require.NoError(t, s.Close())
				n := 0
				for b, err := range l.Batches(0) {
					require.NoError(t, err)
					require.EqualValues(t, n, b.Base)
					n++
				}
				require.Equal(t, 2, n)
			}
			check(l)
			for what, dir := range map[string]string{"killed": copyFiles(t, dir), "killed after a kill": func() string {
				k := copyFiles(t, dir)
				l, err := Open(k, &Options{Flush: policy})
				require.NoError(t, err)
				defer l.Close()
				return copyFiles(t, k)
			}()} {
				report, err := Verify(dir, nil)
				require.NoError(t, err)
				require.Empty(t, report.Problems, what)
				require.EqualValues(t, 10, report.End, what)
				repair, err := Repair(dir, nil)
				require.NoError(t, err)
				require.True(t, repair.Sound(), "%s: %+v", what, repair)
				r, err := Open(dir, &Options{ReadOnly: true})
				require.NoError(t, err)
				check(r)
				w, err := Open(dir, &Options{Flush: policy})
				require.NoError(t, err, what)
				check(w)
				base, err := w.Append(Record{Value: []byte("after the gap")})
				require.NoError(t, err)
				require.EqualValues(t, 10, base)
				requireOffsets(t, w, 1, 1, 10)
				requireOffsets(t, r, 1, 1, 10)
				require.NoError(t, r.Close())
				require.NoError(t, w.Close())
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			follower := make(chan int64)
			go func() {
				for r, err := range l.Follow(ctx, 3) {
					if err != nil {
						panic(err)
					}
					follower <- r.Offset
					return
				}
			}()
			_, err := l.Append(Record{Value: []byte("after the gap")})
			require.NoError(t, err)
			require.EqualValues(t, 10, <-follower)
			require.NoError(t, l.TruncateTo(10))
			require.NoError(t, l.Close())
			w, err := Open(dir, nil)
			require.NoError(t, err)
			check(w)
			require.NoError(t, w.Close())
		})
	}
}

// If the cut that leaves a trailing gap is interrupted, the next Open must finish it.
func TestTrailingGapOfInterruptedCut(t *testing.T) {
	for step := 1; ; step++ {
		w := sim.NewWorld()
		s := sim.NewFS(w, true)
		o := Options{Flush: FlushNone, SegmentBytes: minSegmentBytes}
		l, err := openFS(s, sim.Dir, &o)
		require.NoError(t, err)
		for l.Stats().Segments < 3 { // so that older segments may not be sealed yet
			_, err := l.Append(Record{Value: make([]byte, 500)})
			require.NoError(t, err)
		}
		end := l.Offsets().End
		_, err = l.TransferFrom(bytes.NewReader(append(spaced(end, 1, 1), spaced(end+11, 2, 1)...)), -1)
		require.NoError(t, err)
		n := 0
		s.Mu.Lock()
		s.Fault = func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Read {
				return nil
			}
			if n++; n == step {
				s.Dead = true
			}
			return nil
		}
		s.Mu.Unlock()
		err = l.TruncateTo(end + 5)
		done := err == nil
		killed := s.Kill()
		ignore(l.Close())
		for range 2 { // the second time after a kill right after Open
			s = sim.NewFS(killed, true)
			l, err = openFS(s, sim.Dir, &o)
			require.NoError(t, err, "step %d", step)
			got := l.Offsets().End
			require.True(t, got == end+5 || !done && got == end+13, "step %d: %d", step, got)
			if got == end+5 {
				requireOffsets(t, l, end-1, end-1, end)
				r, err := openFS(s, sim.Dir, &Options{ReadOnly: true})
				require.NoError(t, err)
				requireOffsets(t, r, end-1, end-1, end)
				require.NoError(t, r.Close())
			}
			killed = s.Kill()
			ignore(l.Close())
		}
		if done {
			return
		}
	}
}

// A read-only log that was opened before the first gap must notice that offsets may be missing now.
func TestReadOnlyBeforeFirstGap(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	defer w.Close()
	_, err = w.Append(Record{Value: []byte("a")})
	require.NoError(t, err)
	r, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	defer r.Close()
	requireOffsets(t, r, 0, 0)
	_, err = w.TransferFrom(bytes.NewReader(append(spaced(1, 1, 1), spaced(5, 100, 3)...)), -1) // over several segments
	require.NoError(t, err)
	want := []int64{0, 1}
	for i := range int64(100) {
		want = append(want, 5+3*i)
	}
	// It may have looked while the batches were being stored, and looks again after a while.
	require.Eventually(t, func() bool { return r.Offsets().End == 303 }, 10*time.Second, time.Millisecond)
	requireOffsets(t, r, 0, want...)
	rec, err := r.Read(302)
	require.NoError(t, err)
	require.EqualValues(t, 302, rec.Offset)
}

// A gap may be wider than the offsets that one segment can hold. The log can be cut near its two sides, and a cut that it
// refuses in between must change nothing.
func TestCutInAWideGap(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(spaced(0, 3, 1<<33)), -1)
	require.NoError(t, err)
	var read []int64
	for r, err := range l.Records(Oldest) {
		require.NoError(t, err)
		read = append(read, r.Offset)
	}
	require.Equal(t, []int64{0, 1 << 33, 1 << 34}, read)
	before := l.Offsets()
	require.ErrorIs(t, l.TruncateTo(1<<33-1), ErrInvalid)
	require.ErrorIs(t, l.TruncateTo(1<<33+1<<31+1), ErrInvalid)
	require.Equal(t, before, l.Offsets())
	require.NoError(t, l.TruncateTo(1<<33+1<<30))
	require.Equal(t, int64(1<<33+1<<30), l.Offsets().End)
	read = read[:0]
	for r, err := range l.Records(1 << 32) {
		require.NoError(t, err)
		read = append(read, r.Offset)
	}
	require.Equal(t, []int64{1 << 33}, read)
	require.NoError(t, l.TruncateTo(1<<33))
	require.Equal(t, int64(1<<33), l.Offsets().End)
	require.NoError(t, l.Close())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.Equal(t, int64(1<<33), l.Offsets().End)
	base, err := l.Append(Record{Value: []byte("next")})
	require.NoError(t, err)
	require.Equal(t, int64(1<<33), base)
	require.NoError(t, l.Close())
}

// If a batch behind a wide gap can't be stored in the segment that was begun for it, the log ends behind the gap, as it does after a
// restart.
func TestGapInFrontOfABatchThatIsNotStored(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	o := &Options{Flush: FlushNone, SegmentBytes: 64 << 10}
	l, err := openFS(s, sim.Dir, o)
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(spaced(0, 1, 1)), -1)
	require.NoError(t, err)
	behind := spaced(1<<33, 1, 1)
	s.SetFault(fails(sim.Reserve, logSuffix, syscall.ENOSPC))
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(0, 1, 1), behind...)), -1)
	require.ErrorIs(t, err, syscall.ENOSPC)
	s.SetFault(nil)
	require.Equal(t, int64(1<<33), l.Offsets().End)
	s = sim.NewFS(s.Kill(), true)
	ignore(l.Close())
	l, err = openFS(s, sim.Dir, o)
	require.NoError(t, err)
	require.Equal(t, int64(1<<33), l.Offsets().End)
	_, err = l.TransferFrom(bytes.NewReader(behind), -1)
	require.NoError(t, err)
	requireOffsets(t, l, 0, 0, 1<<33)
	require.NoError(t, l.Close())
}

// heldSeals is a file system on which truncations of segments wait until letGo is closed.
type heldSeals struct {
	osFS
	letGo chan struct{}
}

type heldSealFile struct {
	vfs.File
	fs *heldSeals
}

func (h *heldSeals) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := h.osFS.Open(path, mode)
	if err != nil || filepath.Ext(path) != logSuffix && filepath.Base(path) != nextName && filepath.Base(path) != rollName {
		return f, err
	}
	return heldSealFile{f, h}, nil
}

func (f heldSealFile) Truncate(size int64) error {
	<-f.fs.letGo
	return f.File.Truncate(size)
}

// A read-only log must not take for damage the blocks reserved after the data of a segment that is not sealed yet and is
// followed by a gap.
func TestReadOnlyPassesReservedBlocksBeforeAGap(t *testing.T) {
	h := &heldSeals{letGo: make(chan struct{})}
	dir := t.TempDir()
	l, err := openFS(h, dir, nil)
	require.NoError(t, err)
	var stream []byte
	for i := range int64(3) {
		stream = append(stream, spaced(i<<33, 2, 1)...)
	}
	_, err = l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	r, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	var read []int64
	for rec, err := range r.Records(Oldest) {
		require.NoError(t, err)
		read = append(read, rec.Offset)
	}
	require.Equal(t, []int64{0, 1, 1 << 33, 1<<33 + 1, 1 << 34, 1<<34 + 1}, read)
	require.NoError(t, r.Close())
	close(h.letGo)
	require.NoError(t, l.Close())
}

// A segment whose batches lie below the start, while the offsets of the gap behind them do not, stays in the log, so it must
// get its index files like any other.
func TestSealBelowAStartInAGap(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	s.SetFault(func(kind sim.Kind, n int, path string) *sim.Fault {
		if kind == sim.Create && filepath.Ext(path) == indexSuffix {
			return &sim.Fault{Err: syscall.ENOSPC} // so that the segment is not sealed before the start moves
		}
		return nil
	})
	l, err := openFS(s, sim.Dir, &Options{Flush: FlushNone})
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(0, 1, 1), spaced(1<<33, 1, 1)...)), -1)
	require.NoError(t, err)
	first := l.view.Load().segs[0]
	require.NoError(t, l.DeleteBefore(1<<20))
	s.SetFault(nil)
	for deadline := time.Now().Add(20 * time.Second); !first.is(phaseSealed); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "the keeper seals the segment")
	}
	for _, suffix := range []string{indexSuffix, timeSuffix} {
		_, err := s.Stat(l.path(0, suffix))
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
}

// A log with Start below End and no record takes no batch behind a gap, as the comment of TransferFrom says, until it is reset to
// its end.
func TestTransferFromIntoALogWithoutRecords(t *testing.T) {
	l, err := Open(t.TempDir(), nil)
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(0, 1, 1), spaced(100, 1, 1)...)), -1)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(50))
	require.NoError(t, l.DeleteBefore(30))
	require.Equal(t, Offsets{Start: 30, RecoveryPoint: 50, HighWatermark: 50, End: 50}, l.Offsets())
	behind := func() error {
		_, err := l.TransferFrom(bytes.NewReader(spaced(70, 1, 1)), -1)
		return err
	}
	require.ErrorIs(t, behind(), ErrNotJoined)
	require.NoError(t, l.Reset(50))
	require.NoError(t, behind())
	_, err = l.Read(70)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// The state file says where the log ended when it was opened last, as a position in the segment that was the last one then. A reader in
// another process must not look for it in the segments before, where batches end at the same positions.
func TestReadOnlyLogBehindTwoKills(t *testing.T) {
	for _, last := range []int{0, 3} { // batches in the last segment when the log is opened
		s := sim.NewFS(sim.NewWorld(), true)
		o := &Options{Flush: FlushNone, SegmentBytes: 4096}
		l, err := openFS(s, sim.Dir, o)
		require.NoError(t, err)
		rec := Record{Time: time.UnixMilli(1), Value: make([]byte, 300)}
		_, err = l.TransferFrom(bytes.NewReader(append(encoded([]Record{rec}, 0), encoded([]Record{rec}, 5)...)), -1)
		require.NoError(t, err)
		n := 2
		add := func() {
			_, err = l.Append(rec)
			require.NoError(t, err)
			n++
		}
		for l.Stats().Segments == 1 {
			add()
		}
		for range last - 1 {
			add()
		}
		if last == 0 {
			require.NoError(t, l.TruncateTo(l.view.Load().segs[1].base))
			n--
		}
		for range 2 {
			w := s.Kill()
			ignore(l.Close())
			s = sim.NewFS(w, true)
			l, err = openFS(s, sim.Dir, o)
			require.NoError(t, err)
		}
		want, err := readLog(l)
		require.NoError(t, err)
		require.Len(t, want.recs, n)
		w := s.Kill()
		ignore(l.Close())
		l, err = openFS(sim.NewFS(w, true), sim.Dir, &Options{ReadOnly: true})
		require.NoError(t, err)
		got, err := readLog(l)
		require.NoError(t, err)
		require.Len(t, got.recs, n)
		require.Equal(t, want.end, got.end)
		require.NoError(t, l.Close())
	}
}

// The last segment of a log may be empty and begin behind a gap that is wider than a segment's offsets: its copy has it too.
func TestSnapshotBehindAWideGap(t *testing.T) {
	const far = 5 << 30
	rec := Record{Time: time.UnixMilli(1), Value: []byte("value")}
	l, err := Open(t.TempDir(), nil)
	require.NoError(t, err)
	defer l.Close()
	_, err = l.TransferFrom(bytes.NewReader(append(encoded([]Record{rec}, 0), encoded([]Record{rec}, far)...)), -1)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(far))
	dir := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, l.Snapshot(dir))
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK(), "%v", report.Problems)
	for _, readOnly := range []bool{true, false} {
		c, err := Open(dir, &Options{ReadOnly: readOnly})
		require.NoError(t, err)
		require.Equal(t, l.Offsets(), c.Offsets())
		require.NoError(t, c.Close())
	}
}

// A TruncateTo into a gap leaves a log that ends behind its last batch. A batch that is appended there and torn by a power cut, or half
// written, is no damage, and Repair leaves the end where it is.
func TestTornTailBehindAGap(t *testing.T) {
	const end = 10
	rec := Record{Time: time.UnixMilli(1), Value: bytes.Repeat([]byte("v"), 300)}
	whole := t.TempDir()
	l, err := Open(whole, &Options{Flush: FlushNone})
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(append(encoded([]Record{rec}, 0), encoded([]Record{rec}, 20)...)), -1)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(end))
	_, err = l.Append(rec)
	require.NoError(t, err)
	for _, keep := range []bool{true, false} {
		closed := copyFiles(t, whole)
		c, err := Open(closed, nil)
		require.NoError(t, err)
		require.NoError(t, c.TruncateTo(end))
		require.NoError(t, c.Close())
		sound, err := Repair(closed, &RepairOptions{KeepAfter: keep})
		require.NoError(t, err)
		require.True(t, sound.Sound(), "%+v", sound)
		require.EqualValues(t, end, sound.End)

		dir := copyFiles(t, whole)
		path := filepath.Join(dir, fileName(0, logSuffix))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		first := batch(b).size()
		clear(b[first+100:])
		require.NoError(t, os.WriteFile(path, b, 0o644))
		report, err := Verify(dir, nil)
		require.NoError(t, err)
		require.True(t, report.OK(), "%v", report.Problems)
		require.EqualValues(t, end, report.End)
		repaired, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: keep})
		require.NoError(t, err)
		require.EqualValues(t, end, repaired.End)
		c, err = Open(dir, nil)
		require.NoError(t, err)
		require.EqualValues(t, end, c.Offsets().End)
		require.NoError(t, c.Close())
	}
	require.NoError(t, l.Close())
}
