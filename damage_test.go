package seglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
)

// sparse returns the greatest distance between two tested bytes or lengths: 1, so that none is left out, with -torture.
func sparse() int {
	switch {
	case *tortureStates > 0:
		return 1
	case race.On:
		return 120
	}
	return 16
}

// TestDamageEveryByte changes each byte of each file in turn: it inverts the byte, flips a random bit of it, and zeroes it.
// Without -torture it leaves out most bytes.
func TestDamageEveryByte(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		rng := rand.New(rand.NewPCG(1, 5))
		for _, name := range d.w.Sorted() {
			b := d.w.Get(name)
			end := len(bytes.TrimRight(b, "\x00"))
			for pos := 0; pos < end; pos += 1 + rng.IntN(sparse()) {
				for _, to := range []byte{b[pos] ^ 0xff, b[pos] ^ 1<<rng.IntN(8), 0} {
					if to == b[pos] {
						continue
					}
					what := fmt.Sprintf("%s, byte %d from %02x to %02x", name, pos, b[pos], to)
					out := d.check(what, func(w *sim.World) {
						c := bytes.Clone(b)
						c[pos] = to
						w.Put(name, c)
					})
					if d.outsideCRC(name, pos) && out.err == nil {
						d.complete(what, out) // no CRC covers the leader epoch, and no record depends on it
						continue
					}
					d.judge(what, name, int64(pos), out)
				}
			}
		}
	})
}

// outsideCRC reports whether the position lies in a leader epoch.
func (d *damaged) outsideCRC(name string, pos int) bool {
	at := d.batchAt(name, pos)
	return at >= 0 && pos >= at+atLeaderEpoch && pos < at+atMagic
}

// batchAt returns the position of the batch that contains a position of a log file, or -1 for other files.
func (d *damaged) batchAt(name string, pos int) int {
	if !strings.HasSuffix(name, logSuffix) {
		return -1
	}
	b, at := d.w.Get(name), 0
	for size := int(batch(b).size()); at+size <= pos; size = int(batch(b[at:]).size()) {
		at += size
	}
	return at
}

// TestDamageEveryLength cuts each file to each shorter length. Without -torture it leaves out most lengths.
func TestDamageEveryLength(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		rng := rand.New(rand.NewPCG(1, 6))
		for _, name := range d.w.Sorted() {
			b := d.w.Get(name)
			for size := 0; size < len(bytes.TrimRight(b, "\x00")); size += 1 + rng.IntN(sparse()) {
				what := fmt.Sprintf("%s cut to %d", name, size)
				out := d.check(what, func(w *sim.World) { w.Put(name, bytes.Clone(b[:size])) })
				if limit, open := d.durable[name]; open && int64(size) >= limit && isZero(b[d.batchAt(name, size):size]) {
					require.NoError(t, out.err, what) // only whole batches and zeros are left, so the loss can't be noticed
					continue
				}
				d.judge(what, name, int64(size), out)
			}
		}
	})
}

// TestDamageFiles removes, overwrites, swaps, duplicates and extends whole files.
func TestDamageFiles(t *testing.T) {
	eachState(t, func(t *testing.T, d *damaged) {
		names := d.w.Sorted()
		for _, name := range names {
			what := name + " removed"
			out := d.check(what, func(w *sim.World) { w.Drop(name) })
			d.judge(what, name, 0, out)

			for _, other := range names {
				if other == name || bytes.Equal(d.w.Get(name), d.w.Get(other)) {
					continue
				}
				what := name + " copied over " + other
				out := d.check(what, func(w *sim.World) { w.Put(other, d.w.Get(name)) })
				d.judge(what, other, 0, out)
				what = name + " swapped with " + other
				out = d.check(what, func(w *sim.World) {
					w.Put(other, d.w.Get(name))
					w.Put(name, d.w.Get(other))
				})
				logs := strings.HasSuffix(name, logSuffix) || strings.HasSuffix(other, logSuffix)
				state := name == stateName || other == stateName
				switch {
				case logs && state && out.err == nil:
					// Without a valid state file, the last segment may end in a torn tail.
					require.Contains(t, strings.Join(out.warnings, "\n"), "torn tail", what)
				case logs:
					d.corrupt(what, out)
				default:
					d.complete(what, out)
				}
			}
		}
		d.doubled(names)
		d.extended(names)
	})
}

// doubled copies segments to names at which no segment belongs.
func (d *damaged) doubled(names []string) {
	for _, name := range names {
		base, ok := parseFileName(name, logSuffix)
		if !ok {
			continue
		}
		for _, at := range []int64{base + 1, d.whole.end, d.whole.end + 1000, 0} {
			double := fileName(at, logSuffix)
			if _, taken := d.w.Names[double]; taken {
				continue
			}
			what := fmt.Sprintf("%s copied to %s", name, double)
			out := d.check(what, func(w *sim.World) { w.Put(double, d.w.Get(name)) })
			if out.err == nil { // Open dropped the copy as no part of the log, together with a torn tail before it
				d.torn(what, out)
			}
		}
	}
}

// extended appends garbage or zeros to files.
func (d *damaged) extended(names []string) {
	rng := rand.New(rand.NewPCG(1, 7))
	for _, name := range names {
		for _, n := range []int{1, 7, 8, 12, 61, 512, 5000} {
			for _, zero := range []bool{true, false} {
				tail := make([]byte, n)
				for i := range tail {
					if !zero {
						tail[i] = byte(rng.Uint32())
					}
				}
				what := fmt.Sprintf("%s extended by %d bytes, zeros %v", name, n, zero)
				b := d.w.Get(name)
				out := d.check(what, func(w *sim.World) { w.Put(name, append(bytes.Clone(b), tail...)) })
				if strings.HasSuffix(name, logSuffix) && out.err != nil {
					d.corrupt(what, out)
				} else {
					d.complete(what, out)
				}
			}
		}
	}
}

// TestDamageIndexesAreRebuilt checks that Open or a read replaces a damaged index by one equal to the original.
func TestDamageIndexesAreRebuilt(t *testing.T) {
	d := newDamaged(t, true)
	rng := rand.New(rand.NewPCG(1, 8))
	spoils := map[string]func(b []byte) []byte{
		"flipped":           func(b []byte) []byte { b[rng.IntN(len(b))] ^= 0x55; return b },
		"zeroed":            func(b []byte) []byte { clear(b); return b },
		"emptied":           func(b []byte) []byte { return nil },
		"cut in an entry":   func(b []byte) []byte { return b[:len(b)-3] },
		"an entry short":    func(b []byte) []byte { return b[:len(b)-len(b)/2] },
		"zeros appended":    func(b []byte) []byte { return append(b, make([]byte, 24)...) },
		"an entry repeated": func(b []byte) []byte { return append(b, b[len(b)-12:]...) },
	}
	for _, name := range d.w.Sorted() {
		if _, ok := indexBase(name); !ok || len(d.w.Get(name)) < 12 {
			continue
		}
		for how, spoil := range spoils {
			what := name + " " + how
			out := d.check(what, func(w *sim.World) { w.Put(name, spoil(bytes.Clone(d.w.Get(name)))) })
			d.complete(what, out)
			require.Equal(t, d.w.Get(name), out.after.Get(name), "%s: not rebuilt", what)
		}
		out := d.check(name+" removed", func(w *sim.World) { w.Drop(name) })
		d.complete(name+" removed", out)
		require.Contains(t, out.after.Names, name)
		require.Equal(t, d.w.Get(name), out.after.Get(name))
	}
}

// TestDamageReadError checks that a read error of the disk is returned as such, and not as corruption.
func TestDamageReadError(t *testing.T) {
	d := newDamaged(t, true)
	for nth := 1; ; nth++ {
		s := sim.NewFS(d.w.Clone(), false)
		s.Fault = func(kind sim.Kind, n int, path string) *sim.Fault {
			if kind == sim.Read && n == nth {
				return &sim.Fault{Err: errors.New("input/output error")}
			}
			return nil
		}
		l, err := openFS(s, sim.Dir, &d.opts)
		if err == nil {
			_, err = readLog(l)
			require.NoError(t, l.Close())
		}
		require.Empty(t, s.Left())
		if len(s.Faults) == 0 {
			break
		}
		require.NotErrorIs(t, err, ErrCorrupt)
		if err != nil {
			require.ErrorContains(t, err, "input/output error")
		}
	}
}

// maxDamagedAllocation bounds the memory that opening and reading a damaged log may allocate. A sound log needs as much; a
// damaged length must not raise it.
const maxDamagedAllocation = 8 << 20

// damaged is a small log whose files a test damages.
type damaged struct {
	t       *testing.T
	opts    Options
	w       *sim.World
	o       *oracle
	whole   *content
	durable map[string]int64 // by the name of an unsealed segment, the position of the recovery point
	deleted map[string]int64 // by the name of a segment, the end of its batches below the start offset, which nobody reads
	cases   int
}

// warnings is a slog.Handler that keeps all warnings and errors.
type warnings struct {
	slog.Handler
	lines []string
}

func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		line := r.Message
		r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
		w.lines = append(w.lines, line)
	}
	return nil
}

func (w *warnings) Enabled(context.Context, slog.Level) bool { return true }

// newDamaged makes a log of several segments. If closed, the whole log is durable. Otherwise its process was killed under
// FlushNone, and the batches after the last Sync may be torn.
func newDamaged(t *testing.T, closed bool) *damaged {
	d := &damaged{t: t, opts: Options{SegmentBytes: 4096, IndexBytes: 300}, durable: map[string]int64{}, deleted: map[string]int64{}}
	if !closed {
		d.opts.Flush = FlushNone
	}
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, d.opts, 11)
	require.NoError(t, u.open())
	for u.log.Stats().Segments < 3 {
		require.NoError(t, u.append(1+u.rng.IntN(2)))
	}
	// Close and open the log, which seals the segments that the keeper has not got to.
	require.NoError(t, u.close())
	require.NoError(t, u.open())
	for range 3 {
		require.NoError(t, u.append(2))
	}
	require.NoError(t, u.sync())
	if closed {
		require.NoError(t, u.deleteBefore(2))
		require.NoError(t, u.close())
		d.w = s.Kill()
	} else {
		durable := u.log.view.Load().segs
		last := durable[len(durable)-1]
		name := fileName(last.base, logSuffix)
		d.durable[name] = last.stored.load().pos()
		for range 2 {
			require.NoError(t, u.append(2))
		}
		segs := u.log.view.Load().segs
		require.Len(t, segs, len(durable), "the tail must lie in one segment")
		d.w = s.Kill()
		ignore(u.log.Close())
	}
	require.NoError(t, u.wrong)
	d.o = u.o
	l := u.o.only()
	d.whole = &content{start: l.start, end: l.end()}
	b := d.w.Get(fileName(0, logSuffix))
	for at := batch(b); at.last() < l.start; at = at[at.size():] {
		d.deleted[fileName(0, logSuffix)] += at.size()
	}
	for _, slot := range l.slots {
		d.whole.recs = append(d.whole.recs, *slot.rec) // from offset 0 on, including the deleted ones
	}
	return d
}

// outcome is the result of opening and reading a damaged log.
type outcome struct {
	got      *content
	err      error
	warnings []string
	after    *sim.World
}

// open opens a damaged log and reads it. Other tests run at the same time and allocate too, so the least of several attempts
// counts against the limit.
func (d *damaged) open(what string, w *sim.World) outcome {
	for try := 1; ; try++ {
		out, n := d.openOnce(what, w.Clone())
		if n < maxDamagedAllocation || try == 5 {
			require.Less(d.t, n, uint64(maxDamagedAllocation), what)
			return out
		}
	}
}

func (d *damaged) openOnce(what string, w *sim.World) (out outcome, n uint64) {
	warn := &warnings{Handler: slog.DiscardHandler}
	opts := d.opts
	opts.Logger = slog.New(warn)
	before := allocated()
	s := sim.NewFS(w, true)
	d.cases++
	l, err := openFS(s, sim.Dir, &opts)
	if err != nil {
		out = outcome{got: &content{}, err: err}
	} else {
		out.got, out.err = readLog(l)
		if out.err == nil {
			out.err = d.readEach(what, l)
		}
		require.NoError(d.t, l.Close(), what)
	}
	n = allocated() - before
	require.Empty(d.t, s.Left(), what)
	require.Empty(d.t, s.Misuse, what)
	out.warnings, out.after = warn.lines, s.World
	return out, n
}

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// readEach looks up every record by its offset and by its time, which uses the indexes, as readLog does not.
func (d *damaged) readEach(what string, l *Log) error {
	o := l.Offsets()
	for at := o.Start; at < o.End; at++ {
		r, err := l.Read(at)
		if err != nil {
			return fmt.Errorf("read %d: %w", at, err)
		}
		want := &d.whole.recs[at]
		require.Empty(d.t, differ(&r, want), "%s: read %d", what, at)
		by, err := l.OffsetForTime(want.Time)
		if err != nil {
			return fmt.Errorf("offset for time of %d: %w", at, err)
		}
		first := o.Start
		for d.whole.recs[first].Time.Before(want.Time) {
			first++
		}
		require.Equal(d.t, first, by, "%s: offset for time of %d", what, at)
	}
	return nil
}

// check opens a copy that spoil has damaged. Whatever the damage, no record may be wrong, and every error must be a CorruptError
// with position and reason.
func (d *damaged) check(what string, spoil func(w *sim.World)) outcome {
	w := d.w.Clone()
	spoil(w)
	out := d.open(what, w)
	for i := range out.got.recs {
		r := &out.got.recs[i]
		require.Less(d.t, r.Offset, d.whole.end, "%s: a record that was never appended", what)
		require.Empty(d.t, differ(r, &d.whole.recs[r.Offset]), "%s: record %d", what, r.Offset)
	}
	if out.err != nil {
		var c *CorruptError
		require.ErrorAs(d.t, out.err, &c, what)
		require.ErrorIs(d.t, out.err, ErrCorrupt, what)
		require.NotEmpty(d.t, c.Reason, what)
		require.Equal(d.t, sim.Dir, filepath.Base(filepath.Dir(c.Path)), what)
		require.GreaterOrEqual(d.t, c.Pos, int64(0), what)
		require.GreaterOrEqual(d.t, c.Offset, int64(0), what)
	}
	return out
}

// complete checks that no record is lost and no corruption reported. Without the state file, deleted records that are still in
// the files may come back.
func (d *damaged) complete(what string, out outcome) {
	require.NoError(d.t, out.err, what)
	require.Equal(d.t, d.whole.end, out.got.end, what)
	require.LessOrEqual(d.t, out.got.start, d.whole.start, what)
	if !strings.Contains(what, stateName) {
		require.Equal(d.t, d.whole.start, out.got.start, what)
	}
	require.Len(d.t, out.got.recs, int(out.got.end-out.got.start), what)
}

// corrupt checks that corruption is reported.
func (d *damaged) corrupt(what string, out outcome) {
	require.ErrorIs(d.t, out.err, ErrCorrupt, "%s: shows %d records", what, len(out.got.recs))
}

// torn checks that only records above the recovery point are lost, and that a loss is reported as a torn tail.
func (d *damaged) torn(what string, out outcome) {
	require.NoError(d.t, out.err, what)
	require.NoError(d.t, d.o.check(&content{start: out.got.start, end: out.got.end, recs: out.got.recs}, true), what)
	if out.got.end < d.whole.end {
		require.Contains(d.t, strings.Join(out.warnings, "\n"), "torn tail", what)
	}
}

// judge checks that damage at pos in the named file has the right outcome.
func (d *damaged) judge(what, name string, pos int64, out outcome) {
	limit, open := d.durable[name]
	switch {
	case !strings.HasSuffix(name, logSuffix), pos < d.deleted[name] && out.err == nil:
		d.complete(what, out)
	case open && pos >= limit:
		d.torn(what, out)
	default:
		d.corrupt(what, out)
	}
}

func eachState(t *testing.T, f func(t *testing.T, d *damaged)) {
	for name, closed := range map[string]bool{"closed": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			d := newDamaged(t, closed)
			d.complete("sound", d.check("sound", func(*sim.World) {}))
			f(t, d)
			t.Logf("%d damaged logs opened, of:\n%v", d.cases, d.w)
		})
	}
}
