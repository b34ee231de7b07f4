package seglog_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/seglog/seglog"
)

// A process that runs out of descriptors, or of address space for its mappings, gets an error from the call that needed some,
// or does without; the log has not failed, nothing has changed, and the same call works once there is some again.
func TestShortagePasses(t *testing.T) {
	policies := []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone}
	run := func(kind string, policy seglog.FlushPolicy, left int) {
		t.Run(fmt.Sprintf("%s, %v, %d left", kind, policy, left), func(t *testing.T) {
			out := startChild(t, "shortage", kind, strconv.Itoa(int(policy)), strconv.Itoa(left), memoryDir(t)).wait(t)
			require.NotEmpty(t, out)
			if kind == "descriptors" && left == 0 {
				require.Greater(t, len(out), 1, "nothing was refused")
			}
			t.Log("refused:", strings.Join(out, ", "))
		})
	}
	for i, policy := range policies {
		run("descriptors", policy, 0)
		for left := 1 + i; left < 6; left += len(policies) { // so many that some of an operation's opens succeed
			run("descriptors", policy, left)
		}
		if !underRace && strconv.IntSize == 64 { // the detector takes what it likes, and with 32 bits nothing is mapped
			run("address space", policy, 0)
		}
	}
}

// memoryDir is a directory on a tmpfs where there is one: what runs out here is not the disk, and thousands of flushes take
// their time.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "seglog-test-")
	if err != nil {
		return filepath.Join(t.TempDir(), "log")
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "log")
}

// shortage is a process in which something runs out, with a log that was there before.
type shortage struct {
	dir   string
	o     seglog.Options
	l     *seglog.Log
	want  map[int64]string // what the log holds
	seq   int
	cause syscall.Errno
	// begin takes away what is to run out, and returns what gives it back.
	begin func() (end func() error, err error)
}

var _ = addRole("shortage", shortageChild)

func shortageChild(args []string) error {
	policy, _ := strconv.Atoi(args[1])
	left, _ := strconv.Atoi(args[2])
	s := &shortage{dir: args[3], want: map[int64]string{}}
	s.o = seglog.Options{Flush: seglog.FlushPolicy(policy), SegmentBytes: 4096, MaxOpenSegments: 4 + 60*(left%2), RetentionBytes: 48 << 10}
	if args[0] == "descriptors" {
		s.cause, s.begin = syscall.EMFILE, func() (func() error, error) { return takeDescriptors(left) }
	} else {
		s.cause, s.begin = syscall.ENOMEM, takeAddressSpace
		s.o.SegmentBytes, s.o.SegmentAge = shortSegment, time.Second
	}
	if s.o.Flush == seglog.FlushAsync {
		s.o.FlushInterval = 5 * time.Millisecond
	}
	for _, op := range s.ops() {
		refused, err := s.run(op)
		if err != nil {
			return fmt.Errorf("%s with %s short, %d left, Flush %v: %w", op.name, args[0], left, s.o.Flush, err)
		}
		if refused {
			report("%s", op.name)
		}
	}
	report("of %d operations", len(s.ops()))
	return nil
}

const shortSegment = 1 << 30

// takeDescriptors leaves so many to the process.
func takeDescriptors(left int) (func() error, error) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		return nil, err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: old.Max}); err != nil {
		return nil, err
	}
	var taken []int
	for {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.EMFILE {
			break
		}
		if err != nil {
			return nil, err
		}
		taken = append(taken, fd)
	}
	if len(taken) <= left {
		return nil, fmt.Errorf("only %d descriptors to take", len(taken))
	}
	for _, fd := range taken[:left] {
		unix.Close(fd)
	}
	return func() error {
		for _, fd := range taken[left:] {
			unix.Close(fd)
		}
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	}, nil
}

// takeAddressSpace leaves enough for the heap and the stacks, as the runtime ends the process for want of that, and too
// little for the mapping of a segment.
func takeAddressSpace() (func() error, error) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &old); err != nil {
		return nil, err
	}
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil, err
	}
	pages, err := strconv.ParseUint(strings.Fields(string(b))[0], 10, 64)
	if err != nil {
		return nil, err
	}
	limit := pages*uint64(os.Getpagesize()) + shortSegment/2
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: limit, Max: old.Max}); err != nil {
		return nil, err
	}
	var taken [][]byte
	for { // what a seal in the background has given back meanwhile
		m, err := unix.Mmap(-1, 0, shortSegment, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == unix.ENOMEM {
			break
		}
		if err != nil {
			return nil, err
		}
		taken = append(taken, m)
	}
	return func() error {
		for _, m := range taken {
			if err := unix.Munmap(m); err != nil {
				return err
			}
		}
		return unix.Setrlimit(unix.RLIMIT_AS, &old)
	}, nil
}

type shortOp struct {
	name string
	do   func(s *shortage) error
}

func (s *shortage) ops() []shortOp {
	return []shortOp{
		{"Append", func(s *shortage) error { return s.append(60) }}, // and so the rolls
		{"TruncateTo", func(s *shortage) error { return s.truncate(s.l.Offsets().End - 5) }},
		{"TruncateTo over segments", func(s *shortage) error { return s.truncate(s.l.Offsets().End - 40) }},
		{"DeleteBefore", func(s *shortage) error { return s.l.DeleteBefore(s.l.Offsets().Start + 15) }},
		{"Retain", func(s *shortage) error { _, err := s.l.Retain(); return err }},
		{"Snapshot", (*shortage).snapshot},
		{"ReadOnly", func(s *shortage) error { return s.other(s.dir, &seglog.Options{ReadOnly: true}) }},
		{"Open", func(s *shortage) error { return s.other(filepath.Join(s.dir, "other"), &s.o) }},
		{"Records", func(s *shortage) error { return s.read(s.l) }},
		{"Sync", func(s *shortage) error { return s.l.Sync() }},
		{"Close and Open", (*shortage).reopen},
		{"Reset", func(s *shortage) error { return s.reset(1000) }},
	}
}

// run does op while there is a shortage and again afterwards. It reports whether it was refused.
func (s *shortage) run(op shortOp) (refused bool, err error) {
	if s.l == nil {
		if s.l, err = seglog.Open(s.dir, &s.o); err != nil {
			return false, err
		}
	}
	if err := s.append(120); err != nil {
		return false, err
	}
	end, err := s.begin()
	if err != nil {
		return false, err
	}
	failure := op.do(s)
	var reads, appends error
	if s.l != nil {
		reads, appends = s.read(s.l), s.append(3)
	}
	if err := end(); err != nil {
		return false, err
	}
	for _, err := range []error{failure, reads, appends} {
		var path *fs.PathError
		switch {
		case err == nil:
		case errors.Is(err, seglog.ErrFailed):
			return false, fmt.Errorf("the log has failed: %w", err)
		case !errors.Is(err, s.cause):
			return false, fmt.Errorf("not the cause: %w", err)
		case !errors.As(err, &path):
			return false, fmt.Errorf("no file is named: %w", err)
		}
	}
	if s.l == nil { // it could not be opened
		if s.l, err = seglog.Open(s.dir, &s.o); err != nil {
			return false, fmt.Errorf("open afterwards: %w", err)
		}
	}
	if err := s.read(s.l); err != nil {
		return false, fmt.Errorf("read afterwards: %w", err)
	}
	if err := op.do(s); err != nil {
		return false, fmt.Errorf("again afterwards: %w", err)
	}
	if err := errors.Join(s.append(20), s.l.Sync(), s.read(s.l), s.l.Close()); err != nil {
		return false, fmt.Errorf("the log afterwards: %w", err)
	}
	s.l = nil
	report, err := seglog.Verify(s.dir, nil)
	if err == nil && !report.OK() {
		err = fmt.Errorf("%v", report.Problems)
	}
	return failure != nil, err
}

func (s *shortage) append(n int) error {
	for range n {
		v := fmt.Sprintf("record %d %s", s.seq, strings.Repeat("x", 100+s.seq%300))
		s.seq++
		base, err := s.l.Append(seglog.Record{Value: []byte(v), Time: time.Unix(1_700_000_000+int64(s.seq/10), 0)})
		if err != nil {
			return err
		}
		s.want[base] = v
	}
	return nil
}

// read demands that the log holds exactly what was acknowledged: what an Append has refused is not stored.
func (s *shortage) read(l *seglog.Log) error {
	o := l.Offsets()
	next := o.Start
	for r, err := range l.Records(o.Start) {
		if errors.Is(err, seglog.ErrOutOfRange) && l.Offsets().Start > next {
			return s.read(l) // retention was faster
		}
		if err != nil {
			return err
		}
		if r.Offset != next || s.want[next] != string(r.Value) {
			return fmt.Errorf("at offset %d, in place of %q of %d: %.20q", next, s.want[next], r.Offset, r.Value)
		}
		next++
	}
	if s.want[next] != "" || next != o.End {
		return fmt.Errorf("ends at %d, not %d, and %q is missing", next, o.End, s.want[next])
	}
	return nil
}

func (s *shortage) truncate(offset int64) error {
	err := s.l.TruncateTo(offset)
	for at := range s.want {
		if err == nil && at >= offset {
			delete(s.want, at)
		}
	}
	return err
}

func (s *shortage) reset(offset int64) error {
	err := s.l.Reset(offset)
	if err == nil {
		clear(s.want)
	}
	return err
}

// snapshot demands that one that fails leaves nothing.
func (s *shortage) snapshot() error {
	dir := filepath.Join(s.dir+"-snapshots", strconv.Itoa(s.seq))
	s.seq++
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := s.l.Snapshot(dir); err != nil {
		if left, _ := os.Stat(dir); left != nil {
			return fmt.Errorf("%w; and its directory is left", err)
		}
		return err
	}
	return s.other(dir, &seglog.Options{ReadOnly: true})
}

// other opens another log, or this one to read.
func (s *shortage) other(dir string, o *seglog.Options) error {
	l, err := seglog.Open(dir, o)
	if err != nil {
		return err
	}
	if o.ReadOnly {
		err = s.read(l)
	} else {
		_, err = l.Append(seglog.Record{Value: []byte("one")})
	}
	return errors.Join(err, l.Close())
}

func (s *shortage) reopen() error {
	l := s.l
	s.l = nil
	closed := l.Close() // which may have to leave indexes to the next Open
	l, err := seglog.Open(s.dir, &s.o)
	if err == nil {
		s.l = l
	}
	return errors.Join(closed, err)
}
