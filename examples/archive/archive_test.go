package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// TestMain runs an archiver until it is killed, if the environment says that this process is a child of TestKills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ARCHIVE_TEST_CHILD"); dir != "" {
		err := run(context.Background(), options{dir: filepath.Join(dir, "log"), to: filepath.Join(dir, "archive"),
			appends: true, segmentBytes: 64 << 10, keepBytes: 256 << 10, quiet: true})
		println("child:", err.Error())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestKills kills an archiver and its log at various moments. Every record must then be in the archive or in the log, and
// retention must go on.
func TestKills(t *testing.T) {
	tmp := t.TempDir()
	dir, to := filepath.Join(tmp, "log"), filepath.Join(tmp, "archive")
	kills := 6
	if testing.Short() {
		kills = 3
	}
	for kill := range kills {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "ARCHIVE_TEST_CHILD="+tmp)
		var said bytes.Buffer
		child.Stderr = &said
		require.NoError(t, child.Start())
		// Kill it once it has archived new segments, after a pause that differs from kill to kill.
		before := objects(t, to)
		require.Eventually(t, func() bool { return len(objects(t, to)) > len(before)+2 }, 60*time.Second, time.Millisecond)
		time.Sleep(time.Duration(kill*7%20) * time.Millisecond)
		require.NoError(t, child.Process.Kill())
		child.Wait()
		require.Empty(t, said.String())
		require.NoError(t, nothingMissing(dir, to))
	}
	require.NoError(t, catchUp(context.Background(), dir, to))
	c, err := compare(dir, to)
	require.NoError(t, err)
	require.Positive(t, c.start, "retention must delete archived segments")
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	require.NoError(t, err)
	defer l.Close()
	segments, err := l.Segments()
	require.NoError(t, err)
	require.Equal(t, segments[len(segments)-1].Base, c.archived, "all segments but the active one must be archived")
	left, err := os.ReadDir(filepath.Join(to, "incoming"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// nothingMissing checks the directories as a kill left them, without repairing anything.
func nothingMissing(dir, to string) error {
	_, err := compare(dir, to)
	return err
}

func objects(t *testing.T, to string) []string {
	names, err := filepath.Glob(filepath.Join(to, "*.log"))
	require.NoError(t, err)
	return names
}

// faulty is a store that fails or silently damages copies, as set says.
type faulty struct {
	store
	mu          sync.Mutex
	fail, wrong bool
	puts        int
}

func (f *faulty) put(name string, from io.Reader) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	if f.fail {
		return errors.New("no answer")
	}
	b, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	if f.wrong {
		b[len(b)/2] ^= 1
	}
	return f.store.put(name, bytes.NewReader(b))
}

func (f *faulty) set(fail, wrong bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.wrong = fail, wrong
}

func (f *faulty) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts
}

// fillLog opens the log in dir and appends several segments.
func fillLog(t *testing.T, dir string, o *seglog.Options) *seglog.Log {
	o.Flush, o.SegmentBytes = seglog.FlushNone, 16<<10
	l, err := seglog.Open(dir, o)
	require.NoError(t, err)
	next := l.Offsets().End
	for range 20 {
		var batch []seglog.Record
		for range 50 {
			batch = append(batch, seglog.Record{Value: value(next)})
			next++
		}
		_, err := l.Append(batch...)
		require.NoError(t, err)
	}
	return l
}

// runArchiver runs an archiver until stop is called or the test ends. Its result is sent to ended.
func runArchiver(t *testing.T, a *archiver, l *seglog.Log) (ended chan error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	gone := make(chan struct{})
	go func() { ended <- a.run(ctx, l); close(gone) }()
	stop = func() { cancel(); <-gone }
	t.Cleanup(stop)
	return ended, stop
}

// TestOnlyVerifiedSegmentsAreDeleted checks that retention deletes nothing while copies fail or differ from the log, and
// deletes segments afterwards.
func TestOnlyVerifiedSegmentsAreDeleted(t *testing.T) {
	to, err := openStore(t.TempDir())
	require.NoError(t, err)
	f := &faulty{store: to, fail: true}
	a := newArchiver(f)
	a.pause = time.Millisecond
	l := fillLog(t, t.TempDir(), &seglog.Options{RetentionBytes: 20 << 10, OnSeal: a.sealed, MayDelete: a.mayDelete})
	defer l.Close()
	_, stop := runArchiver(t, a, l)
	require.Eventually(t, func() bool { return f.count() > 3 }, 20*time.Second, time.Millisecond)
	f.set(false, true)
	tried := f.count()
	require.Eventually(t, func() bool { return f.count() > tried+3 }, 20*time.Second, time.Millisecond)
	deleted, err := l.Retain()
	require.NoError(t, err)
	require.Zero(t, deleted)
	require.Zero(t, l.Offsets().Start)
	f.set(false, false)
	require.Eventually(t, func() bool {
		_, err := l.Retain()
		require.NoError(t, err)
		return l.Offsets().Start > 0
	}, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waiting) == 0 }, 20*time.Second, time.Millisecond)
	stop()
	archived, err := seglog.Open(to.dir, &seglog.Options{ReadOnly: true})
	require.NoError(t, err)
	defer archived.Close()
	end, err := check(archived, 0)
	require.NoError(t, err)
	require.GreaterOrEqual(t, end, l.Offsets().Start)
}

// TestCatchesUp checks that segments are archived that were sealed while no archiver ran, and that archived segments are not
// copied again.
func TestCatchesUp(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	require.NoError(t, fillLog(t, dir, &seglog.Options{}).Close())
	require.NoError(t, catchUp(context.Background(), dir, to))
	c, err := compare(dir, to)
	require.NoError(t, err)
	require.Greater(t, c.segments, 3)
	require.Len(t, objects(t, to), c.segments)

	require.NoError(t, fillLog(t, dir, &seglog.Options{}).Close())
	s, err := openStore(to)
	require.NoError(t, err)
	f := &faulty{store: s}
	a := newArchiver(f)
	l, err := seglog.Open(dir, &seglog.Options{OnSeal: a.sealed, MayDelete: a.mayDelete})
	require.NoError(t, err)
	defer l.Close()
	ended, _ := runArchiver(t, a, l)
	segments, err := l.Segments()
	require.NoError(t, err)
	require.Eventually(t, func() bool { return a.mayDelete(segments[len(segments)-2]) }, 20*time.Second, time.Millisecond)
	for _, s := range segments[:len(segments)-1] {
		require.True(t, a.mayDelete(s))
	}
	require.False(t, a.mayDelete(segments[len(segments)-1]), "the active segment")
	require.LessOrEqual(t, f.count(), len(segments)-1-c.segments)
	select {
	case err := <-ended:
		t.Fatal(err)
	default:
	}
}

// TestNothingIsReplaced checks that an archive of another log's records stays unchanged, and that no segment is deleted
// because of it.
func TestNothingIsReplaced(t *testing.T) {
	to := t.TempDir()
	s, err := openStore(to)
	require.NoError(t, err)
	const other = "another log's"
	require.NoError(t, s.put("00000000000000000000.log", strings.NewReader(other)))
	a := newArchiver(s)
	l := fillLog(t, t.TempDir(), &seglog.Options{RetentionBytes: 20 << 10, OnSeal: a.sealed, MayDelete: a.mayDelete})
	defer l.Close()
	ended, _ := runArchiver(t, a, l)
	select {
	case err := <-ended:
		require.ErrorIs(t, err, errOther)
	case <-time.After(20 * time.Second):
		t.Fatal("the archiver goes on")
	}
	deleted, err := l.Retain()
	require.NoError(t, err)
	require.Zero(t, deleted)
	b, err := os.ReadFile(filepath.Join(to, "00000000000000000000.log"))
	require.NoError(t, err)
	require.Equal(t, other, string(b))
}

// TestCutSegments checks that the archiver does not wait for a segment that TruncateTo or DeleteBefore removed before it was
// archived.
func TestCutSegments(t *testing.T) {
	to, err := openStore(t.TempDir())
	require.NoError(t, err)
	a := newArchiver(to)
	l := fillLog(t, t.TempDir(), &seglog.Options{OnSeal: a.sealed, MayDelete: a.mayDelete})
	defer l.Close()
	before, err := l.Segments()
	require.NoError(t, err)
	require.NoError(t, l.DeleteBefore(before[1].Next))
	require.NoError(t, l.TruncateTo(before[3].Base+1))
	_, err = l.Append(seglog.Record{Value: []byte("another")})
	require.NoError(t, err)
	for _, s := range before { // as if OnSeal had been called for all of them
		a.sealed(s)
	}
	_, stop := runArchiver(t, a, l)
	require.Eventually(t, func() bool { return a.mayDelete(before[2]) }, 20*time.Second, time.Millisecond)
	// Nor does it wait for a segment that was cut: all waiting segments are dealt with.
	require.Eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waiting) == 0 }, 20*time.Second, time.Millisecond)
	stop()
	require.False(t, a.mayDelete(before[3]))
	for i, s := range before {
		_, err := to.get(filepath.Base(s.Path))
		require.Equal(t, i != 2, errors.Is(err, fs.ErrNotExist), "segment %d", i)
	}
}

// TestStore checks that an object is stored as a whole or not at all.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir)
	require.NoError(t, err)
	require.Error(t, s.put("x", io.MultiReader(strings.NewReader("half"), errReader{})))
	_, err = s.get("x")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(s.incoming, "left"), []byte("by a kill"), 0o644))
	s, err = openStore(dir)
	require.NoError(t, err)
	entries, err := os.ReadDir(s.incoming)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.NoError(t, s.put("x", strings.NewReader("whole")))
	r, err := s.get("x")
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, errors.Join(err, r.Close()))
	require.Equal(t, "whole", string(b))
	require.False(t, slices.Contains(objects(t, dir), "incoming"))
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }
