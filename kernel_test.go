package seglog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// These tests are about single faults that a kernel may expose a log to.

// syncsFS records the directories that are flushed.
type syncsFS struct {
	*sim.FS
	dirs []string
}

func (s *syncsFS) SyncDir(dir string) error {
	s.dirs = append(s.dirs, dir)
	return s.FS.SyncDir(dir)
}

// Open must flush the parent directory even if the log's directory exists: whoever created it may not have flushed its name.
func TestParentDirectoryIsSynced(t *testing.T) {
	s := &syncsFS{FS: sim.NewFS(sim.NewWorld(), true)}
	dir := filepath.Join("volume", sim.Dir)
	l, err := openFS(s, dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.True(t, slices.ContainsFunc(s.dirs, func(dir string) bool { return filepath.Base(dir) == "volume" }), "flushed: %v", s.dirs)
}

// A log on a full disk must open, and DeleteBefore must delete the sealed segments even though there is no room for a new segment in
// place of the active one.
func TestDeletionOnAFullDisk(t *testing.T) {
	s, l := smallSegments(t, true, FlushSync, 4)
	require.NoError(t, l.Close()) // so that they are sealed
	s.SetFault(fails(sim.Reserve, logSuffix, syscall.ENOSPC))
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Create || kind == sim.Reserve || kind == sim.Rename {
			return &sim.Fault{Err: syscall.ENOSPC}
		}
		return nil
	})
	require.ErrorIs(t, l.DeleteBefore(l.Offsets().End), syscall.ENOSPC)
	require.Equal(t, 1, int(l.Stats().Segments), "the sealed segments are deleted")
	s.SetFault(nil)
	_, err = l.Append(Record{Value: []byte("later")})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
}

// Close must call OnSeal for the segments that it seals, before it returns.
func TestCloseTellsOfItsSeals(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	var told []int64
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone, OnSeal: func(i SegmentInfo) { told = append(told, i.Base) }})
	require.NoError(t, err)
	l.flushes.Lock() // so that no segment is sealed before Close
	for l.Stats().Segments < 5 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	var want []int64
	segs := l.view.Load().segs
	for _, seg := range segs[:len(segs)-1] {
		want = append(want, seg.base)
	}
	done := make(chan error)
	go func() { done <- l.Close() }()
	require.Eventually(t, l.closed.Load, 10*time.Second, time.Millisecond)
	l.flushes.Unlock()
	require.NoError(t, <-done)
	require.Equal(t, want, told)
}

// Leader epochs must never go back, not even if the process was killed before the state file held the last epoch.
func TestEpochAfterAKill(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096, Flush: FlushNone})
	require.NoError(t, err)
	sent := encoded([]Record{{Time: time.UnixMilli(1)}}, 0)
	binary.BigEndian.PutUint32(sent[12:], 7) // not covered by the CRC
	_, err = l.TransferFrom(bytes.NewReader(sent), -1)
	require.NoError(t, err)
	w := s.Kill()
	ignore(l.Close())
	s = sim.NewFS(w, true)
	l, err = openFS(s, sim.Dir, &Options{SegmentBytes: 4096})
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("own")})
	require.NoError(t, err)
	b := batch(w.Get(fileName(0, logSuffix)))
	require.EqualValues(t, 7, b.epoch())
	require.EqualValues(t, 7, b[b.size():].epoch(), "the epoch of the log's own batch")
	require.NoError(t, l.Close())
}

// Any page of any file may be unreadable, permanently or for the first few reads. The log must lose no record over it: records
// in other segments stay readable, and all records if the page belongs to an index. Errors name the file, and once the page is
// readable again all records are.
func TestUnreadablePages(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		for _, closed := range []bool{true, false} {
			w, end := unreadableLog(t, mapped, closed)
			pages := 0
			for _, name := range w.Sorted() {
				for page := int64(0); page*sim.PageBytes < int64(len(w.Get(name))); page++ {
					for _, tries := range []int{1, 2, 3, 5, 1 << 30} {
						what := fmt.Sprintf("%s, page %d, %d reads fail, mapped %v, closed %v", name, page, tries, mapped, closed)
						unreadablePage(t, what, w, mapped, name, page, tries, end)
						pages++
					}
				}
			}
			require.Greater(t, pages, 100)
		}
	}
}

func unreadableLog(t *testing.T, mapped, closed bool) (*sim.World, int64) {
	s := sim.NewFS(sim.NewWorld(), mapped)
	u := newSimUser(s, unreadableOptions, 3)
	require.NoError(t, u.open())
	for u.log.Stats().Segments < 4 {
		require.NoError(t, u.append(2))
	}
	require.NoError(t, u.close())
	require.NoError(t, u.open())
	for range 20 {
		require.NoError(t, u.append(2))
	}
	end := u.end()
	if closed {
		require.NoError(t, u.close())
		return s.Kill(), end
	}
	w := s.Kill()
	ignore(u.log.Close())
	return w, end
}

var unreadableOptions = Options{SegmentBytes: 12_000, IndexBytes: 300, MaxOpenSegments: 2}

func unreadablePage(t *testing.T, what string, w *sim.World, mapped bool, name string, page int64, tries int, end int64) {
	s := sim.NewFS(w.Clone(), mapped)
	s.Bad, s.BadTries = map[string]int64{name: page}, tries
	told := func(err error) {
		require.ErrorIs(t, err, syscall.EIO, what)
		require.Contains(t, err.Error(), strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, logSuffix), indexSuffix), timeSuffix), "%s: the error does not name the file", what)
	}
	l, err := openFS(s, sim.Dir, &unreadableOptions)
	for range 6 {
		if err == nil {
			break
		}
		told(err)
		require.Empty(t, s.Left(), what)
		l, err = openFS(s, sim.Dir, &unreadableOptions)
	}
	if err == nil {
		o := l.Offsets()
		require.Equal(t, Offsets{0, end, end, end}, o, what)
		b := w.Get(name)
		for offset := range end {
			if _, err := l.Read(offset); err != nil {
				told(err)
				require.True(t, isLog(name) && holds(b, offset) || tries < 1<<30, "%s: record %d of another segment can't be read: %v", what, offset, err)
			}
		}
		if tries == 1<<30 {
			ignore(l.Close())
		} else {
			require.NoError(t, l.Close(), what)
		}
		require.Empty(t, s.Left(), what)
	}
	s.Bad = nil
	l, err = openFS(s, sim.Dir, &unreadableOptions)
	require.NoError(t, err, what)
	got, err := readLog(l)
	require.NoError(t, err, what)
	require.EqualValues(t, end, len(got.recs), what)
	require.NoError(t, l.Close(), what)
	require.Empty(t, s.Misuse, what)
}

// holds reports whether the segment with these bytes holds the record at offset.
func holds(b []byte, offset int64) bool {
	for at := int64(0); at+headerLen <= int64(len(b)); {
		h := batch(b[at:])
		if parseHeader(h) != "" {
			break
		}
		if h.base() <= offset && offset <= h.last() {
			return true
		}
		at += h.size()
	}
	return false
}
