package seglog_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// A child process between fork and exec held a copy of the lock's descriptor, so a log that the parent had closed could not be
// opened again.
func TestReopenBesideForks(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program to start: ", err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command(program).Run()
				}
			}
		}()
	}
	dir := t.TempDir()
	for range 50 {
		l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	close(stop)
	wg.Wait()
}

// A log whose last segment was larger than Options.SegmentBytes, as one from Kafka may be, could not be opened.
func TestOpenWithSmallerSegmentBytes(t *testing.T) {
	for _, p := range policies {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 1 << 20})
		appendN(t, l, 0, 600)
		require.NoError(t, l.Close())
		l = open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 8 << 10})
		requireN(t, l, 0, 600)
		appendN(t, l, 600, 200)
		requireN(t, l, 0, 800)
		require.Greater(t, l.Stats().Segments, 2)
		require.NoError(t, l.Close())
	}
}

// When the directory of an open log was renamed and another log created in its place, the first log read the second log's
// records as its own, and its cuts, deletions, retention, snapshots and Close used or changed the second log's files.
func TestDirectoryTakenByAnotherLog(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory with open files can't be renamed")
	}
	calls := map[string]func(l *seglog.Log) error{
		"TruncateTo":   func(l *seglog.Log) error { return l.TruncateTo(3) },
		"Reset":        func(l *seglog.Log) error { return l.Reset(3) },
		"DeleteBefore": func(l *seglog.Log) error { return l.DeleteBefore(l.Offsets().End - 1) },
		"Retain":       func(l *seglog.Log) error { _, err := l.Retain(); return err },
		"Read":         func(l *seglog.Log) error { _, err := l.Read(0); return err },
		"Snapshot":     func(l *seglog.Log) error { return l.Snapshot(filepath.Join(t.TempDir(), "copy")) },
		"Close":        func(l *seglog.Log) error { return l.Close() },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			fill := func(l *seglog.Log, value string) {
				for range 66 {
					_, err := l.Append(seglog.Record{Key: make([]byte, 500), Value: []byte(value)})
					require.NoError(t, err)
				}
			}
			var expire atomic.Bool
			opts := &seglog.Options{SegmentBytes: 4096, MaxOpenSegments: 1, MayDelete: func(seglog.SegmentInfo) bool { return expire.Load() }}
			if name == "Retain" {
				opts.RetentionBytes = 4096
			}
			l, err := seglog.Open(dir, opts)
			require.NoError(t, err)
			fill(l, "first")
			require.NoError(t, os.Rename(dir, dir+"2"))
			other := open(t, dir, &seglog.Options{SegmentBytes: 4096})
			fill(other, "second")
			require.NoError(t, other.Close())
			before, err := os.ReadDir(dir)
			require.NoError(t, err)

			expire.Store(true)
			require.ErrorContains(t, call(l), "no longer belongs to this log")
			require.Error(t, l.Close())
			after, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Equal(t, names(before), names(after))
			for _, d := range []string{dir, dir + "2"} {
				report, err := seglog.Verify(d, nil)
				require.NoError(t, err)
				require.True(t, report.OK(), "%v", report.Problems)
				value := map[string]string{dir: "second", dir + "2": "first"}[d]
				reopened := open(t, d, nil)
				n := 0
				for r, err := range reopened.Records(seglog.Oldest) {
					require.NoError(t, err)
					require.Equal(t, value, string(r.Value))
					n++
				}
				require.Equal(t, 66, n)
			}
		})
	}
}

// A read-only log switched to a log that had been created under its directory's name, and mixed the records of both.
func TestReadOnlyDirectoryTakenByAnotherLog(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory with open files can't be renamed")
	}
	dir := filepath.Join(t.TempDir(), "log")
	write := func(value string, n int) {
		l := open(t, dir, &seglog.Options{SegmentBytes: 4096})
		for range n {
			_, err := l.Append(seglog.Record{Key: make([]byte, 500), Value: []byte(value)})
			require.NoError(t, err)
		}
		require.NoError(t, l.Close())
	}
	write("first", 60)
	r := open(t, dir, &seglog.Options{ReadOnly: true, MaxOpenSegments: 1})
	require.NoError(t, os.Rename(dir, dir+"2"))
	write("second", 90)
	for offset := range int64(90) {
		if record, err := r.Read(offset); err != nil {
			require.ErrorContains(t, err, "no longer belongs to this log")
		} else {
			require.Equal(t, "first", string(record.Value))
		}
	}
	_, err := r.Read(89)
	require.ErrorContains(t, err, "no longer belongs to this log")
}

func names(entries []os.DirEntry) (list []string) {
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// Close calls OnSeal for the last segments. If OnSeal called Reset, it waited for Close, and Close waited for it.
func TestOnSealCallsWriterDuringClose(t *testing.T) {
	var l *seglog.Log
	closing, told := make(chan struct{}), 0
	l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4096, OnSeal: func(seglog.SegmentInfo) {
		<-closing
		for l.Wait(t.Context(), 0) == nil { // until Close has begun
			runtime.Gosched()
		}
		told++
		_, retained := l.Retain()
		_, received := l.TransferFrom(strings.NewReader(""), -1)
		for _, err := range []error{
			retained, received, l.Reset(100), l.TruncateTo(0), l.DeleteBefore(1), l.Sync(), l.WaitDurable(t.Context(), 1), l.AppendAt(4, seglog.Record{}),
		} {
			if !errors.Is(err, seglog.ErrClosed) {
				t.Error(err)
			}
		}
	}})
	require.NoError(t, err)
	for range 4 {
		_, err = l.Append(seglog.Record{Value: make([]byte, 3000)})
		require.NoError(t, err)
	}
	close(closing)
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
		require.Equal(t, 3, told)
	case <-time.After(20 * time.Second):
		t.Fatal("Close waits for OnSeal, which waits for Close")
	}
}
