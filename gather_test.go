package seglog

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/vfs"
)

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
