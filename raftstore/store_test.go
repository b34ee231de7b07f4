package raftstore

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

func TestEmptyStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 3 {
		s, err := Open(dir, nil)
		require.NoError(t, err)
		require.True(t, s.IsMonotonic())
		requireEntries(t, s, 0)
		require.NoError(t, s.StoreLogs(nil))
		require.NoError(t, s.DeleteRange(1, 100))
		commit, err := s.GetCommitIndex()
		require.NoError(t, err)
		require.Zero(t, commit)
		require.NoError(t, s.Close())
	}
}

// TestStoreLogs checks which entries StoreLogs accepts after others, and that they are in the store after it was opened again.
func TestStoreLogs(t *testing.T) {
	for _, c := range []struct {
		name  string
		store [][2]uint64 // first and last
		fails bool        // the last call fails
		first uint64
		n     int
	}{
		{name: "from 1", store: [][2]uint64{{1, 1}}, first: 1, n: 1},
		{name: "many at once", store: [][2]uint64{{1, 500}}, first: 1, n: 500},
		{name: "one after the other", store: [][2]uint64{{1, 3}, {4, 4}, {5, 90}, {91, 91}}, first: 1, n: 91},
		{name: "begins after a snapshot", store: [][2]uint64{{1000, 1010}, {1011, 1011}}, first: 1000, n: 12},
		{name: "a gap", store: [][2]uint64{{1, 3}, {5, 6}}, fails: true, first: 1, n: 3},
		{name: "again", store: [][2]uint64{{1, 3}, {3, 4}}, fails: true, first: 1, n: 3},
		{name: "before the first", store: [][2]uint64{{10, 12}, {9, 9}}, fails: true, first: 10, n: 3},
		{name: "an index that has no successor", store: [][2]uint64{{math.MaxInt64, math.MaxInt64}}, fails: true},
		{name: "an index that is no offset", store: [][2]uint64{{1 << 63, 1 << 63}}, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, small)
			for i, r := range c.store {
				err := s.StoreLogs(entries(r[0], r[1], 7))
				if c.fails && i == len(c.store)-1 {
					require.ErrorIs(t, err, seglog.ErrInvalid)
					continue
				}
				require.NoError(t, err)
			}
			requireEntries(t, s, c.first, of(7, c.n)...)
			require.NoError(t, s.Close())
			s = openStore(t, dir, small)
			requireEntries(t, s, c.first, of(7, c.n)...)
			next := max(1, c.first+uint64(c.n))
			require.NoError(t, s.StoreLog(entry(next, 7)))
			requireEntries(t, s, next-uint64(c.n), of(7, c.n+1)...)
		})
	}
}

func TestStoreLogsOutOfOrderWithinACall(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	for _, order := range [][]uint64{{1, 3}, {2, 1}, {1, 1}, {1, 2, 4}, {5, 6, 5}} {
		var list []*raft.Log
		for _, i := range order {
			list = append(list, entry(i, 1))
		}
		require.ErrorIs(t, s.StoreLogs(list), seglog.ErrInvalid)
		requireEntries(t, s, 0)
	}
}

// TestDeleteRange covers each place of a range with respect to the entries 100 to 199, which lie in many segments.
func TestDeleteRange(t *testing.T) {
	for _, c := range []struct {
		name     string
		min, max uint64
		first    uint64 // the first index afterwards
		n        int
		fails    bool
	}{
		{"an empty range", 150, 149, 100, 100, false},
		{"below", 1, 99, 100, 100, false},
		{"above", 200, 300, 100, 100, false},
		{"in the middle", 120, 180, 100, 100, true},
		{"all but the ends", 101, 198, 100, 100, true},
		{"the first", 100, 100, 101, 99, false},
		{"the front", 100, 149, 150, 50, false},
		{"from below to the middle", 1, 150, 151, 49, false},
		{"from 0", 0, 120, 121, 79, false},
		{"all but the last", 100, 198, 199, 1, false},
		{"the last", 199, 199, 100, 99, false},
		{"the back", 150, 199, 100, 50, false},
		{"from the middle to above", 151, 1000, 100, 51, false},
		{"up to the greatest index", 151, math.MaxUint64, 100, 51, false},
		{"all but the first", 101, 199, 100, 1, false},
		{"all", 100, 199, 0, 0, false},
		{"all and more", 0, math.MaxUint64, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, small)
			for i := uint64(100); i < 200; i += 10 {
				require.NoError(t, s.StoreLogs(entries(i, i+9, 1)))
			}
			requireEntries(t, s, 100, of(1, 100)...) // so that the store has read entries ahead
			err := s.DeleteRange(c.min, c.max)
			if c.fails {
				require.ErrorIs(t, err, seglog.ErrInvalid)
			} else {
				require.NoError(t, err)
			}
			requireEntries(t, s, c.first, of(1, c.n)...)
			require.NoError(t, s.Close())
			s = openStore(t, dir, small)
			requireEntries(t, s, c.first, of(1, c.n)...)

			// The next entries have other contents, and no old ones may show.
			next := max(1, c.first+uint64(c.n))
			if c.n == 0 {
				next = 42
			}
			require.NoError(t, s.StoreLogs(entries(next, next+60, 2)))
			requireEntries(t, s, next-uint64(c.n), append(of(1, c.n), of(2, 61)...)...)
		})
	}
}

// TestAfterDeletingAll checks that an empty store continues after a snapshot, which may end right at the old entries, far
// ahead of them, or, if an operator restored it, below them.
func TestAfterDeletingAll(t *testing.T) {
	for _, next := range []uint64{1, 50, 100, 101, 102, 5000} {
		for _, reopen := range []bool{false, true} {
			t.Run(fmt.Sprint(next, reopen), func(t *testing.T) {
				dir := t.TempDir()
				s := openStore(t, dir, small)
				require.NoError(t, s.StoreLogs(entries(1, 100, 1)))
				require.NoError(t, s.DeleteRange(1, 100))
				if reopen {
					require.NoError(t, s.Close())
					s = openStore(t, dir, small)
				}
				requireEntries(t, s, 0)
				require.NoError(t, s.StoreLogs(entries(next, next+3, 2)))
				requireEntries(t, s, next, of(2, 4)...)
				require.NoError(t, s.DeleteRange(next, next+3))
				requireEntries(t, s, 0)
			})
		}
	}
}

// TestReappend checks that, when a new leader overwrites entries, the log is right at once and after it was opened again.
func TestReappend(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	require.NoError(t, s.StoreLogs(entries(1, 64, 1)))
	terms := of(1, 64)
	for term := uint64(2); term < 20; term++ {
		from := 64 - term*3
		require.NoError(t, s.DeleteRange(from, 64))
		require.NoError(t, s.StoreLogs(entries(from, 64, term)))
		terms = append(terms[:from-1:from-1], of(term, int(64-from+1))...)
		requireEntries(t, s, 1, terms...)
		if term%4 == 0 {
			require.NoError(t, s.Close())
			s = openStore(t, dir, small)
			requireEntries(t, s, 1, terms...)
		}
	}
}

// TestFields fails when raft.Log gets a field that is not stored.
func TestFields(t *testing.T) {
	want := &raft.Log{Index: 3, Term: math.MaxUint64, Type: 255, Data: []byte("d"), Extensions: []byte("e"), AppendedAt: time.Now()}
	v := reflect.ValueOf(*want)
	for i := range v.NumField() {
		require.False(t, v.Field(i).IsZero(), "the test does not set %s", v.Type().Field(i).Name)
	}
	list := []*raft.Log{
		want,
		{Index: 4, Data: []byte{}},
		{Index: 5, Extensions: []byte{}},
		{Index: 6, Data: make([]byte, 1<<20), AppendedAt: time.Unix(0, 1)},
		{Index: 7, AppendedAt: time.Unix(-5, 0)},
		{Index: 8, AppendedAt: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)},
		{Index: 9, AppendedAt: time.Date(200000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Index: 10, AppendedAt: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC)},
		{Index: 11, Term: 1, Type: raft.LogConfiguration},
	}
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.StoreLogs(list))
	check := func() {
		for range 2 { // the second time, entries may have been read ahead
			for _, e := range list {
				var got raft.Log
				require.NoError(t, s.GetLog(e.Index, &got))
				requireSame(t, e, &got)
			}
		}
		for i := len(list) - 1; i >= 0; i-- {
			var got raft.Log
			require.NoError(t, s.GetLog(list[i].Index, &got))
			requireSame(t, list[i], &got)
		}
	}
	check()
	require.NoError(t, s.Close())
	s = openStore(t, dir, nil)
	check()
	report, err := seglog.Verify(filepath.Join(dir, logDir), nil)
	require.NoError(t, err)
	require.True(t, report.OK(), report.Problems)
}

// TestEntriesBelongToTheCaller checks that the store shares no memory with stored or returned entries.
func TestEntriesBelongToTheCaller(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	list := entries(1, 100, 1)
	require.NoError(t, s.StoreLogs(list))
	for _, e := range list {
		clear(e.Data)
		clear(e.Extensions)
	}
	for range 3 {
		for i := uint64(1); i <= 100; i++ {
			var got raft.Log
			require.NoError(t, s.GetLog(i, &got))
			requireSame(t, entry(i, 1), &got)
			clear(got.Data[:cap(got.Data)])
			clear(got.Extensions[:cap(got.Extensions)])
		}
	}
}

func TestSplitBatches(t *testing.T) {
	s := openStore(t, t.TempDir(), &Options{SegmentBytes: 1 << 16, MaxBatchBytes: 1 << 13})
	list := entries(1, 200, 1)
	require.NoError(t, s.StoreLogs(list))
	requireEntries(t, s, 1, of(1, 200)...)
	require.Greater(t, s.Stats().Appends, int64(1))

	appends := s.Stats().Appends
	require.NoError(t, s.StoreLogs(entries(201, 203, 1)))
	require.Equal(t, appends+1, s.Stats().Appends)

	// If the last entry is too large, none of the call is stored, and the others can be stored without it.
	again := entries(204, 300, 1)
	too := append(again[:len(again):len(again)], &raft.Log{Index: 301, Data: make([]byte, 1<<14)})
	require.ErrorIs(t, s.StoreLogs(too), seglog.ErrTooLarge)
	requireEntries(t, s, 1, of(1, 203)...)
	require.NoError(t, s.StoreLogs(again))
	requireEntries(t, s, 1, of(1, 300)...)
}

// TestOneBatch checks that entries that fit are stored as one batch, so that a kill leaves all or none of them.
func TestOneBatch(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	require.NoError(t, s.StoreLogs(entries(1, 1000, 1)))
	require.Equal(t, int64(1), s.Stats().Appends)
	require.Equal(t, int64(1000), s.Stats().AppendedRecords)
}

func TestCommitIndex(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	want := func(index uint64) {
		t.Helper()
		got, err := s.GetCommitIndex()
		require.NoError(t, err)
		require.Equal(t, index, got)
	}
	reopen := func() {
		require.NoError(t, s.Close())
		s = openStore(t, dir, small)
	}
	require.NoError(t, s.StoreLogs(entries(1, 10, 1)))
	want(0)
	require.NoError(t, s.StageCommitIndex(7))
	want(0) // the index is only staged
	reopen()
	want(0)
	require.NoError(t, s.StageCommitIndex(7))
	require.NoError(t, s.StoreLogs(entries(11, 20, 1)))
	want(7)
	require.NoError(t, s.StoreLogs(entries(21, 22, 1))) // without a new commit index
	want(7)
	reopen()
	want(7)
	require.NoError(t, s.StoreLogs(entries(23, 24, 1))) // as after a restart
	want(7)
	require.NoError(t, s.StageCommitIndex(1000))
	require.NoError(t, s.StoreLogs(entries(25, 30, 1)))
	want(30) // the commit index is never above the last entry
	require.NoError(t, s.StoreLogs(entries(31, 40, 1)))
	want(40)
	require.NoError(t, s.DeleteRange(35, 40))
	want(34)
	require.NoError(t, s.DeleteRange(20, 34))
	want(7)
	require.NoError(t, s.DeleteRange(1, 15))
	want(7) // the entry is deleted, but it was committed
	require.NoError(t, s.DeleteRange(16, 19))
	want(0)
	reopen()
	want(0)
	require.NoError(t, s.StoreLog(entry(100, 2)))
	want(0)
}

func TestClosed(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.StoreLogs(entries(1, 9, 1)))
	require.NoError(t, s.SetUint64([]byte("k"), 1))
	_, err := Open(dir, nil)
	require.ErrorIs(t, err, seglog.ErrLocked)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())

	_, err = s.FirstIndex()
	require.ErrorIs(t, err, seglog.ErrClosed)
	_, err = s.LastIndex()
	require.ErrorIs(t, err, seglog.ErrClosed)
	require.ErrorIs(t, s.GetLog(1, new(raft.Log)), seglog.ErrClosed)
	require.ErrorIs(t, s.StoreLog(entry(10, 1)), seglog.ErrClosed)
	require.ErrorIs(t, s.StoreLogs(nil), seglog.ErrClosed)
	require.ErrorIs(t, s.DeleteRange(1, 2), seglog.ErrClosed)
	require.ErrorIs(t, s.StageCommitIndex(1), seglog.ErrClosed)
	_, err = s.GetCommitIndex()
	require.ErrorIs(t, err, seglog.ErrClosed)
	require.ErrorIs(t, s.SetUint64([]byte("k"), 1), seglog.ErrClosed)
	_, err = s.GetUint64([]byte("k"))
	require.ErrorIs(t, err, seglog.ErrClosed)

	s = openStore(t, dir, nil)
	requireEntries(t, s, 1, of(1, 9)...)
}

// TestForeignLog checks that Open refuses a log that holds other records.
func TestForeignLog(t *testing.T) {
	for name, rec := range map[string]seglog.Record{
		"no key":      {Value: []byte("v")},
		"another key": {Key: []byte("user-1"), Value: []byte("v")},
		"version 2":   {Key: []byte{2, 0, 0, 1, 1}},
		"index 2":     {Key: []byte{1, 0, 0, 2, 1}},
		"headers":     {Key: []byte{1, 0, 0, 1, 1}, Headers: []seglog.Header{{Key: "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, nil)
			require.NoError(t, s.Close())
			log, err := seglog.Open(filepath.Join(dir, logDir), nil)
			require.NoError(t, err)
			_, err = log.Append(rec)
			require.NoError(t, err)
			require.NoError(t, log.Close())
			_, err = Open(dir, nil)
			require.ErrorIs(t, err, seglog.ErrCorrupt)
			require.ErrorContains(t, err, "offset 1 ")
		})
	}
}

// TestFlippedBits checks that, whichever byte of a segment is damaged, each entry is right or an error; none is missing or
// wrong.
func TestFlippedBits(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.StoreLogs(entries(1, 20, 1)))
	require.NoError(t, s.StoreLogs(entries(21, 40, 1)))
	require.NoError(t, s.Close())
	paths, err := filepath.Glob(filepath.Join(dir, logDir, "*.log"))
	require.NoError(t, err)
	require.Len(t, paths, 1)
	good, err := os.ReadFile(paths[0])
	require.NoError(t, err)
	step := 7
	if testing.Short() {
		step = 61
	}
	for at := 0; at < len(good); at += step {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		require.NoError(t, os.WriteFile(paths[0], bad, 0o644))
		s, err := Open(dir, nil)
		if err != nil {
			require.ErrorIs(t, err, seglog.ErrCorrupt, "byte %d", at)
			continue
		}
		last, err := s.LastIndex()
		require.NoError(t, err)
		require.Equal(t, uint64(40), last, "byte %d", at)
		for i := uint64(1); i <= 40; i++ {
			var got raft.Log
			if err := s.GetLog(i, &got); err != nil {
				require.ErrorIs(t, err, seglog.ErrCorrupt, "byte %d, entry %d", at, i)
				continue
			}
			requireSame(t, entry(i, 1), &got)
		}
		_ = s.Close()
	}
}

// TestNoOtherFiles checks that a store leaves only the files that doc.go names.
func TestNoOtherFiles(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	require.NoError(t, s.StoreLogs(entries(1, 5, 1)))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 5))
	require.NoError(t, s.Close())
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	require.Equal(t, "log stable", strings.Join(names, " "))
}
