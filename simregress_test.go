package seglog

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// These tests are for faults that the simulation, the injections and the damage tests found, each with the smallest workload
// that shows the fault.

// crashedAtEveryPoint runs prepare and then last, and crashes the disk at every point of last, in all single ways and some
// random ones.
func crashedAtEveryPoint(t *testing.T, opts Options, prepare, last func(u *simUser) error) {
	for _, mapped := range []bool{true, false} {
		s := sim.NewFS(sim.NewWorld(), mapped)
		u := newSimUser(s, opts, 1)
		require.NoError(t, u.open())
		require.NoError(t, prepare(u))
		s.Mu.Lock()
		from := len(s.Ops)
		s.Mu.Unlock()
		require.NoError(t, last(u))
		require.NoError(t, u.wrong)
		s.Kill()
		ignore(u.log.Close())
		x := newCrasher(opts, mapped, 1)
		x.singles, x.randoms, x.inner, x.depth = -1, 6, 6, 1
		require.NoError(t, x.explore(sim.NewWorld(), s.Ops, from, newOracle(0)))
	}
}

func appends(counts ...int) func(u *simUser) error {
	return func(u *simUser) error {
		for _, n := range counts {
			if err := u.append(n); err != nil {
				return err
			}
		}
		return nil
	}
}

// The records that recovery kept of an interrupted TruncateTo were below the recovery point but not marked as flushed, so no
// reader reached them, and Records looped forever.
func TestInterruptedTruncateToIsReadable(t *testing.T) {
	crashedAtEveryPoint(t, Options{SegmentBytes: 4096}, appends(1, 2, 2), func(u *simUser) error { return u.truncateTo(2) })
}

// A killed process may leave the intent of a cut only in the page cache. Open acted on the intent without making it durable,
// so a power cut left a log without segments that the old state file counts.
func TestInterruptedResetIsDurableFirst(t *testing.T) {
	crashedAtEveryPoint(t, Options{SegmentBytes: 4096}, appends(3, 2, 2), func(u *simUser) error { return u.reset(30) })
}

// The removals of an interrupted Reset may reach the disk in any order. An index without its .log is both a leftover and a file
// that the Reset removes; Open must not fail because one of the two has removed it already.
func TestInterruptedResetWithAnIndexLeft(t *testing.T) {
	prepare := func(u *simUser) error {
		return errors.Join(appends(3, 2)(u), u.close(), u.open())
	}
	crashedAtEveryPoint(t, Options{SegmentBytes: 4096}, prepare, func(u *simUser) error { return u.reset(0) })
}

// The Open after an interrupted TruncateTo took rolled segments for sealed ones, and read their reserved blocks as data.
func TestInterruptedTruncateToBehindARolledSegment(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
	require.NoError(t, u.open())
	// Let every seal fail.
	var active atomic.Pointer[string] // the path of the segment to cut, which may be truncated
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if cut := active.Load(); kind == sim.Truncate && (cut == nil || path != *cut) {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	for u.log.Stats().Segments < 3 {
		require.NoError(t, u.append(2))
	}
	require.NoError(t, u.append(3))
	s.Mu.Lock()
	from := len(s.Ops)
	s.Mu.Unlock()
	path := u.log.path(u.log.writer.tail.seg.base, logSuffix)
	active.Store(&path)
	require.NoError(t, u.truncateTo(u.end()-1))
	s.Kill()
	ignore(u.log.Close())
	x := newCrasher(u.opts, true, 1)
	x.singles, x.randoms, x.inner, x.depth = -1, 6, 4, 1
	require.NoError(t, x.explore(sim.NewWorld(), s.Ops, from, newOracle(0)))
}

// The Open that finishes an interrupted cut must seal the segments that the cut left unsealed.
func TestInterruptedTruncateToSealsWhatWasRolled(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
	require.NoError(t, u.open())
	var cutting atomic.Bool
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		switch {
		case cutting.Load() && kind == sim.Remove && filepath.Ext(path) == transactionSuffix: // the first removal of the cut
			s.Dead = true
			return &sim.Fault{Err: sim.ErrDead}
		case kind == sim.Truncate:
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	for u.log.Stats().Segments < 3 {
		require.NoError(t, u.append(2))
	}
	require.NoError(t, u.append(3))
	cutting.Store(true)
	require.Error(t, u.log.TruncateTo(u.end()-1))
	ignore(u.log.Close())
	again := sim.NewFS(s.World.Clone(), true)
	l, err := openFS(again, sim.Dir, &u.opts)
	require.NoError(t, err)
	require.EqualValues(t, u.end()-1, l.Offsets().End)
	require.NoError(t, l.Close())
	report := verifyWorld(t, again.World, &VerifyOptions{IndexBytes: u.opts.IndexBytes})
	require.Empty(t, report.Problems)
}

// A failed cut left segments marked as gone, and reads of them waited forever for another view.
func TestReadsEndAfterAFailedCut(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for nth := 1; ; nth++ {
			s := sim.NewFS(sim.NewWorld(), true)
			u := newSimUser(s, Options{SegmentBytes: 4096, MaxOpenSegments: 1}, 1)
			require.NoError(t, u.open())
			for u.log.Stats().Segments < 4 {
				require.NoError(t, u.append(2))
			}
			require.NoError(t, u.close())
			require.NoError(t, u.open())
			count := 0
			s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
				if kind == sim.Read || kind == sim.Stat || kind == sim.Open {
					return nil
				}
				if count++; count == nth {
					return &sim.Fault{Err: syscall.EIO}
				}
				return nil
			})
			var err error
			if reset {
				err = u.log.Reset(100)
			} else {
				err = u.log.TruncateTo(5)
			}
			if err != nil && u.log.failed() != nil {
				require.ErrorIs(t, err, ErrFailed, "operation %d fails, reset %v", nth, reset)
			}
			s.SetFault(nil)
			done := make(chan error, 1)
			go func() {
				_, err := readLog(u.log)
				done <- err
			}()
			select {
			case rerr := <-done:
				if rerr != nil {
					require.ErrorIs(t, rerr, ErrFailed, "operation %d fails, reset %v", nth, reset)
				}
			case <-time.After(10 * time.Second):
				require.Failf(t, "reads hang", "operation %d fails, reset %v: %v", nth, reset, err)
			}
			ignore(u.log.Close())
			require.Empty(t, s.Left())
			if len(s.Faults) == 0 {
				break
			}
		}
	}
}

// Close of a read-only log did not close the state file.
func TestReadOnlyCloseReleasesTheState(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{}, 1)
	u.opts.SegmentBytes = 4096
	require.NoError(t, u.open())
	require.NoError(t, u.append(2))
	require.NoError(t, u.close())
	l, err := openFS(s, sim.Dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
}

// An Open that failed on a missing segment left open the segments that it had read before.
func TestMissingSegmentReleasesTheOthers(t *testing.T) {
	d := newDamaged(t, true)
	for name := range d.w.Names {
		if strings.HasSuffix(name, logSuffix) {
			w := d.w.Clone()
			w.Drop(name)
			s := sim.NewFS(w, true)
			_, err := openFS(s, sim.Dir, &d.opts)
			require.ErrorIs(t, err, ErrCorrupt)
			require.Empty(t, s.Left())
		}
	}
}

// Open trusted a .timeindex that had lost its last entries, and OffsetForTime missed records.
func TestTimeIndexWithoutItsLastEntries(t *testing.T) {
	d := newDamaged(t, true)
	for _, name := range d.w.Sorted() {
		if !strings.HasSuffix(name, timeSuffix) {
			continue
		}
		for size := 0; size < len(d.w.Get(name)); size += 12 {
			what := filepath.Join(name, "cut")
			out := d.check(what, func(w *sim.World) { w.Put(name, d.w.Get(name)[:size]) })
			d.complete(what, out)
			require.Equal(t, d.w.Get(name), out.after.Get(name), what)
		}
	}
}

// The previous process may have been killed before it synced the name of a new segment. Open must sync the name before the state
// file counts that segment.
func TestNamesAreSyncedBeforeTheStateCountsThem(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
	require.NoError(t, u.open())
	require.NoError(t, u.append(1))
	s.Kill()
	ignore(u.log.Close())
	x := newCrasher(u.opts, true, 1)
	x.singles, x.randoms, x.inner, x.depth = -1, 6, 30, 1
	require.NoError(t, x.explore(sim.NewWorld(), s.Ops, 0, newOracle(0)))
}

// lateFS calls late once, between the next listing and the caller's use of it.
type lateFS struct {
	*sim.FS
	late func()
}

func (l *lateFS) List(dir string) ([]string, error) {
	names, err := l.FS.List(dir)
	if late := l.late; late != nil {
		l.late = nil
		late()
	}
	return names, err
}

// The Open of a read-only log showed a start above its end if the writer meanwhile deleted all the listed segments.
func TestReadOnlyBehindADeletion(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
	require.NoError(t, u.open())
	require.NoError(t, u.append(2))
	late := &lateFS{s, func() {
		require.NoError(t, u.deleteBefore(u.end()))
		require.NoError(t, u.append(1))
		require.Eventually(t, func() bool { _, err := s.Stat(fileName(0, logSuffix)); return err != nil }, 10*time.Second, time.Millisecond)
	}}
	l, err := openFS(late, sim.Dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	got, err := readLog(l)
	require.NoError(t, err)
	require.NoError(t, u.o.check(got, false))
	require.NoError(t, l.Close())
	require.NoError(t, u.close())
	require.Empty(t, s.Left())
}

// The deletion of an unsealed segment moved the point where recovery starts to the next segment, whose name was not synced
// yet, so the state file counted a segment that a power cut took away.
func TestDeletionBeforeTheSealSyncsNames(t *testing.T) {
	for _, full := range []bool{false, true} {
		s := sim.NewFS(sim.NewWorld(), true)
		u := newSimUser(s, Options{SegmentBytes: 4096, Flush: FlushNone}, 1)
		require.NoError(t, u.open())
		require.NoError(t, u.append(2))
		if full { // there is no space for indexes, so the segment can't be sealed
			s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
				if (kind == sim.Create || kind == sim.Write) && strings.Contains(path, "index") {
					return &sim.Fault{Err: syscall.ENOSPC}
				}
				return nil
			})
		}
		require.NoError(t, u.deleteBefore(u.end()))
		require.NoError(t, u.append(1))
		require.Eventually(t, func() bool { _, err := s.Stat(fileName(0, logSuffix)); return err != nil }, 10*time.Second, time.Millisecond)
		s.Kill()
		ignore(u.log.Close())
		x := newCrasher(u.opts, true, 1)
		x.singles, x.randoms, x.inner, x.depth = -1, 6, 4, 1
		require.NoError(t, x.explore(sim.NewWorld(), s.Ops, 0, newOracle(0)), "disk full %v", full)
	}
}

// If the write of the state file failed, a second DeleteBefore counted the same deletion again. After a kill, the state file
// counted fewer segments than there were.
func TestDeleteBeforeAgainAfterAFailedNote(t *testing.T) {
	for nth := 1; ; nth++ {
		s := sim.NewFS(sim.NewWorld(), true)
		u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
		require.NoError(t, u.open())
		for u.log.Stats().Segments < 4 {
			require.NoError(t, u.append(2))
		}
		require.NoError(t, u.close()) // seals all segments
		require.NoError(t, u.open())
		count := 0
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if (kind == sim.Write || kind == sim.Flush) && filepath.Base(path) == stateName {
				if count++; count == nth {
					return &sim.Fault{Err: syscall.EIO}
				}
			}
			return nil
		})
		offset := u.end() - 3
		first := u.log.DeleteBefore(offset)
		s.SetFault(nil)
		second := u.log.DeleteBefore(offset + 1)
		w := s.Kill()
		ignore(u.log.Close())
		l, err := openFS(sim.NewFS(w, true), sim.Dir, &u.opts)
		require.NoError(t, err, "operation %d: %v, then %v", nth, first, second)
		got, err := readLog(l)
		require.NoError(t, err)
		require.Equal(t, u.end(), got.end)
		require.LessOrEqual(t, got.start, offset+1)
		if second == nil {
			require.Equal(t, offset+1, got.start)
		}
		require.NoError(t, l.Close())
		if len(s.Faults) == 0 {
			break
		}
	}
}

// If the write of the state file failed for a seal, later writes did not count it either. After a kill, there was one segment
// more than the state file counted.
func TestSealAfterAFailedNote(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	u := newSimUser(s, Options{SegmentBytes: 4096, Flush: FlushNone}, 1)
	require.NoError(t, u.open())
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Write && filepath.Base(path) == stateName {
			return &sim.Fault{Err: syscall.EIO}
		}
		return nil
	})
	sealed := func(n int64) {
		for n += u.log.Stats().Seals; u.log.Stats().Seals < n; {
			require.NoError(t, u.append(2))
		}
	}
	sealed(2)
	s.SetFault(nil)
	sealed(2)
	require.NoError(t, u.sync())
	w := s.Kill()
	ignore(u.log.Close())
	l, err := openFS(sim.NewFS(w, true), sim.Dir, &u.opts)
	require.NoError(t, err)
	got, err := readLog(l)
	require.NoError(t, err)
	require.Equal(t, u.end(), got.end)
	require.NoError(t, l.Close())
}

// The power may fail after the intent of a Reset or a TruncateTo reaches the disk and before the name of the last segment does.
// That segment is then seglog.next; the Reset did not remove it, and a later Open took it for the end of the log in place of newer
// records.
func TestInterruptedCutOfASegmentThatLostItsName(t *testing.T) {
	for _, reset := range []bool{true, false} {
		s := sim.NewFS(sim.NewWorld(), true)
		o := Options{SegmentBytes: 4096}
		u := newSimUser(s, o, 1)
		require.NoError(t, u.open())
		for u.log.Stats().Segments < 3 {
			require.NoError(t, u.append(2))
		}
		last, end := u.log.view.Load().bases()[2], u.log.Offsets().End
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind == sim.Remove && filepath.Ext(path) == logSuffix {
				s.Dead = true
				return &sim.Fault{Err: sim.ErrDead}
			}
			return nil
		})
		start := int64(0)
		if reset {
			start = last - 1
			require.Error(t, u.log.Reset(last-1))
		} else {
			require.Error(t, u.log.TruncateTo(last-1))
		}
		w := s.Kill()
		ignore(u.log.Close())
		lost := false
		for path, node := range w.Names {
			if filepath.Base(path) == fileName(last, logSuffix) {
				delete(w.Names, path)
				w.Names[filepath.Join(filepath.Dir(path), nextName)] = node
				lost = true
			}
		}
		require.True(t, lost)
		s = sim.NewFS(w, true)
		l, err := openFS(s, sim.Dir, &o)
		require.NoError(t, err)
		require.Equal(t, Offsets{Start: start, RecoveryPoint: last - 1, HighWatermark: last - 1, End: last - 1}, l.Offsets())
		_, _, left, err := l.unnamedBase()
		require.NoError(t, err)
		require.False(t, left)
		for l.Offsets().End < end+2 {
			_, err = l.Append(Record{Value: []byte("after the cut")})
			require.NoError(t, err)
			require.Positive(t, lastEpoch(t, l), "those that the cut removed had 0")
		}
		s = sim.NewFS(s.Kill(), true)
		ignore(l.Close())
		l, err = openFS(s, sim.Dir, &o)
		require.NoError(t, err)
		require.Equal(t, end+2, l.Offsets().End)
		for r, err := range l.Records(last - 1) {
			require.NoError(t, err)
			require.Equal(t, "after the cut", string(r.Value))
		}
		require.NoError(t, l.Close())
	}
}

// The next Open recognizes the segments that a deletion could not remove, because they lie below the start. A Reset to a lower
// offset must remove them first: the next Open took them for segments of another log, and refused.
func TestResetBelowLeftoversOfADeletion(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	o := Options{SegmentBytes: 4096}
	u := newSimUser(s, o, 1)
	require.NoError(t, u.open())
	for u.log.Stats().Segments < 4 {
		require.NoError(t, u.append(2))
	}
	bases := u.log.view.Load().bases()
	require.NoError(t, u.log.Close())
	require.NoError(t, u.open())
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Remove && filepath.Base(path) == fileName(bases[1], logSuffix) {
			return &sim.Fault{Err: syscall.EINTR}
		}
		return nil
	})
	require.ErrorIs(t, u.log.DeleteBefore(bases[3]), syscall.EINTR)
	require.Equal(t, bases[3], u.log.Offsets().Start)
	require.ErrorIs(t, u.log.Reset(3), syscall.EINTR)
	require.Equal(t, bases[3], u.log.Offsets().Start)
	s.SetFault(nil)
	require.NoError(t, u.log.Reset(3))
	require.NoError(t, u.log.Close())
	l, err := openFS(s, sim.Dir, &o)
	require.NoError(t, err)
	require.Equal(t, Offsets{Start: 3, RecoveryPoint: 3, HighWatermark: 3, End: 3}, l.Offsets())
	require.NoError(t, l.Close())
}

// A cut removes the later segments from the last one backwards, so that an interrupted cut leaves no hole even for a reader that
// ignores the state file, such as a Kafka broker.
func TestInterruptedTruncateToLeavesNoHole(t *testing.T) {
	for nth := 1; nth <= 3; nth++ {
		s := sim.NewFS(sim.NewWorld(), true)
		u := newSimUser(s, Options{SegmentBytes: 4096}, 1)
		require.NoError(t, u.open())
		for u.log.Stats().Segments < 5 {
			require.NoError(t, u.append(2))
		}
		segs, err := u.log.Segments()
		require.NoError(t, err)
		var bases []string
		for _, info := range segs {
			bases = append(bases, fileName(info.Base, logSuffix))
		}
		removals := 0
		s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
			if kind != sim.Remove || !strings.HasSuffix(path, logSuffix) {
				return nil
			}
			if removals++; removals < nth {
				return nil
			}
			return &sim.Fault{Err: syscall.EIO}
		})
		require.ErrorIs(t, u.log.TruncateTo(1), ErrFailed)
		names, err := s.List(sim.Dir)
		require.NoError(t, err)
		left := slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, logSuffix) }) // there may be other files, such as seglog.next
		slices.Sort(left)
		require.Equal(t, bases[:len(left)], left)
		require.Len(t, left, len(bases)-nth+1)
		ignore(u.log.Close())

		require.NoError(t, s.Remove(filepath.Join(sim.Dir, stateName)))
		l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 4096})
		require.NoError(t, err)
		next := l.Offsets().Start
		for rec, err := range l.Records(Oldest) {
			require.NoError(t, err)
			require.Equal(t, next, rec.Offset)
			next++
		}
		require.Equal(t, l.Offsets().End, next)
		require.Greater(t, next, segs[len(left)-1].Base)
		require.NoError(t, l.Close())
	}
}
