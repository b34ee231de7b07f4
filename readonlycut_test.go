package seglog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/vfs"
)

// uncut is a file system on which segments can't be truncated or zeroed while it is stubborn.
type uncut struct {
	osFS
	stubborn atomic.Bool
}

type uncutFile struct {
	vfs.File
	fs *uncut
}

func (u *uncut) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := u.osFS.Open(path, mode)
	if err != nil || filepath.Ext(path) != logSuffix {
		return f, err
	}
	return uncutFile{f, u}, nil
}

func (f uncutFile) Truncate(size int64) error {
	if f.fs.stubborn.Load() {
		return &fs.PathError{Op: "truncate", Path: "segment", Err: syscall.EIO}
	}
	return f.File.Truncate(size)
}

func (f uncutFile) Zero(pos, n int64) error {
	if f.fs.stubborn.Load() {
		return &fs.PathError{Op: "write", Path: "segment", Err: syscall.EIO}
	}
	return f.File.Zero(pos, n)
}

// A cut that failed halfway, or takes long, hides the records of the batch that it divides. Read of a read-only log must then
// fail with ErrBusy, and Follow wait; both get the records when the cut is done.
func TestReadOnlyBesideAnUnfinishedCut(t *testing.T) {
	disk := new(uncut)
	dir := t.TempDir()
	w, err := openFS(disk, dir, nil)
	require.NoError(t, err)
	for range 2 {
		records := make([]Record, 10)
		for i := range records {
			records[i].Value = numbered(int64(i))
		}
		_, err = w.Append(records...)
		require.NoError(t, err)
	}
	disk.stubborn.Store(true)
	require.ErrorIs(t, w.TruncateTo(15), syscall.EIO)
	require.ErrorIs(t, w.Close(), ErrFailed)
	r, err := Open(dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	defer r.Close()
	require.EqualValues(t, 10, r.Offsets().End)
	_, err = r.Read(9)
	require.NoError(t, err)
	began := time.Now()
	_, err = r.Read(12)
	require.ErrorIs(t, err, ErrBusy)
	require.NotErrorIs(t, err, ErrCorrupt)
	require.Less(t, time.Since(began), 10*maxCutWait)
	_, err = r.Read(15)
	require.ErrorIs(t, err, ErrOutOfRange)
	next := make(chan error, 1)
	go func() {
		offset := int64(13)
		for rec, err := range r.Follow(context.Background(), offset) {
			if err == nil && rec.Offset != offset {
				err = errors.New("wrong offset")
			}
			if offset++; err != nil || offset == 15 {
				next <- err
				return
			}
		}
	}()
	disk.stubborn.Store(false)
	w, err = openFS(disk, dir, nil)
	require.NoError(t, err)
	require.EqualValues(t, 15, w.Offsets().End)
	require.NoError(t, <-next)
	_, err = r.Read(12)
	require.NoError(t, err)
	require.NoError(t, w.Close())
}

// A damaged batch below a cut that is under way, or was interrupted, is an error like any other, and what follows up to the cut can be read.
func TestReadOnlyDamageBelowAnUnfinishedCut(t *testing.T) {
	for i, kept := range []int64{20, 25, 20, 25} { // at the end of a batch, or inside
		disk := new(uncut)
		dir := t.TempDir()
		w, err := openFS(disk, dir, &Options{SegmentBytes: minSegmentBytes})
		require.NoError(t, err)
		for range []int{10, 10, 200, 200}[i] {
			_, err = w.Append(make([]Record, 10)...)
			require.NoError(t, err)
		}
		disk.stubborn.Store(true)
		require.ErrorIs(t, w.TruncateTo(kept), syscall.EIO)
		require.ErrorIs(t, w.Close(), ErrFailed)
		path := filepath.Join(dir, fileName(0, logSuffix))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		b[batch(b).size()-1] ^= 1
		require.NoError(t, os.WriteFile(path, b, 0o644))
		r, err := Open(dir, &Options{ReadOnly: true})
		require.NoError(t, err)
		require.EqualValues(t, 20, r.Offsets().End)
		var corrupt *CorruptError
		_, err = r.Read(3)
		require.ErrorAs(t, err, &corrupt)
		require.NotErrorIs(t, err, ErrBusy)
		require.EqualValues(t, 10, corrupt.NextOffset)
		for _, offset := range []int64{10, 19} {
			_, err = r.Read(offset)
			require.NoError(t, err)
		}
		require.NoError(t, r.Close())
	}
}

// slowState is a file system on which a read of seglog.state takes long.
type slowState struct {
	osFS
	pause atomic.Int64
}

type slowFile struct {
	vfs.File
	fs *slowState
}

func (s *slowState) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := s.osFS.Open(path, mode)
	if err != nil || filepath.Base(path) != stateName {
		return f, err
	}
	return slowFile{f, s}, nil
}

func (f slowFile) ReadAt(p []byte, pos int64) (int, error) {
	n, err := f.File.ReadAt(p, pos)
	time.Sleep(time.Duration(f.fs.pause.Load()))
	return n, err
}

// The age of a view counts from the start of the read of seglog.state that confirmed it, even if the process was held up
// during that read.
func TestReadOnlyViewAgesFromTheReadOfTheState(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, nil)
	require.NoError(t, err)
	defer w.Close()
	for range 10 {
		_, err := w.Append(Record{Value: []byte("old")})
		require.NoError(t, err)
	}
	slow := &slowState{}
	l, err := openFS(slow, dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	defer l.Close()
	for _, offset := range []int64{5, 10} { // an offset in the view, and one that makes Read ask for a new view
		time.Sleep(followEvery) // until the next read of the state is due
		slow.pause.Store(int64(2 * followEvery))
		_, err = l.Read(offset)
		require.Equal(t, offset == 10, errors.Is(err, ErrOutOfRange), "%v", err)
		slow.pause.Store(0)
		require.False(t, l.readOnly.isFresh(), "offset %d", offset)
	}
}

// noCopy is a file system that has no room for the copy of a segment while it is full.
type noCopy struct {
	osFS
	full atomic.Bool
}

type noCopyFile struct {
	vfs.File
	fs *noCopy
}

func (n *noCopy) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := n.osFS.Open(path, mode)
	if err != nil || filepath.Base(path) != cutName {
		return f, err
	}
	return noCopyFile{f, n}, nil
}

func (f noCopyFile) WriteAt(p []byte, pos int64) (int, error) {
	if f.fs.full.Load() {
		return 0, &fs.PathError{Op: "write", Path: cutName, Err: syscall.ENOSPC}
	}
	return f.File.WriteAt(p, pos)
}

// A cut must copy a segment that a snapshot shares before it notes its intent, so that a full disk fails the cut and does not
// latch the log.
func TestCutOfASharedSegmentOnAFullDisk(t *testing.T) {
	fsys := &noCopy{}
	dir := t.TempDir()
	l, err := openFS(fsys, filepath.Join(dir, "log"), &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	defer l.Close()
	for l.Stats().Segments < 4 {
		_, err := l.Append(Record{Value: make([]byte, 500)})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return l.Stats().Seals >= 3 }, 10*time.Second, time.Millisecond) // others are copied, not shared
	require.NoError(t, l.Snapshot(filepath.Join(dir, "copy")))
	end := l.Offsets().End
	fsys.full.Store(true)
	err = l.TruncateTo(3)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NotErrorIs(t, err, ErrFailed)
	require.Equal(t, end, l.Offsets().End)
	_, err = l.Append(Record{Value: []byte("goes on")})
	require.NoError(t, err)
	fsys.full.Store(false)
	require.NoError(t, l.TruncateTo(3))
	_, err = l.Append(Record{Value: []byte("and on")})
	require.NoError(t, err)
	snapshot, err := Open(filepath.Join(dir, "copy"), &Options{ReadOnly: true})
	require.NoError(t, err)
	n := int64(0)
	for r, err := range snapshot.Records(Oldest) {
		require.NoError(t, err)
		require.Len(t, r.Value, 500)
		n++
	}
	require.Equal(t, end, n)
	require.NoError(t, snapshot.Close())
}

// staleOnce is a file system on which the first read of a segment comes before a write: it finds zeros from a position on.
type staleOnce struct {
	osFS
	from int64
	read atomic.Bool
}

type staleFile struct {
	vfs.File
	fs *staleOnce
}

func (s *staleOnce) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := s.osFS.Open(path, mode)
	if err != nil || filepath.Ext(path) != logSuffix {
		return f, err
	}
	return staleFile{f, s}, nil
}

func (f staleFile) ReadAt(p []byte, pos int64) (int, error) {
	n, err := f.File.ReadAt(p, pos)
	if pos <= f.fs.from && pos+int64(n) > f.fs.from && !f.fs.read.Swap(true) {
		clear(p[f.fs.from-pos : n])
	}
	return n, err
}

// A read-only log must not go on with what it has read of a batch before that was written, once it has seen that the batch is there.
func TestReadOnlySeesABatchWrittenMeanwhile(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	var positions []int64
	for range 4 {
		positions = append(positions, l.Stats().AppendedBytes)
		_, err := l.Append(Record{Value: make([]byte, 100)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	opened := make(chan error)
	go func() {
		r, err := openFS(&staleOnce{from: positions[2]}, dir, &Options{ReadOnly: true})
		if err == nil && r.Offsets().End != 4 {
			err = fmt.Errorf("the log ends at %d", r.Offsets().End)
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "Open does not return")
	}
}

// beforeOpen is a file system that calls do, once, before the first segment is opened.
type beforeOpen struct {
	osFS
	do func()
}

func (b *beforeOpen) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	if do := b.do; do != nil && filepath.Base(path) == fileName(0, logSuffix) {
		b.do = nil
		do()
	}
	return b.osFS.Open(path, mode)
}

// A deletion by the writer must not make OffsetForTime take segments for damaged that are deleted while it looks at them.
func TestReadOnlyTimesBesideADeletion(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, &Options{SegmentBytes: 4096, Flush: FlushNone})
	require.NoError(t, err)
	for i := range 30 {
		_, err := w.Append(Record{Time: time.Unix(int64(i), 0), Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	for w.Stats().Seals < w.Stats().Rolls {
		time.Sleep(time.Millisecond)
	}
	r, err := openFS(&beforeOpen{do: func() { require.NoError(t, w.DeleteBefore(20)) }}, dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	require.Zero(t, r.Offsets().Start)
	offset, err := r.OffsetForTime(time.Unix(0, 0))
	require.NoError(t, err)
	require.EqualValues(t, 20, offset)
	require.NoError(t, r.Close())
	require.NoError(t, w.Close())
}
