package seglog

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// zeroFS counts the zeros that are laid ahead.
type zeroFS struct {
	osFS
	laid atomic.Int64
}

type zeroFile struct {
	file
	fs *zeroFS
}

func (f zeroFile) zero(pos, n int64) error {
	f.fs.laid.Add(n)
	return f.file.zero(pos, n)
}

func (f *zeroFS) open(path string, mode openMode) (file, error) {
	g, err := f.osFS.open(path, mode)
	if err != nil {
		return nil, err
	}
	return zeroFile{g, f}, nil
}

// Zeros are laid ahead of small flushes, and not of large ones.
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
			t.Skip("no blocks are reserved on this platform")
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
