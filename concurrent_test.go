package seglog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// seenModel knows which records readers may see of a log that many goroutines change at once. The value of each record holds a
// unique serial number. An offset may hold another record only after TruncateTo or Reset.
type seenModel struct {
	l      *seglog.Log
	dir    string
	policy seglog.FlushPolicy
	cuts   atomic.Int64 // the number of times that a cut began or ended: odd while one runs
	serial atomic.Int64
	order  sync.RWMutex // read-locked by appends and locked by cuts, so that no cut comes between an append and its note in acked
	acked  sync.Map     // the serials of acknowledged records that no cut has removed, by offset
	stop   chan struct{}
	failed chan error
}

func (m *seenModel) check(ok bool, format string, args ...any) {
	if !ok {
		select {
		case m.failed <- fmt.Errorf(format, args...):
		default:
		}
	}
}

func (m *seenModel) stopped() bool {
	select {
	case <-m.stop:
		return true
	default:
		return false
	}
}

// allowed reports whether a read may return err during deletions and cuts.
func allowed(err error) bool { return err == nil || errors.Is(err, seglog.ErrOutOfRange) }

func serialValue(serial int64) []byte {
	return fmt.Appendf(nil, "%d %s", serial, bytes.Repeat([]byte{'s'}, int(serial*13%150)))
}

// record checks a record that a reader got: it must be whole and, unless there was a cut in between, the record that was
// acknowledged at its offset.
func (m *seenModel) record(r seglog.Record, cutsBefore int64) (serial int64) {
	_, err := fmt.Sscanf(string(r.Value), "%d ", &serial)
	m.check(err == nil && bytes.Equal(r.Value, serialValue(serial)), "record %d holds %q", r.Offset, r.Value)
	if acked, ok := m.acked.Load(r.Offset); ok && acked.(int64) != serial && cutsBefore%2 == 0 && m.cuts.Load() == cutsBefore {
		m.check(false, "offset %d holds record %d, but record %d was acknowledged there", r.Offset, serial, acked)
	}
	return serial
}

func (m *seenModel) appender(rng *rand.Rand) {
	var records []seglog.Record
	var serials []int64
	for range 1 + rng.IntN(4) {
		serials = append(serials, m.serial.Add(1))
		records = append(records, seglog.Record{Value: serialValue(serials[len(serials)-1])})
	}
	m.order.RLock()
	defer m.order.RUnlock()
	base, err := m.l.Append(records...)
	m.check(err == nil, "append: %v", err)
	for i, s := range serials {
		if _, twice := m.acked.LoadOrStore(base+int64(i), s); twice {
			m.check(false, "offset %d was given out twice", base+int64(i))
		}
	}
	// An acknowledged record must be readable and, under FlushSync, durable.
	o := m.l.Offsets()
	end := base + int64(len(serials))
	m.check(o.HighWatermark >= end, "acknowledged %d, high watermark %d", end, o.HighWatermark)
	m.check(m.policy != seglog.FlushSync || o.RecoveryPoint >= end, "acknowledged %d, recovery point %d", end, o.RecoveryPoint)
	r, err := m.l.Read(base)
	m.check(allowed(err), "read of an acknowledged record: %v", err)
	if err == nil {
		m.check(bytes.Equal(r.Value, serialValue(serials[0])), "read %q, appended %d", r.Value, serials[0])
	} else {
		m.check(m.l.Offsets().Start > base, "acknowledged offset %d is out of range, but was not deleted", base)
	}
}

func (m *seenModel) offset(rng *rand.Rand) int64 {
	o := m.l.Offsets()
	m.check(o.Start <= o.RecoveryPoint && o.RecoveryPoint <= o.HighWatermark && o.HighWatermark <= o.End, "offsets %+v", o)
	return o.Start + rng.Int64N(o.HighWatermark-o.Start+1)
}

func (m *seenModel) reader(rng *rand.Rand) {
	cuts := m.cuts.Load()
	at := m.offset(rng)
	r, err := m.l.Read(at)
	m.check(allowed(err), "read: %v", err)
	if err == nil {
		m.check(r.Offset == at, "asked for %d, got %d", at, r.Offset)
		m.record(r, cuts)
	}
}

func (m *seenModel) walker(rng *rand.Rand) {
	cuts := m.cuts.Load()
	next := m.offset(rng)
	for r, err := range m.l.Records(next) {
		m.check(allowed(err), "walk: %v", err)
		if err != nil {
			return
		}
		m.check(r.Offset == next, "walk: %d after %d", r.Offset, next-1)
		m.record(r, cuts)
		next++
	}
}

func (m *seenModel) follower(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	cuts := m.cuts.Load()
	next := m.offset(rng)
	for r, err := range m.l.Follow(ctx, next) {
		m.check(allowed(err), "follow: %v", err)
		if err != nil {
			return
		}
		m.check(r.Offset == next, "follow: %d after %d", r.Offset, next-1)
		m.record(r, cuts)
		next++
	}
}

func (m *seenModel) transferrer(rng *rand.Rand) {
	cuts := m.cuts.Load()
	s, err := m.l.Section(m.offset(rng), rng.Int64N(20000))
	m.check(allowed(err), "section: %v", err)
	if err != nil {
		return
	}
	defer s.Close()
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	m.check(err == nil && n == s.Len(), "section: %d of %d bytes, %v", n, s.Len(), err)
	m.check(s.Next() <= m.l.Offsets().HighWatermark || cuts%2 == 1 || m.cuts.Load() != cuts, "sent past the high watermark")
	next := s.Base()
	for r, err := range seglog.Decode(&b) {
		m.check(err == nil, "decode: %v", err)
		m.check(r.Offset == next, "section: %d after %d", r.Offset, next-1)
		m.record(r, cuts)
		next++
	}
	m.check(next == s.Next(), "section ends at %d, not at %d", next, s.Next())
}

func (m *seenModel) waiter(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	cuts := m.cuts.Load()
	at := m.offset(rng) + rng.Int64N(10)
	wait := m.l.Wait
	if rng.IntN(2) == 0 {
		wait = m.l.WaitDurable
	}
	err := wait(ctx, at)
	m.check(allowed(err) || errors.Is(err, context.DeadlineExceeded), "wait: %v", err)
	if o := m.l.Offsets(); err == nil && cuts%2 == 0 && m.cuts.Load() == cuts {
		m.check(o.HighWatermark > at, "waited for %d: %+v", at, o)
	}
	_, err = m.l.OffsetForTime(time.Now().Add(-time.Duration(rng.IntN(1000)) * time.Millisecond))
	m.check(allowed(err), "offset for time: %v", err)
	m.l.Stats()
}

func (m *seenModel) deleter(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
	o := m.l.Offsets()
	err := m.l.DeleteBefore(o.Start + rng.Int64N((o.HighWatermark-o.Start)/2+1))
	m.check(allowed(err), "delete: %v", err)
	m.check(m.l.Sync() == nil, "sync")
}

func (m *seenModel) cutter(rng *rand.Rand) {
	time.Sleep(time.Duration(5+rng.IntN(30)) * time.Millisecond)
	m.order.Lock()
	defer m.order.Unlock()
	o := m.l.Offsets()
	m.cuts.Add(1)
	defer m.cuts.Add(1)
	to, err := o.End-rng.Int64N((o.End-o.Start)/4+1), error(nil)
	if rng.IntN(4) == 0 {
		to = o.End + 1000
		err = m.l.Reset(to)
	} else {
		err = m.l.TruncateTo(to)
		if errors.Is(err, seglog.ErrOutOfRange) { // deleted meanwhile
			err, to = nil, o.End
		}
	}
	m.check(err == nil, "cut: %v", err)
	m.check(m.l.Offsets().End == to, "cut to %d, end is %d", to, m.l.Offsets().End)
	m.acked.Range(func(k, _ any) bool {
		if k.(int64) >= to || to > o.End {
			m.acked.Delete(k)
		}
		return true
	})
}

// TestEverythingAtOnce runs all calls concurrently for a few seconds, and checks the records that each reader sees.
func TestEverythingAtOnce(t *testing.T) {
	for _, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := &seglog.Options{Flush: p, SegmentBytes: 16 << 10, IndexBytes: 512, MaxOpenSegments: 3}
			if p == seglog.FlushAsync {
				o.FlushInterval, o.FlushBytes = 3*time.Millisecond, 8<<10
			}
			m := &seenModel{l: open(t, dir, o), dir: dir, policy: p, stop: make(chan struct{}), failed: make(chan error, 1)}
			var wg sync.WaitGroup
			run := func(n int, f func(*rand.Rand)) {
				for i := range n {
					wg.Add(1)
					go func() {
						defer wg.Done()
						rng := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
						for !m.stopped() {
							f(rng)
						}
					}()
				}
			}
			run(4, m.appender)
			run(3, m.reader)
			run(2, m.walker)
			run(2, m.follower)
			run(2, m.transferrer)
			run(2, m.waiter)
			run(1, m.deleter)
			run(1, m.cutter)
			select {
			case err := <-m.failed:
				t.Error(err)
			case <-time.After(2500 * time.Millisecond):
			}
			close(m.stop)
			wg.Wait()
			select {
			case err := <-m.failed:
				t.Error(err)
			default:
			}
			final := m.l.Offsets()
			t.Logf("%d records, %+v", m.serial.Load(), m.l.Stats())
			require.NoError(t, m.l.Close())
			requireReleased(t, dir)
			again := open(t, dir, o)
			require.Equal(t, final.Start, again.Offsets().Start)
			require.Equal(t, final.End, again.Offsets().End)
			next := final.Start
			for r, err := range again.Records(next) {
				require.NoError(t, err)
				require.Equal(t, next, r.Offset)
				serial := m.record(r, m.cuts.Load())
				acked, ok := m.acked.Load(next)
				require.True(t, ok)
				require.Equal(t, acked, serial)
				next++
			}
			require.Equal(t, final.End, next)
		})
	}
}

// With cuts and appends at the same time, the log must hold whole batches in the order of the appends, each record once, and
// without gaps.
func TestCutsBesideAppends(t *testing.T) {
	for _, p := range policies {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 8 << 10})
		var serial atomic.Int64
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					select {
					case <-stop:
						return
					default:
					}
					s := serial.Add(1)
					if _, err := l.Append(seglog.Record{Value: serialValue(2 * s)}, seglog.Record{Value: serialValue(2*s + 1)}); err != nil {
						panic(err)
					}
				}
			}()
		}
		rng := rand.New(rand.NewPCG(8, 8))
		for range 12 {
			time.Sleep(2 * time.Millisecond)
			o := l.Offsets()
			require.NoError(t, l.TruncateTo((o.Start+rng.Int64N(o.End-o.Start+1))/2*2))
		}
		close(stop)
		wg.Wait()
		check := func() {
			t.Helper()
			seen := map[int64]bool{}
			next, last := int64(0), int64(0)
			for r, err := range l.Records(0) {
				require.NoError(t, err)
				require.Equal(t, next, r.Offset)
				var s int64
				_, err = fmt.Sscanf(string(r.Value), "%d ", &s)
				require.NoError(t, err)
				require.Equal(t, serialValue(s), r.Value)
				require.False(t, seen[s], "record %d occurs twice", s)
				seen[s] = true
				require.Equal(t, next%2, s%2)
				if s%2 == 1 {
					require.Equal(t, last+1, s)
				}
				next, last = next+1, s
			}
			require.Equal(t, l.Offsets().End, next)
		}
		check()
		require.NoError(t, l.Close())
		l = open(t, dir, nil)
		check()
	}
}

// Close must end all concurrent calls with ErrClosed, release all resources, and lose no acknowledged record.
func TestCloseUnderLoad(t *testing.T) {
	for _, p := range policies {
		for round := range 3 {
			dir := t.TempDir()
			l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 8 << 10})
			appendN(t, l, 0, 50)
			var acked atomic.Int64
			var wg sync.WaitGroup
			ends := make(chan error, 100)
			run := func(n int, f func() error) {
				for range n {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for {
							if err := f(); err != nil {
								ends <- err
								return
							}
						}
					}()
				}
			}
			run(4, func() error {
				base, err := l.Append(seglog.Record{Value: []byte("v")})
				for err == nil {
					if old := acked.Load(); old > base || acked.CompareAndSwap(old, base+1) {
						break
					}
				}
				return err
			})
			last := func(seq func(func(seglog.Record, error) bool)) (err error) {
				for _, e := range seq {
					err = e
				}
				return err
			}
			run(2, func() error { return last(l.Records(0)) })
			run(2, func() error { return last(l.Follow(context.Background(), 0)) })
			run(2, func() error { return l.Wait(context.Background(), 1<<40) })
			run(2, func() error { return l.WaitDurable(context.Background(), 1<<40) })
			run(1, l.Sync)
			run(1, func() error { _, err := l.Read(3); return err })
			run(1, func() error { _, err := l.OffsetForTime(time.Now()); return err })
			run(1, func() error {
				here, there := connected(t, "tcp")
				defer here.Close()
				go io.Copy(io.Discard, there)
				_, err := l.TransferTo(0, 1<<20, here)
				return err
			})
			run(1, func() error { // a peer that sends nothing
				here, _ := connected(t, "tcp")
				defer here.Close()
				_, err := l.TransferFrom(here, -1)
				return err
			})
			time.Sleep(time.Duration(2+8*round) * time.Millisecond)
			errs := make(chan error, 3)
			for range 3 {
				go func() { errs <- l.Close() }()
			}
			for range 3 {
				require.NoError(t, <-errs)
			}
			wg.Wait()
			for range len(ends) {
				require.ErrorIs(t, <-ends, seglog.ErrClosed)
			}
			requireReleased(t, dir)
			l = open(t, dir, nil)
			require.GreaterOrEqual(t, l.Offsets().End, acked.Load())
			require.NoError(t, l.Close())
		}
	}
}
