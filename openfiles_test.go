package seglog

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

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
