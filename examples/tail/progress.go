package main

import (
	"fmt"
	"os"
	"time"
)

// progress tells on standard error how far a long history is read. Where the records themselves go to a terminal there
// is no need for it.
type progress struct {
	from, to int64
	started  time.Time
	shown    time.Time
	quiet    bool
}

func newProgress(from, to int64) *progress {
	st, err := os.Stdout.Stat()
	now := time.Now()
	return &progress{from: from, to: to, started: now, shown: now, quiet: err == nil && isTerminal(st)}
}

func isTerminal(st os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	return st.Mode()&os.ModeCharDevice != 0 && !(err == nil && os.SameFile(st, null))
}

// at says that the record at offset was read. The clock is asked once in a thousand records.
func (p *progress) at(offset int64) {
	if p.quiet {
		return
	}
	last := offset >= p.to-1
	if last {
		p.quiet = true // what comes now comes live
	}
	now := p.shown
	if offset%1024 == 0 || last {
		now = time.Now()
	}
	if now.Sub(p.shown) < 500*time.Millisecond && !(last && p.shown != p.started) {
		return
	}
	p.shown = now
	done, took := offset+1-p.from, now.Sub(p.started)
	perSecond := float64(done) / took.Seconds()
	left := time.Duration(float64(p.to-offset-1) / perSecond * float64(time.Second))
	fmt.Fprintf(os.Stderr, "\rtail: %.1f%% of %d records, %.1f million a second, %v left   ",
		100*float64(done)/float64(p.to-p.from), p.to-p.from, perSecond/1e6, left.Round(time.Second))
	if last {
		fmt.Fprintln(os.Stderr)
	}
}
