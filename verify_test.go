package seglog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
)

// verifyWorld verifies the log on a simulated disk, and checks that Verify writes nothing.
func verifyWorld(t testing.TB, w *sim.World, o *VerifyOptions) *Report {
	t.Helper()
	s := sim.NewFS(w.Clone(), true)
	r, err := verifyFS(s, sim.Dir, o)
	require.NoError(t, err)
	require.Empty(t, s.Left())
	require.Empty(t, s.Misuse)
	for _, op := range s.Ops {
		t.Fatalf("Verify wrote: %v", op)
	}
	return r
}

// openError opens a log and reads all records, and returns the error.
func (d *damaged) openError(w *sim.World) error {
	opts := d.opts
	l, err := openFS(sim.NewFS(w.Clone(), true), sim.Dir, &opts)
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = readLog(l)
	return err
}

// agree checks that Verify reports an error exactly if opening and reading the log failed. Verify may also report an error
// below the start, where nobody reads.
func (d *damaged) agree(what string, opened error, r *Report) {
	d.t.Helper()
	below := len(r.Problems) > 0 && r.Problems[0].Offset < r.Start
	if !r.OK() && opened == nil && below {
		return
	}
	require.Equal(d.t, errors.Is(opened, ErrCorrupt), !r.OK(), "%s: Open returned %v, Verify reported %v", what, opened, r.Problems)
}

func worst(r *Report) Severity {
	if len(r.Problems) == 0 {
		return -1
	}
	return r.Problems[0].Severity
}

// sealedNames returns the names of index files, each with whether the file must be whole.
func sealedNames(r *Report) map[string]bool {
	names := map[string]bool{}
	for _, s := range r.Segments {
		whole := s.Sealed || r.State == "closed"
		names[fileName(s.Base, indexSuffix)] = whole
		names[fileName(s.Base, timeSuffix)] = whole
	}
	return names
}

func TestVerifySound(t *testing.T) {
	eachState(t, func(t *testing.T, d *damaged) {
		for _, interval := range []int{0, 300} {
			r := verifyWorld(t, d.w, &VerifyOptions{IndexBytes: interval})
			require.Empty(t, r.Problems)
			require.Equal(t, d.whole.start, r.Start)
			require.Equal(t, d.whole.end, r.End)
			require.True(t, r.OK())
		}
		r := verifyWorld(t, d.w, &VerifyOptions{IndexBytes: 700})
		require.Equal(t, SeverityWarning, worst(r), "another index interval gives other indexes")
		b, err := json.Marshal(r)
		require.NoError(t, err)
		var back Report
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, *r, back)
	})
}

// Whichever byte changes, Verify must report an error exactly if opening and reading the log fails.
func TestVerifyEveryByte(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		sealed := sealedNames(verifyWorld(t, d.w, nil))
		for _, name := range d.w.Sorted() {
			for pos := 0; pos < len(d.w.Get(name)); pos += sparse() {
				w := d.w.Clone()
				b := []byte(string(w.Get(name)))
				b[pos] ^= 1 << (pos % 8)
				w.Put(name, b)
				what := fmt.Sprintf("%s: bit flipped at %d", name, pos)
				opened := d.openError(w)
				r := verifyWorld(t, w, &VerifyOptions{IndexBytes: 300})
				d.agree(what, opened, r)
				if sealed[name] {
					require.Equal(t, SeverityWarning, worst(r), what)
				}
				if !r.OK() && strings.HasSuffix(name, logSuffix) {
					p := r.Problems[0]
					require.Equal(t, name, filepath.Base(p.Path), what)
					require.LessOrEqual(t, p.Pos, int64(pos), what)
					require.True(t, p.Bytes == 0 || p.Pos+p.Bytes > int64(pos), what)
				}
			}
		}
	})
}

func TestVerifyEveryLength(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	eachState(t, func(t *testing.T, d *damaged) {
		sealed := sealedNames(verifyWorld(t, d.w, nil))
		for _, name := range d.w.Sorted() {
			size := len(d.w.Get(name))
			for n := 0; n < size; n += sparse() {
				w := d.w.Clone()
				w.Put(name, d.w.Get(name)[:n])
				what := fmt.Sprintf("%s: cut to %d of %d", name, n, size)
				opened := d.openError(w)
				r := verifyWorld(t, w, &VerifyOptions{IndexBytes: 300})
				d.agree(what, opened, r)
				if sealed[name] {
					require.Equal(t, SeverityWarning, worst(r), what)
				}
			}
		}
	})
}

func TestVerifyFiles(t *testing.T) {
	eachState(t, func(t *testing.T, d *damaged) {
		names := d.w.Sorted()
		spoiled := func(what string, spoil func(w *sim.World)) {
			w := d.w.Clone()
			spoil(w)
			opened := d.openError(w)
			r := verifyWorld(t, w, nil)
			d.agree(what, opened, r)
		}
		for i, name := range names {
			if name == stateName {
				continue
			}
			spoiled(name+" removed", func(w *sim.World) { w.Drop(name) })
			spoiled(name+" zeroed", func(w *sim.World) { w.Put(name, make([]byte, len(d.w.Get(name)))) })
			for _, other := range names[i+1:] {
				if other != stateName && filepath.Ext(other) == filepath.Ext(name) {
					spoiled(name+" and "+other+" swapped", func(w *sim.World) {
						w.Put(name, d.w.Get(other))
						w.Put(other, d.w.Get(name))
					})
				}
			}
		}
	})
}

func TestVerifyWithoutState(t *testing.T) {
	d := newDamaged(t, true)
	d.w.Drop(stateName)
	r := verifyWorld(t, d.w, nil)
	require.Equal(t, "none", r.State)
	require.Empty(t, r.Problems)
	segs := r.Segments
	last := filepath.Base(segs[len(segs)-1].Path)
	b := d.w.Get(last)

	torn := d.w.Clone()
	torn.Put(last, b[:len(b)-3])
	r = verifyWorld(t, torn, nil)
	require.True(t, r.OK())
	require.Equal(t, SeverityNote, worst(r), "a kill may leave a torn tail")

	flipped := d.w.Clone()
	c := []byte(string(b))
	c[headerLen] ^= 1
	flipped.Put(last, c)
	r = verifyWorld(t, flipped, nil)
	require.False(t, r.OK(), "good batches follow, so this is not a torn tail")
	require.EqualValues(t, segs[len(segs)-1].Batches-1, r.Segments[len(segs)-1].Batches)
}

// Verify must continue after damage and count the good batches there.
func TestVerifyCountsPastDamage(t *testing.T) {
	d := newDamaged(t, true)
	whole := verifyWorld(t, d.w, nil)
	name := filepath.Base(whole.Segments[0].Path)
	b := []byte(string(d.w.Get(name)))
	first := batch(b).size()
	b[first+headerLen] ^= 1
	b[len(b)-1] ^= 1
	d.w.Put(name, b)
	r := verifyWorld(t, d.w, nil)
	require.Len(t, r.Problems, 2)
	require.Equal(t, first, r.Problems[0].Pos)
	require.EqualValues(t, batch(b[first:]).size(), r.Problems[0].Bytes)
	require.Equal(t, whole.Batches-2, r.Batches)
}

func TestVerifyContextAndProgress(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: 1 << 20})
	require.NoError(t, err)
	for range 300 { // 3 MB
		_, err := l.Append(Record{Value: make([]byte, 10_000)})
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	last, calls := int64(0), 0
	r, err := Verify(dir, &VerifyOptions{Progress: func(done, total int64) {
		require.GreaterOrEqual(t, done, last)
		require.LessOrEqual(t, done, total)
		last = done
		calls++
	}})
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	require.Equal(t, r.Bytes, last)
	require.Greater(t, calls, 5)
	ctx, cancel := context.WithCancel(context.Background())
	_, err = Verify(dir, &VerifyOptions{Context: ctx, Progress: func(done, total int64) {
		if done > total/2 {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	_, err = Verify(filepath.Join(dir, "none"), nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Verify(filepath.Join(dir, stateName), nil)
	require.Error(t, err)
}

// Verify must find no problems in a log whose writer appends, rolls, deletes and cuts at the same time.
func TestVerifyLive(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushAsync, FlushNone} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l, err := Open(dir, &Options{Flush: policy, SegmentBytes: 16 << 10, MaxBatchBytes: 4 << 10, IndexBytes: 512})
			require.NoError(t, err)
			defer l.Close()
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Add(1)
			go func() {
				defer wg.Done()
				rng := rand.New(rand.NewPCG(1, uint64(policy)))
				for !stop.Load() {
					_, err := l.Append(Record{Value: make([]byte, rng.IntN(2000))})
					o := l.Offsets()
					switch rng.IntN(100) {
					case 0:
						err = l.DeleteBefore(o.Start + (o.HighWatermark-o.Start)/2)
					case 1:
						err = l.TruncateTo(o.End - (o.End-o.Start)/4)
					}
					if err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
						return
					}
				}
			}()
			runs := 0
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); runs++ {
				r, err := Verify(dir, nil)
				require.NoError(t, err)
				require.Empty(t, r.Problems)
			}
			stop.Store(true)
			wg.Wait()
			require.NoError(t, l.Close())
			r, err := Verify(dir, &VerifyOptions{IndexBytes: 512})
			require.NoError(t, err)
			require.Empty(t, r.Problems)
			t.Log(runs, "runs beside the writer")
		})
	}
}
