package seglog

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

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

func (d *damaged) open(what string, w *sim.World) (out outcome) {
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
	require.Less(d.t, allocated()-before, uint64(maxDamagedAllocation), what)
	require.Empty(d.t, s.Left(), what)
	require.Empty(d.t, s.Misuse, what)
	out.warnings, out.after = warn.lines, s.World
	return out
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
