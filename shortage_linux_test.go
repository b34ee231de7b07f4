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
	"github.com/seglog/seglog/internal/race"
)

// If the process runs out of descriptors, or of address space for mappings, a call must do without or return the error. The
// log must not fail or change, and the same call must succeed once the shortage is over.
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
		for left := 1 + i; left < 6; left += len(policies) { // enough for some of the opens of an operation to succeed
			run("descriptors", policy, left)
		}
		if !race.On && strconv.IntSize == 64 { // the race detector needs much address space, and 32-bit platforms map no files
			run("address space", policy, 0)
		}
	}
}

// memoryDir returns a directory on a tmpfs, if there is one: the test makes thousands of flushes, and does not need a disk.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "seglog-test-")
	if err != nil {
		return filepath.Join(t.TempDir(), "log")
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "log")
}

// shortage is the state of a process that uses a log while a resource is short.
type shortage struct {
	dir   string
	o     seglog.Options
	l     *seglog.Log
	want  map[int64]string // the values that the log must hold
	seq   int
	cause syscall.Errno
	// begin uses up the resource, and returns a function that releases it.
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

// takeDescriptors uses up all descriptors but the given number.
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

// takeAddressSpace leaves enough address space for heap and stacks, without which the runtime ends the process, but too little
// to map a segment.
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
	for { // a seal in the background may have released some meanwhile
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
		{"Append", func(s *shortage) error { return s.append(60) }}, // with rolls
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

// run calls op during a shortage and again afterwards, and checks the log. It reports whether the shortage made op fail.
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
			return false, fmt.Errorf("the error does not wrap the cause: %w", err)
		case !errors.As(err, &path):
			return false, fmt.Errorf("the error names no file: %w", err)
		}
	}
	if s.l == nil { // op could not open it
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

// read checks that the log holds exactly the acknowledged records, and none of an Append that failed.
func (s *shortage) read(l *seglog.Log) error {
	o := l.Offsets()
	next := o.Start
	for r, err := range l.Records(o.Start) {
		if errors.Is(err, seglog.ErrOutOfRange) && l.Offsets().Start > next {
			return s.read(l) // retention has deleted the record
		}
		if err != nil {
			return err
		}
		if r.Offset != next || s.want[next] != string(r.Value) {
			return fmt.Errorf("at offset %d, want %q, got the record at %d: %.20q", next, s.want[next], r.Offset, r.Value)
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

// snapshot checks that a failed snapshot leaves no directory.
func (s *shortage) snapshot() error {
	dir := filepath.Join(s.dir+"-snapshots", strconv.Itoa(s.seq))
	s.seq++
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := s.l.Snapshot(dir); err != nil {
		if left, _ := os.Stat(dir); left != nil {
			return fmt.Errorf("%w; it left its directory", err)
		}
		return err
	}
	return s.other(dir, &seglog.Options{ReadOnly: true})
}

// other opens another log, or with ReadOnly a copy or this log itself, and uses it.
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
	closed := l.Close() // may have to leave indexes to the next Open
	l, err := seglog.Open(s.dir, &s.o)
	if err == nil {
		s.l = l
	}
	return errors.Join(closed, err)
}
