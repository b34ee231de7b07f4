package seglog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// namingFS fails the rename of seglog.next while failure is set.
type namingFS struct {
	osFS
	failure atomic.Pointer[syscall.Errno]
}

func (f *namingFS) rename(from, to string) error {
	if errno := f.failure.Load(); errno != nil && filepath.Base(from) == nextName {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: *errno}
	}
	return f.osFS.rename(from, to)
}

func (f *namingFS) fail(errno syscall.Errno) { f.failure.Store(&errno) }

// unnamedLog is a log under FlushNone whose active segment can't get its name, with records in it and before it.
func unnamedLog(t *testing.T) (l *Log, fsys *namingFS, dir string) {
	fsys, dir = new(namingFS), t.TempDir()
	l, err := openFS(fsys, dir, &Options{Flush: FlushNone, SegmentBytes: 1 << 16})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	fsys.fail(syscall.ENOSPC)
	for l.unnamed.Load() == nil {
		if l.tail.seg.stored.load().pos() > l.o.SegmentBytes*3/4 { // else the roll makes a segment of its own
			require.Eventually(t, func() bool { l.preparer.kick(); return nextReady(l) }, 10*time.Second, time.Millisecond)
		}
		appendNumbered(t, l)
	}
	for range 10 {
		appendNumbered(t, l)
	}
	return l, fsys, dir
}

func nextReady(l *Log) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next != nil
}

func appendNumbered(t testing.TB, l *Log) {
	_, err := l.Append(Record{Value: numbered(l.Offsets().End)})
	require.NoError(t, err)
}

func numbered(offset int64) []byte {
	return fmt.Appendf(nil, "record %d %s", offset, strings.Repeat("x", 900))
}

func requireNumbered(t testing.TB, l *Log, n int64) {
	t.Helper()
	next := int64(0)
	for r, err := range l.Records(0) {
		require.NoError(t, err)
		require.Equal(t, next, r.Offset)
		require.Equal(t, string(numbered(next)), string(r.Value))
		next++
	}
	require.Equal(t, n, next)
	require.Equal(t, n, l.Offsets().End)
}

// killed is a copy of the directory of a log as a process that is killed now leaves it.
func killed(t testing.TB, dir string) string {
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// A kill between a roll and the moment the segment gets its name loses nothing, and whoever looks at the directory sees
// the segment.
func TestUnnamedSegment(t *testing.T) {
	l, _, dir := unnamedLog(t)
	n := l.Offsets().End
	base := l.unnamed.Load().seg.base
	require.NoFileExists(t, l.path(base, logSuffix))
	requireNumbered(t, l, n)

	beside, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	requireNumbered(t, beside, n)
	appendNumbered(t, l)
	n++
	requireNumbered(t, beside, n)
	require.NoError(t, beside.Close())

	dir = killed(t, dir)
	report, err := Verify(dir, nil)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, n, report.End)
	require.Equal(t, n, report.Records)
	repaired, err := Repair(dir, &RepairOptions{Apply: true})
	require.NoError(t, err)
	require.True(t, repaired.Sound(), "%+v", repaired)
	require.Equal(t, n, repaired.Records)

	l, err = Open(dir, &Options{SegmentBytes: 1 << 16})
	require.NoError(t, err)
	require.FileExists(t, l.path(base, logSuffix))
	requireNumbered(t, l, n)
	for range 100 {
		appendNumbered(t, l)
	}
	requireNumbered(t, l, n+100)
	require.NoError(t, l.Close())
	require.NoFileExists(t, filepath.Join(dir, nextName))
}

// After a power cut the unnamed segment may be there and the end of the one before it not.
func TestUnnamedSegmentThatDoesNotJoin(t *testing.T) {
	l, _, dir := unnamedLog(t)
	base := l.unnamed.Load().seg.base
	dir = killed(t, dir)
	before := filepath.Join(dir, fileName(0, logSuffix))
	b, err := os.ReadFile(before)
	require.NoError(t, err)
	kept := base / 2
	pos := int64(0)
	for range kept {
		pos += batch(b[pos:]).size()
	}
	require.NoError(t, os.WriteFile(before, b[:pos], 0o600))
	l, err = Open(dir, &Options{SegmentBytes: 1 << 16})
	require.NoError(t, err)
	requireNumbered(t, l, kept)
	require.NoFileExists(t, filepath.Join(dir, fileName(base, logSuffix)))
	for range 100 {
		appendNumbered(t, l)
	}
	requireNumbered(t, l, kept+100)
	require.NoError(t, l.Close())
}

// Damage before it: Repair puts it aside with its bytes.
func TestRepairBeforeUnnamedSegment(t *testing.T) {
	l, _, dir := unnamedLog(t)
	n, base := l.Offsets().End, l.unnamed.Load().seg.base
	dir = killed(t, dir)
	f, err := os.OpenFile(filepath.Join(dir, fileName(0, logSuffix)), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 100)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.Equal(t, n-1, report.Records)
	require.Equal(t, n, report.End)
	l, err = Open(dir, nil)
	require.NoError(t, err)
	_, err = l.Read(0)
	require.ErrorIs(t, err, ErrOutOfRange)
	for offset := int64(1); offset < n; offset++ {
		r, err := l.Read(offset)
		require.NoError(t, err, "%d of %d, unnamed from %d", offset, n, base)
		require.Equal(t, string(numbered(offset)), string(r.Value))
	}
	require.NoError(t, l.Close())
}

// A full disk: what needs the name says so, and goes on once there is room.
func TestUnnamedSegmentOnFullDisk(t *testing.T) {
	l, fsys, dir := unnamedLog(t)
	base := l.unnamed.Load().seg.base
	err := l.Sync()
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, fileName(base, logSuffix))
	require.Less(t, l.Offsets().RecoveryPoint, base+1, "not durable without its name")
	for err == nil || !strings.Contains(err.Error(), "roll") { // what is stored needs none, the next roll does
		_, err = l.Append(Record{Value: numbered(l.Offsets().End)})
		require.Less(t, l.Offsets().End, int64(500))
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	n := l.Offsets().End
	requireNumbered(t, l, n)

	fsys.failure.Store(nil)
	require.NoError(t, l.Sync())
	require.Equal(t, n, l.Offsets().RecoveryPoint)
	appendNumbered(t, l)
	require.NoError(t, l.TruncateTo(n-1))
	appendNumbered(t, l)
	require.NoError(t, l.Close())
	l, err = Open(dir, nil)
	require.NoError(t, err)
	requireNumbered(t, l, n)
	require.NoError(t, l.Close())
}

// Any other failure latches the log when a flush needs the name, and a reopen gives it.
func TestUnnamedSegmentOnBadDisk(t *testing.T) {
	l, fsys, dir := unnamedLog(t)
	fsys.fail(syscall.EIO)
	n := l.Offsets().End
	require.ErrorIs(t, l.Sync(), syscall.EIO)
	_, err := l.Append(Record{})
	require.ErrorIs(t, err, ErrFailed)
	requireNumbered(t, l, n)
	require.True(t, errors.Is(l.Close(), ErrFailed))
	l, err = Open(dir, nil)
	require.NoError(t, err)
	requireNumbered(t, l, n)
	require.NoError(t, l.Close())
}
