package raftstore

import (
	"bytes"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
	"github.com/stretchr/testify/require"
)

// FuzzDecode checks that decode does not panic, and accepts only the key with which the decoded entry would be stored.
func FuzzDecode(f *testing.F) {
	for _, e := range []*raft.Log{entry(1, 1), entry(500, 3), {Index: 1 << 60, Term: 1 << 63}, {}} {
		f.Add(appendKey(nil, e, 0), int64(e.Index))
		f.Add(appendKey(nil, e, e.Index/2), int64(e.Index))
	}
	f.Add([]byte{1, 0, 3}, int64(1))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, key []byte, offset int64) {
		if offset < 0 {
			return
		}
		rec := seglog.Record{Offset: offset, Key: key, Value: []byte("v")}
		var e raft.Log
		commit, err := decode(&rec, &e)
		if err != nil {
			require.ErrorIs(t, err, seglog.ErrCorrupt)
			require.Zero(t, e)
			return
		}
		require.LessOrEqual(t, commit, e.Index)
		require.Equal(t, key, appendKey(nil, &e, commit))
	})
}

// FuzzEntry checks that each entry is decoded as it was stored.
func FuzzEntry(f *testing.F) {
	f.Add(uint64(1), uint64(1), byte(0), int64(1), int64(1), uint64(1))
	f.Add(uint64(1<<62), uint64(1<<63), byte(255), int64(-1), int64(999999999), uint64(1<<63))
	f.Fuzz(func(t *testing.T, index, term uint64, kind byte, seconds, nanoseconds int64, commit uint64) {
		if index >= 1<<63 || nanoseconds < 0 || nanoseconds >= 1e9 || seconds > 1<<50 || seconds < -1<<50 {
			return
		}
		want := raft.Log{Index: index, Term: term, Type: raft.LogType(kind), AppendedAt: time.Unix(seconds, nanoseconds)}
		key := appendKey(nil, &want, commit)
		require.LessOrEqual(t, len(key), maxKeyLen)
		var got raft.Log
		known, err := decode(&seglog.Record{Offset: int64(index), Key: key}, &got)
		require.NoError(t, err)
		require.Equal(t, min(commit, index), known)
		requireSame(t, &want, &got)
		_, err = decode(&seglog.Record{Offset: int64(index) + 1, Key: key}, &got)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
	})
}

// FuzzStable checks that decodeStable does not panic, whatever the file holds, and that it returns the values of a valid file.
func FuzzStable(f *testing.F) {
	f.Add(encodeStable(1, nil))
	f.Add(encodeStable(2, map[string][]byte{"CurrentTerm": {0, 0, 0, 0, 0, 0, 0, 1}, "": nil}))
	f.Add([]byte(stableMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, values, err := decodeStable(b); err == nil {
			require.NotNil(t, values)
		}
		// With a valid CRC, the fuzzer gets past the check to the rest of the decoder.
		body := append([]byte(stableMagic), 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0)
		number, values, err := decodeStable(seal(append(body, b...)))
		if err != nil {
			return
		}
		require.Equal(t, uint64(9), number)
		number, again, err := decodeStable(encodeStable(10, values))
		require.NoError(t, err)
		require.Equal(t, uint64(10), number)
		require.Equal(t, len(values), len(again))
		for k, v := range values {
			require.True(t, bytes.Equal(v, again[k]))
		}
	})
}
