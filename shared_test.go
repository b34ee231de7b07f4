package seglog

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// The tests of flushes that several logs share, on a disk on which the flush of a file makes durable what was sent of others.

var (
	sharedSeeds  = flag.Int("shared", 4, "runs of TestSharedFlushPowerCut")
	sharedPoints = flag.Int("shared-points", 50, "moments of the power cut in each run")
	sharedCount  = flag.Int("shared-logs", 6, "logs of the process in each run")
)

// sharedAck is the event that an append of a log has returned.
type sharedAck struct {
	log    int
	offset int64
}

// sharedStart is the event that a deletion has moved the start of a log.
type sharedStart struct {
	log   int
	start int64
}

// sharedLogs is a process with several logs on one disk.
type sharedLogs struct {
	t    *testing.T
	s    *sim.FS
	logs []*Log
}

var sharedOptions = &Options{Flush: FlushSync, SegmentBytes: 100 << 10}

func sharedDir(i int) string { return filepath.Join("logs", fmt.Sprint(sim.Copies, i)) }

func openShared(t *testing.T, s *sim.FS, n int) *sharedLogs {
	t.Helper()
	return openSlow(t, slowDisk{s, 100 * time.Microsecond}, n)
}

func openSlow(t *testing.T, disk slowDisk, n int) *sharedLogs {
	t.Helper()
	m := &sharedLogs{t: t, s: disk.FS}
	for i := range n {
		l, err := openFS(disk, sharedDir(i), sharedOptions)
		require.NoError(t, err, i)
		m.logs = append(m.logs, l)
	}
	return m
}

// sharedValue is the value of a record, which tells the log and the offset.
func sharedValue(log int, offset int64, size int) []byte {
	return append(fmt.Appendf(nil, "%d %d ", log, offset), make([]byte, size)...)
}

// run lets each log append n records, and notes each acknowledged one.
func (m *sharedLogs) run(seed uint64, n int) (errs []error) {
	errs = make([]error, len(m.logs))
	var wg sync.WaitGroup
	for i, l := range m.logs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range n {
				want := l.Offsets().End
				offset, err := l.Append(Record{Value: sharedValue(i, want, rng.IntN(6000))})
				if err != nil {
					errs[i] = err
					return
				}
				m.s.Event("ack", sharedAck{i, offset})
				if rng.IntN(8) != 0 {
					continue
				}
				if errs[i] = l.DeleteBefore(offset / 2); errs[i] != nil {
					return
				}
				m.s.Event("start", sharedStart{i, offset / 2})
			}
		}()
	}
	wg.Wait()
	return errs
}

// kill ends the process. The logs fail as soon as they touch the disk again.
func (m *sharedLogs) kill() {
	m.s.Kill()
	for _, l := range m.logs {
		ignore(l.Close())
	}
}

// checkShared opens the logs on w, which must hold all acknowledged records.
func checkShared(t *testing.T, w *sim.World, acked, starts []int64, what string) {
	s := sim.NewFS(w, true)
	for i, next := range acked {
		if next == 0 {
			continue
		}
		l, err := openFS(s, sharedDir(i), sharedOptions)
		require.NoError(t, err, "%s, log %d", what, i)
		require.GreaterOrEqual(t, l.Offsets().End, next, "%s: log %d lost acknowledged records", what, i)
		require.GreaterOrEqual(t, l.Offsets().Start, starts[i], "%s: log %d has records again that were deleted", what, i)
		for r, err := range l.Records(Oldest) {
			if err != nil || !bytes.HasPrefix(r.Value, sharedValue(i, r.Offset, 0)) {
				require.Fail(t, "damaged", "%s: log %d, offset %d: %v", what, i, r.Offset, err)
			}
		}
		s.Kill()
		ignore(l.Close())
		s = sim.NewFS(s.World, true)
	}
}

// isSegment reports whether an operation is on a segment: it has the name under which it was opened.
func isSegment(name string) bool {
	return strings.HasSuffix(name, logSuffix) || strings.HasSuffix(name, nextName)
}

// unflushedAcks counts the appends that returned without a flush of their log's own since they were written.
func unflushedAcks(ops []*sim.Op) (n int) {
	written := map[string]bool{} // by folder: its segment was written to since its flush
	for _, op := range ops {
		folder := strings.Split(op.Name, "/")[0]
		if isSegment(op.Name) && (op.Kind == sim.Write || op.Kind == sim.Flush) {
			written[folder] = op.Kind == sim.Write
		}
		if ack, ok := op.Event.(sharedAck); ok && written[filepath.Base(sharedDir(ack.log))] {
			n++
		}
	}
	return n
}

// slowDisk takes its time to flush a file, so that appends of other logs come meanwhile.
type slowDisk struct {
	*sim.FS
	pause time.Duration
}

func (s slowDisk) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := s.FS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return slowDiskFile{f, s.pause}, nil
}

type slowDiskFile struct {
	vfs.File
	pause time.Duration
}

func (f slowDiskFile) Flush() error {
	time.Sleep(f.pause)
	return f.File.Flush()
}

func (s slowDisk) Lock(path string) (vfs.DirectoryLock, error) {
	l, err := s.FS.Lock(path)
	if err != nil {
		return nil, err
	}
	return slowDiskLock{l, s.pause}, nil
}

type slowDiskLock struct {
	vfs.DirectoryLock
	pause time.Duration
}

func (l slowDiskLock) Quiet(f vfs.File) commit.Flusher {
	return slowFlusher{l.DirectoryLock.Quiet(f), l.pause}
}

type slowFlusher struct {
	commit.Flusher
	pause time.Duration
}

func (f slowFlusher) Flush() error {
	time.Sleep(f.pause)
	return f.Flusher.Flush()
}

// A power cut at any moment leaves every log with all records that its appends have acknowledged, whoever flushed them.
func TestSharedFlushPowerCut(t *testing.T) {
	for seed := range uint64(*sharedSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			logs := *sharedCount
			s := sim.NewFS(sim.NewWorld(), true)
			s.World.Ext4 = seed%2 == 0
			start := s.World.Clone()
			m := openShared(t, s, logs)
			for _, err := range m.run(seed, 60) {
				require.NoError(t, err)
			}
			m.kill()
			require.Empty(t, s.Misuse)
			require.Greater(t, unflushedAcks(s.Ops), 20, "too few flushes were shared for this to be a test")

			rng := rand.New(rand.NewPCG(seed, 100))
			acked, starts := make([]int64, logs), make([]int64, logs)
			w := start
			for i, op := range s.Ops {
				w.Apply(op)
				if ack, ok := op.Event.(sharedAck); ok {
					acked[ack.log] = ack.offset + 1
				}
				if moved, ok := op.Event.(sharedStart); ok {
					starts[moved.log] = moved.start
				}
				if rng.IntN(len(s.Ops)) >= *sharedPoints {
					continue
				}
				cuts := []sim.Cut{sim.RandomCut(rng), sim.WholeCuts()[0]}
				if rng.IntN(2) == 0 {
					cuts[1] = sim.WholeCuts()[rng.IntN(len(sim.WholeCuts()))]
				}
				for _, c := range cuts {
					checkShared(t, c.Apply(w), acked, starts, fmt.Sprintf("after operation %d, %s", i, c.What))
				}
			}
		})
	}
}

// If the data of one log can't be written, that log fails, and the others acknowledge what is durable.
func TestSharedFlushFailsOneLog(t *testing.T) {
	const logs, bad = 6, 2
	for _, kind := range []sim.Kind{sim.WriteBack, sim.Flush} {
		t.Run(kind.String(), func(t *testing.T) {
			s := sim.NewFS(sim.NewWorld(), true)
			m := openShared(t, s, logs)
			for _, err := range m.run(1, 20) {
				require.NoError(t, err)
			}
			s.SetFault(func(k sim.Kind, _ int, path string) *sim.Fault {
				if k == kind && strings.HasPrefix(path, m.logs[bad].dir) && isSegment(path) {
					return &sim.Fault{Err: syscall.EIO}
				}
				return nil
			})
			for i, err := range m.run(2, 50) {
				if i == bad {
					require.ErrorIs(t, err, ErrFailed)
					require.ErrorIs(t, err, syscall.EIO)
					require.ErrorContains(t, err, m.logs[bad].dir)
				} else {
					require.NoError(t, err, i)
				}
			}
			m.kill()
			acked := make([]int64, logs)
			for _, op := range s.Ops {
				if ack, ok := op.Event.(sharedAck); ok {
					acked[ack.log] = ack.offset + 1
				}
			}
			checkShared(t, cutNamed(t, s.World, "nothing"), acked, make([]int64, logs), "nothing")
		})
	}
}

// A file system that can't send a range to the disk flushes each file.
func TestSharedFlushWithoutWriteBack(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	s.NoWriteBack = true
	m := openShared(t, s, 4)
	for _, err := range m.run(1, 40) {
		require.NoError(t, err)
	}
	for _, l := range m.logs {
		require.NoError(t, l.Close()) // ends the preparers, which write too
	}
	require.Zero(t, unflushedAcks(s.Ops))
	require.Empty(t, s.Left())
}

// sideBySide calls f for each of the logs, all at the same time.
func (m *sharedLogs) sideBySide(f func(i int, l *Log) error) {
	m.t.Helper()
	errs := make([]error, len(m.logs))
	var wg sync.WaitGroup
	for i, l := range m.logs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = f(i, l)
		}()
	}
	wg.Wait()
	for i, err := range errs {
		require.NoError(m.t, err, i)
	}
}

// Logs that close together share the flushes of their state files, and each is closed on the disk.
func TestCloseSharesFlushes(t *testing.T) {
	const logs = 40
	s := sim.NewFS(sim.NewWorld(), true)
	m := openSlow(t, slowDisk{s, 5 * time.Millisecond}, logs) // long enough that they meet on a busy machine too
	m.sideBySide(func(i int, l *Log) error {
		_, err := l.Append(Record{Value: sharedValue(i, 0, 100)})
		return err
	})
	s.Event("close", nil)
	m.sideBySide(func(_ int, l *Log) error { return l.Close() })
	flushes := 0
	for _, op := range s.Ops {
		if op.Kind == sim.Event {
			flushes = 0
		}
		if op.Kind == sim.Flush && !isSegment(op.Name) {
			flushes++
		}
	}
	require.Less(t, flushes, logs)
	s = sim.NewFS(cutNamed(t, s.World, "nothing"), true)
	for i := range logs {
		st, ok, err := readState(s, filepath.Join(sharedDir(i), stateName))
		require.NoError(t, err)
		require.True(t, ok && st.clean && st.end == 1, "log %d: %+v", i, st)
	}
}

// The part of a batch that a cut keeps stands in the state file, which grows for it, so that a shared flush would not make it durable.
func TestPowerCutInCutsSideBySide(t *testing.T) {
	const logs, records, keep = 8, 10, 4
	s := sim.NewFS(sim.NewWorld(), true)
	w := s.World.Clone()
	m := openShared(t, s, logs)
	m.sideBySide(func(i int, l *Log) error {
		var b []Record
		for k := range records {
			b = append(b, Record{Value: sharedValue(i, int64(k), 10)})
		}
		_, err := l.Append(b...)
		return err
	})
	s.Event("cut", nil)
	m.sideBySide(func(_ int, l *Log) error { return l.TruncateTo(keep) })
	m.kill()
	acked := make([]int64, logs)
	for i := range acked {
		acked[i] = keep
	}
	cutting := false
	for i, op := range s.Ops {
		w.Apply(op)
		if cutting = cutting || op.Kind == sim.Event; !cutting {
			continue
		}
		checkShared(t, cutNamed(t, w, "nothing"), acked, make([]int64, logs), fmt.Sprintf("after operation %d, %v", i, op))
	}
}
