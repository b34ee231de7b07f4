package raftstore

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// model holds the contents that a store must have.
type model struct {
	first  uint64 // index of terms[0], or of the next entry that StoreLogs gets
	terms  []uint64
	known  uint64 // the commit index that StageCommitIndex set
	values map[string]uint64
	marks  []uint64 // the commit index stored with each entry
}

// operation is one change of a store.
type operation struct {
	name  string
	apply func(m *model)
	run   func(s *Store) error
}

func (m *model) next() uint64 { return m.first + uint64(len(m.terms)) }

func (m *model) clone() *model {
	c := *m
	c.terms = append([]uint64(nil), m.terms...)
	c.marks = append([]uint64(nil), m.marks...)
	c.values = make(map[string]uint64)
	for k, v := range m.values {
		c.values[k] = v
	}
	return &c
}

func (m *model) check(t testing.TB, s *Store) {
	t.Helper()
	requireEntries(t, s, m.first, m.terms...)
	commit, err := s.GetCommitIndex()
	require.NoError(t, err)
	var want uint64
	if n := len(m.marks); n > 0 {
		want = m.marks[n-1]
	}
	require.Equal(t, want, commit)
	for k, v := range m.values {
		got, err := s.GetUint64([]byte(k))
		require.NoError(t, err)
		require.Equal(t, v, got, k)
	}
}

// pick returns a change that a Raft server may make next. Its contents are unique to step.
func (m *model) pick(r *rand.Rand, step uint64) operation {
	n := uint64(len(m.terms))
	switch k := r.IntN(20); {
	case k < 11 || n == 0 && k < 17:
		first := m.next()
		if n == 0 && r.IntN(2) == 0 {
			first = 1 + r.Uint64N(1000) // after a snapshot
		}
		last := first + r.Uint64N(1+r.Uint64N(40))
		commit := m.known
		return operation{fmt.Sprintf("store %d to %d", first, last), func(m *model) {
			m.first = last + 1 - uint64(len(m.terms)) - (last - first + 1)
			for i := first; i <= last; i++ {
				m.terms = append(m.terms, step)
				m.marks = append(m.marks, min(commit, i))
			}
		}, func(s *Store) error { return s.StoreLogs(entries(first, last, step)) }}
	case k < 13:
		from := m.next() - 1 - r.Uint64N(min(n, 12))
		return m.delete(from, m.next()-1)
	case k < 16:
		return m.delete(m.first-r.Uint64N(min(m.first, 3)), m.first+r.Uint64N(n))
	case k < 17:
		return m.delete(m.first, m.next()-1)
	case k < 18 && n > 0:
		commit := m.first + r.Uint64N(n)
		return operation{fmt.Sprintf("stage %d", commit), func(m *model) { m.known = commit }, func(s *Store) error { return s.StageCommitIndex(commit) }}
	default:
		key := fmt.Sprint("key", r.IntN(4))
		return operation{"set " + key, func(m *model) { m.values[key] = step }, func(s *Store) error { return s.SetUint64([]byte(key), step) }}
	}
}

func (m *model) delete(from, to uint64) operation {
	return operation{fmt.Sprintf("delete %d to %d of %d to %d", from, to, m.first, m.next()-1), func(m *model) {
		switch next := m.next(); {
		case from <= m.first && to >= next-1:
			m.first, m.terms, m.marks = next, nil, nil
		case from <= m.first:
			k := to + 1 - m.first
			m.first, m.terms, m.marks = to+1, m.terms[k:], m.marks[k:]
		default:
			k := from - m.first
			m.terms, m.marks = m.terms[:k], m.marks[:k]
		}
	}, func(s *Store) error { return s.DeleteRange(from, to) }}
}

// restart changes the model as Open does: the known commit index becomes the one stored with the last entry.
func (m *model) restart() {
	m.known = 0
	if n := len(m.marks); n > 0 {
		m.known = m.marks[n-1]
	}
}

// TestModel makes changes as a Raft server does, over many small segments, and compares the store with a model after each.
func TestModel(t *testing.T) {
	seeds, steps := 6, 300
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			dir := t.TempDir()
			s := openStore(t, dir, small)
			m := &model{first: 1, values: make(map[string]uint64)}
			for step := range steps {
				op := m.pick(r, uint64(step+1))
				require.NoError(t, op.run(s), op.name)
				op.apply(m)
				if r.IntN(10) == 0 {
					require.NoError(t, s.Close())
					s = openStore(t, dir, small)
					m.restart()
				}
				if !t.Run("", func(t *testing.T) { m.check(t, s) }) {
					t.Fatalf("after step %d, %s", step, op.name)
				}
			}
			require.NoError(t, s.Close())
			report, err := seglog.Verify(filepath.Join(dir, logDir), nil)
			require.NoError(t, err)
			require.True(t, report.OK(), report.Problems)
		})
	}
}
