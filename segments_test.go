package seglog

import (
	"bytes"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// lookingFS is the file system of the operating system. It calls looked before it tells the size of the .log file with the
// given base offset.
type lookingFS struct {
	osFS
	base   int64
	looked func()
}

func (l *lookingFS) Stat(path string) (vfs.FileInfo, error) {
	if filepath.Base(path) == fileName(l.base, logSuffix) {
		l.looked()
	}
	return l.osFS.Stat(path)
}

var smallest = &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes}

// aSegmentEach returns the directory of a closed log of ten records, each in a segment of its own.
func aSegmentEach(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := Open(dir, smallest)
	require.NoError(t, err)
	for range 10 {
		_, err := l.Append(Record{Value: make([]byte, 3000)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	return dir
}

// joined checks that a list of segments is of one moment, and returns its base offsets.
func joined(t *testing.T, segs []SegmentInfo) (bases []int64) {
	t.Helper()
	require.NotEmpty(t, segs)
	for i, s := range segs {
		bases = append(bases, s.Base)
		if i+1 < len(segs) {
			require.Equal(t, segs[i+1].Base, s.Next, "%+v", segs)
		}
	}
	require.False(t, segs[len(segs)-1].Sealed)
	return bases
}

// A cut or a deletion while Segments opens files must not make it leave out a segment that the log has, or return some from
// before it and others from after it.
func TestSegmentsBesideACut(t *testing.T) {
	for name, change := range map[string]func(l *Log) error{
		"TruncateTo":   func(l *Log) error { return l.TruncateTo(7) },
		"Reset":        func(l *Log) error { return l.Reset(3) },
		"DeleteBefore": func(l *Log) error { return l.DeleteBefore(6) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := aSegmentEach(t)
			var l *Log
			var during atomic.Bool
			fsys := &lookingFS{base: 2}
			fsys.looked = func() {
				if during.Swap(false) {
					require.NoError(t, change(l))
				}
			}
			var err error
			l, err = openFS(fsys, dir, smallest)
			require.NoError(t, err)
			defer l.Close()
			during.Store(true)
			got, err := l.Segments()
			require.NoError(t, err)
			require.False(t, during.Load())
			want, err := l.Segments()
			require.NoError(t, err)
			require.Equal(t, joined(t, want), joined(t, got))
		})
	}
}

// A segment ends where the next one begins, also while the log is readable only up to a gap between them.
func TestSegmentsAroundAGap(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{Flush: FlushSync, SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	_, err = l.Append(Record{Value: make([]byte, 3000)})
	require.NoError(t, err)
	b := encoded([]Record{{Value: make([]byte, 3000)}}, 1000)
	s.SetFault(func(kind sim.Kind, n int, path string) *sim.Fault {
		if kind == sim.Flush && len(l.view.Load().segs) > 1 {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	last, err := l.Section(0, 1)
	require.NoError(t, err)
	var stream bytes.Buffer
	_, err = last.WriteTo(&stream)
	require.NoError(t, err)
	require.NoError(t, last.Close())
	stream.Write(b)
	_, err = l.TransferFrom(&stream, -1)
	require.ErrorIs(t, err, ErrFailed)
	require.EqualValues(t, 1, l.Offsets().HighWatermark)
	segs, err := l.Segments()
	require.NoError(t, err)
	require.Equal(t, []int64{0, 1000}, joined(t, segs))
	require.EqualValues(t, 1000, segs[1].Next, "nothing of the last segment may be read yet")
	ignore(l.Close())
}

// Segments of a log that is closed meanwhile returns ErrClosed rather than the segments that it still came to.
func TestSegmentsBesideClose(t *testing.T) {
	dir := aSegmentEach(t)
	fsys := &lookingFS{base: 2, looked: func() {}}
	l, err := openFS(fsys, dir, smallest)
	require.NoError(t, err)
	fsys.looked = func() { require.NoError(t, l.Close()) }
	_, err = l.Segments()
	require.ErrorIs(t, err, ErrClosed)
}
