package seglog

import (
	"io"
	"net"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// cachedShare returns the fraction of a file that is in the page cache.
func cachedShare(t testing.TB, path string) float64 {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(b)) }()
	pages := make([]byte, (len(b)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&pages[0])))
	require.Zero(t, errno)
	in := 0
	for _, p := range pages {
		in += int(p & 1)
	}
	return float64(in) / float64(len(pages))
}

// copied is a connection that hides the methods of the TCP connection, so that a transfer must use Write.
type copied struct{ net.Conn }

func (c copied) Write(b []byte) (int, error) { return c.Conn.Write(b) }

// Segments that lie far from the end of the log must leave the page cache once a reader has passed them, in whatever way it
// reads; other segments must stay.
func TestFarBehindLeavesTheCache(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	if uint32(st.Type) == unix.TMPFS_MAGIC {
		t.Skip("files in this directory exist only in memory")
	}
	o := &Options{Flush: FlushNone, SegmentBytes: 40 << 20}
	const size = 200 << 20
	l, err := Open(dir, o)
	require.NoError(t, err)
	for l.Offsets().End*(1<<20) < size {
		_, err := l.Append(Record{Value: make([]byte, 1<<20)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())

	send := func(l *Log, wrap func(net.Conn) net.Conn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		here, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		defer here.Close()
		there, err := ln.Accept()
		require.NoError(t, err)
		go io.Copy(io.Discard, there)
		for offset := int64(0); offset < l.Offsets().End; { // in small steps, as fetches are
			s, err := l.Section(offset, 3<<20)
			require.NoError(t, err)
			_, err = s.WriteTo(wrap(here))
			require.NoError(t, err)
			offset = s.Next()
			require.NoError(t, s.Close())
		}
	}
	ways := map[string]func(l *Log){
		"zero-copy": func(l *Log) { send(l, func(c net.Conn) net.Conn { return c }) },
		"copied":    func(l *Log) { send(l, func(c net.Conn) net.Conn { return copied{c} }) },
		"Records": func(l *Log) {
			for _, err := range l.Records(0) {
				require.NoError(t, err)
			}
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			for _, cached := range []int64{1 << 40, 60 << 20} {
				l, err := Open(dir, o)
				require.NoError(t, err)
				l.cachedEnd = 1 << 40
				for _, err := range l.Records(0) { // brings the whole log into the cache
					require.NoError(t, err)
				}
				l.cachedEnd = cached
				way(l)
				segs := l.view.Load().segs
				require.Len(t, segs, 6)
				for i, s := range segs[:5] {
					share := cachedShare(t, l.path(s.base, logSuffix))
					switch far := cached < 1<<40; {
					case far && i == 0:
						require.Less(t, share, 0.2, "segment %d, all of it far from the end of the log", i)
					case far && i < 3:
						require.Less(t, share, 0.6, "segment %d, whose end the cache may still hold", i)
					case !far || i == 4:
						require.Greater(t, share, 0.9, "segment %d", i)
					}
				}
				require.NoError(t, l.Close())
			}
		})
	}
}

func TestMemoryLimit(t *testing.T) {
	var info unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&info))
	n := memoryLimit()
	require.Positive(t, n)
	require.LessOrEqual(t, n, int64(info.Totalram)*int64(info.Unit))
}
