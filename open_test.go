package seglog

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// fewFiles is a file system that allows at most limit open files.
type fewFiles struct {
	osFS
	limit atomic.Int64
	count atomic.Int64
}

type fewFilesFile struct {
	vfs.File
	fs *fewFiles
}

func (f fewFilesFile) Close() error {
	f.fs.count.Add(-1)
	return f.File.Close()
}

func (f *fewFiles) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	if f.count.Add(1) > f.limit.Load() {
		f.count.Add(-1)
		return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EMFILE}
	}
	g, err := f.osFS.Open(path, mode)
	if err != nil {
		f.count.Add(-1)
		return nil, err
	}
	return fewFilesFile{g, f}, nil
}

// With fewer descriptors than MaxOpenSegments, the log must close segments to open others, and no call may fail.
func TestFewerDescriptorsThanMaxOpenSegments(t *testing.T) {
	fsys := new(fewFiles)
	fsys.limit.Store(10_000)
	dir := t.TempDir()
	o := &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes}
	l, err := openFS(fsys, dir, o)
	require.NoError(t, err)
	for l.Stats().Segments < 100 {
		appendNumbered(t, l)
	}
	require.NoError(t, l.Close())
	require.Zero(t, fsys.count.Load())
	l, err = openFS(fsys, dir, o)
	require.NoError(t, err)
	fsys.limit.Store(40)
	n := l.Offsets().End
	for i := range 3 * n {
		offset := i * 7919 % n
		r, err := l.Read(offset)
		require.NoError(t, err)
		require.Equal(t, string(numbered(offset)), string(r.Value))
	}
	requireNumbered(t, l, n)
	for l.Stats().Rolls < 20 { // a roll takes a descriptor, and each seal another
		appendNumbered(t, l)
		_, err := l.Read(l.Offsets().End * 7919 % n)
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	requireNumbered(t, l, l.Offsets().End)
	fsys.limit.Store(fsys.count.Load()) // no descriptor is left
	require.NoError(t, l.TruncateTo(l.Offsets().End-1))
	requireNumbered(t, l, l.Offsets().End)
	appendNumbered(t, l)
	require.Zero(t, l.Stats().Errors)
	require.NoError(t, l.Close())
	require.Zero(t, fsys.count.Load())
}

// Whichever system call fails in Open, the error must begin with the package's name and contain the directory.
func TestOpenErrorsNameTheLog(t *testing.T) {
	d := newDamaged(t, false)
	failed := d.w.Clone() // with the note that a flush failed, which makes Open copy the segments and the state
	b := append([]byte(nil), failed.Get(stateName)...)
	st, ok, err := readSlots(bytesFile{b: b})
	require.NoError(t, err)
	require.True(t, ok)
	st.failed = true
	for range 2 {
		st.seq++
		st.encode(b[int64(st.seq%2)*stateSlotGap:])
	}
	failed.Put(stateName, b)
	stateless := d.w.Clone()
	stateless.Drop(stateName)
	met := 0
	for what, w := range map[string]*sim.World{"killed": d.w, "failed": failed, "without a state": stateless, "empty": sim.NewWorld()} {
		for kind := range sim.Kinds {
			for nth := 1; ; nth++ {
				s := sim.NewFS(w.Clone(), true)
				s.Fault = func(k sim.Kind, n int, _ string) *sim.Fault {
					if k == kind && n == nth {
						return &sim.Fault{Err: syscall.EIO}
					}
					return nil
				}
				l, err := openFS(s, sim.Dir, &d.opts)
				if err == nil {
					ignore(l.Close())
				} else {
					require.Regexp(t, `^seglog: `, err.Error(), "%s, %v %d", what, kind, nth)
					require.Contains(t, err.Error(), sim.Dir, "%s, %v %d", what, kind, nth)
					met++
				}
				if len(s.Faults) == 0 || nth > 40 {
					break
				}
			}
		}
	}
	require.Greater(t, met, 50, fmt.Sprint(met))
}

// bytesFile is a read-only file in memory.
type bytesFile struct {
	vfs.File
	b []byte
}

func (f bytesFile) ReadAt(p []byte, pos int64) (int, error) {
	return copy(p, f.b[min(pos, int64(len(f.b))):]), nil
}
