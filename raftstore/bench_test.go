package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"
	raftbench "github.com/hashicorp/raft/bench"
	"github.com/stretchr/testify/require"
)

func openBench(b *testing.B) *Store {
	s, err := Open(b.TempDir(), nil)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return s
}

// These benchmarks are raft's own suite for stores. Its benchmark of DeleteRange leaves gaps between the entries that it
// stores, which a monotonic store refuses, so dense closes them.
func BenchmarkFirstIndex(b *testing.B)  { raftbench.FirstIndex(b, openBench(b)) }
func BenchmarkLastIndex(b *testing.B)   { raftbench.LastIndex(b, openBench(b)) }
func BenchmarkGetLog(b *testing.B)      { raftbench.GetLog(b, openBench(b)) }
func BenchmarkStoreLog(b *testing.B)    { raftbench.StoreLog(b, openBench(b)) }
func BenchmarkStoreLogs(b *testing.B)   { raftbench.StoreLogs(b, openBench(b)) }
func BenchmarkDeleteRange(b *testing.B) { raftbench.DeleteRange(b, dense{openBench(b)}) }
func BenchmarkSet(b *testing.B)         { raftbench.Set(b, openBench(b)) }
func BenchmarkGet(b *testing.B)         { raftbench.Get(b, openBench(b)) }
func BenchmarkSetUint64(b *testing.B)   { raftbench.SetUint64(b, openBench(b)) }
func BenchmarkGetUint64(b *testing.B)   { raftbench.GetUint64(b, openBench(b)) }

// dense closes the gaps that the suite leaves: it stores the suite's entries 10*n to 10*n+2 as 3*n+1 to 3*n+3.
type dense struct{ *Store }

func (d dense) index(i uint64) uint64 { return i/10*3 + min(i%10, 2) + 1 }

func (d dense) StoreLogs(entries []*raft.Log) error {
	moved := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		e := *entry
		e.Index = d.index(e.Index)
		moved[i] = &e
	}
	return d.Store.StoreLogs(moved)
}

func (d dense) DeleteRange(min, max uint64) error {
	return d.Store.DeleteRange(d.index(min), d.index(max))
}

// BenchmarkGetLogAfterStoreLogs stores 64 entries of 1 KiB and gets each of them, as a server does that applies new entries.
func BenchmarkGetLogAfterStoreLogs(b *testing.B) {
	s := openBench(b)
	entries := make([]*raft.Log, 64)
	for i := range entries {
		entries[i] = &raft.Log{Term: 1, Data: make([]byte, 1024)}
	}
	next := uint64(1)
	var got raft.Log
	for b.Loop() {
		for _, entry := range entries {
			entry.Index = next
			next++
		}
		if err := s.StoreLogs(entries); err != nil {
			b.Fatal(err)
		}
		for _, entry := range entries {
			if err := s.GetLog(entry.Index, &got); err != nil || got.Index != entry.Index {
				b.Fatal(err, got.Index)
			}
		}
	}
}

// BenchmarkGetLogOfBatches gets entries that were stored 64 at a time.
func BenchmarkGetLogOfBatches(b *testing.B) {
	s := openBench(b)
	const n = 64 * 256
	for first := uint64(1); first < n; first += 64 {
		entries := make([]*raft.Log, 64)
		for i := range entries {
			entries[i] = &raft.Log{Index: first + uint64(i), Term: 1, Data: make([]byte, 1024)}
		}
		require.NoError(b, s.StoreLogs(entries))
	}
	for name, step := range map[string]uint64{"sequential": 1, "random": 6151} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			index := uint64(0)
			var got raft.Log
			for b.Loop() {
				index = (index + step) % n
				if err := s.GetLog(index+1, &got); err != nil || got.Index != index+1 {
					b.Fatal(err, got.Index)
				}
			}
		})
	}
}
