//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

const valueBytes = 1500 // at most

type config struct {
	dir, op, journal   string
	ballast, spare     string
	segment            int64
	policy             seglog.FlushPolicy
	run, steps, rounds int
	acks               *os.File
}

func (c config) options() *seglog.Options {
	o := &seglog.Options{Flush: c.policy, SegmentBytes: 16 << 10, IndexBytes: 1024, MaxOpenSegments: 2}
	if c.op == "fill" || c.op == "check" {
		o.SegmentBytes, o.IndexBytes, o.MaxOpenSegments = c.segment, 0, 0
	}
	if c.op == "append" {
		o.SegmentBytes = 4 << 20
	}
	o.Logger = slog.New(events{})
	return o
}

// events writes what the log tells an operator to standard error, a line each.
type events struct{}

func (events) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (events) WithAttrs([]slog.Attr) slog.Handler               { return events{} }
func (events) WithGroup(string) slog.Handler                    { return events{} }
func (events) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "event: %s", r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	_, err := fmt.Fprintln(os.Stderr, b.String())
	return err
}

// readJournal makes a ledger of what a process was answered, up to its death.
func readJournal(path string) (*proof.Ledger, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	g := proof.NewLedger(valueBytes, false)
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		if err := note(g, lines.Text()); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
		}
	}
	if n == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return g, nil
}

func note(g *proof.Ledger, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	var b proof.Batch
	var at int64
	var err error
	switch word {
	case "open":
		_, err = fmt.Sscan(rest, &b.Run)
	case "acked":
		if _, err = fmt.Sscan(rest, &b.Run, &b.Seq, &at); err == nil {
			err = g.Acked(b, at)
		}
	case "refused":
		_, err = fmt.Sscan(rest, &b.Run, &b.Seq)
		g.Refused(b)
	case "begin-truncate":
		_, err = fmt.Sscan(rest, &at)
		g.Cutting(at)
	case "truncated":
		_, err = fmt.Sscan(rest, &at)
		g.Cut(at)
	case "begin-delete":
		_, err = fmt.Sscan(rest, &at)
		g.Deleting(at)
	case "deleted":
		_, err = fmt.Sscan(rest, &at)
		g.Deleted(at)
	default:
		return fmt.Errorf("line %q is not known", line)
	}
	return err
}

// check opens what was left, twice, and appends in between: what recovery did must hold.
func check(c config) error {
	g, err := readJournal(c.journal)
	if err != nil {
		return err
	}
	var left seglog.Offsets
	for again := range 2 {
		l, err := seglog.Open(c.dir, c.options())
		if err != nil {
			return fmt.Errorf("reopen: %w", err)
		}
		kept, err := g.Check(l)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		o := l.Offsets()
		if again > 0 && (o.Start != left.Start || o.End != left.End) {
			return errors.Join(fmt.Errorf("a second open found %+v, the first left %+v", o, left), l.Close())
		}
		fmt.Fprintf(c.acks, "good: offsets %d to %d, %d records not acknowledged and there\n", o.Start, o.End, kept)
		b := proof.Batch{Run: 1_000_000 + again, Seq: 1} // runs of the checker
		base, err := l.Append(b.Records(valueBytes)...)
		if err != nil {
			return errors.Join(fmt.Errorf("append after the reopen: %w", err), l.Close())
		}
		if err := g.Acked(b, base); err != nil {
			return errors.Join(err, l.Close())
		}
		left = l.Offsets()
		if err := l.Close(); err != nil {
			return fmt.Errorf("close after the reopen: %w", err)
		}
	}
	report, err := seglog.Verify(c.dir, nil)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	_ = report
	return nil
}
