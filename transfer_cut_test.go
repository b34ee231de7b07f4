package seglog

import (
	"bytes"
	"math"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// bufferConn is a connection whose peer takes everything.
type bufferConn struct {
	net.Conn
	got     bytes.Buffer
	onWrite func()
}

func (c *bufferConn) Write(p []byte) (int, error) {
	n, err := c.got.Write(p)
	if c.onWrite != nil {
		c.onWrite()
	}
	return n, err
}

func (c *bufferConn) SetDeadline(time.Time) error      { return nil }
func (c *bufferConn) SetWriteDeadline(time.Time) error { return nil }

// readHook is a file system that calls onRead, once, before a read of the segment at base.
type readHook struct {
	*sim.FS
	base   int64
	onRead func()
}

type readHookFile struct {
	vfs.File
	fs *readHook
}

func (h *readHook) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := h.FS.Open(path, mode)
	if err != nil || filepath.Base(path) != fileName(h.base, logSuffix) || mode != vfs.OpenRead {
		return f, err
	}
	return readHookFile{f, h}, nil
}

func (f readHookFile) ReadAt(p []byte, pos int64) (int, error) {
	if do := f.fs.onRead; do != nil {
		f.fs.onRead = nil
		do()
	}
	return f.File.ReadAt(p, pos)
}

// A cut between two sections of a transfer, or while one of them is looked up, must not let it send batches of before the cut and
// then those that were appended after it, unless it says so.
func TestTransferBesideACut(t *testing.T) {
	const value = 1000
	build := func(h *readHook) *Log {
		l, err := openFS(h, sim.Dir, &Options{Flush: FlushNone, SegmentBytes: 8192})
		require.NoError(t, err)
		for l.Stats().Segments < 4 {
			_, err := l.Append(Record{Value: bytes.Repeat([]byte{'a'}, value)})
			require.NoError(t, err)
		}
		return l
	}
	l := build(&readHook{FS: sim.NewFS(sim.NewWorld(), false)})
	bases := l.view.Load().bases()
	require.NoError(t, l.Close())

	again := func(l *Log, offset int64) {
		require.NoError(t, l.TruncateTo(offset))
		for range 10 {
			_, err := l.Append(Record{Value: bytes.Repeat([]byte{'b'}, value)})
			require.NoError(t, err)
		}
	}
	for _, c := range []struct {
		name   string
		cut    int64
		inRead bool // while the second section is looked up; otherwise while it is sent
	}{
		{"in the section that is looked up", bases[1] + 2, true},
		{"below the section that is looked up", bases[1] - 2, true},
		{"in the section that is sent", bases[1] + 2, false},
		{"behind it", bases[2] + 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &readHook{FS: sim.NewFS(sim.NewWorld(), false), base: bases[1]}
			l := build(h)
			for l.Stats().Seals < 3 {
				time.Sleep(time.Millisecond)
			}
			_, err := l.Read(bases[1]) // so that it is open: a cut waits for whoever opens a segment
			require.NoError(t, err)
			conn := new(bufferConn)
			sections := 0
			if !c.inRead {
				conn.onWrite = func() {
					if sections++; sections == 2 {
						again(l, c.cut)
					}
				}
			}
			if c.inRead {
				h.onRead = func() { again(l, c.cut) }
			}
			_, err = l.TransferTo(0, math.MaxInt64, conn)
			seen := byte('a')
			for r, e := range Decode(&conn.got) {
				require.NoError(t, e)
				if r.Value[0] == 'a' && r.Offset >= c.cut || seen == 'b' {
					seen = 'b'
					require.ErrorIs(t, err, ErrOutOfRange, "offset %d, of before the cut at %d, was sent", r.Offset, c.cut)
				}
			}
			if err == nil {
				_, err = l.Read(bases[1])
			} else {
				require.ErrorIs(t, err, ErrOutOfRange)
				err = nil
			}
			require.NoError(t, err)
			require.NoError(t, l.Close())
		})
	}
}

// Batches must not go on behind a cut as if it had not been, either.
func TestBatchesBesideACut(t *testing.T) {
	h := &readHook{FS: sim.NewFS(sim.NewWorld(), false)}
	l, err := openFS(h, sim.Dir, &Options{Flush: FlushNone, SegmentBytes: 8192})
	require.NoError(t, err)
	for l.Stats().Segments < 4 || l.Stats().Seals < 3 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
	}
	h.base = l.view.Load().segs[1].base
	_, err = l.Read(h.base) // so that it is open: a cut waits for whoever opens a segment
	require.NoError(t, err)
	h.onRead = func() {
		require.NoError(t, l.TruncateTo(h.base+2))
		for range 10 {
			_, err := l.Append(Record{})
			require.NoError(t, err)
		}
	}
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		require.True(t, b.Base < h.base+2 || b.Bytes < 1000, "a batch that was cut, at offset %d", b.Base)
		if b.Base >= h.base+2 {
			break
		}
	}
	require.Nil(t, h.onRead)
	require.NoError(t, l.Close())
}

// No CRC covers the base offset of a batch, so the receiver stores a last batch of a section under a wrong one. In a log without
// gaps the sender can tell.
func TestSectionChecksItsLastBatch(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	for range 40 {
		_, err := l.Append(Record{Value: make([]byte, 100)}, Record{})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	l, err = Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	segs := l.view.Load().segs
	require.Greater(t, len(segs), 1)
	require.NoError(t, l.Close())
	for _, s := range segs {
		path := filepath.Join(dir, fileName(s.base, logSuffix))
		sound, err := os.ReadFile(path)
		require.NoError(t, err)
		last, next := int64(0), int64(0) // position of the last batch, and the offset behind it
		for pos := int64(0); pos < int64(len(sound)); pos += batch(sound[pos:]).size() {
			last, next = pos, batch(sound[pos:]).last()+1
		}
		for _, add := range []int64{256, 2, 1, -1, -2} {
			damaged := bytes.Clone(sound)
			b := batch(damaged[last:])
			b.setBase(b.base() + add)
			require.NoError(t, os.WriteFile(path, damaged, 0o600))
			l, err := Open(dir, &Options{ReadOnly: true})
			require.NoError(t, err)
			for _, n := range []int64{math.MaxInt64, int64(len(sound)), int64(len(sound)) - 1} {
				for from := s.base; from < next; from++ {
					sec, err := l.Section(from, n)
					if err != nil {
						require.ErrorIs(t, err, ErrCorrupt)
						continue
					}
					require.LessOrEqual(t, sec.Next(), next-2, "the damaged batch is sent, %+d, from offset %d", add, from)
					require.NoError(t, sec.Close())
				}
			}
			require.NoError(t, l.Close())
		}
		require.NoError(t, os.WriteFile(path, sound, 0o600))
	}
}
