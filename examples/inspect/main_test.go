package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

var testTime = time.Date(2026, 1, 31, 18, 0, 0, 0, time.Local)

// makeLog makes a log of 3,000 records, a second apart, in several segments.
func makeLog(t *testing.T) string {
	dir := t.TempDir()
	l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 64 << 10})
	require.NoError(t, err)
	for i := range 1500 {
		at := testTime.Add(time.Duration(2*i) * time.Second)
		_, err := l.Append(seglog.Record{Time: at, Key: []byte("k"), Value: fmt.Appendf(nil, "value %d", 2*i)},
			seglog.Record{Time: at.Add(time.Second), Value: []byte{0, 0xff, byte(i)}, Headers: []seglog.Header{{Key: "h"}}})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	return dir
}

// inspect runs the tool, and returns its exit status, output and error output.
func inspect(args ...string) (int, string, string) {
	var out, err bytes.Buffer
	code := run(context.Background(), args, &out, &err)
	return code, out.String(), err.String()
}

func requireInspect(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := inspect(args...)
	require.Zero(t, code, errOut)
	require.Empty(t, errOut)
	return out
}

func damage(t *testing.T, dir string) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	b, err := os.ReadFile(logs[1])
	require.NoError(t, err)
	b[len(b)/2] ^= 0xff
	require.NoError(t, os.WriteFile(logs[1], b, 0o644))
}

func TestList(t *testing.T) {
	dir := makeLog(t)
	out := requireInspect(t, "ls", dir)
	require.Contains(t, out, "offsets 0 to 3,000")
	require.Contains(t, out, "all of it durable")
	lines := strings.Split(out, "\n")
	require.Contains(t, lines[1], "2026-01-31 18:00:00.000")
	require.Contains(t, lines[1], "sealed")
	require.Contains(t, requireInspect(t, dirLast("ls", dir, "-q")...), "  -        -")
	damage(t, dir)
	code, out, errOut := inspect("ls", dir)
	require.Equal(t, exitFound, code)
	require.Contains(t, out, "DAMAGED")
	require.Contains(t, errOut, "corrupt")
}

func dirLast(cmd, dir string, flags ...string) []string {
	return append([]string{cmd, dir}, flags...)
}

func TestDump(t *testing.T) {
	dir := makeLog(t)
	out := requireInspect(t, "dump", "-o", "-2", dir)
	require.Equal(t, 2, strings.Count(out, "\n"))
	require.Contains(t, out, "      2998  2026-01-31 18:49:58.000  k = value 2998\n")
	require.Contains(t, out, `"\x00\xff\xdb"  [h: null]`)
	out = requireInspect(t, "dump", dir, "-t", "2026-01-31 18:10", "-n", "1")
	require.Contains(t, out, "value 600\n")
	out = requireInspect(t, "dump", "-json", "-n", "2", dir)
	require.Contains(t, out, `"key":"k","value":"value 0"}`)
	require.Contains(t, out, `"key":null,"value":{"base64":"AP8A"},"headers":[{"key":"h","value":null}]}`)
	out = requireInspect(t, "dump", "-batches", "-n", "1", "-o", "4", dir)
	require.Contains(t, out, "4 to 5 ")
	require.Contains(t, out, "2 records")
	var b struct{ Base, Next int64 }
	require.NoError(t, json.Unmarshal([]byte(requireInspect(t, "dump", "-batches", "-json", "-n", "1", "-o", "5", dir)), &b))
	require.EqualValues(t, 4, b.Base)
	require.EqualValues(t, 6, b.Next)
	require.Equal(t, 3000, strings.Count(requireInspect(t, "dump", dir), "\n"))
}

// syncBuffer is written to by the tool and read by the test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestDumpFollows(t *testing.T) {
	dir := makeLog(t)
	l, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	defer l.Close()
	for _, flag := range []string{"-full", "-batches"} {
		ctx, cancel := context.WithCancel(context.Background())
		var out, errOut syncBuffer
		done := make(chan int)
		go func() { done <- run(ctx, []string{"dump", "-o", "-1", "-f", flag, dir}, &out, &errOut) }()
		for range 2 {
			_, err = l.Append(seglog.Record{Value: []byte("more")})
			require.NoError(t, err)
		}
		last := fmt.Sprint(l.Offsets().End - 1)
		require.Eventually(t, func() bool { return strings.Contains(out.String(), last) }, 10*time.Second, time.Millisecond)
		cancel()
		require.Zero(t, <-done, errOut.String())
	}
}

func TestVerifyAndRepair(t *testing.T) {
	dir := makeLog(t)
	require.Contains(t, requireInspect(t, "verify", dir), "good: every record can be read (0 warnings, 0 notes)")
	require.Contains(t, requireInspect(t, "repair", dir), "nothing to repair")
	damage(t, dir)
	code, out, _ := inspect("verify", dir)
	require.Equal(t, exitFound, code)
	require.Contains(t, out, "BAD: 1 errors")
	code, out, _ = inspect("verify", "-json", dir)
	require.Equal(t, exitFound, code)
	var r seglog.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Len(t, r.Problems, 1)
	require.Contains(t, requireInspect(t, "repair", dir), "-keep keeps the good batches behind the damage")
	out = requireInspect(t, "repair", "-keep", "-apply", dir)
	require.Contains(t, out, "1,499 batches with 2,998 records")
	require.Contains(t, out, "offsets 0 to 3,000, some left out")
	require.Contains(t, requireInspect(t, "verify", dir), "good")
	require.Equal(t, 2998, strings.Count(requireInspect(t, "dump", dir), "\n"))
	l, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	defer l.Close()
	code, _, errOut := inspect("repair", dir)
	require.Equal(t, exitFound, code)
	require.Contains(t, errOut, "locked")
}

func TestStat(t *testing.T) {
	out := requireInspect(t, "stat", makeLog(t))
	require.Contains(t, out, "records   3,000 in 1,500 batches, 2.0 each")
	require.Contains(t, out, "2026-01-31 18:00:01.000 to 2026-01-31 18:49:59.000")
	require.Contains(t, out, "█")
	l, err := seglog.Open(t.TempDir(), nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	empty := t.TempDir()
	l, err = seglog.Open(empty, nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Contains(t, requireInspect(t, "stat", empty), "empty")
	require.Contains(t, requireInspect(t, "ls", empty), "offsets 0 to 0")
	require.Empty(t, requireInspect(t, "dump", empty))
}

// TestVerifyBareSegments checks that the tool reports a copy of the .log files alone as good, in few lines.
func TestVerifyBareSegments(t *testing.T) {
	dir, bare := makeLog(t), t.TempDir()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	for _, name := range logs {
		require.NoError(t, os.Link(name, filepath.Join(bare, filepath.Base(name))))
	}
	out := requireInspect(t, "verify", bare)
	require.Equal(t, 3, strings.Count(out, "\n"), out)
	require.Contains(t, out, fmt.Sprintf("%d index files are missing", 2*len(logs)))
	require.Contains(t, out, "good: every record can be read")
	var r seglog.Report
	require.NoError(t, json.Unmarshal([]byte(requireInspect(t, "verify", "-json", bare)), &r))
	require.Len(t, r.Problems, 1)
	require.Equal(t, 2, strings.Count(listed(t, 2), "warning"), "a few problems must be listed one by one")
}

// listed returns the output of verify for n warnings that are alike and ten errors that are alike. The errors must all be
// listed.
func listed(t *testing.T, n int) string {
	var out bytes.Buffer
	tl := &tool{out: bufio.NewWriter(&out)}
	r := &seglog.Report{}
	for i := range n {
		r.Problems = append(r.Problems, seglog.Problem{Path: fmt.Sprint(i), Offset: -1, Severity: seglog.SeverityWarning, Reason: "zeros behind the last batch"})
	}
	for i := range 10 {
		r.Problems = append(r.Problems, seglog.Problem{Path: "x", Pos: int64(i), Severity: seglog.SeverityError, Reason: "the CRC is wrong"})
	}
	tl.printReport(r)
	require.NoError(t, tl.out.Flush())
	require.Equal(t, 10, strings.Count(out.String(), "error "))
	return out.String()
}

// TestFarOffsets has a batch so far from the others that a fraction of the offsets rounds to 1, and times after the year 9999.
func TestFarOffsets(t *testing.T) {
	var stream bytes.Buffer
	for _, offset := range []int64{0, 1, 1 << 60} {
		l, err := seglog.Open(t.TempDir(), nil)
		require.NoError(t, err)
		require.NoError(t, l.Reset(offset))
		_, err = l.Append(seglog.Record{Time: testTime.AddDate(50_000, 0, 0), Value: []byte("x")})
		require.NoError(t, err)
		s, err := l.Section(offset, 1<<20)
		require.NoError(t, err)
		_, err = s.WriteTo(&stream)
		require.NoError(t, err)
		require.NoError(t, errors.Join(s.Close(), l.Close()))
	}
	dir := t.TempDir()
	l, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	_, err = l.TransferFrom(&stream, int64(stream.Len()))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Contains(t, requireInspect(t, "stat", dir), "records   3 in 3 batches")
	require.Contains(t, requireInspect(t, "dump", "-json", dir), `"time":"+52026-01-31T`)
	require.Contains(t, requireInspect(t, "dump", "-batches", "-json", dir), `"maxTime":"+52026-01-31T`)
}

func TestArguments(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{nil, {"list"}, {"ls"}, {"ls", dir, dir}, {"ls", "-x", dir}, {"ls", filepath.Join(dir, "none")},
		{"dump", "-n", "-1", dir}, {"dump", "-n", "x", dir}, {"dump", "-o", "1", "-t", "-1h", dir}, {"dump", "-t", "soon", dir},
		{"verify", "-index-bytes", "-1", dir}, {"help", "me"}, {"stat", "main.go"}} {
		code, out, errOut := inspect(args...)
		require.Equal(t, exitUsage, code, args)
		require.Empty(t, out, args)
		require.Equal(t, 1, strings.Count(errOut, "\n"), errOut)
	}
	require.Contains(t, requireInspect(t, "help"), "inspect verify")
	for _, c := range commands {
		require.Contains(t, requireInspect(t, "help", c.name), "  inspect "+c.name)
		require.Contains(t, requireInspect(t, c.name, "-h"), "  inspect "+c.name)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	for in, want := range map[string]time.Time{
		"-90m": now.Add(-90 * time.Minute), "90m": now.Add(-90 * time.Minute), "2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local),
		"2026-01-31 18:00": testTime, "2026-01-31T18:00:00": testTime, "18:00": time.Date(2026, 3, 4, 18, 0, 0, 0, time.Local),
		testTime.Format(time.RFC3339): testTime,
	} {
		got, err := parseTime(in, now)
		require.NoError(t, err, in)
		require.True(t, want.Equal(got), "%s: %v", in, got)
	}
}

func TestShow(t *testing.T) {
	require.Equal(t, "null", show(nil, false))
	require.Equal(t, "", show([]byte{}, false))
	require.Equal(t, "né", show([]byte("né"), false))
	require.Equal(t, strings.Repeat("x", 99)+"… (101 B)", show([]byte(strings.Repeat("x", 99)+"é"), false))
	require.Equal(t, `"\x00"`, show([]byte{0}, false))
	require.Len(t, show(bytes.Repeat([]byte("x"), 1000), true), 1000)
	require.Equal(t, "-1,234,567", number(-1234567))
	require.Equal(t, "100", number(100))
}

// TestFarOffsetsAndTimes has a very high offset after a gap, and times of a producer that confuses microseconds with
// milliseconds.
func TestFarOffsetsAndTimes(t *testing.T) {
	var stream bytes.Buffer
	for _, base := range []int64{0, 1 << 60} {
		l, err := seglog.Open(t.TempDir(), nil)
		require.NoError(t, err)
		require.NoError(t, l.Reset(base))
		_, err = l.Append(seglog.Record{Time: time.UnixMilli(1700000000000000), Value: []byte("v")})
		require.NoError(t, err)
		s, err := l.Section(base, 1)
		require.NoError(t, err)
		_, err = s.WriteTo(&stream)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.NoError(t, l.Close())
	}
	dir := t.TempDir()
	l, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	_, err = l.TransferFrom(&stream, -1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Contains(t, requireInspect(t, "stat", dir), "records   2 in 2 batches")
	require.Contains(t, requireInspect(t, "dump", "-json", "-n", "1", dir), `"time":"+55840-11-08T22:13:20Z"`)
	require.Contains(t, requireInspect(t, "dump", "-batches", "-json", "-n", "1", dir), `"maxTime":"+55840-11-08T22:13:20Z"`)
	requireInspect(t, "verify", "-json", dir)
}
