package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// countingFS is the operating system's files, without mappings, and counts the bytes that are read of .log files.
type countingFS struct {
	osFS
	read *atomic.Int64
}

type countingFile struct {
	file
	read *atomic.Int64
}

func newCountingFS() countingFS { return countingFS{read: new(atomic.Int64)} }

func (c countingFS) open(path string, mode openMode) (file, error) {
	f, err := c.osFS.open(path, mode)
	if err != nil || filepath.Ext(path) != logSuffix {
		return f, err
	}
	return countingFile{f, c.read}, nil
}

func (f countingFile) ReadAt(p []byte, pos int64) (int, error) {
	n, err := f.file.ReadAt(p, pos)
	f.read.Add(int64(n))
	return n, err
}

func (f countingFile) mmap(int64, bool) (*mapping, error) { return nil, errors.ErrUnsupported }

// took counts the bytes that f reads.
func (c countingFS) took(f func()) int64 {
	before := c.read.Load()
	f()
	return c.read.Load() - before
}

// spaced is a stream of n batches of a record each, whose offsets are step apart.
func spaced(from int64, n int, step int64) []byte {
	var b []byte
	for i := range int64(n) {
		rec := Record{Time: time.UnixMilli(1_700_000_000_000 + i), Value: fmt.Appendf(nil, "record %d of a log with gaps", i)}
		b = append(b, encoded([]Record{rec}, from+i*step)...)
	}
	return b
}

// copyFiles copies a directory, as a kill would leave it.
func copyFiles(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to+"/log", os.DirFS(dir)))
	return to + "/log"
}

// Offsets that are left out make nothing read more than about what is read without: the batches on both sides are
// checked, each once.
func TestGapsAreLinear(t *testing.T) {
	const n = 8000
	costs := func(step int64) map[string]int64 {
		c := map[string]int64{}
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
		killed := copyFiles(t, dir)
		c["open"] = fsys.took(func() {
			l, err := openFS(fsys, killed, &o)
			require.NoError(t, err)
			require.Equal(t, last+1, l.Offsets().End)
			require.NoError(t, l.Close())
		})
		// Sealed, without its time index: the greatest time is looked up batch by batch.
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
		return c
	}
	joined, gaps := costs(1), costs(2)
	t.Log(joined, gaps)
	for what, want := range joined {
		require.LessOrEqual(t, gaps[what], want+want/2, what)
	}
}
