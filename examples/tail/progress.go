package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progress tells on standard error how far a long history is read, on a terminal in one line, elsewhere in one every few
// seconds. Where the records themselves go to a terminal there is no need for it.
type progress struct {
	out      io.Writer
	terminal bool
	every    time.Duration
	from, to int64
	started  time.Time
	shown    time.Time
	quiet    bool
}

func newProgress(from, to int64) *progress {
	now := time.Now()
	p := &progress{out: os.Stderr, every: 5 * time.Second, from: from, to: to, started: now, shown: now, quiet: isTerminal(os.Stdout)}
	if isTerminal(os.Stderr) {
		p.terminal, p.every = true, 500*time.Millisecond
	}
	return p
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	null, nullErr := os.Stat(os.DevNull)
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && !(nullErr == nil && os.SameFile(st, null))
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
	if now.Sub(p.shown) < p.every && !(last && p.shown != p.started) {
		return
	}
	p.shown = now
	done, took := offset+1-p.from, now.Sub(p.started)
	perSecond := float64(done) / took.Seconds()
	left := time.Duration(float64(p.to-offset-1) / perSecond * float64(time.Second))
	before, after := "", "\n"
	if p.terminal {
		before = "\r\x1b[K"
		if !last {
			after = ""
		}
	}
	fmt.Fprintf(p.out, "%stail: %.1f%% of %d records, %.1f million a second, %v left%s", before,
		100*float64(done)/float64(p.to-p.from), p.to-p.from, perSecond/1e6, left.Round(time.Second), after)
}
