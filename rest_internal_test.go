package seglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
)

// An idle log must come to rest without being told to, and rest until something is appended.
func TestIdleLogRests(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{Flush: FlushNone})
	var due dueTimes
	appendNumbered(t, l)
	require.LessOrEqual(t, l.keep(&due), restAfter)
	appendNumbered(t, l)
	due.rest = time.Now()
	require.Greater(t, l.keep(&due), restAfter/2, "something was appended meanwhile")
	require.False(t, l.atRest())
	due.rest = time.Now()
	l.keep(&due)
	require.True(t, l.atRest())
	require.EqualValues(t, 2, l.Offsets().RecoveryPoint, "what was not flushed is flushed first")
	require.True(t, l.state.isOpen(), "it has a note that is not flushed")
	due.stateFile, due.rest = time.Now(), time.Now()
	require.Zero(t, l.keep(&due), "nothing is left to do")
	require.False(t, l.state.isOpen())
	require.Zero(t, l.keep(&due))

	kicked := false
	l.opened.first = func() { kicked = true }
	_, err := l.Read(0)
	require.NoError(t, err)
	require.True(t, kicked)
	require.Positive(t, l.keep(&due))
	for range 2 {
		due.cool = time.Now()
		l.keep(&due)
	}
	require.Zero(t, l.keep(&due))
	require.Zero(t, l.Stats().OpenSegments, "the last segment is closed once nobody reads it")
	require.NoError(t, l.DeleteBefore(1))
	require.True(t, l.state.isOpen())
	require.Positive(t, l.keep(&due))
	due.rest = time.Now()
	require.Zero(t, l.keep(&due))
	require.False(t, l.state.isOpen(), "the state file is closed again")
	appendNumbered(t, l)
	require.False(t, l.atRest())
	require.Positive(t, l.keep(&due))
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
	require.Empty(t, s.Misuse)
}

// Readers that began while the log was at rest must go on to what is appended then.
func TestReadersOfALogAtRestGoOn(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
			dir := t.TempDir()
			o := &Options{Flush: policy, SegmentBytes: 64 << 10}
			l, err := Open(dir, o)
			require.NoError(t, err)
			appendValues(t, l, 100)
			if reopen {
				require.NoError(t, l.Close())
				l, err = Open(dir, o)
				require.NoError(t, err)
			}
			require.NoError(t, l.rest(false))
			h, err := l.view.Load().segs[0].pin(&l.env)
			require.NoError(t, err)
			sec, err := l.Section(0, 1<<20)
			require.NoError(t, err)
			var n int64
			ctx, cancel := context.WithCancel(context.Background())
			for r, err := range l.Follow(ctx, 0) {
				require.NoError(t, err)
				require.Equal(t, n, r.Offset)
				if n++; n == 50 {
					appendValues(t, l, 300)
				}
				if n == 400 {
					break
				}
			}
			cancel()
			require.EqualValues(t, 400, n)
			s := l.view.Load().segs[0]
			var w window
			limit := s.stored.load()
			f, ok, err := s.locate(&l.env, h, &w, 399, limit) // by the handle from before
			require.NoError(t, err)
			require.True(t, ok)
			require.LessOrEqual(t, f.base, int64(399))
			require.NoError(t, h.unref())
			require.NoError(t, l.TruncateTo(10))
			var sent bytes.Buffer
			_, err = sec.WriteTo(&sent)
			require.NoError(t, err)
			require.NoError(t, sec.Close())
			last := int64(-1)
			for b := batch(sent.Bytes()); len(b) > 0; b = b[b.size():] {
				require.Empty(t, b[:b.size()].checkCRC(), "a cut must not change what a section holds")
				last = b.last()
			}
			require.EqualValues(t, 99, last)
			require.NoError(t, l.Close())
		}
	}
}

// appendValues appends n records, one by one.
func appendValues(t testing.TB, l *Log, n int) {
	t.Helper()
	for range n {
		_, err := l.Append(Record{Value: []byte("a value of some length")})
		require.NoError(t, err)
	}
}

// Open of a log that was closed must change nothing on the disk, and nor must Close after it.
func TestClosedLogIsLeftAlone(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	o := &Options{SegmentBytes: 10_000}
	l, err := openFS(s, sim.Dir, o)
	require.NoError(t, err)
	appendValues(t, l, 200)
	require.NoError(t, l.Close())
	ops := len(s.Ops)
	for range 3 {
		l, err = openFS(s, sim.Dir, o)
		require.NoError(t, err)
		got, err := readLog(l)
		require.NoError(t, err)
		require.Len(t, got.recs, 200)
		require.NoError(t, l.Close())
	}
	require.Empty(t, s.Ops[ops:])
	s.World.Drop(fileName(l.view.Load().segs[0].base, indexSuffix))
	last := l.view.Load().segs[len(l.view.Load().segs)-1].base
	s.World.Drop(fileName(last, indexSuffix))
	l, err = openFS(s, sim.Dir, o)
	require.NoError(t, err)
	_, err = l.Read(last)
	require.NoError(t, err)
	require.EqualValues(t, 1, l.Stats().IndexRebuilds)
	appendValues(t, l, 1)
	_, err = l.Read(l.Offsets().End - 1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
	require.Empty(t, s.Misuse)
}

// A call that can't wake the log must say why, change nothing, and work once the cause is gone.
func TestWakeFails(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		for _, kind := range []sim.Kind{sim.Open, sim.Reserve, sim.Stat, sim.Map, sim.Write, sim.Read} {
			for _, cause := range []error{syscall.ENOSPC, syscall.EMFILE, syscall.EIO} {
				what := fmt.Sprint(reopen, " ", kind, " ", cause)
				s := sim.NewFS(sim.NewWorld(), true)
				o := Options{SegmentBytes: 64 << 10}
				l, _ := withoutWorkers(t, s, o)
				appendValues(t, l, 10)
				if reopen {
					require.NoError(t, l.Close())
					l, _ = withoutWorkers(t, s, o)
				}
				require.NoError(t, l.state.flush())
				require.NoError(t, l.rest(false), what)
				require.True(t, l.atRest(), what)
				s.SetFault(func(k sim.Kind, _ int, path string) *sim.Fault {
					if k == kind && (k != sim.Write || filepath.Base(path) == stateName) {
						return &sim.Fault{Err: cause}
					}
					return nil
				})
				_, err := l.Append(Record{Value: []byte("more")})
				s.SetFault(nil)
				end := int64(10)
				if err == nil {
					end++
				} else {
					require.ErrorIs(t, err, cause, what)
					require.ErrorContains(t, err, sim.Dir, what)
				}
				if errors.Is(err, ErrFailed) {
					require.NotErrorIs(t, err, syscall.EMFILE, what)
					require.ErrorIs(t, l.Close(), ErrFailed)
					l, err = openFS(s, sim.Dir, &o)
					require.NoError(t, err, what)
				}
				require.Equal(t, end, l.Offsets().End, what)
				appendValues(t, l, 1)
				require.NoError(t, l.Close(), what)
				require.Empty(t, s.Left(), what)
				require.Empty(t, s.Misuse, what)
				l, err = openFS(s, sim.Dir, &o)
				require.NoError(t, err)
				got, err := readLog(l)
				require.NoError(t, err, what)
				require.Len(t, got.recs, int(end+1), what)
				require.NoError(t, l.Close())
			}
		}
	}
}

// Appends must not go on with a time index that is older than the offset index: the time of the segment would be too low, and
// retention delete what is young.
func TestOldTimeIndexIsBuiltAnew(t *testing.T) {
	for _, read := range []bool{false, true} {
		s := sim.NewFS(sim.NewWorld(), true)
		o := &Options{Flush: FlushNone, SegmentBytes: 1 << 20}
		at := func(l *Log, ms int64, n int) {
			for range n {
				_, err := l.Append(Record{Value: make([]byte, 1000), Time: time.UnixMilli(ms)})
				require.NoError(t, err)
			}
		}
		l, err := openFS(s, sim.Dir, o)
		require.NoError(t, err)
		at(l, 100, 3)
		require.NoError(t, l.Close())
		old := bytes.Clone(s.World.Get(fileName(0, timeSuffix)))
		l, err = openFS(s, sim.Dir, o)
		require.NoError(t, err)
		at(l, 5000, 1)
		at(l, 50, 60)
		require.NoError(t, l.Close())
		s.World.Put(fileName(0, timeSuffix), old)
		l, err = openFS(s, sim.Dir, o)
		require.NoError(t, err)
		if read {
			_, err = l.Read(10)
			require.NoError(t, err)
		}
		at(l, 60, 1)
		got, err := l.OffsetForTime(time.UnixMilli(3000))
		require.NoError(t, err)
		require.EqualValues(t, 3, got)
		infos, err := l.Segments()
		require.NoError(t, err)
		require.EqualValues(t, 5000, infos[0].MaxTime.UnixMilli())
		require.NoError(t, l.Close())
		r := verifyWorld(t, s.World, nil)
		require.Empty(t, r.Problems)
	}
}

// Nor must a cut.
func TestCutBesideAnOldTimeIndex(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	var old []byte
	for _, interval := range []int{4096, 64} { // an index that is built anew may be denser
		for _, suffix := range []string{indexSuffix, timeSuffix} {
			s.World.Drop(fileName(0, suffix))
		}
		l, err := openFS(s, sim.Dir, &Options{IndexBytes: interval})
		require.NoError(t, err)
		for i := range 40 {
			if l.Offsets().End < 40 {
				_, err = l.Append(Record{Time: time.UnixMilli(1000 + int64(i)), Value: make([]byte, 100)})
			}
			require.NoError(t, err)
		}
		_, err = l.Append(Record{Time: time.UnixMilli(1000), Value: make([]byte, 100)})
		require.NoError(t, err)
		require.NoError(t, l.Close())
		if old == nil {
			old = bytes.Clone(s.World.Get(fileName(0, timeSuffix)))
		}
	}
	s.World.Put(fileName(0, timeSuffix), old)
	l, err := openFS(s, sim.Dir, &Options{IndexBytes: 64})
	require.NoError(t, err)
	got, err := l.OffsetForTime(time.UnixMilli(1027))
	require.NoError(t, err)
	require.EqualValues(t, 27, got)
	require.NoError(t, l.TruncateTo(30))
	for range 2 {
		got, err = l.OffsetForTime(time.UnixMilli(1027))
		require.NoError(t, err)
		require.EqualValues(t, 27, got)
		infos, err := l.Segments()
		require.NoError(t, err)
		require.EqualValues(t, 1029, infos[0].MaxTime.UnixMilli())
		require.NoError(t, l.Close())
		l, err = openFS(s, sim.Dir, nil)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
}

// A log that rests after each append must not make the next segment ready each time, which takes as much writing as a segment.
func TestRestsNearTheEndOfASegment(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: 64 << 10})
	require.NoError(t, err)
	for l.end.Load() < 40 {
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
	}
	created := 0
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Create && filepath.Base(path) == nextName {
			created++
		}
		return nil
	})
	for range 20 {
		require.NoError(t, l.rest(false))
		_, err := l.Append(Record{Value: make([]byte, 1000)})
		require.NoError(t, err)
		require.NoError(t, l.prepare())
	}
	s.SetFault(nil)
	require.LessOrEqual(t, created, 2)
	require.NoError(t, l.Close())
	require.Empty(t, s.Left())
}

// openedAgain returns a log of n records that was closed and is open again, and not written to since.
func openedAgain(t *testing.T, n int) (*sim.FS, *Options, *Log) {
	t.Helper()
	s, o := sim.NewFS(sim.NewWorld(), true), &Options{SegmentBytes: 4096}
	l, err := openFS(s, sim.Dir, o)
	require.NoError(t, err)
	appendValues(t, l, n)
	require.NoError(t, l.Close())
	l, err = openFS(s, sim.Dir, o)
	require.NoError(t, err)
	return s, o, l
}

// The first append to a log that was closed must not bring segments back into the state file that a deletion beside it has taken out.
func TestDeletionBesideTheFirstAppend(t *testing.T) {
	s, o, l := openedAgain(t, 200)
	segs := l.view.Load().segs
	require.Greater(t, len(segs), 3)
	l.changing.Lock()
	require.NoError(t, l.state.commit(func(st *state) { // as moveStart does, which then waits for the writer
		st.start = segs[2].base
		st.deleted((&view{segs[:2]}).bases(), segs[2].base)
	}))
	appendValues(t, l, 1)
	l.state.mu.Lock()
	m := l.state.cur.manifest
	l.state.unlock()
	require.Empty(t, m.differs((&view{segs[2:]}).bases()))
	l.mu.Lock()
	l.view.Store(&view{l.view.Load().segs[2:]})
	raise(&l.start, segs[2].base)
	l.mu.Unlock()
	require.NoError(t, l.drop(segs[:2]))
	l.changing.Unlock()
	require.NoError(t, l.Close())
	l, err := openFS(s, sim.Dir, o)
	require.NoError(t, err)
	require.Equal(t, segs[2].base, l.Offsets().Start)
	require.NoError(t, l.Close())
}

// A log at rest must not hold the memory of segments that are sealed, nor room for index entries to come.
func TestRestReleasesTheIndexes(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{Flush: FlushNone, SegmentBytes: 64 << 10})
	require.NoError(t, err)
	for l.Stats().Rolls < 3 {
		appendValues(t, l, 1)
	}
	require.Eventually(t, func() bool { return l.Stats().Seals == 3 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.rest(false))
	require.True(t, l.atRest())
	require.Zero(t, cap(l.writer.sealing))
	x := l.writer.tail.x
	require.Len(t, *x.offsets.b.Load(), len(x.offsets.bytes()))
	require.Len(t, *x.times.b.Load(), len(x.times.bytes()))
	appendValues(t, l, 3000)
	_, err = l.Read(l.Offsets().End - 1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Empty(t, verifyWorld(t, s.World, nil).Problems)
}

// Damage to one slot of the state file must not keep a log at rest from noting anything.
func TestStateDamagedAtRest(t *testing.T) {
	for slot := range 2 {
		for _, reopen := range []bool{false, true} {
			s := sim.NewFS(sim.NewWorld(), true)
			l, _ := withoutWorkers(t, s, Options{})
			appendValues(t, l, 10)
			if reopen {
				require.NoError(t, l.Close())
				l, _ = withoutWorkers(t, s, Options{})
			}
			require.NoError(t, l.state.flush())
			require.NoError(t, l.rest(false))
			require.False(t, l.state.isOpen())
			s.World.Get(stateName)[slot*stateSlotGap+40] ^= 1
			require.NoError(t, l.DeleteBefore(1))
			appendValues(t, l, 1)
			require.NoError(t, l.TruncateTo(5))
			require.NoError(t, l.Close())
			require.Empty(t, verifyWorld(t, s.World, nil).Problems)
		}
	}
}

// A seal must flush the index files also if Close wrote them, which does not flush those of a small segment.
func TestSealFlushesIndexesOfAClosedLog(t *testing.T) {
	s, _, l := openedAgain(t, 3)
	_, err := l.Append(Record{Value: make([]byte, 3900)})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return l.Stats().Seals == 1 }, 10*time.Second, time.Millisecond)
	w := cutNamed(t, s.Kill(), "nothing") // the preparer may still be at work
	require.NotEmpty(t, w.Get(fileName(0, timeSuffix)), "the time index is on the disk")
	_ = l.Close()
}

// A caller that found before Close that it needs a flush, and asks for it only afterwards, must not open the state file again: its lock
// would keep the next Open out.
func TestFlushThatBeginsAfterClose(t *testing.T) {
	for _, policy := range []FlushPolicy{FlushSync, FlushNone} {
		s := sim.NewFS(sim.NewWorld(), true)
		l, err := openFS(s, sim.Dir, &Options{Flush: policy})
		require.NoError(t, err)
		appendValues(t, l, 3)
		asked := false
		require.NoError(t, l.flushes.To(3, func() (bool, error) {
			if asked {
				return l.durable.Load() >= 3, nil
			}
			asked = true
			require.NoError(t, l.Close())
			return false, nil
		}))
		require.Empty(t, s.Left())
		require.Empty(t, s.Misuse)
		require.ErrorIs(t, l.state.note(), fs.ErrClosed)
		require.Empty(t, s.Left())
		require.Equal(t, ErrClosed, l.Sync())
	}
}

// A note of what was flushed that finds no descriptor must be written once there is one, without another append: readers in other
// processes go by it.
func TestNoteWithoutADescriptor(t *testing.T) {
	s := sim.NewFS(sim.NewWorld(), true)
	l, _ := withoutWorkers(t, s, Options{})
	r, err := openFS(s, sim.Dir, &Options{ReadOnly: true})
	require.NoError(t, err)
	appendValues(t, l, 3)
	var due dueTimes
	now := time.Now()
	keep := func() {
		l.keepState(&due, now)
		now = now.Add(2 * stateFlushInterval)
	}
	require.NoError(t, l.state.rest(true))
	s.SetFault(fails(sim.Open, stateName, syscall.EMFILE))
	appendValues(t, l, 1)
	for range 4 {
		keep()
	}
	require.False(t, l.state.isOpen())
	s.SetFault(nil)
	keep()
	require.Eventually(t, func() bool { return r.Offsets().HighWatermark == 4 }, 10*time.Second, time.Millisecond)
	keep()
	require.NoError(t, l.state.rest(false))
	require.False(t, l.state.isOpen(), "everything is flushed")
	require.NoError(t, r.Close())
	require.NoError(t, l.Close())
}

// A start that a log shows must never go back: not if the process is killed in a deletion from a log that was closed, before the start is
// flushed, the log is opened again, and the power is cut.
func TestKilledInADeletionFromAClosedLog(t *testing.T) {
	s, o, l := openedAgain(t, 50)
	var killed []*sim.World
	s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
		if kind == sim.Flush && filepath.Base(path) == stateName {
			killed = append(killed, s.World.Clone())
		}
		return nil
	})
	require.NoError(t, l.DeleteBefore(7))
	s.SetFault(nil)
	require.NoError(t, l.Close())
	require.NotEmpty(t, killed)
	for i, w := range append(killed, s.World) {
		again := sim.NewFS(w, true)
		l, err := openFS(again, sim.Dir, o)
		require.NoError(t, err)
		shown := l.Offsets()
		cut := sim.NewFS(cutNamed(t, again.Kill(), "nothing"), true)
		ignore(l.Close())
		l, err = openFS(cut, sim.Dir, o)
		require.NoError(t, err)
		require.GreaterOrEqual(t, l.Offsets().Start, shown.Start, "killed at flush %d", i)
		require.Equal(t, shown.End, l.Offsets().End)
		require.NoError(t, l.Close())
	}
	l, err := openFS(s, sim.Dir, o)
	require.NoError(t, err)
	require.True(t, l.untouched(), "the log is left as it was closed again")
	require.NoError(t, l.Close())
}
