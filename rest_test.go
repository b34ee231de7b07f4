package seglog_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// putToRest puts a log to rest as its keeper does after a while.
func putToRest(t *testing.T, l *seglog.Log) {
	t.Helper()
	eventually(t, "the log rests", func() bool {
		rests, err := seglog.Rest(l)
		require.NoError(t, err)
		return rests
	})
}

// appendSome appends n records, one by one.
func appendSome(t *testing.T, l *seglog.Log, n int) {
	t.Helper()
	for range n {
		_, err := l.Append(seglog.Record{Value: []byte("a value of some length")})
		require.NoError(t, err)
	}
}

// values returns the values of all records.
func values(t *testing.T, l *seglog.Log) (vs []string) {
	t.Helper()
	for r, err := range l.Records(seglog.Oldest) {
		require.NoError(t, err)
		vs = append(vs, fmt.Sprint(r.Offset, " ", r.Time.UnixMilli(), " ", string(r.Value)))
	}
	return vs
}

// holdsLittle checks that a log at rest holds the descriptors of LOCK and of its directory, and no mapping.
func holdsLittle(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "it holds two descriptors and no mapping", func() bool { // a round of the preparer may just be ending
		fds, mappings := held(t, dir)
		return fds == 2 && mappings == 0
	})
}

// At rest, a log must hold two descriptors and no mapping, answer every read, and take every call that changes it.
func TestRest(t *testing.T) {
	more := seglog.Record{Value: []byte("more"), Time: time.UnixMilli(5000)}
	for _, policy := range []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone} {
		for name, change := range map[string]func(l *seglog.Log) error{
			"append":        func(l *seglog.Log) error { _, err := l.Append(more); return err },
			"append at":     func(l *seglog.Log) error { return l.AppendAt(l.Offsets().End, more) },
			"truncate":      func(l *seglog.Log) error { return l.TruncateTo(l.Offsets().End - 3) },
			"truncate far":  func(l *seglog.Log) error { return l.TruncateTo(100) },
			"reset":         func(l *seglog.Log) error { return l.Reset(77) },
			"delete before": func(l *seglog.Log) error { return l.DeleteBefore(l.Offsets().End - 3) },
			"delete all":    func(l *seglog.Log) error { return l.DeleteBefore(l.Offsets().End) },
			"retain":        func(l *seglog.Log) error { _, err := l.Retain(); return err },
			"sync":          (*seglog.Log).Sync,
			"snapshot":      func(l *seglog.Log) error { return l.Snapshot(filepath.Join(t.TempDir(), "copy")) },
		} {
			t.Run(fmt.Sprint(policy, " ", name), func(t *testing.T) {
				restAndChange(t, seglog.Options{Flush: policy, SegmentBytes: 4096}, change)
			})
		}
	}
}

// restAndChange makes the same calls on two logs, one of which rests again and again. Both must have the same files in the end.
func restAndChange(t *testing.T, o seglog.Options, change func(*seglog.Log) error) {
	dirs := []string{t.TempDir(), t.TempDir()}
	logs := make([]*seglog.Log, 2)
	rest := func() {
		putToRest(t, logs[1])
		holdsLittle(t, dirs[1])
	}
	each := func(do func(l *seglog.Log)) {
		for _, l := range logs {
			do(l)
		}
		for _, l := range logs { // what is done in the background must not differ
			eventually(t, "all is sealed", func() bool { return seglog.Unsealed(l) == 0 })
		}
	}
	sameOffsets := func() {
		want := logs[0].Offsets()
		if o.Flush != seglog.FlushSync {
			want.RecoveryPoint = want.End // a log at rest is flushed
		}
		require.Equal(t, want, logs[1].Offsets())
	}
	add := func(n int) {
		each(func(l *seglog.Log) {
			for i := range n {
				_, err := l.Append(seglog.Record{Key: []byte{byte(i)}, Value: bytes.Repeat([]byte("v"), 60), Time: time.UnixMilli(int64(1000 + i))})
				require.NoError(t, err)
			}
		})
	}
	for i := range logs {
		l, err := seglog.Open(dirs[i], &o)
		require.NoError(t, err)
		logs[i] = l
	}
	add(150)
	for round := range 2 {
		if round == 1 { // as it was closed
			for i := range logs {
				require.NoError(t, logs[i].Close())
				l, err := seglog.Open(dirs[i], &o)
				require.NoError(t, err)
				logs[i] = l
			}
			holdsLittle(t, dirs[1])
		}
		rest()
		sameOffsets()
		require.Equal(t, values(t, logs[0]), values(t, logs[1]))
		infos, err := logs[1].Segments()
		require.NoError(t, err)
		require.False(t, infos[len(infos)-1].Sealed)
		at, err := logs[1].OffsetForTime(time.UnixMilli(1040))
		require.NoError(t, err)
		wantAt, err := logs[0].OffsetForTime(time.UnixMilli(1040))
		require.NoError(t, err)
		require.Equal(t, wantAt, at)
		rest()
		each(func(l *seglog.Log) { require.NoError(t, change(l)) })
		rest()
		add(3)
		rest()
		sameOffsets()
	}
	for i, l := range logs {
		eventually(t, "what lies below the start is sealed and deleted", func() bool {
			infos, err := l.Segments()
			return err == nil && (len(infos) == 1 || infos[0].Next > l.Offsets().Start)
		})
		require.NoError(t, l.Close())
		r, err := seglog.Verify(dirs[i], nil)
		require.NoError(t, err)
		require.Empty(t, r.Problems)
	}
	sameFiles(t, dirs[0], dirs[1])
}

// If another program has taken the directory over while the log was at rest, the log must touch none of its files.
func TestDirectoryTakenAtRest(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, dir string){
		"LOCK removed": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "LOCK")))
		},
		"another directory": func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(dir, dir+".old"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			takeAtRest(t, take, func(l *seglog.Log) error { return l.DeleteBefore(3) })
			takeAtRest(t, take, func(l *seglog.Log) error {
				_, err := l.Append(seglog.Record{Value: []byte("into the wrong file")})
				return err
			})
		})
	}
}

// takeAtRest takes the directory of a log at rest away, and makes a call, which must fail.
func takeAtRest(t *testing.T, take func(t *testing.T, dir string), call func(l *seglog.Log) error) {
	dir := filepath.Join(t.TempDir(), "log")
	l, err := seglog.Open(dir, &seglog.Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	appendSome(t, l, 10)
	putToRest(t, l)
	take(t, dir)
	other, err := seglog.Open(dir, &seglog.Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	appendSome(t, other, 20)
	end := other.Offsets().End
	err = call(l)
	require.ErrorIs(t, err, seglog.ErrFailed)
	require.ErrorContains(t, err, dir)
	require.ErrorIs(t, l.TruncateTo(3), seglog.ErrFailed)
	require.ErrorIs(t, l.Close(), seglog.ErrFailed)
	appendSome(t, other, 1)
	require.Equal(t, end+1, other.Offsets().End)
	require.NoError(t, other.Close())
	r, err := seglog.Verify(dir, nil)
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	require.Equal(t, end+1, r.End)
}

// A file that was cut or removed while the log was at rest is an error that names it.
func TestFileChangedAtRest(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		for name, change := range map[string]func(path string) error{
			"cut":     func(path string) error { return os.Truncate(path, 100) },
			"removed": os.Remove,
		} {
			dir := t.TempDir()
			o := &seglog.Options{SegmentBytes: 64 << 10}
			l, err := seglog.Open(dir, o)
			require.NoError(t, err)
			appendSome(t, l, 10)
			if reopen {
				require.NoError(t, l.Close())
				l, err = seglog.Open(dir, o)
				require.NoError(t, err)
			}
			putToRest(t, l)
			path := filepath.Join(dir, "00000000000000000000.log")
			require.NoError(t, change(path))
			_, err = l.Append(seglog.Record{Value: []byte("more")})
			require.ErrorIs(t, err, seglog.ErrCorrupt, name)
			require.ErrorContains(t, err, path)
			_, err = l.Read(5)
			require.ErrorIs(t, err, seglog.ErrCorrupt, name)
			if reopen {
				require.NoError(t, l.Close(), "nothing was to be done")
			} else {
				require.ErrorIs(t, l.Close(), seglog.ErrCorrupt)
			}
			requireReleased(t, dir)
		}
	}
}

// If the directory of a log at work is moved, and another log begun under its name, neither the writer nor its preparer may touch
// the other log's files.
func TestDirectoryMovedUnderTheWriter(t *testing.T) {
	for _, policy := range []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushNone} {
		dir := filepath.Join(t.TempDir(), "log")
		o := &seglog.Options{Flush: policy, SegmentBytes: 4 << 20}
		l, err := seglog.Open(dir, o)
		require.NoError(t, err)
		appendSome(t, l, 10)
		require.NoError(t, os.Rename(dir, dir+".old"))
		other, err := seglog.Open(dir, o)
		require.NoError(t, err)
		for range 200 {
			_, err := other.Append(seglog.Record{Value: make([]byte, 4000)})
			require.NoError(t, err)
		}
		for range 200 { // its blocks ahead run out again and again
			if _, err := l.Append(seglog.Record{Value: make([]byte, 4000)}); err != nil {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		_ = l.Close() // which says that the directory was moved
		n := 0
		for _, err := range other.Records(0) {
			require.NoError(t, err)
			n++
		}
		require.Equal(t, 200, n)
		require.NoError(t, other.Close())
		r, err := seglog.Verify(dir, nil)
		require.NoError(t, err)
		require.Empty(t, r.Problems)
	}
}

// Stats must tell what all logs of the process hold, as the system counts it.
func TestStatsOfTheProcess(t *testing.T) {
	dir := t.TempDir()
	first, err := seglog.Open(filepath.Join(dir, "first"), nil)
	require.NoError(t, err)
	before := first.Stats()
	fdsBefore, mapsBefore := held(t, dir)
	asCounted := func(what string) {
		t.Helper()
		eventually(t, what, func() bool { // background work may have a file open
			fds, maps := held(t, dir)
			s := first.Stats()
			return s.Descriptors-before.Descriptors == int64(fds-fdsBefore) && s.Mappings-before.Mappings == int64(maps-mapsBefore)
		})
	}
	var logs []*seglog.Log
	for i := range 3 {
		l, err := seglog.Open(filepath.Join(dir, fmt.Sprint(i)), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096})
		require.NoError(t, err)
		defer l.Close()
		appendSome(t, l, 300)
		logs = append(logs, l)
	}
	asCounted("three logs are appended to")
	for _, l := range logs {
		require.NotEmpty(t, values(t, l))
	}
	asCounted("they are read")
	for _, l := range logs {
		putToRest(t, l)
	}
	asCounted("they rest")
	for _, l := range logs {
		require.NoError(t, l.Close())
	}
	eventually(t, "they are closed", func() bool {
		s := first.Stats()
		return s.Descriptors == before.Descriptors && s.Mappings == before.Mappings
	})
	require.NoError(t, first.Close())
}

// Close writes no index files for a tiny segment, and nobody misses them.
func TestTinySegmentsHaveNoIndexFiles(t *testing.T) {
	dir := t.TempDir()
	o := &seglog.Options{SegmentBytes: 64 << 10}
	at := time.Now().Truncate(time.Millisecond)
	files := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*index"))
		require.NoError(t, err)
		for i := range names {
			names[i] = filepath.Base(names[i])
		}
		return names
	}
	check := func(records int) {
		report, err := seglog.Verify(dir, nil)
		require.NoError(t, err)
		require.Empty(t, report.Problems)
		for _, readOnly := range []bool{false, true} {
			l, err := seglog.Open(dir, &seglog.Options{SegmentBytes: o.SegmentBytes, ReadOnly: readOnly})
			require.NoError(t, err)
			r, err := l.Read(int64(records) - 1)
			require.NoError(t, err)
			require.Equal(t, at.Add(time.Duration(records-1)*time.Second).UnixMilli(), r.Time.UnixMilli())
			offset, err := l.OffsetForTime(at.Add(1500 * time.Millisecond))
			require.NoError(t, err)
			require.EqualValues(t, 2, offset)
			require.Zero(t, l.Stats().IndexRebuilds)
			require.NoError(t, l.Close())
		}
	}
	records := 0
	change := func(f func(l *seglog.Log)) {
		l, err := seglog.Open(dir, o)
		require.NoError(t, err)
		f(l)
		records = int(l.Offsets().End)
		require.Zero(t, l.Stats().IndexRebuilds)
		require.NoError(t, l.Close())
		check(records)
	}
	add := func(n, size int) func(*seglog.Log) {
		return func(l *seglog.Log) {
			for range n {
				_, err := l.Append(seglog.Record{Time: at.Add(time.Duration(l.Offsets().End) * time.Second), Value: make([]byte, size)})
				require.NoError(t, err)
			}
		}
	}
	change(add(10, 100))
	require.Empty(t, files())
	change(add(1, 100))
	require.Empty(t, files())
	change(add(10, 1000))
	require.Equal(t, []string{"00000000000000000000.index", "00000000000000000000.timeindex"}, files())
	change(func(l *seglog.Log) { require.NoError(t, l.TruncateTo(5)) })
	require.Empty(t, files())
	change(func(l *seglog.Log) {
		add(1, 60<<10)(l) // rolls
		add(1, 60<<10)(l)
	})
	require.Len(t, files(), 2*3-2, "a segment that is sealed has its index files, however small")
	copied := filepath.Join(t.TempDir(), "copy")
	change(func(l *seglog.Log) {
		require.NoError(t, l.TruncateTo(6))
		require.NoError(t, l.Snapshot(copied))
	})
	dir = copied
	check(records)
}
