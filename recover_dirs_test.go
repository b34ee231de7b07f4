package seglog_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// told is a slog.Handler that keeps the warnings of a log, and the case that Open reports.
type told struct {
	slog.Handler
	opened string // the recovery case of the last segment
	lines  []string
}

func (h *told) Enabled(context.Context, slog.Level) bool { return true }

func (h *told) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "found" {
			h.opened = seglog.RecoveryCase(a.Value.String())
		}
		line += " " + a.String()
		return true
	})
	if r.Level >= slog.LevelWarn {
		h.lines = append(h.lines, line)
	}
	return nil
}

func recoverOptions() (*seglog.Options, *told) {
	h := &told{Handler: slog.DiscardHandler}
	return &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 4 << 10, IndexBytes: 256, Logger: slog.New(h)}, h
}

func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	return names
}

// contents returns a digest of the contents of each file, by name.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range files(t, dir, "*") {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		if base := filepath.Base(name); base != "LOCK" { // LOCK names the process that has the directory
			all[base] = digest(b)
		}
	}
	return all
}

func digest(b []byte) string { return fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b)) }

// closedLog returns the directory of a closed log of n records in several segments.
func closedLog(t testing.TB, n int) string {
	t.Helper()
	o, _ := recoverOptions()
	dir := t.TempDir()
	l := open(t, dir, o)
	appendN(t, l, 0, n)
	require.NoError(t, l.Close())
	require.Greater(t, len(files(t, dir, "*.log")), 3)
	return dir
}

// killedLog returns the directory of a log of durable+behind records, the last behind of which lie above the recovery point, in
// several segments. A power cut leaves such a log if it spares the segments and loses the newest state. Every segment has its
// name; TestUnnamedSegment is about segments without one.
func killedLog(t testing.TB, durable, behind int) string {
	t.Helper()
	o, _ := recoverOptions()
	dir := t.TempDir()
	l := open(t, dir, o)
	appendN(t, l, 0, durable)
	require.NoError(t, l.Sync())
	state, err := os.ReadFile(filepath.Join(dir, "seglog.state"))
	require.NoError(t, err)
	appendN(t, l, durable, behind)
	eventually(t, "each segment has its name", func() bool { return len(files(t, dir, "*.log")) == l.Stats().Segments })
	killed := copyDir(t, dir)
	require.NoError(t, l.Close())
	require.NoError(t, os.WriteFile(filepath.Join(killed, "seglog.state"), state, 0o644))
	return killed
}

// promise sets the recovery point in seglog.state.
func promise(t testing.TB, dir string, recoveryPoint int64) {
	t.Helper()
	changeState(t, dir, func(slot []byte) { binary.BigEndian.PutUint64(slot[28+2*8:], uint64(recoveryPoint)) })
}

// allowGaps sets the flag in seglog.state that offsets may be left out.
func allowGaps(t testing.TB, dir string) {
	t.Helper()
	changeState(t, dir, func(slot []byte) { slot[27] |= 1 << 2 })
}

// changeState changes the newest slot of seglog.state, and clears the other slot.
func changeState(t testing.TB, dir string, change func(slot []byte)) {
	t.Helper()
	spoil(t, filepath.Join(dir, "seglog.state"), func(b []byte) []byte {
		be := binary.BigEndian
		const slot = 4096
		castagnoli := crc32.MakeTable(crc32.Castagnoli)
		size := 28
		for be.Uint32(b[8:]) != crc32.Checksum(b[12:size], castagnoli) {
			size++
		}
		newest, older := b[:size], b[slot:slot+size]
		if be.Uint64(newest[12:]) < be.Uint64(older[12:]) {
			newest, older = older, newest
		}
		change(newest)
		be.PutUint32(newest[8:], crc32.Checksum(newest[12:], castagnoli))
		clear(older)
		return b
	})
}

func spoil(t testing.TB, path string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, change(bytes.Clone(b)), 0o644))
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x40; return b }
}

// requireLog opens a directory, checks the records and the recovery case, and that the log can be appended to and opened again.
func requireLog(t *testing.T, dir, wantCase string, start, end int) (*seglog.Log, *told) {
	t.Helper()
	o, h := recoverOptions()
	l := open(t, dir, o)
	require.Equal(t, wantCase, h.opened)
	require.EqualValues(t, start, l.Offsets().Start)
	requireN(t, l, start, end)
	appendN(t, l, end, 50)
	requireN(t, l, start, end+50)
	require.NoError(t, l.Close())
	again := open(t, dir, o)
	require.Equal(t, "A", h.opened)
	requireN(t, again, start, end+50)
	return again, h
}

// requireRefused checks that Open fails with a CorruptError and changes nothing.
func requireRefused(t *testing.T, dir string) *seglog.CorruptError {
	t.Helper()
	before := contents(t, dir)
	o, _ := recoverOptions()
	_, err := seglog.Open(dir, o)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	var c *seglog.CorruptError
	require.ErrorAs(t, err, &c)
	require.Equal(t, dir, filepath.Dir(c.Path))
	require.Equal(t, before, contents(t, dir))
	requireReleased(t, dir)
	return c
}

// The tests TestOpenCaseA to TestOpenCaseJ check Open in the cases of docs/recovery.md.
func TestOpenCaseA(t *testing.T) {
	requireLog(t, closedLog(t, 300), "A", 0, 300)
	// Open does not scan a cleanly closed log, so damage in the middle of the last segment is found by a reader, not by Open.
	dir := closedLog(t, 300)
	all := storedBatches(t, dir)
	last := all[len(all)-1].segment
	spoil(t, last, flip(70))
	o, h := recoverOptions()
	l := open(t, dir, o)
	require.Equal(t, "A", h.opened)
	require.Empty(t, h.lines)
	_, err := l.Read(300 - 1)
	require.NoError(t, err)
	var damaged int64
	for _, b := range all {
		if b.segment == last {
			damaged = b.base
			break
		}
	}
	_, err = l.Read(damaged)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	var c *seglog.CorruptError
	require.ErrorAs(t, err, &c)
	require.Equal(t, seglog.CorruptError{Path: last, Pos: 0, Offset: damaged, NextOffset: damaged + 1, Reason: c.Reason}, *c)
}

func TestOpenCasesBAndC(t *testing.T) {
	t.Parallel()
	dir := closedLog(t, 300)
	o, h := recoverOptions()
	l := open(t, dir, o)
	requireN(t, l, 0, 300)
	require.Zero(t, l.Stats().IndexRebuilds)
	require.NoError(t, l.Close())
	whole := contents(t, dir)
	damages := map[string]func(b []byte) []byte{
		"missing":     nil,
		"empty":       func([]byte) []byte { return nil },
		"half":        func(b []byte) []byte { return b[:len(b)/2+1] },
		"fewer":       func(b []byte) []byte { return b[:len(b)/24*12] },
		"padded":      func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
		"zeroes":      func(b []byte) []byte { return make([]byte, len(b)) },
		"all ones":    func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) },
		"first entry": flip(3),
		"last entry":  func(b []byte) []byte { b[len(b)-1] ^= 0x40; return b },
	}
	for _, suffix := range []string{".index", ".timeindex"} {
		for name, damage := range damages {
			if suffix == ".timeindex" && name == "first entry" {
				continue // a wrong time between plausible ones shows only when it is used
			}
			for i, path := range files(t, dir, "*"+suffix) {
				if damage == nil {
					require.NoError(t, os.Remove(path))
				} else {
					spoil(t, path, damage)
				}
				before := len(h.lines)
				l := open(t, dir, o)
				requireN(t, l, 0, 300)
				at, err := l.OffsetForTime(time.UnixMilli(0))
				require.NoError(t, err)
				require.Zero(t, at)
				require.NoError(t, l.Close())
				require.EqualValues(t, 1, l.Stats().IndexRebuilds, "%s of %s, segment %d", suffix, name, i)
				require.Greater(t, len(h.lines), before)
				for base, b := range whole {
					if strings.HasSuffix(base, suffix) || strings.HasSuffix(base, ".log") {
						got, err := os.ReadFile(filepath.Join(dir, base))
						require.NoError(t, err)
						require.Equal(t, b, digest(got), "%s after %s", base, name)
					}
				}
			}
		}
	}
}

func TestOpenCaseD(t *testing.T) {
	requireLog(t, killedLog(t, 10, 5), "D", 0, 15)
	requireLog(t, killedLog(t, 0, 5), "D", 0, 5)
	requireLog(t, killedLog(t, 100, 200), "D", 0, 300)
	dir := killedLog(t, 100, 200) // to be left without the zeros after the last batch
	all := storedBatches(t, dir)
	last := all[len(all)-1]
	size := int64(0)
	for _, b := range all {
		if b.segment == last.segment {
			size += int64(len(b.bytes))
		}
	}
	require.NoError(t, os.Truncate(last.segment, size))
	requireLog(t, dir, "D", 0, 300)
}

// An append may fail halfway, and the next one roll. What the failed one left behind the end of its segment, even if that is a
// whole batch, must neither come back nor cost the segments behind it.
func TestOpenCaseDBytesOfAFailedAppend(t *testing.T) {
	for _, whole := range []bool{true, false} {
		dir := killedLog(t, 100, 200)
		all := storedBatches(t, dir)
		path, size, next := all[150].segment, 0, 0
		for i, b := range all {
			if b.segment == path {
				size, next = size+len(b.bytes), i+1
			}
		}
		require.Less(t, next, len(all))
		left := []byte("half of a batch")
		if whole {
			left = plainBatch(int64(next), "an append that failed")
		}
		spoil(t, path, func(b []byte) []byte { return append(b[:size:size], left...) })
		requireLog(t, dir, "D", 0, 300)
	}
}

func TestOpenCaseE(t *testing.T) {
	t.Parallel()
	dir := killedLog(t, 100, 200)
	all := storedBatches(t, dir)
	last := all[len(all)-1]
	pos := 0
	for _, b := range all {
		if b.segment == last.segment {
			pos += len(b.bytes)
		}
	}
	pos -= len(last.bytes)
	for cut := 8; cut < len(last.bytes)-1; cut += 7 { // the first bytes and the last byte of a batch are zero anyway
		torn := copyDir(t, dir)
		spoil(t, filepath.Join(torn, filepath.Base(last.segment)), func(b []byte) []byte {
			clear(b[pos+cut:])
			return b
		})
		_, h := requireLog(t, torn, "E", 0, 299)
		require.Len(t, h.lines, 1)
		require.Contains(t, h.lines[0], "offset=299")
	}
	// Records after a bad batch never come back, neither those in the same segment nor those in later ones.
	for _, bad := range []int{150, 220} {
		spoilt := copyDir(t, dir)
		at := 0
		for _, b := range all[:bad] {
			if b.segment == all[bad].segment {
				at += len(b.bytes)
			}
		}
		spoil(t, filepath.Join(spoilt, filepath.Base(all[bad].segment)), flip(at+65))
		segments := map[string]bool{} // those that lose batches, each of which is kept in a file of its own
		for _, b := range all[bad:] {
			segments[b.segment] = true
		}
		_, h := requireLog(t, spoilt, "E", 0, bad)
		require.Len(t, h.lines, 1)
		require.Len(t, files(t, spoilt, "seglog.repair-*"), len(segments))
	}
}

func TestOpenCaseF(t *testing.T) {
	names := func(dir string) []string { return files(t, dir, "*.log") }
	damages := map[string]func(dir string){
		"first segment missing":  func(dir string) { require.NoError(t, os.Remove(names(dir)[0])) },
		"second segment missing": func(dir string) { require.NoError(t, os.Remove(names(dir)[1])) },
		"last segment missing":   func(dir string) { n := names(dir); require.NoError(t, os.Remove(n[len(n)-1])) },
		"all segments missing": func(dir string) {
			for _, n := range names(dir) {
				require.NoError(t, os.Remove(n))
			}
		},
		"last segment cut": func(dir string) { n := names(dir); require.NoError(t, os.Truncate(n[len(n)-1], 100)) },
		"foreign segment": func(dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "00000000000000000007.log"), plainBatch(7, "x"), 0o644))
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := closedLog(t, 300)
			damage(dir)
			requireRefused(t, dir)
		})
	}
	// Where offsets may be left out, the damage must not be taken for a gap in front of the next segment.
	for name, gaps := range map[string]bool{"a bad batch below the recovery point": false, "and offsets may be left out": true} {
		t.Run(name, func(t *testing.T) {
			// The log was killed, with a recovery point of 200; recovery starts to check below that.
			dir := killedLog(t, 0, 300)
			promise(t, dir, 200)
			if gaps {
				allowGaps(t, dir)
			}
			all := storedBatches(t, dir)
			at := 0
			for _, b := range all[:150] {
				if b.segment == all[150].segment {
					at += len(b.bytes)
				}
			}
			path := filepath.Join(dir, filepath.Base(all[150].segment))
			spoil(t, path, flip(at+65))
			c := requireRefused(t, dir)
			require.Equal(t, [3]any{path, int64(at), int64(150)}, [3]any{c.Path, c.Pos, c.Offset})
		})
	}
	t.Run("a segment ends early", func(t *testing.T) {
		dir := killedLog(t, 0, 300)
		promise(t, dir, 200)
		all := storedBatches(t, dir)
		path, size, last := all[150].segment, 0, 0
		for i, b := range all {
			if b.segment == path {
				size, last = size+len(b.bytes), i
			}
		}
		size -= len(all[last].bytes)
		require.Less(t, last, 200)
		require.NoError(t, os.Truncate(path, int64(size)))
		c := requireRefused(t, dir)
		require.Equal(t, [3]any{path, int64(size), int64(last)}, [3]any{c.Path, c.Pos, c.Offset})
		require.Contains(t, c.Reason, filepath.Base(all[last+1].segment))
	})
	t.Run("the noted place is no end of a batch", func(t *testing.T) {
		for field, add := range map[int]uint64{4: 1, 5: 1} { // scanPos and scanOffset
			dir := killedLog(t, 3, 0) // in one segment
			all := storedBatches(t, dir)
			changeState(t, dir, func(slot []byte) {
				at := slot[28+8*field:]
				require.Positive(t, binary.BigEndian.Uint64(at))
				binary.BigEndian.PutUint64(at, binary.BigEndian.Uint64(at)+add)
			})
			c := requireRefused(t, dir)
			require.Equal(t, all[len(all)-1].segment, c.Path)
		}
	})
}

// Segments below the first that the state file names are leftovers of a deletion, which Open removes. If the state file does not
// match the other segments, it may belong to another log, or the names may be wrong, so Open must refuse the log and keep all of
// them.
func TestRefusedLogKeepsSegmentsBelowItsFirst(t *testing.T) {
	start := func(dir string, offset int64) {
		o, _ := recoverOptions()
		l := open(t, dir, o)
		require.NoError(t, l.DeleteBefore(offset))
		require.NoError(t, l.Close())
	}
	t.Run("a segment renamed", func(t *testing.T) {
		dir := closedLog(t, 300)
		start(dir, 133)
		names := files(t, dir, "*.log")
		require.NoError(t, os.Rename(names[1], filepath.Join(dir, "00000000000000000000.log")))
		requireRefused(t, dir)
	})
	t.Run("the state of another log", func(t *testing.T) {
		dir, other := closedLog(t, 300), closedLog(t, 900)
		start(other, 800)
		state, err := os.ReadFile(filepath.Join(other, "seglog.state"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "seglog.state"), state, 0o644))
		requireRefused(t, dir)
		require.NoError(t, os.Remove(filepath.Join(dir, "seglog.state")))
		requireLog(t, dir, "J", 0, 300)
	})
}

func TestOpenCaseG(t *testing.T) {
	for name, content := range map[string][]byte{"empty": nil, "zeros": make([]byte, 3000)} {
		t.Run(name, func(t *testing.T) {
			dir := killedLog(t, 100, 30)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "00000000000000000130.log"), content, 0o644))
			requireLog(t, dir, "G", 0, 130)
		})
	}
	requireLog(t, t.TempDir(), "G", 0, 0)
}

func TestOpenCaseH(t *testing.T) {
	dir := closedLog(t, 300)
	leftovers := []string{"00000000000000000007.index", "00000000000000099999.timeindex", "seglog.next", "seglog.cut",
		"seglog.00000000000000000007.index", "seglog.00000000000000000000.timeindex", "seglog.repairing"}
	others := []string{"partition.metadata", "leader-epoch-checkpoint", "7.log", "README", "00000000000000000007.snapshot",
		"seglog.conf", "seglog.state.bak", "seglog.index", "seglog.", "seglog.7.index", "seglog.00000000000000000000.txnindex", "seglog.next.old", "seglog.repair-1-2"}
	for _, name := range append(leftovers, others...) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("what is this"), 0o644))
	}
	requireLog(t, dir, "A", 0, 300)
	now := contents(t, dir)
	for _, name := range leftovers {
		require.NotContains(t, now, name)
	}
	for _, name := range others {
		require.Equal(t, digest([]byte("what is this")), now[name], "%s is not the log's", name)
	}
}

func TestOpenCaseI(t *testing.T) {
	for _, kill := range []bool{false, true} {
		o, _ := recoverOptions()
		dir := t.TempDir()
		l := open(t, dir, o)
		appendN(t, l, 0, 300)
		require.NoError(t, l.DeleteBefore(133))
		want := "D"
		if kill {
			dir = copyDir(t, dir)
		} else {
			require.NoError(t, l.Close())
			want = "A"
		}
		l, _ = requireLog(t, dir, want, 133, 300)
		_, err := l.Read(132)
		require.ErrorIs(t, err, seglog.ErrOutOfRange)
	}
}
