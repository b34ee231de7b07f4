package seglog

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// These are tests of the simulation itself: of the contents that a disk may have after a power cut.

func simFileOf(t *testing.T, s *sim.FS, name string) vfs.File {
	f, err := s.Open(filepath.Join(sim.Dir, name), vfs.OpenCreate)
	require.NoError(t, err)
	return f
}

func put(t *testing.T, f vfs.File, pos int64, b byte, n int) {
	_, err := f.WriteAt(bytes.Repeat([]byte{b}, n), pos)
	require.NoError(t, err)
}

func cutNamed(t *testing.T, w *sim.World, what string) *sim.World {
	for _, c := range append(sim.WholeCuts(), sim.SingleCuts(w, rand.New(rand.NewPCG(1, 1)))...) {
		if c.What == what {
			return c.Apply(w)
		}
	}
	require.Fail(t, "no cut "+what)
	return nil
}

func TestSimNamesNeedTheDirectorySync(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 10)
	require.NoError(t, f.Flush())
	require.Empty(t, cutNamed(t, s.World, "nothing").Names)
	require.Len(t, cutNamed(t, s.World, "names only").Get("a"), 10)
	require.NoError(t, s.SyncDir(sim.Dir))
	require.NoError(t, s.Rename(filepath.Join(sim.Dir, "a"), filepath.Join(sim.Dir, "b")))
	require.Len(t, cutNamed(t, s.World, "nothing").Get("a"), 10)
	require.Len(t, cutNamed(t, s.World, "everything").Get("b"), 10)
}

func TestSimPagesComeThroughInAnyOrder(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 3*sim.PageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(sim.Dir))
	put(t, f, 0, 2, 3*sim.PageBytes+100)
	firsts := func(w *sim.World) (got []byte) {
		b := w.Get("a")
		for p := 0; p < len(b); p += sim.PageBytes {
			got = append(got, b[p])
		}
		return got
	}
	require.Equal(t, []byte{1, 1, 1}, firsts(cutNamed(t, s.World, "names only")))
	require.Equal(t, []byte{1, 1, 1, 0}, firsts(cutNamed(t, s.World, "names and sizes")), "where only the size is on the disk, the file reads as zeros")
	require.Equal(t, []byte{1, 2, 1, 0}, firsts(cutNamed(t, s.World, "page 1 alone")))
	require.Equal(t, []byte{2, 1, 2, 2}, firsts(cutNamed(t, s.World, "page 1 missing")))
	torn := cutNamed(t, s.World, "page 1 torn").Get("a")[sim.PageBytes : 2*sim.PageBytes]
	require.Contains(t, string(torn), "\x01")
	require.Contains(t, string(torn), "\x02")
	for i := range torn {
		require.Equal(t, torn[i-i%sim.SectorBytes], torn[i], "torn inside a sector")
	}
	require.NoError(t, f.Flush())
	require.Equal(t, []byte{2, 2, 2, 2}, firsts(cutNamed(t, s.World, "nothing")))
}

func TestSimTruncationInPart(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 3*sim.PageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(sim.Dir))
	require.NoError(t, f.Truncate(sim.PageBytes+10))
	gap := cutNamed(t, s.World, "truncation to 4106 in part").Get("a")
	require.Len(t, gap, 3*sim.PageBytes)
	require.Equal(t, byte(1), gap[sim.PageBytes+9])
	require.Equal(t, byte(0), gap[sim.PageBytes+10])
	require.Equal(t, byte(0), gap[2*sim.PageBytes-1])
	require.Equal(t, byte(1), gap[2*sim.PageBytes])

	// Bytes that a truncation removed do not come back when the file grows again.
	put(t, f, 2*sim.PageBytes, 2, 10)
	require.NoError(t, f.Flush())
	b := cutNamed(t, s.World, "nothing").Get("a")
	require.Len(t, b, 2*sim.PageBytes+10)
	require.Equal(t, make([]byte, sim.PageBytes-10), b[sim.PageBytes+10:2*sim.PageBytes])
}

func TestSimFailedFlushLeavesCleanPages(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 2*sim.PageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(sim.Dir))
	put(t, f, 0, 2, 2*sim.PageBytes)
	s.Fault = func(sim.Kind, int, string) *sim.Fault { return &sim.Fault{Err: syscall.EIO} }
	require.ErrorIs(t, f.Flush(), syscall.EIO)
	s.Fault = nil
	require.NoError(t, f.Flush(), "a second flush finds nothing to do")
	b := make([]byte, 1)
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, byte(2), b[0], "the cache has the write")
	require.Equal(t, byte(1), cutNamed(t, s.World, "everything").Get("a")[0], "the disk does not")
	put(t, f, 0, 2, 1)
	require.NoError(t, f.Flush())
	disk := cutNamed(t, s.World, "nothing").Get("a")
	require.Equal(t, byte(2), disk[sim.PageBytes-1], "a page that is written again reaches the disk whole")
	require.Equal(t, byte(1), disk[sim.PageBytes], "a page that is not written again does not")
}

func TestSimMappingsAndReadsSeeOneCache(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	require.NoError(t, f.Reserve(0, 100))
	one, err := f.Mmap(100, true)
	require.NoError(t, err)
	two, err := f.Mmap(100, false)
	require.NoError(t, err)
	copy(one.Bytes[10:], "stored")
	b := make([]byte, 6)
	_, err = f.ReadAt(b, 10)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 6), b, "the store is not announced yet")
	require.NoError(t, one.Stored(10, 6))
	_, err = f.ReadAt(b, 10)
	require.NoError(t, err)
	require.Equal(t, "stored", string(b))
	require.Equal(t, "stored", string(two.Bytes[10:16]))
	_, err = f.WriteAt([]byte("pwrite"), 20)
	require.NoError(t, err)
	require.Equal(t, "pwrite", string(one.Bytes[20:26]))
	require.Error(t, one.Stored(98, 4), "past the end of the file")
	require.NotEmpty(t, s.Misuse)
}

// A write-back error is reported to every descriptor that was open, otherwise to the next that is opened, and is lost when the
// kernel evicts the pages.
func TestSimErrorsOfWritingBack(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, sim.PageBytes)
	s.Fault = func(sim.Kind, int, string) *sim.Fault { return &sim.Fault{Err: syscall.EIO, Late: true} }
	put(t, f, sim.PageBytes, 1, 1) // the write succeeds, but write-back of the earlier dirty pages fails
	s.Fault = nil
	require.True(t, s.World.Unseen())
	lost := s.World.Clone()
	require.NoError(t, f.Close())
	next, err := s.Open(filepath.Join(sim.Dir, "a"), vfs.OpenWrite)
	require.NoError(t, err)
	require.ErrorIs(t, next.Flush(), syscall.EIO)
	require.NoError(t, next.Flush(), "the error is reported once")
	require.False(t, s.World.Unseen())
	require.NoError(t, next.Close())
	next, err = s.Open(filepath.Join(sim.Dir, "a"), vfs.OpenWrite)
	require.NoError(t, err)
	require.NoError(t, next.Flush(), "no other descriptor gets the error")
	lost.Apply(&sim.Op{Kind: sim.Flush, Node: 0})
	require.Equal(t, byte(1), lost.Get("a")[0])
	require.NotContains(t, lost.Evicted().Get("a")[:sim.PageBytes], byte(1))
}

// The simulation may excuse only crashes between the report of a failure to the process and the process's note of it, provided
// that the note comes.
func TestSimWindow(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	s.World.Ext4 = true
	f, note := simFileOf(t, s, fileName(0, logSuffix)), simFileOf(t, s, stateName)
	writeState := func(st state) {
		b := make([]byte, stateLen)
		st.encode(b)
		_, err := note.WriteAt(b, 0)
		require.NoError(t, err)
	}
	put(t, f, 0, 1, 10)
	s.Fault = func(sim.Kind, int, string) *sim.Fault { return &sim.Fault{Err: syscall.EIO} }
	require.ErrorIs(t, f.Flush(), syscall.EIO)
	s.Fault = nil
	writeState(state{seq: 1})
	writeState(state{seq: 2, failed: true})
	put(t, f, 10, 1, 10)
	var in []string
	w := sim.NewWorld()
	w.Ext4 = true
	for p, op := range s.Ops {
		if w.InWindow(s.Ops[p:]) {
			in = append(in, op.Kind.String()+" "+op.Name)
			require.False(t, w.InWindow(s.Ops[p:len(s.Ops)-2]), "without a note there is no window")
			require.NotEmpty(t, w.Nodes[0].Barred)
			require.Empty(t, w.Excused().Nodes[0].Barred)
		}
		w.Apply(op)
	}
	require.Equal(t, []string{"write " + stateName, "write " + stateName}, in)
	require.False(t, w.InWindow(nil))
}

// What write-back sent is durable after a flush of the disk up to the size that the file has there, also if the file has grown in the cache
// since and the last page is sent whole.
func TestSimulatedFlushOfTheDisk(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	lock, err := s.Lock(filepath.Join(sim.Dir, lockName))
	require.NoError(t, err)
	name := filepath.Join(sim.Dir, "file")
	f, err := s.Open(name, vfs.OpenCreate)
	require.NoError(t, err)
	require.NoError(t, f.Zero(0, 5000))
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(sim.Dir))
	require.NoError(t, f.Reserve(5000, 7000))
	_, err = f.WriteAt([]byte("data"), 4200)
	require.NoError(t, err)
	require.NoError(t, f.WriteBack(4200, 4))
	require.NoError(t, lock.Quiet(f).Flush())
	s = sim.NewFS(sim.WholeCuts()[0].Apply(s.World), true) // nothing else is there
	f, err = s.Open(name, vfs.OpenRead)
	require.NoError(t, err)
	b := make([]byte, 4)
	_, err = f.ReadAt(b, 4200)
	require.NoError(t, err)
	require.Equal(t, "data", string(b))
}
