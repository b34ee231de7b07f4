package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// sparse returns the greatest distance between two tested bytes or lengths: 1, so that none is left out, with -torture.
func sparse() int {
	switch {
	case *tortureStates > 0:
		return 1
	case raceEnabled:
		return 120
	}
	return 16
}

// TestDamageEveryByte changes each byte of each file in turn: it inverts the byte, flips a random bit of it, and zeroes it.
// Without -torture it leaves out most bytes.
func TestDamageEveryByte(t *testing.T) {
	if raceEnabled {
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
	if raceEnabled {
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
