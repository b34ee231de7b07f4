package raw

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/bench/peers"
)

func numbered(i int64, value []byte) []byte {
	binary.BigEndian.PutUint64(value, uint64(i))
	return value
}

func TestStoreFindsEveryRecord(t *testing.T) {
	const n = 500
	s, err := BuildStore(t.TempDir(), n, 1, 128, numbered)
	require.NoError(t, err)
	defer s.Close()
	want := make([]byte, 128)
	for i := range int64(n) {
		numbered(i, want)
		for _, read := range []func(int64) ([]byte, error){s.ReadPread, s.ReadMapped} {
			got, err := read(i)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
	_, err = s.ReadMapped(n)
	require.Error(t, err)
}

// TestWalksFindEveryRecordOfLargeFrames covers a last frame that is not full, and frames whose size is not a multiple of the
// step.
func TestWalksFindEveryRecordOfLargeFrames(t *testing.T) {
	const n = 1130
	for _, perFrame := range []int64{1, 16, 100} {
		dir := t.TempDir()
		s, err := BuildStore(dir, n, int(perFrame), 128, numbered)
		require.NoError(t, err)
		defer s.Close()
		d := s.BuildDirectory(perFrame, 16)
		require.Equal(t, 4*((perFrame+15)/16)*((n+perFrame-1)/perFrame), d.Bytes())
		want := make([]byte, 128)
		for i := range int64(n) {
			numbered(i, want)
			for _, check := range []bool{false, true} {
				for _, d := range []*Directory{nil, d} {
					got, err := s.ReadWalk(i, check, d)
					require.NoError(t, err)
					require.Equal(t, want, got)
				}
			}
		}
		_, err = s.ReadWalk(n, false, d)
		require.Error(t, err)
		f, err := os.OpenFile(filepath.Join(dir, "frames.raw"), os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{0xff}, FrameHeader+20)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = s.ReadWalk(0, true, d)
		require.ErrorIs(t, err, errDamaged)
	}
}

// TestCutterCutsAndGoesOn compares a file after cuts and appends with one that was never cut.
func TestCutterCutsAndGoesOn(t *testing.T) {
	for _, inPlace := range []int{0, 4} {
		dir := t.TempDir()
		c, err := NewCutter(dir, 2000, 1024, inPlace)
		require.NoError(t, err)
		write := c.Appender()
		value := make([]byte, 1024)
		for range 3 {
			require.NoError(t, write([][]byte{value, value}))
			require.NoError(t, c.LayAhead(100<<10))
			require.NoError(t, c.Truncate(1999))
		}
		require.NoError(t, write([][]byte{value, value}))
		require.NoError(t, c.Close())
		got, err := os.ReadFile(filepath.Join(dir, "000000.raw"))
		require.NoError(t, err)
		if inPlace > 0 { // a cut in place keeps the size of the file
			got = got[:2001*FrameSize(1, 1024)]
		}
		var want []byte
		for i := range int64(2001) {
			want = AppendFrame(want, i, value)
		}
		require.True(t, bytes.Equal(want, got))
	}
}

func TestCompressedFramesAreWhole(t *testing.T) {
	compressors, err := Compressors()
	require.NoError(t, err)
	values := [][]byte{bytes.Repeat([]byte("one "), 100), bytes.Repeat([]byte("two "), 100)}
	for _, c := range compressors {
		frame, err := c.Frame(values)
		require.NoError(t, err)
		require.Equal(t, len(frame), frameSize(frame))
		require.True(t, frameIntact(frame))
		require.Less(t, len(frame), FrameSize(2, 400)/2)
		require.Equal(t, c.bits, binary.BigEndian.Uint16(frame[21:]))
	}
}

func TestScansCoverEveryByteAndSeeDamage(t *testing.T) {
	dir := t.TempDir()
	s, err := BuildStore(dir, 30_000, 100, 128, numbered)
	require.NoError(t, err)
	defer s.Close()
	require.Greater(t, s.Size(), int64(3<<20), "the file must take more than one read")
	for _, scan := range []func() (int64, error){s.ScanPread, s.ScanMapped} {
		n, err := scan()
		require.NoError(t, err)
		require.Equal(t, s.Size(), n)
	}
	records, values, err := s.ScanRecords()
	require.NoError(t, err)
	require.Equal(t, int64(30_000), records)
	require.Equal(t, int64(30_000*128), values)
	f, err := os.OpenFile(filepath.Join(dir, "frames.raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{0xff}, 2<<20)
	require.NoError(t, err)
	for _, scan := range []func() (int64, error){s.ScanPread, s.ScanMapped} {
		_, err := scan()
		require.Error(t, err)
	}
}

func TestAppendersWriteFramesThatAScanAccepts(t *testing.T) {
	open := map[string]func(dir string) (peers.Log, error){
		"pwrite":       PwriteFramed,
		"mapped":       func(dir string) (peers.Log, error) { return Mapped(dir, false) },
		"growing":      func(dir string) (peers.Log, error) { return Durable(dir, Growing) },
		"reserved":     func(dir string) (peers.Log, error) { return Durable(dir, Reserved) },
		"zeroed ahead": func(dir string) (peers.Log, error) { return Durable(dir, ZeroedAhead) },
		"zero-filled":  func(dir string) (peers.Log, error) { return Durable(dir, ZeroFilled) },
	}
	for _, o := range Overlaps {
		open[o.String()] = func(dir string) (peers.Log, error) { return InFlight(dir, ZeroFilled, o) }
	}
	for _, how := range Mappings {
		if how < MapRecycled { // the others are not followed by zeros only
			open["mapped "+how.String()] = func(dir string) (peers.Log, error) { return MappedOver(dir, how) }
		}
	}
	for name, f := range open {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log, err := f(dir)
			require.NoError(t, err)
			write := log.Appender()
			value := bytes.Repeat([]byte{7}, 1000)
			for range 50 {
				require.NoError(t, write([][]byte{value, value}))
			}
			require.NoError(t, log.Close())
			file, err := os.Open(filepath.Join(dir, "000000.raw"))
			require.NoError(t, err)
			defer file.Close()
			info, err := file.Stat()
			require.NoError(t, err)
			n, err := ScanFile(file, info.Size())
			require.NoError(t, err)
			require.Equal(t, int64(100*len(AppendFrame(nil, 0, value))), n)
		})
	}
}

func TestEveryWaySendsTheSameBytes(t *testing.T) {
	content := make([]byte, 3<<20+17)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, content, 0o644))
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	ways, release, err := Ways()
	require.NoError(t, err)
	defer release()
	for _, w := range ways {
		t.Run(w.Name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer listener.Close()
			got := make(chan []byte)
			go func() {
				c, err := net.Dial("tcp", listener.Addr().String())
				if err != nil {
					got <- nil
					return
				}
				all, _ := io.ReadAll(c)
				got <- all
			}()
			conn, err := listener.Accept()
			require.NoError(t, err)
			tcp := conn.(*net.TCPConn)
			require.NoError(t, SendHeaderMore(tcp, []byte("head")))
			require.NoError(t, w.Send(tcp, file, 5, int64(len(content))-5))
			require.NoError(t, conn.Close())
			want := append([]byte("head"), content[5:]...)
			require.True(t, bytes.Equal(want, <-got))
		})
	}
}

// TestZerosNeverFallOnAppends checks that no frame is overwritten by zeros that are written ahead of the appends.
func TestZerosNeverFallOnAppends(t *testing.T) {
	dir := t.TempDir()
	log, err := Durable(dir, ZeroedAhead)
	require.NoError(t, err)
	write := log.Appender()
	value := bytes.Repeat([]byte{7}, 512<<10)
	const n = 120
	for range n {
		require.NoError(t, write([][]byte{value}))
	}
	require.NoError(t, log.Close())
	file, err := os.Open(filepath.Join(dir, "000000.raw"))
	require.NoError(t, err)
	defer file.Close()
	scanned, err := ScanFile(file, int64(n*len(AppendFrame(nil, 0, value))))
	require.NoError(t, err)
	require.Equal(t, int64(n*len(AppendFrame(nil, 0, value))), scanned)
}

// TestManyAppendsLieInTheirFiles goes round in a file that is full, and appends in both ways.
func TestManyAppendsLieInTheirFiles(t *testing.T) {
	dir := t.TempDir()
	value := []byte("a value")
	frame := int64(len(AppendFrame(nil, 0, value)))
	m, err := OpenMany(dir, []int64{3 * frame, 10 * frame})
	require.NoError(t, err)
	for range 4 {
		require.NoError(t, m.Append(0, value))
		require.NoError(t, m.AppendShared(1, value))
	}
	require.NoError(t, m.Close())
	for name, offsets := range map[string][]int64{"000000.raw": {3, 1, 2}, "000001.raw": {0, 1, 2, 3, 0}} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		for i, offset := range offsets {
			require.Equal(t, uint64(offset), binary.BigEndian.Uint64(b[int64(i)*frame:]), "frame %d of %s", i, name)
		}
	}
}

func TestStatesOpenAndClose(t *testing.T) {
	s, err := MakeStates(t.TempDir(), 3)
	require.NoError(t, err)
	for range 2 {
		for i := range 3 {
			require.NoError(t, s.Open(i))
		}
		for i := range 3 {
			require.NoError(t, s.Close(i))
		}
	}
}

// TestRecycledFilesAreReadUpToTheFence has appends roll over files of older frames twice, so that one comes round.
func TestRecycledFilesAreReadUpToTheFence(t *testing.T) {
	value := bytes.Repeat([]byte{7}, 300_001)
	frame := int64(len(AppendFrame(nil, 0, value)))
	open := map[string]func(dir string) (peers.Log, error){}
	for _, how := range Recyclings {
		if how != Recycled {
			open[how.String()] = func(dir string) (peers.Log, error) { return DurableRecycled(dir, how) }
		}
	}
	for _, how := range []Mapping{MapRecycled, MapRecycledKept, MapRecycledPopulated} {
		open["mapped "+how.String()] = func(dir string) (peers.Log, error) { return MappedOver(dir, how) }
	}
	for name, open := range open {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log, err := open(dir)
			require.NoError(t, err)
			write := log.Appender()
			size, begins := int64(RecycledBytes), int64(RecycledBytes/2-RecycledBytes/64)
			if m, ok := log.(*mappedOver); ok {
				size, begins = int64(len(m.data)), 0
			}
			perFile := (size - FrameHeader - int64(os.Getpagesize())) / frame
			n := (size-begins)/frame + perFile + 5
			for range n {
				require.NoError(t, write([][]byte{value}))
			}
			require.NoError(t, log.Close())
			file, err := os.Open(filepath.Join(dir, "000002.raw"))
			require.NoError(t, err)
			defer file.Close()
			got, err := ScanFile(file, size)
			require.NoError(t, err)
			require.Positive(t, got)
			require.Zero(t, got%frame)
			require.Less(t, got, 20*frame, "older frames are read on from the last one")
		})
	}
}

// TestGroupsInFlightLieInOrder has callers at work, and finds each one's records in their order and none missing.
func TestGroupsInFlightLieInOrder(t *testing.T) {
	for _, o := range Overlaps {
		t.Run(o.String(), func(t *testing.T) {
			dir := t.TempDir()
			log, err := InFlight(dir, ZeroedAhead, o)
			require.NoError(t, err)
			const callers, each = 16, 50
			var wg sync.WaitGroup
			for c := range callers {
				write := log.Appender()
				wg.Go(func() {
					for i := range each {
						if !assert.NoError(t, write([][]byte{numbered(int64(c*each+i), make([]byte, 100+c))})) {
							return
						}
					}
				})
			}
			wg.Wait()
			require.NoError(t, log.Close())
			file, err := os.Open(filepath.Join(dir, "000000.raw"))
			require.NoError(t, err)
			defer file.Close()
			seen := make([]int64, callers)
			next := int64(0)
			_, err = scanFile(file, 1<<20, func(frame []byte) {
				require.Equal(t, next, lastOffset(frame))
				next++
				v := int64(binary.BigEndian.Uint64(valueOf(frame)))
				require.Equal(t, seen[v/each], v%each)
				seen[v/each]++
			})
			require.NoError(t, err)
			require.Equal(t, int64(callers*each), next)
		})
	}
}
