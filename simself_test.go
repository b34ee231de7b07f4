package seglog

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/vfs"
)

// These are tests of the simulation itself: of the contents that a disk may have after a power cut.

func simFileOf(t *testing.T, s *simFS, name string) vfs.File {
	f, err := s.Open(filepath.Join(simDir, name), vfs.OpenCreate)
	require.NoError(t, err)
	return f
}

func put(t *testing.T, f vfs.File, pos int64, b byte, n int) {
	_, err := f.WriteAt(bytes.Repeat([]byte{b}, n), pos)
	require.NoError(t, err)
}

func cutNamed(t *testing.T, w *simWorld, what string) *simWorld {
	for _, c := range append(wholeCuts(), singleCuts(w, rand.New(rand.NewPCG(1, 1)))...) {
		if c.what == what {
			return c.apply(w)
		}
	}
	require.Fail(t, "no cut "+what)
	return nil
}

func TestSimNamesNeedTheDirectorySync(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 10)
	require.NoError(t, f.Flush())
	require.Empty(t, cutNamed(t, s.w, "nothing").names)
	require.Len(t, cutNamed(t, s.w, "names only").get("a"), 10)
	require.NoError(t, s.SyncDir(simDir))
	require.NoError(t, s.Rename(filepath.Join(simDir, "a"), filepath.Join(simDir, "b")))
	require.Len(t, cutNamed(t, s.w, "nothing").get("a"), 10)
	require.Len(t, cutNamed(t, s.w, "everything").get("b"), 10)
}

func TestSimPagesComeThroughInAnyOrder(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 3*simPageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(simDir))
	put(t, f, 0, 2, 3*simPageBytes+100)
	firsts := func(w *simWorld) (got []byte) {
		b := w.get("a")
		for p := 0; p < len(b); p += simPageBytes {
			got = append(got, b[p])
		}
		return got
	}
	require.Equal(t, []byte{1, 1, 1}, firsts(cutNamed(t, s.w, "names only")))
	require.Equal(t, []byte{1, 1, 1, 0}, firsts(cutNamed(t, s.w, "names and sizes")), "where only the size is on the disk, the file reads as zeros")
	require.Equal(t, []byte{1, 2, 1, 0}, firsts(cutNamed(t, s.w, "page 1 alone")))
	require.Equal(t, []byte{2, 1, 2, 2}, firsts(cutNamed(t, s.w, "page 1 missing")))
	torn := cutNamed(t, s.w, "page 1 torn").get("a")[simPageBytes : 2*simPageBytes]
	require.Contains(t, string(torn), "\x01")
	require.Contains(t, string(torn), "\x02")
	for i := range torn {
		require.Equal(t, torn[i-i%simSectorBytes], torn[i], "torn inside a sector")
	}
	require.NoError(t, f.Flush())
	require.Equal(t, []byte{2, 2, 2, 2}, firsts(cutNamed(t, s.w, "nothing")))
}

func TestSimTruncationInPart(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 3*simPageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(simDir))
	require.NoError(t, f.Truncate(simPageBytes+10))
	gap := cutNamed(t, s.w, "truncation to 4106 in part").get("a")
	require.Len(t, gap, 3*simPageBytes)
	require.Equal(t, byte(1), gap[simPageBytes+9])
	require.Equal(t, byte(0), gap[simPageBytes+10])
	require.Equal(t, byte(0), gap[2*simPageBytes-1])
	require.Equal(t, byte(1), gap[2*simPageBytes])

	// Bytes that a truncation removed do not come back when the file grows again.
	put(t, f, 2*simPageBytes, 2, 10)
	require.NoError(t, f.Flush())
	b := cutNamed(t, s.w, "nothing").get("a")
	require.Len(t, b, 2*simPageBytes+10)
	require.Equal(t, make([]byte, simPageBytes-10), b[simPageBytes+10:2*simPageBytes])
}

func TestSimFailedFlushLeavesCleanPages(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, 2*simPageBytes)
	require.NoError(t, f.Flush())
	require.NoError(t, s.SyncDir(simDir))
	put(t, f, 0, 2, 2*simPageBytes)
	s.fault = func(simKind, int, string) *simFault { return &simFault{err: syscall.EIO} }
	require.ErrorIs(t, f.Flush(), syscall.EIO)
	s.fault = nil
	require.NoError(t, f.Flush(), "a second flush finds nothing to do")
	b := make([]byte, 1)
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, byte(2), b[0], "the cache has the write")
	require.Equal(t, byte(1), cutNamed(t, s.w, "everything").get("a")[0], "the disk does not")
	put(t, f, 0, 2, 1)
	require.NoError(t, f.Flush())
	disk := cutNamed(t, s.w, "nothing").get("a")
	require.Equal(t, byte(2), disk[simPageBytes-1], "a page that is written again reaches the disk whole")
	require.Equal(t, byte(1), disk[simPageBytes], "a page that is not written again does not")
}

func TestSimMappingsAndReadsSeeOneCache(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
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
	require.NotEmpty(t, s.misuse)
}

// A write-back error is reported to every descriptor that was open, otherwise to the next that is opened, and is lost when the
// kernel evicts the pages.
func TestSimErrorsOfWritingBack(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	f := simFileOf(t, s, "a")
	put(t, f, 0, 1, simPageBytes)
	s.fault = func(simKind, int, string) *simFault { return &simFault{err: syscall.EIO, late: true} }
	put(t, f, simPageBytes, 1, 1) // the write succeeds, but write-back of the earlier dirty pages fails
	s.fault = nil
	require.True(t, s.w.unseen())
	lost := s.w.clone()
	require.NoError(t, f.Close())
	next, err := s.Open(filepath.Join(simDir, "a"), vfs.OpenWrite)
	require.NoError(t, err)
	require.ErrorIs(t, next.Flush(), syscall.EIO)
	require.NoError(t, next.Flush(), "the error is reported once")
	require.False(t, s.w.unseen())
	require.NoError(t, next.Close())
	next, err = s.Open(filepath.Join(simDir, "a"), vfs.OpenWrite)
	require.NoError(t, err)
	require.NoError(t, next.Flush(), "no other descriptor gets the error")
	lost.apply(&simOp{kind: simFlush, node: 0})
	require.Equal(t, byte(1), lost.get("a")[0])
	require.NotContains(t, lost.evicted().get("a")[:simPageBytes], byte(1))
}

// The simulation may excuse only crashes between the report of a failure to the process and the process's note of it, provided
// that the note comes.
func TestSimWindow(t *testing.T) {
	s := newSimFS(newSimWorld(), true)
	s.w.ext4 = true
	f, note := simFileOf(t, s, fileName(0, logSuffix)), simFileOf(t, s, stateName)
	writeState := func(st state) {
		b := make([]byte, stateLen)
		st.encode(b)
		_, err := note.WriteAt(b, 0)
		require.NoError(t, err)
	}
	put(t, f, 0, 1, 10)
	s.fault = func(simKind, int, string) *simFault { return &simFault{err: syscall.EIO} }
	require.ErrorIs(t, f.Flush(), syscall.EIO)
	s.fault = nil
	writeState(state{seq: 1})
	writeState(state{seq: 2, failed: true})
	put(t, f, 10, 1, 10)
	var in []string
	w := newSimWorld()
	w.ext4 = true
	for p, op := range s.ops {
		if w.inWindow(s.ops[p:]) {
			in = append(in, op.kind.String()+" "+op.name)
			require.False(t, w.inWindow(s.ops[p:len(s.ops)-2]), "without a note there is no window")
			require.NotEmpty(t, w.nodes[0].barred)
			require.Empty(t, w.excused().nodes[0].barred)
		}
		w.apply(op)
	}
	require.Equal(t, []string{"write " + stateName, "write " + stateName}, in)
	require.False(t, w.inWindow(nil))
}
