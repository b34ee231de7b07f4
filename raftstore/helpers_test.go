package raftstore

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// small sets a segment size so small that a test of a few hundred entries rolls many times.
var small = &Options{SegmentBytes: 4096}

func TestMain(m *testing.M) {
	if os.Getenv(childDir) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

func openStore(t testing.TB, dir string, opts *Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// entry returns an entry whose contents follow from index and term.
func entry(index, term uint64) *raft.Log {
	e := &raft.Log{
		Index: index, Term: term, Type: raft.LogType(index % 6),
		Data:       []byte(fmt.Sprintf("data of %d in %d%*d", index, term, int(index*7%100), 0)),
		AppendedAt: time.Unix(1700000000+int64(index), int64(term)),
	}
	if index%5 == 0 {
		e.Extensions = []byte(fmt.Sprintf("extensions of %d", index))
	}
	return e
}

func entries(first, last, term uint64) []*raft.Log {
	var list []*raft.Log
	for i := first; i <= last; i++ {
		list = append(list, entry(i, term))
	}
	return list
}

func requireSame(t testing.TB, want, got *raft.Log) {
	t.Helper()
	require.True(t, want.AppendedAt.Equal(got.AppendedAt), "AppendedAt: %v, %v", want.AppendedAt, got.AppendedAt)
	w, g := *want, *got
	w.AppendedAt, g.AppendedAt = time.Time{}, time.Time{}
	require.Equal(t, w, g)
}

// requireEntries checks that the store holds exactly len(terms) entries from first on; terms[i] is the term of entry first+i.
func requireEntries(t testing.TB, s raft.LogStore, first uint64, terms ...uint64) {
	t.Helper()
	wantFirst, wantLast := first, first+uint64(len(terms))-1
	if len(terms) == 0 {
		wantFirst, wantLast = 0, 0
	}
	gotFirst, err := s.FirstIndex()
	require.NoError(t, err)
	gotLast, err := s.LastIndex()
	require.NoError(t, err)
	require.Equal(t, [2]uint64{wantFirst, wantLast}, [2]uint64{gotFirst, gotLast})
	var got raft.Log
	for i, term := range terms {
		index := first + uint64(i)
		require.NoError(t, s.GetLog(index, &got))
		requireSame(t, entry(index, term), &got)
	}
	for _, index := range []uint64{0, wantFirst - 1, wantLast + 1, wantLast + 2, 1 << 62, 1 << 63, 1<<64 - 1} {
		if len(terms) == 0 || index < wantFirst || index > wantLast {
			require.ErrorIs(t, s.GetLog(index, &got), raft.ErrLogNotFound, "%d", index)
		}
	}
}

// of returns a slice of n times term.
func of(term uint64, n int) []uint64 {
	terms := make([]uint64, n)
	for i := range terms {
		terms[i] = term
	}
	return terms
}
