//go:build linux

package disk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/seglog/seglog"
)

const (
	childRole = "SEGLOG_DISK_CHILD"
	namespace = "SEGLOG_DISK_NAMESPACE"
)

// TestMain runs the tests in a process with a mount namespace of its own. However that process ends, its mounts end too, and
// with them the loop devices.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(childRole) != "":
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(namespace) != "" || Available() != nil:
		os.Exit(m.Run())
	default:
		runtime.LockOSThread() // the child dies with the thread that started it
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), namespace+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		var exit *exec.ExitError
		if err := cmd.Run(); errors.As(err, &exit) {
			os.Exit(max(1, exit.ExitCode()))
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// mark is in each block of the records' values, so that the disk recognizes these blocks.
var mark = []byte("seglog disk test")

func value(seq, size int) []byte {
	v := fmt.Appendf(nil, "%016d", seq)
	for len(v) < size {
		v = append(v, mark...)
	}
	return v
}

// request asks the child for a call of its log.
type request struct {
	Op      string
	Dir     string
	Policy  seglog.FlushPolicy
	Segment int64
	Seq     int  // the number of the first record
	N       int  // the number of records, each a batch
	Size    int  // the size of a value
	Logs    int  // the number of logs
	Expire  bool // records expire at once, but only an operation "retain" may delete them
}

// reply answers a request.
type reply struct {
	Offsets []int64 // the offsets of the records stored or read
	Start   int64   // the start of the log that was read
	Seqs    []int   // the numbers of the records read
	Err     string
	Latched bool // Err is ErrFailed
	Errno   syscall.Errno
}

var mayDelete atomic.Bool

// serve answers requests, one per line. The process of the test can't use the log itself, since it serves the disk.
func serve() error {
	var l *seglog.Log
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var q request
		if err := in.Decode(&q); err != nil {
			return nil
		}
		var a reply
		err := answer(&l, q, &a)
		if err != nil {
			a.Err, a.Latched = err.Error(), errors.Is(err, seglog.ErrFailed)
			errors.As(err, &a.Errno)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func answer(log **seglog.Log, q request, a *reply) (err error) {
	l := *log
	switch q.Op {
	case "open":
		o := &seglog.Options{Flush: q.Policy, SegmentBytes: q.Segment}
		if q.Policy == seglog.FlushAsync {
			o.FlushInterval = time.Hour
		}
		if q.Expire {
			o.RetentionAge, o.MayDelete = time.Millisecond, func(seglog.SegmentInfo) bool { return mayDelete.Load() }
		}
		*log, err = seglog.Open(q.Dir, o)
		return err
	case "append":
		for i := range q.N {
			base, err := l.Append(seglog.Record{Value: value(q.Seq+i, q.Size)})
			if err != nil {
				return err
			}
			a.Offsets = append(a.Offsets, base)
		}
		return nil
	case "read":
		a.Start = l.Offsets().Start
		for r, err := range l.Records(a.Start) {
			if err != nil {
				return err
			}
			seq, err := strconv.Atoi(string(r.Value[:min(16, len(r.Value))]))
			if err != nil || !bytes.Equal(r.Value, value(seq, len(r.Value))) {
				return fmt.Errorf("wrong bytes at offset %d", r.Offset)
			}
			a.Offsets, a.Seqs = append(a.Offsets, r.Offset), append(a.Seqs, seq)
		}
		return nil
	case "sync":
		return l.Sync()
	case "delete":
		return l.DeleteBefore(int64(q.Seq))
	case "truncate":
		return l.TruncateTo(int64(q.Seq))
	case "reset":
		return l.Reset(int64(q.Seq))
	case "retain":
		mayDelete.Store(true)
		defer mayDelete.Store(false)
		_, err = l.Retain()
		return err
	case "append to many":
		return appendToMany(q, a)
	case "read many":
		return readMany(q, a)
	case "snapshot":
		return l.Snapshot(q.Dir)
	case "readonly":
		r, err := seglog.Open(q.Dir, &seglog.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		return answerAll(r, a)
	case "close":
		return l.Close()
	case "verify":
		report, err := seglog.Verify(q.Dir, nil)
		if err == nil && !report.OK() {
			err = fmt.Errorf("%v", report.Problems)
		}
		return err
	case "write back": // as the kernel does by itself after a while
		f, err := os.Open(q.Dir)
		if err != nil {
			return err
		}
		defer f.Close()
		_ = unix.Syncfs(int(f.Fd()))
		return nil
	}
	return fmt.Errorf("no operation %q", q.Op)
}

var many []*seglog.Log

func dirOf(q request, i int) string { return filepath.Join(q.Dir, strconv.Itoa(i)) }

// appendToMany lets each of q.Logs logs append q.N records, side by side. The offsets of the reply are the ends of the logs.
func appendToMany(q request, a *reply) error {
	for i := len(many); i < q.Logs; i++ {
		l, err := seglog.Open(dirOf(q, i), &seglog.Options{Flush: seglog.FlushSync, SegmentBytes: q.Segment})
		if err != nil {
			return err
		}
		many = append(many, l)
	}
	errs := make([]error, q.Logs)
	var wg sync.WaitGroup
	for i, l := range many {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range q.N {
				if _, errs[i] = l.Append(seglog.Record{Value: value(i, q.Size)}); errs[i] != nil {
					return
				}
			}
		}()
	}
	wg.Wait()
	for _, l := range many {
		a.Offsets = append(a.Offsets, l.Offsets().RecoveryPoint)
	}
	return errors.Join(errs...)
}

// readMany opens each of q.Logs logs, reads all of it, and answers with the ends.
func readMany(q request, a *reply) error {
	for i := range q.Logs {
		l, err := seglog.Open(dirOf(q, i), nil)
		if err != nil {
			return err
		}
		var one reply
		if err := answerAll(l, &one); err != nil {
			return fmt.Errorf("log %d: %w", i, err)
		}
		for k, seq := range one.Seqs {
			if seq != i || one.Offsets[k] != int64(k) {
				return fmt.Errorf("log %d: record %d of log %d", i, one.Offsets[k], seq)
			}
		}
		a.Offsets = append(a.Offsets, int64(len(one.Offsets)))
	}
	return nil
}

func answerAll(l *seglog.Log, a *reply) error {
	err := answer(&l, request{Op: "read"}, a)
	return errors.Join(err, l.Close())
}

// child is a process that uses a log.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

func start(t *testing.T) *child {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c := &child{t: t, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}
	t.Cleanup(c.kill)
	return c
}

func (c *child) do(q request) (a reply) {
	c.t.Helper()
	require.NoError(c.t, c.in.Encode(q))
	require.NoError(c.t, c.out.Decode(&a), "the child has died in %s", q.Op)
	return a
}

// must is do for a request that must succeed.
func (c *child) must(q request) reply {
	c.t.Helper()
	a := c.do(q)
	require.Empty(c.t, a.Err, q.Op)
	return a
}

// kill kills the process with SIGKILL.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}
