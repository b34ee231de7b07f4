package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"
)

const (
	demoAppends = "2000" // a second
	demoTime    = "3s"
)

// demonstrate runs a leader that appends, and a mirror of it that is killed again and again, until the leader closes its
// log. One more run catches up, and then the files must be the same.
func demonstrate(ctx context.Context) error {
	tmp, err := os.MkdirTemp("", "mirror")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	serve := filepath.Join(tmp, "serve.exe")
	build := exec.CommandContext(ctx, "go", "build", "-o", serve, "github.com/seglog/seglog/examples/serve")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build examples/serve: %w\n%s", err, out)
	}
	leaderDir, copyDir := filepath.Join(tmp, "leader"), filepath.Join(tmp, "copy")

	leader, addr, err := startLeader(ctx, serve, "-dir", leaderDir, "-append", demoAppends, "-for", demoTime)
	if err != nil {
		return err
	}
	closed := make(chan error, 1)
	go func() { closed <- leader.Wait() }()
	kills := 0
	for running := true; running; kills++ {
		m := exec.CommandContext(ctx, os.Args[0], "-from", addr, "-dir", copyDir)
		if err := m.Start(); err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(50+rand.IntN(300)) * time.Millisecond):
		case err := <-closed:
			if err != nil {
				return fmt.Errorf("examples/serve: %w", err)
			}
			running = false
		}
		m.Process.Kill()
		m.Wait()
	}
	fmt.Printf("The leader has closed its log. The mirror was killed %d times meanwhile, and each time went on where it was.\n", kills)

	leader, addr, err = startLeader(ctx, serve, "-dir", leaderDir, "-for", "2s")
	if err != nil {
		return err
	}
	last := exec.CommandContext(ctx, os.Args[0], "-from", addr, "-dir", copyDir, "-once")
	last.Stdout, last.Stderr = os.Stdout, os.Stderr
	if err := errors.Join(last.Run(), leader.Wait()); err != nil {
		return err
	}
	return compare(leaderDir, copyDir)
}

// startLeader runs examples/serve and returns once it listens.
func startLeader(ctx context.Context, serve string, args ...string) (*exec.Cmd, string, error) {
	cmd := exec.CommandContext(ctx, serve, append(args, "-listen", "127.0.0.1:0")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	addr := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if addr == "" {
		return nil, "", fmt.Errorf("examples/serve said %q: %w", line, errors.Join(err, cmd.Wait()))
	}
	go io.Copy(io.Discard, r)
	return cmd, addr, nil
}

// compare says whether the segments and indexes of two closed logs are the same files.
func compare(leader, copied string) error {
	names, err := filepath.Glob(filepath.Join(leader, "[0-9]*"))
	if err != nil {
		return err
	}
	total := 0
	for _, name := range names {
		a, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(copied, filepath.Base(name)))
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			return fmt.Errorf("%s differs: %d bytes at the leader, %d in the copy", filepath.Base(name), len(a), len(b))
		}
		total += len(a)
	}
	fmt.Printf("%d files of %d bytes are the same at the leader and in the copy.\n", len(names), total)
	return nil
}
