package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/seglog/seglog"
)

const (
	demoKills   = 8
	demoSegment = "262144"
	demoKeep    = "1048576"
)

// demonstrate kills an archiver with its log again and again, lets a last one catch up, and counts.
func demonstrate(ctx context.Context) error {
	tmp, err := os.MkdirTemp("", "archive")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	dir, to := filepath.Join(tmp, "log"), filepath.Join(tmp, "archive")
	for range demoKills {
		child := exec.CommandContext(ctx, os.Args[0], "-dir", dir, "-to", to, "-append", "-segment", demoSegment, "-keep", demoKeep, "-quiet")
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			return err
		}
		timer := time.AfterFunc(time.Duration(100+rand.IntN(400))*time.Millisecond, func() { child.Process.Kill() })
		child.Wait() // says that it was killed
		timer.Stop()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := catchUp(ctx, dir, to); err != nil {
		return err
	}
	c, err := compare(dir, to)
	if err != nil {
		return err
	}
	fmt.Printf("Killed %d times. Records %d to %d are in the archive (%d segments, %d bytes), %d to %d in the log; none is missing.\n",
		demoKills, 0, c.archived-1, c.segments, c.bytes, c.start, c.end-1)
	return nil
}

// catchUp archives all that is sealed, and ends.
func catchUp(ctx context.Context, dir, to string) error {
	s, err := openStore(to)
	if err != nil {
		return err
	}
	a := newArchiver(s)
	l, err := seglog.Open(dir, &seglog.Options{OnSeal: a.sealed, MayDelete: a.mayDelete})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx, l) }()
	segments, err := l.Segments()
	for i := 0; err == nil && i+1 < len(segments); { // the last one is active
		switch {
		case a.mayDelete(segments[i]):
			i++
		case ctx.Err() != nil:
			err = ctx.Err()
		default:
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	return errors.Join(err, <-ended, l.Close())
}

// compared is what a log and its archive hold.
type compared struct {
	archived, start, end int64 // the archive holds [0, archived), the log [start, end)
	segments             int
	bytes                int64
}

// compare reads both and says whether anything is missing or wrong.
func compare(dir, to string) (c compared, err error) {
	archived, err := seglog.Open(to, &seglog.Options{ReadOnly: true})
	if err != nil {
		return c, err
	}
	defer archived.Close()
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	if err != nil {
		return c, err
	}
	defer l.Close()
	c.start, c.end = l.Offsets().Start, l.Offsets().End
	if c.archived, err = check(archived, 0); err != nil {
		return c, fmt.Errorf("archive: %w", err)
	}
	if c.archived < c.start {
		return c, fmt.Errorf("the archive ends at offset %d, the log begins at %d", c.archived, c.start)
	}
	if _, err = check(l, c.start); err != nil {
		return c, fmt.Errorf("log: %w", err)
	}
	segments, err := archived.Segments()
	for _, s := range segments {
		c.bytes += s.Bytes
	}
	c.segments = len(segments)
	return c, err
}

// check reads everything from an offset on: no gap, no wrong byte. It returns where the log ends.
func check(l *seglog.Log, from int64) (end int64, err error) {
	end = from
	for r, err := range l.Records(from) {
		if err != nil {
			return end, err
		}
		if r.Offset != end || string(r.Value) != string(value(end)) {
			return end, fmt.Errorf("offset %d holds %.40q where record %d is due", r.Offset, r.Value, end)
		}
		end++
	}
	return end, nil
}
