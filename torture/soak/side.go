//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

// side is one directory with a main and a second log, the process that writes them, and those beside it.
type side struct {
	name, dir string
	pace      time.Duration
	samples   *samples
	main, cut *proof.Ledger
	runs      int

	kills, doubtful, cuts, behind atomic.Int64
	copied, same                  atomic.Int64
}

func newSide(name, dir string, pace time.Duration, s *samples) *side {
	return &side{name: name, dir: dir, pace: pace, samples: s, main: proof.NewLedger(valueBytes, true), cut: proof.NewLedger(valueBytes, true)}
}

func (s *side) String() string {
	return fmt.Sprintf("%s: %d kills, %d + %d records acknowledged, %d cuts, %d kept in doubt, copy at %d of %d, %d times overtaken by retention, %d files compared",
		s.name, s.kills.Load(), s.main.Total(), s.cut.Total(), s.cuts.Load(), s.doubtful.Load(), s.copied.Load(), s.main.End(), s.behind.Load(), s.same.Load())
}

// note takes a line of the writing child into account.
func (s *side) note(run int, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	var w, seq int
	var at int64
	var err error
	switch word {
	case "main":
		if _, err = fmt.Sscan(rest, &w, &seq, &at); err == nil {
			err = s.main.Acked(proof.Batch{Run: run, Writer: w, Seq: seq}, at)
		}
	case "cut":
		if _, err = fmt.Sscan(rest, &seq, &at); err == nil {
			err = s.cut.Acked(proof.Batch{Run: run, Seq: seq}, at)
		}
	case "cutting":
		_, err = fmt.Sscan(rest, &at)
		s.cut.Cutting(at)
	case "cut-done":
		_, err = fmt.Sscan(rest, &at)
		s.cut.Cut(at)
		s.cuts.Add(1)
	case "cut-not":
		s.cut.Cutting(-1)
	default:
		err = errors.New("not known")
	}
	if err != nil {
		err = fmt.Errorf("%s: line %q of run %d: %w", s.name, line, run, err)
	}
	return err
}

// check looks at both logs while nobody writes to them.
func (s *side) check() error {
	for _, c := range []struct {
		name   string
		ledger *proof.Ledger
	}{{"main", s.main}, {"cut", s.cut}} {
		l, err := seglog.Open(filepath.Join(s.dir, c.name), &seglog.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		kept, err := c.ledger.Check(l)
		s.doubtful.Add(int64(kept))
		closeLog(l, &err)
		if err != nil {
			return fmt.Errorf("%s: log %s after run %d: %w", s.name, c.name, s.runs, err)
		}
	}
	return nil
}

// startWriter starts a process that writes, and lets it begin once what its predecessor left was checked.
func (s *side) startWriter(sampled bool) (*child, error) {
	s.runs++
	run, policy := s.runs, s.runs%3
	opened := make(chan struct{})
	c, err := startChild("write", s.dir, func(line string) error {
		if line == "open" {
			close(opened)
			return nil
		}
		return s.note(run, line)
	}, "-run", fmt.Sprint(run), "-policy", fmt.Sprint(policy), "-pace", s.pace.String())
	if err != nil {
		return nil, err
	}
	if sampled {
		s.samples.watch(s.name+" writer", c)
	}
	select {
	case <-opened:
	case <-c.ended:
		return nil, fmt.Errorf("%s: run %d ended while it opened the logs: %w", s.name, run, c.err)
	}
	if err := s.check(); err != nil {
		return nil, errors.Join(err, c.kill())
	}
	return c, c.say("begin\n")
}

// startBeside starts the processes that follow.
func (s *side) startBeside() (beside []*child, err error) {
	for _, role := range []string{"follow", "mirror"} {
		c, err := startChild(role, s.dir, func(line string) error {
			if line == "behind" {
				s.behind.Add(1)
				return nil
			}
			var at int64
			_, err := fmt.Sscanf(line, "at %d", &at)
			s.copied.Store(at)
			return err
		})
		if err != nil {
			return beside, err
		}
		s.samples.watch(s.name+" "+role, c)
		beside = append(beside, c)
	}
	return beside, nil
}

// killAgainAndAgain is the side whose writer is killed.
func (s *side) killAgainAndAgain(ctx context.Context) error {
	writer, err := s.startWriter(false)
	if err != nil {
		return err
	}
	beside, err := s.startBeside()
	for err == nil && ctx.Err() == nil {
		select {
		case <-time.After(killedEvery/2 + rand.N(killedEvery)):
		case <-ctx.Done():
		case <-writer.ended:
			return fmt.Errorf("%s: run %d ended by itself: %w", s.name, s.runs, writer.err)
		}
		if err = anyEnded(s, beside); err != nil || ctx.Err() != nil {
			break
		}
		if err = writer.kill(); err != nil {
			break
		}
		s.kills.Add(1)
		writer, err = s.startWriter(false)
	}
	return s.finish(writer, beside, err)
}

// runOnce is the side whose writer is not.
func (s *side) runOnce(ctx context.Context) error {
	s.runs = 2 // the next one runs under FlushSync
	writer, err := s.startWriter(true)
	if err != nil {
		return err
	}
	beside, err := s.startBeside()
	for t := time.NewTicker(time.Second); err == nil && ctx.Err() == nil; {
		select {
		case <-t.C:
			err = anyEnded(s, beside)
		case <-ctx.Done():
			t.Stop()
		case <-writer.ended:
			return fmt.Errorf("%s: the writer ended by itself: %w", s.name, writer.err)
		}
	}
	return s.finish(writer, beside, err)
}

func anyEnded(s *side, children []*child) error {
	for _, c := range children {
		select {
		case <-c.ended:
			return fmt.Errorf("%s: the %s process ended by itself: %w", s.name, c.role, c.err)
		default:
		}
	}
	return nil
}

// finish ends the processes in order, looks at the logs once more, and compares the copy.
func (s *side) finish(writer *child, beside []*child, err error) error {
	s.samples.stop(append(beside, writer))
	for _, c := range append(beside, writer) {
		if c == nil {
			continue
		}
		if e := c.end(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: the %s process: %w", s.name, c.role, e))
		}
	}
	if err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	n, err := sameFiles(filepath.Join(s.dir, "main"), filepath.Join(s.dir, "mirror"))
	s.same.Store(int64(n))
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: the copy has no segment of the leader's", s.name)
	}
	return err
}
