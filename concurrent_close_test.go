package seglog_test

import (
	"context"
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
