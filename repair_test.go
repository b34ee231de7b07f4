package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// repaired repairs the log on a simulated disk, and returns the report and the disk after it.
func repaired(t testing.TB, w *sim.World, o RepairOptions) (*RepairReport, *sim.World) {
	t.Helper()
	s := sim.NewFS(w.Clone(), true)
	r, err := repairFS(s, sim.Dir, &o)
	require.NoError(t, err)
	require.Empty(t, s.Left())
	require.Empty(t, s.Misuse)
	if !o.Apply {
		require.Empty(t, s.Ops, "a dry run must write nothing")
	}
	return r, s.Kill()
}

// recover repairs a log, and checks all properties that must hold whatever the damage. It returns the report and the records
// left.
func (d *damaged) recover(what string, w *sim.World, keep bool) (*RepairReport, []Record) {
	d.t.Helper()
	what = fmt.Sprintf("%s, keep %v", what, keep)
	dry, _ := repaired(d.t, w, RepairOptions{KeepAfter: keep})
	r, after := repaired(d.t, w, RepairOptions{KeepAfter: keep, Apply: true})
	require.Equal(d.t, dry.Removed, r.Removed, what)
	require.Equal(d.t, dry.Changes, r.Changes, what)
	again, _ := repaired(d.t, after, RepairOptions{KeepAfter: keep})
	require.True(d.t, again.Sound(), "%s: a second repair finds %+v after %+v", what, again, r)
	for _, m := range r.Removed {
		if m.Saved != "" {
			before := w.Get(filepath.Base(m.Path))[m.Pos : m.Pos+m.Bytes]
			saved := after.Get(filepath.Base(m.Saved))
			require.True(d.t, bytes.HasPrefix(saved, before) && isZero(saved[len(before):]), "%s: the saved bytes differ from the removed bytes: %+v", what, m)
		}
	}
	verified := verifyWorld(d.t, after, nil)
	require.True(d.t, verified.OK(), "%s: repaired %+v, verify finds %v", what, r, verified.Problems)
	opts := d.opts
	opts.Flush = FlushSync
	s := sim.NewFS(after.Clone(), true)
	l, err := openFS(s, sim.Dir, &opts)
	require.NoError(d.t, err, "%s: after %+v", what, r)
	got, err := readLog(l)
	require.NoError(d.t, err, "%s: after %+v", what, r)
	require.Equal(d.t, r.End, got.end, what)
	require.Equal(d.t, r.Start, got.start, what)
	end, err := l.Append(Record{Value: []byte("more")})
	require.NoError(d.t, err, what)
	require.Equal(d.t, got.end, end, what)
	last, err := l.Read(end)
	require.NoError(d.t, err, what)
	require.Equal(d.t, "more", string(last.Value))
	require.NoError(d.t, l.Close())
	d.known(what, got.recs)
	return r, got.recs
}

// known checks that each record was appended, and that they are in order, none twice.
func (d *damaged) known(what string, recs []Record) {
	d.t.Helper()
	last := int64(-1)
	for i := range recs {
		r := &recs[i]
		require.Greater(d.t, r.Offset, last, what)
		last = r.Offset
		k, ok := slices.BinarySearchFunc(d.whole.recs, r.Offset, func(x Record, o int64) int { return int(x.Offset - o) })
		require.True(d.t, ok, "%s: offset %d was never appended", what, r.Offset)
		require.Empty(d.t, differ(r, &d.whole.recs[k]), what)
	}
}

// offsetsAt returns the offsets of the batch, in the undamaged log, that contains a byte.
func (d *damaged) offsetsAt(name string, pos int64) (base, next int64) {
	b := d.w.Get(name)
	for at := int64(0); at+headerLen <= int64(len(b)); {
		h := batch(b[at:])
		if parseHeader(b[at:]) != "" {
			break
		}
		if pos < at+h.size() {
			return h.base(), h.last() + 1
		}
		at += h.size()
	}
	return d.whole.end, d.whole.end
}

// has checks that no record with an offset in [from, to) is missing.
func (d *damaged) has(what string, recs []Record, from, to int64) {
	d.t.Helper()
	n := int64(0)
	for _, r := range recs {
		if r.Offset >= from && r.Offset < to {
			n++
		}
	}
	want := max(0, to-max(from, d.whole.start))
	require.Equal(d.t, want, n, "%s: records from %d to %d", what, from, to)
}

func TestRepairSound(t *testing.T) {
	eachState(t, func(t *testing.T, d *damaged) {
		for _, keep := range []bool{false, true} {
			r, _ := repaired(t, d.w, RepairOptions{KeepAfter: keep})
			require.True(t, r.Sound(), "%+v", r)
			r, recs := d.recover("sound", d.w, keep)
			require.Equal(t, d.whole.end, r.End)
			d.has("sound", recs, 0, d.whole.end)
		}
	})
}

// Whichever byte is damaged, Repair with KeepAfter must lose only the batch around it, and without KeepAfter only that batch
// and later ones.
func TestRepairEveryByte(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		for _, name := range d.w.Sorted() {
			if filepath.Ext(name) != logSuffix {
				continue
			}
			for pos := 0; pos < len(d.w.Get(name)); pos += 3 * sparse() {
				w := d.w.Clone()
				b := []byte(string(w.Get(name)))
				b[pos] ^= 1 << (pos % 8)
				w.Put(name, b)
				what := fmt.Sprintf("%s: bit flipped at %d", name, pos)
				base, next := d.offsetsAt(name, int64(pos))
				_, recs := d.recover(what, w, true)
				d.has(what, recs, 0, base)
				d.has(what, recs, next, d.whole.end)
				_, recs = d.recover(what, w, false)
				d.has(what, recs, 0, base)
			}
		}
	})
}

func TestRepairEveryLength(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		for _, name := range d.w.Sorted() {
			if filepath.Ext(name) != logSuffix {
				continue
			}
			following := d.whole.end
			for _, other := range d.w.Sorted() {
				if base, ok := parseFileName(other, logSuffix); ok && other > name {
					following = base
					break
				}
			}
			for n := 0; n < len(d.w.Get(name)); n += 5 * sparse() {
				w := d.w.Clone()
				w.Put(name, d.w.Get(name)[:n])
				what := fmt.Sprintf("%s: cut to %d", name, n)
				base, _ := d.offsetsAt(name, int64(n))
				_, recs := d.recover(what, w, true)
				d.has(what, recs, 0, base)
				d.has(what, recs, following, d.whole.end)
				_, recs = d.recover(what, w, false)
				d.has(what, recs, 0, base)
			}
		}
	})
}

// Whatever happens to whole files, Repair must leave a sound log without wrong records.
func TestRepairFiles(t *testing.T) {
	eachState(t, func(t *testing.T, d *damaged) {
		var logs []string
		for _, name := range d.w.Sorted() {
			if filepath.Ext(name) == logSuffix {
				logs = append(logs, name)
			}
		}
		require.Greater(t, len(logs), 2)
		try := func(what string, spoil func(w *sim.World)) {
			w := d.w.Clone()
			spoil(w)
			d.recover(what, w, false)
			d.recover(what, w, true)
		}
		for i, name := range logs {
			base, _ := parseFileName(name, logSuffix)
			following := d.whole.end
			if i+1 < len(logs) {
				following, _ = parseFileName(logs[i+1], logSuffix)
			}
			w := d.w.Clone()
			w.Drop(name)
			_, recs := d.recover(name+" removed", w, true)
			d.has(name+" removed", recs, 0, base)
			d.has(name+" removed", recs, following, d.whole.end)
			try(name+" removed", func(w *sim.World) { w.Drop(name) })
			try(name+" zeroed", func(w *sim.World) { w.Put(name, make([]byte, len(d.w.Get(name)))) })
			try(name+" with zeros appended", func(w *sim.World) { w.Put(name, append([]byte(string(d.w.Get(name))), make([]byte, 5000)...)) })
			try(name+" with garbage appended", func(w *sim.World) { w.Put(name, append([]byte(string(d.w.Get(name))), "some garbage"...)) })
			for _, other := range logs[i+1:] {
				try(name+" and "+other+" swapped", func(w *sim.World) {
					w.Put(name, d.w.Get(other))
					w.Put(other, d.w.Get(name))
				})
				try(name+" and "+other+" lost", func(w *sim.World) { w.Drop(name); w.Drop(other) })
			}
			try(name+" copied", func(w *sim.World) { w.Put(fileName(base+1, logSuffix), d.w.Get(name)) })
		}
		try("all lost", func(w *sim.World) {
			for _, name := range logs {
				w.Drop(name)
			}
		})
		try("state lost", func(w *sim.World) { w.Drop(stateName) })
	})
}

// If the state file shows that a segment is not part of the log, Repair must remove only that segment, and Verify must find all others sound.
func TestRepairForeignSegment(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		st, ok, err := readState(sim.NewFS(d.w.Clone(), true), filepath.Join(sim.Dir, stateName))
		require.NoError(t, err)
		require.True(t, ok)
		sound := verifyWorld(t, d.w, nil)
		for i, s := range sound.Segments {
			for at := s.Base + 1; at < min(s.Next, st.scanOffset); at += 3 {
				from := sound.Segments[(i+int(at)/3)%len(sound.Segments)].Base
				what := fmt.Sprintf("segment %d copied to %d", from, at)
				w := d.w.Clone()
				w.Put(fileName(at, logSuffix), d.w.Get(fileName(from, logSuffix)))
				v := verifyWorld(t, w, nil)
				require.Equal(t, sound.Records, v.Records, what)
				require.Equal(t, sound.End, v.End, what)
				require.Equal(t, fileName(at, logSuffix), filepath.Base(v.Problems[0].Path), what)
				d.agree(what, d.openError(w), v)
				for _, keep := range []bool{false, true} {
					r, recs := d.recover(what, w, keep)
					require.Len(t, r.Removed, 1, what)
					d.has(what, recs, d.whole.start, d.whole.end)
				}
			}
		}
	})
}

// Repair must not take a batch in the value of a record for a batch of the log.
func TestRepairBatchInValue(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	s := sim.NewFS(sim.NewWorld(), true)
	opts := &Options{Flush: FlushNone}
	l, err := openFS(s, sim.Dir, opts)
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("first")})
	require.NoError(t, err)
	inner := encoded([]Record{{Value: []byte("not a record of this log")}}, 1)
	_, err = l.Append(Record{Value: slices.Concat(inner, inner[:20])}, Record{Value: inner})
	require.NoError(t, err)
	_, err = l.Append(Record{Value: []byte("last")})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	w := s.Kill()
	name := fileName(0, logSuffix)
	b := []byte(string(w.Get(name)))
	second := batch(b).size()
	b[second+atBatchLength+1] ^= 1 // now its length leads to no batch
	w.Put(name, b)
	r, after := repaired(t, w, RepairOptions{Apply: true, KeepAfter: true})
	require.Len(t, r.Removed, 1)
	require.EqualValues(t, 3, r.Removed[0].Next)
	l, err = openFS(sim.NewFS(after, true), sim.Dir, opts)
	require.NoError(t, err)
	defer l.Close()
	got, err := readLog(l)
	require.NoError(t, err)
	require.Len(t, got.recs, 2)
	require.Equal(t, "last", string(got.recs[1].Value))
}

// spoilMany damages the second batch of every segment, and the last bytes of every other one.
func (d *damaged) spoilMany() *sim.World {
	w := d.w.Clone()
	for i, name := range w.Sorted() {
		if filepath.Ext(name) != logSuffix {
			continue
		}
		b := []byte(string(w.Get(name)))
		first := batch(b).size()
		b[first+headerLen+1] ^= 1
		if i%2 == 0 {
			b[len(b)-2] ^= 1
		}
		w.Put(name, b)
	}
	return w
}

// contentOf returns the content of each file but the state file.
func contentOf(w *sim.World) map[string]string {
	all := map[string]string{}
	for _, name := range w.Sorted() {
		if name != stateName {
			all[name] = string(w.Get(name))
		}
	}
	return all
}

// repairCuts is the number of power cuts to try after each operation.
const repairCuts = 3

// If Repair is interrupted at any of its operations, by a kill or a power cut, a second run must reach the same result.
func TestRepairInterrupted(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		spoiled := d.spoilMany()
		for _, keep := range []bool{false, true} {
			o := RepairOptions{Apply: true, KeepAfter: keep}
			_, want := repaired(t, spoiled, o)
			_, recs := d.recover("many", spoiled, keep)
			rng := rand.New(rand.NewPCG(4, 4))
			points := 0
			for k := 1; ; k++ {
				s := sim.NewFS(spoiled.Clone(), true)
				n := 0
				s.SetFault(func(kind sim.Kind, _ int, _ string) *sim.Fault {
					if n++; n == k {
						s.Dead = true
						return &sim.Fault{Err: sim.ErrDead, Short: true}
					}
					return nil
				})
				_, err := repairFS(s, sim.Dir, &o)
				if err == nil {
					break
				}
				require.ErrorIs(t, err, sim.ErrDead)
				points++
				after := s.Kill()
				states := []*sim.World{after.Clone()}
				cuts := slices.Concat(sim.WholeCuts(), sim.SingleCuts(after, rng), []sim.Cut{sim.RandomCut(rng), sim.RandomCut(rng), sim.RandomCut(rng)})
				if rng.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] }); len(cuts) > repairCuts {
					cuts = cuts[:repairCuts]
				}
				for _, cut := range cuts {
					states = append(states, cut.Apply(after))
				}
				for i, state := range states {
					what := fmt.Sprintf("keep %v, operation %d, state %d", keep, k, i)
					d.notWrong(what, state)
					r, again := repaired(t, state, o)
					if i == 0 {
						got, expect := contentOf(again), contentOf(want)
						for name := range got {
							if strings.HasPrefix(name, repairPrefix) {
								delete(got, name)
							}
						}
						for name := range expect {
							if strings.HasPrefix(name, repairPrefix) {
								delete(expect, name)
							}
						}
						delete(got, repairTemp)
						require.True(t, maps.Equal(expect, got), "%s: want %v, got %v", what, slices.Sorted(maps.Keys(expect)), slices.Sorted(maps.Keys(got)))
					}
					if i == 0 || k%7 == 0 {
						_, now := d.recover(what, state, keep)
						require.Equal(t, len(recs), len(now), "%s: %+v", what, r)
					}
					d.nothingLost(what, spoiled, again)
				}
			}
			require.Greater(t, points, 20)
		}
	})
}

// notWrong checks that Open refuses a log whose repair was interrupted, or that the log shows only right records.
func (d *damaged) notWrong(what string, w *sim.World) {
	d.t.Helper()
	opts := d.opts
	l, err := openFS(sim.NewFS(w.Clone(), true), sim.Dir, &opts)
	if err != nil {
		require.ErrorIs(d.t, err, ErrCorrupt, what)
		return
	}
	got, err := readLog(l)
	if err != nil {
		require.ErrorIs(d.t, err, ErrCorrupt, what)
	}
	d.known(what, got.recs)
	require.NoError(d.t, l.Close())
}

// nothingLost checks that the bytes of each batch of the damaged log are in the repaired log or in a file beside it.
func (d *damaged) nothingLost(what string, before, after *sim.World) {
	d.t.Helper()
	var all strings.Builder
	for _, name := range after.Sorted() {
		if filepath.Ext(name) == logSuffix || strings.HasPrefix(name, repairPrefix) {
			all.Write(after.Get(name))
		}
	}
	have := all.String()
	for _, name := range before.Sorted() {
		if filepath.Ext(name) != logSuffix {
			continue
		}
		b, good := before.Get(name), d.w.Get(name) // the lengths of batches come from the undamaged log
		for at := int64(0); at+headerLen <= int64(len(b)) && parseHeader(good[at:]) == ""; {
			size := batch(good[at:]).size()
			require.True(d.t, strings.Contains(have, string(b[at:at+size])), "%s: %s [%d, %d) is nowhere", what, name, at, at+size)
			at += size
		}
	}
}

// If an operation of Repair fails, for example on a full disk, no record may be lost or wrong, and another Repair must succeed.
func TestRepairFails(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	d := newDamaged(t, true)
	spoiled := d.spoilMany()
	for _, in := range injections {
		for nth := 1; ; nth++ {
			s := sim.NewFS(spoiled.Clone(), true)
			hit := false
			s.SetFault(func(kind sim.Kind, n int, _ string) *sim.Fault {
				if kind == in.kind && n == nth {
					hit = true
					f := in.Fault
					return &f
				}
				return nil
			})
			_, err := repairFS(s, sim.Dir, &RepairOptions{Apply: true, KeepAfter: true})
			if !hit {
				require.NoError(t, err)
				break
			}
			require.Empty(t, s.Left(), "%v %d", in, nth)
			s.SetFault(nil)
			if err != nil {
				d.notWrong(in.String(), s.World)
			}
			_, recs := d.recover(in.String(), s.World, true)
			_, want := d.recover(in.String(), spoiled, true)
			require.Len(t, recs, len(want), in)
		}
	}
}

func TestRepairLocked(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	_, err = Repair(dir, nil)
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, l.Close())
	r, err := Repair(dir, &RepairOptions{Apply: true})
	require.NoError(t, err)
	require.True(t, r.Sound())
	_, err = Repair(filepath.Join(dir, "none"), nil)
	require.True(t, errors.Is(err, fs.ErrNotExist), "%v", err)
}

// readOnlyFS is a file system that is mounted read-only, as far as LOCK is concerned.
type readOnlyFS struct{ osFS }

func (readOnlyFS) Lock(path string) (vfs.DirectoryLock, error) {
	return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EROFS}
}

// Repair that is not applied must look at a directory that can't be written to, unless somebody writes it.
func TestRepairLooksAtAReadOnlyDirectory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file can't be locked by another descriptor there")
	}
	dir := t.TempDir()
	l, err := Open(dir, nil)
	require.NoError(t, err)
	appendValues(t, l, 10)
	_, err = repairFS(readOnlyFS{}, dir, nil)
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, l.Close())
	for range 2 {
		r, err := repairFS(readOnlyFS{}, dir, nil)
		require.NoError(t, err)
		require.True(t, r.Sound())
		require.EqualValues(t, 10, r.Records)
	}
	_, err = repairFS(readOnlyFS{}, dir, &RepairOptions{Apply: true})
	require.ErrorIs(t, err, syscall.EROFS)
}
