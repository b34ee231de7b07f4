package main

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// live is a line of progress, which a terminal shows in one place. In a file or a pipe each state is a line of its own.
type live struct {
	out      io.Writer
	terminal bool

	mu   sync.Mutex
	open bool // the cursor stands behind a state
}

func newLive(f *os.File) *live {
	info, err := f.Stat()
	return &live{out: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// show replaces the state.
func (l *live) show(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if !l.terminal {
		fmt.Fprintln(l.out, text)
		return
	}
	fmt.Fprintf(l.out, "\r\x1b[K%s", text)
	l.open = true
}

// say writes a line that stays.
func (l *live) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open {
		fmt.Fprintln(l.out)
		l.open = false
	}
	fmt.Fprintf(l.out, format+"\n", args...)
}
