package seglog_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

var policies = []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone}

func open(t testing.TB, dir string, o *seglog.Options) *seglog.Log {
	t.Helper()
	leftBefore()
	l, err := seglog.Open(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// value returns the value of the record at offset i, in tests that need no particular values.
func value(i int) []byte { return fmt.Appendf(nil, "value %d %s", i, strings.Repeat("x", i%50)) }

func appendN(t testing.TB, l *seglog.Log, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		base, err := l.Append(seglog.Record{Value: value(i)})
		require.NoError(t, err)
		require.EqualValues(t, i, base)
	}
}

// requireN checks that the records from from on, up to the last, are those of appendN, by an iteration and by a sample of reads.
func requireN(t testing.TB, l *seglog.Log, from, to int) {
	t.Helper()
	i := from
	for r, err := range l.Records(int64(from)) {
		require.NoError(t, err)
		require.EqualValues(t, i, r.Offset)
		require.Equal(t, string(value(i)), string(r.Value))
		i++
	}
	require.Equal(t, to, i)
	for i := from; i < to; i += max(1, (to-from)/97) {
		r, err := l.Read(int64(i))
		require.NoError(t, err)
		require.EqualValues(t, i, r.Offset)
		require.Equal(t, string(value(i)), string(r.Value))
	}
}

// rawBatch encodes a batch as another program would. It shares no code with the encoder under test.
type rawBatch struct {
	base             int64
	epoch            int32
	attributes       int16
	lastDelta, count int
	baseTime         int64
	maxTime          int64
	body             []byte // encoded records, compressed if attributes say so
}

func (b rawBatch) bytes() []byte {
	be := binary.BigEndian
	out := be.AppendUint64(nil, uint64(b.base))
	out = be.AppendUint32(out, uint32(49+len(b.body)))
	out = be.AppendUint32(out, uint32(b.epoch))
	out = append(out, 2, 0, 0, 0, 0)
	out = be.AppendUint16(out, uint16(b.attributes))
	out = be.AppendUint32(out, uint32(b.lastDelta))
	out = be.AppendUint64(out, uint64(b.baseTime))
	out = be.AppendUint64(out, uint64(b.maxTime))
	out = append(out, bytes.Repeat([]byte{0xff}, 14)...) // no producer
	out = be.AppendUint32(out, uint32(b.count))
	out = append(out, b.body...)
	be.PutUint32(out[17:], crc32.Checksum(out[21:], crc32.MakeTable(crc32.Castagnoli)))
	return out
}

// rawRecord returns an encoded record without key and headers.
func rawRecord(offsetDelta, timeDelta int64, val []byte) []byte {
	body := []byte{0}
	body = binary.AppendVarint(body, timeDelta)
	body = binary.AppendVarint(body, offsetDelta)
	body = append(body, 1)
	body = binary.AppendVarint(body, int64(len(val)))
	body = append(append(body, val...), 0)
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

// plainBatch returns an encoded batch of records with the given values.
func plainBatch(base int64, values ...string) []byte {
	b := rawBatch{base: base, lastDelta: len(values) - 1, count: len(values), baseTime: 1700000000000, maxTime: 1700000000000}
	for i, v := range values {
		b.body = append(b.body, rawRecord(int64(i), 0, []byte(v))...)
	}
	return b.bytes()
}

// stored is a batch in a file.
type stored struct {
	segment    string
	base, last int64
	bytes      []byte
}

// storedBatches parses the .log files of a directory, which may have zeros after the last batch.
func storedBatches(t testing.TB, dir string) (all []stored) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	slices.Sort(names)
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		for len(b) >= 61 && b[16] == 2 {
			base := int64(binary.BigEndian.Uint64(b))
			n := 12 + int(binary.BigEndian.Uint32(b[8:]))
			all = append(all, stored{name, base, base + int64(binary.BigEndian.Uint32(b[23:])), b[:n]})
			b = b[n:]
		}
		require.Zero(t, len(bytes.Trim(b, "\x00")), "%s does not end with a batch or zeros", name)
	}
	return all
}

// expected returns the bytes that a transfer of at most n bytes from offset on must send, and the offset after them.
func expected(all []stored, offset, n int64, oneSegment bool) (sent []byte, next int64) {
	i := slices.IndexFunc(all, func(b stored) bool { return b.last >= offset })
	first := all[i]
	for ; i < len(all); i++ {
		b := all[i]
		if len(sent) > 0 && (int64(len(sent)+len(b.bytes)) > n || oneSegment && b.segment != first.segment) {
			break
		}
		sent = append(sent, b.bytes...)
		next = b.last + 1
	}
	return sent, next
}

// held returns the numbers of descriptors and mappings that the process has of files below dir.
func held(t testing.TB, dir string) (fds, mappings int) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir) {
			fds++
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return fds, strings.Count(string(maps), dir)
}

// inEngine returns the number of goroutines that run a method of a log or were started by one.
func inEngine() (n int) {
	buf := make([]byte, 1<<20)
	for {
		if k := runtime.Stack(buf, true); k < len(buf) {
			buf = buf[:k]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "seglog.(*Log)") || strings.Contains(g, "sched.(*Worker)") {
			n++
		}
	}
	return n
}

// leftBefore returns the number of goroutines of logs when these tests opened their first log: other tests, which end in the
// middle of an operation, may leave some.
var leftBefore = sync.OnceValue(inEngine)

// eventually waits until ok returns true. It is for conditions that background goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(t, "still not true: "+what)
		}
	}
}

// requireReleased checks that a closed log has left no descriptors, mappings or goroutines. The goroutines are those of the process, so a
// test that calls it must not run in parallel with others.
func requireReleased(t testing.TB, dir string) {
	t.Helper()
	eventually(t, "all descriptors and mappings are released", func() bool {
		fds, mappings := held(t, dir)
		return fds == 0 && mappings == 0
	})
	eventually(t, "all goroutines end", func() bool { return inEngine() <= leftBefore() })
}

// sameFiles checks that two directories hold the same segments and indexes, byte for byte.
func sameFiles(t testing.TB, want, got string) {
	t.Helper()
	list := func(dir string) (names []string) {
		for _, suffix := range []string{"*.log", "*.index", "*.timeindex"} {
			found, err := filepath.Glob(filepath.Join(dir, suffix))
			require.NoError(t, err)
			for _, f := range found {
				names = append(names, filepath.Base(f))
			}
		}
		slices.Sort(names)
		return names
	}
	names := list(want)
	require.Equal(t, names, list(got))
	for _, name := range names {
		a, err := os.ReadFile(filepath.Join(want, name))
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(got, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(a, b), "%s differs: %d and %d bytes", name, len(a), len(b))
	}
}

// copyDir copies the files of an open log, as a kill at this moment would leave them. It repeats the copy until no background
// work of the log has changed the state file or the names during it.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	moment := func() string {
		state, err := os.ReadFile(filepath.Join(dir, "seglog.state"))
		if !os.IsNotExist(err) {
			require.NoError(t, err)
		}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		return fmt.Sprint(state, entries)
	}
	for {
		before, to := moment(), t.TempDir()
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if os.IsNotExist(err) {
				continue
			}
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(to, e.Name()), b, 0o644))
		}
		if moment() == before {
			return to
		}
	}
}

// Tests that need a second process run this binary again, with the role of the child in the environment. A child that fails
// writes the error to standard error and exits with status 1.
const childRole = "SEGLOG_TEST_CHILD"

var childRoles = map[string]func(args []string) error{
	"append":   killedAppender,
	"change":   killedChanger,
	"open":     killedOpener,
	"many":     killedMany,
	"transfer": transferringChild,
	"follow":   killedFollower,
	"write":    writingChild,
}

// addRole registers a role from a file that is built on some systems only.
func addRole(name string, role func(args []string) error) bool {
	childRoles[name] = role
	return true
}

func init() {
	role := os.Getenv(childRole)
	if role == "" {
		return
	}
	if err := childRoles[role](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, role, "failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a running child process.
type child struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner // its reports
	stdin io.WriteCloser
}

func startChild(t testing.TB, role string, args ...string) *child {
	t.Helper()
	return startCommand(t, role, os.Args[0], args...)
}

func startCommand(t testing.TB, role, command string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(command, args...)
	cmd.Env = append(os.Environ(), childRole+"="+role, "GORACE=halt_on_error=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	return &child{cmd: cmd, lines: bufio.NewScanner(out), stdin: stdin}
}

// kill kills the child with SIGKILL, and returns its reports that were not read yet.
func (c *child) kill(t testing.TB) (rest []string) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Kill())
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	err := c.cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, -1, exit.ExitCode(), "the child did not die of the kill; it reported %q", rest)
	return rest
}

// wait waits for the child to exit, and returns its reports that were not read yet.
func (c *child) wait(t testing.TB) (rest []string) {
	t.Helper()
	for c.lines.Scan() {
		rest = append(rest, c.lines.Text())
	}
	require.NoError(t, c.cmd.Wait())
	return rest
}
