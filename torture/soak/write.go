//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

// report is one line to the parent, by one write.
func report(format string, args ...any) { os.Stdout.WriteString(fmt.Sprintf(format+"\n", args...)) }

// reportHeap tells the parent what is alive in memory, which is what the last collection left, and how many goroutines
// there are.
func reportHeap(ctx context.Context) error {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for t := time.NewTicker(time.Second); ; {
		select {
		case <-t.C:
			metrics.Read(live)
			report("heap %d %d", live[0].Value.Uint64(), runtime.NumGoroutine())
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// untilStdinCloses is how the parent tells a child to end in order.
func untilStdinCloses() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// write is the process with the two logs that are written. It says "open" once they are, and begins when told to.
func write(dir string, run int, policy seglog.FlushPolicy, pace time.Duration) (err error) {
	main, err := seglog.Open(filepath.Join(dir, "main"), mainOptions(policy))
	if err != nil {
		return err
	}
	defer closeLog(main, &err)
	second, err := seglog.Open(filepath.Join(dir, "cut"), cutOptions(policy))
	if err != nil {
		return err
	}
	defer closeLog(second, &err)
	report("open")
	if _, err := bufio.NewReaderSize(os.Stdin, 16).ReadString('\n'); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(untilStdinCloses())
	var wg sync.WaitGroup
	errs := make(chan error, 1)
	start := func(f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(ctx); err != nil {
				select {
				case errs <- err:
				default:
				}
				cancel()
			}
		}()
	}
	start(reportHeap)
	for w := range writers {
		start(func(ctx context.Context) error { return appendTo(ctx, main, run, w, pace) })
	}
	start(func(ctx context.Context) error { return change(ctx, second, run, pace) })
	for i := range readers {
		start(func(ctx context.Context) error { return readAt(ctx, main, float64(i)/(readers-1), seeded(run, i)) })
	}
	for i := range 4 {
		start(func(ctx context.Context) error { return readAt(ctx, second, float64(i)/3, seeded(run, 100+i)) })
	}
	for range 2 {
		start(func(ctx context.Context) error { return followOn(ctx, main) })
	}
	start(func(ctx context.Context) error { return followOn(ctx, second) })
	start(func(ctx context.Context) error { return serve(ctx, main, filepath.Join(dir, "socket")) })
	wg.Wait()
	cancel()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func seeded(run, i int) *rand.Rand { return rand.New(rand.NewPCG(uint64(run), uint64(i))) }

// rest waits pace on average. It returns false once ctx has ended.
func rest(ctx context.Context, rng *rand.Rand, pace time.Duration) bool {
	select {
	case <-time.After(time.Duration(rng.Int64N(int64(2*pace) + 1))):
		return true
	case <-ctx.Done():
		return false
	}
}

// appendTo is one of the writers.
func appendTo(ctx context.Context, l *seglog.Log, run, w int, pace time.Duration) error {
	rng := seeded(run, 200+w)
	for seq := 1; rest(ctx, rng, pace); seq++ {
		b := proof.Batch{Run: run, Writer: w, Seq: seq}
		base, err := l.Append(b.Records(valueBytes)...)
		if err != nil {
			return fmt.Errorf("append: %w", err)
		}
		report("main %d %d %d", w, seq, base)
	}
	return nil
}

// change appends to the second log and cuts it, each at random.
func change(ctx context.Context, l *seglog.Log, run int, pace time.Duration) error {
	rng := seeded(run, 300)
	for seq := 1; rest(ctx, rng, pace); {
		if rng.IntN(20) > 0 {
			b := proof.Batch{Run: run, Seq: seq}
			base, err := l.Append(b.Records(valueBytes)...)
			if err != nil {
				return fmt.Errorf("append to the second log: %w", err)
			}
			report("cut %d %d", seq, base)
			seq++
			continue
		}
		o := l.Offsets()
		at := o.End - rng.Int64N(1+(o.End-o.Start)/4)
		report("cutting %d", at)
		err := l.TruncateTo(at)
		if errors.Is(err, seglog.ErrOutOfRange) { // retention passed it
			report("cut-not")
			continue
		}
		if err != nil {
			return fmt.Errorf("truncate the second log to %d: %w", at, err)
		}
		report("cut-done %d", at)
	}
	return nil
}
