//go:build linux

// Soak lets a log live through what a service does to it in a year: 8 writers, 32 readers at all distances, followers in
// this process and in others, rolls and retention all the time, random truncation on a second log. It runs twice side by
// side, once in a process that is killed (kill -9) every few seconds and once in one that is not. It ends with status 1
// if anything acknowledged is lost, anything else comes to light, or memory, descriptors or mappings of a process that
// lives throughout grow.
//
//	go run ./torture/soak -for 20m
//
// It prints a line each half minute, and at the end what was done and the slope of everything that was sampled.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/seglog/seglog"
)

const (
	valueBytes  = 4 << 10 // at most
	writers     = 8
	readers     = 32
	killedEvery = 5 * time.Second
)

// The settings of the logs: they roll a few times a second, the one that is cut also by age, and retention has as much to do.
func mainOptions(policy seglog.FlushPolicy) *seglog.Options {
	o := &seglog.Options{Flush: policy, SegmentBytes: 1 << 20, RetentionBytes: 16 << 20, MaxOpenSegments: 8, Logger: problems()}
	if policy == seglog.FlushAsync {
		o.FlushInterval, o.FlushBytes = 50*time.Millisecond, 256<<10
	}
	return o
}

func cutOptions(policy seglog.FlushPolicy) *seglog.Options {
	o := mainOptions(policy)
	o.SegmentBytes, o.RetentionBytes, o.SegmentAge = 64<<10, 1<<20, 200*time.Millisecond
	return o
}

// problems logs what an operator would look into, not the torn tails and rolls that are the day's work here.
func problems() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

func main() {
	length := flag.Duration("for", time.Minute, "how long")
	dir := flag.String("dir", "", "where the logs go; default: a temporary directory, removed at the end")
	role := flag.String("role", "", "part of a child process")
	run := flag.Int("run", 0, "number of a writing child")
	policy := flag.Int("policy", 0, "flush policy of a writing child")
	pace := flag.Duration("pace", 40*time.Millisecond, "what each writer rests on average between two appends")
	flag.Parse()
	var err error
	switch *role {
	case "":
		err = coordinate(*length, *dir, *pace)
	case "write":
		err = write(*dir, *run, seglog.FlushPolicy(*policy), *pace)
	case "follow":
		err = follow(*dir)
	case "mirror":
		err = mirror(*dir)
	default:
		err = fmt.Errorf("no such role: %s", *role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", *role, err)
		os.Exit(1)
	}
}

func coordinate(length time.Duration, dir string, pace time.Duration) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "seglog-soak-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	s := &samples{begun: time.Now()}
	killed := newSide("killed", filepath.Join(dir, "killed"), pace/4, s) // more is under way when it is killed
	steady := newSide("steady", filepath.Join(dir, "steady"), pace, s)
	begun := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, 3)
	each := func(i int, f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if errs[i] = f(ctx); errs[i] != nil {
				cancel() // no use to go on
			}
		}()
	}
	each(0, killed.killAgainAndAgain)
	each(1, steady.runOnce)
	each(2, func(ctx context.Context) error {
		for t := time.NewTicker(30 * time.Second); ; {
			select {
			case <-t.C:
				fmt.Printf("%v: %v; %v\n", time.Since(begun).Round(time.Second), killed, steady)
			case <-ctx.Done():
				t.Stop()
				return nil
			}
		}
	})
	wg.Wait()
	fmt.Printf("after %v:\n  %v\n  %v\n", time.Since(begun).Round(time.Second), killed, steady)
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return s.judge(os.Stdout)
}

// closeLog keeps the first error.
func closeLog(c io.Closer, err *error) {
	if e := c.Close(); *err == nil {
		*err = e
	}
}
