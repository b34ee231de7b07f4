package raftstore

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// TestConcurrentGetLog reads entries, sequentially and at random, while a writer appends, deletes entries at both ends and
// starts over. No reader may get an entry of another index, an entry that was deleted before the call began, or an error for
// an entry that exists throughout.
func TestConcurrentGetLog(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	var (
		stop  atomic.Bool
		gone  atomic.Uint64 // from index cutAt on, entries of lower terms have been deleted
		cutAt atomic.Uint64
		wg    sync.WaitGroup
		reads atomic.Int64
	)
	reader := func(seed uint64, walk bool) {
		defer wg.Done()
		r := rand.New(rand.NewPCG(seed, 4))
		var got raft.Log
		var index uint64
		for !stop.Load() {
			first, err := s.FirstIndex()
			if err != nil {
				t.Error(err)
				return
			}
			last, err := s.LastIndex()
			if err != nil || last < first {
				if err != nil {
					t.Error(err)
					return
				}
				continue
			}
			if index++; !walk || index < first || index > last {
				index = first + r.Uint64N(last-first+1)
			}
			term, from := gone.Load(), cutAt.Load()
			switch err := s.GetLog(index, &got); {
			case errors.Is(err, raft.ErrLogNotFound): // the writer has deleted the entry
			case err != nil:
				t.Errorf("entry %d: %v", index, err)
				return
			default:
				reads.Add(1)
				want := entry(got.Index, got.Term)
				if got.Index != index || string(got.Data) != string(want.Data) || string(got.Extensions) != string(want.Extensions) {
					t.Errorf("entry %d: got %v", index, got)
					return
				}
				if got.Term < term && index >= from && gone.Load() == term {
					t.Errorf("entry %d of term %d was cut before the call", index, got.Term)
					return
				}
			}
		}
	}
	for i := range uint64(4) {
		wg.Add(1)
		go reader(i, i%2 == 0)
	}
	r := rand.New(rand.NewPCG(1, 5))
	next, first, term := uint64(1), uint64(1), uint64(1)
	for begin := time.Now(); time.Since(begin) < 2*time.Second && !t.Failed(); {
		n := 1 + r.Uint64N(50)
		require.NoError(t, s.StoreLogs(entries(next, next+n-1, term)))
		next += n
		switch k := r.IntN(12); {
		case k < 3:
			from := next - 1 - r.Uint64N(min(next-first, 40))
			require.NoError(t, s.DeleteRange(from, next-1))
			next = from
			if next == first { // all of it
				next = first + r.Uint64N(100)
			}
			term++
			cutAt.Store(0)
			gone.Store(0) // readers must not compare while gone and cutAt do not match
			cutAt.Store(from)
			gone.Store(term)
			if next != from {
				first = next
			}
			first = min(first, next)
		case k < 6:
			to := first + r.Uint64N(next-first)
			require.NoError(t, s.DeleteRange(first, to))
			first = to + 1
		case k == 6 && next-first > 200:
			require.NoError(t, s.DeleteRange(first, next-1))
			first, term = next, term+1
		}
	}
	stop.Store(true)
	wg.Wait()
	require.Positive(t, reads.Load())
	t.Logf("%d reads", reads.Load())
}

// TestConcurrentClose checks that calls during Close succeed or return ErrClosed.
func TestConcurrentClose(t *testing.T) {
	for range 10 {
		s := openStore(t, t.TempDir(), small)
		require.NoError(t, s.StoreLogs(entries(1, 200, 1)))
		var wg sync.WaitGroup
		run := func(f func(i uint64) error) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := uint64(0); ; i++ {
					if err := f(i); err != nil {
						if !errors.Is(err, seglog.ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			}()
		}
		run(func(i uint64) error { return s.GetLog(1+i%200, new(raft.Log)) })
		run(func(i uint64) error { return s.StoreLog(entry(201+i, 1)) })
		run(func(i uint64) error { return s.SetUint64([]byte("k"), i) })
		run(func(i uint64) error { _, err := s.GetCommitIndex(); return err })
		run(func(i uint64) error { _, err := s.LastIndex(); return err })
		time.Sleep(3 * time.Millisecond)
		require.NoError(t, s.Close())
		wg.Wait()
	}
}
