//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// samples is what the long-lived processes held while they ran.
type samples struct {
	begun time.Time
	mu    sync.Mutex
	all   []*series
}

// series is one quantity of one process.
type series struct {
	process, what string
	read          func() (float64, error)
	child         *child
	stopped       bool
	at, value     []float64 // seconds since the process started
}

// tolerated is how much of a quantity may come and go without a reason that matters, whatever its mean.
var tolerated = map[string]float64{"RssAnon MiB": 6, "live MiB": 3, "descriptors": 6, "mapped files": 6, "other maps": 60, "goroutines": 6}

// watch samples a process once a second until it is stopped.
func (s *samples) watch(process string, c *child) {
	proc := fmt.Sprintf("/proc/%d", c.cmd.Process.Pid)
	begun := time.Now()
	mib := func(n int64) (float64, error) { return float64(n) / (1 << 20), nil }
	own := []*series{
		{what: "RssAnon MiB", read: func() (float64, error) { return statusMiB(proc, "RssAnon") }},
		{what: "live MiB", read: func() (float64, error) { return mib(c.heap.Load()) }},
		{what: "descriptors", read: func() (float64, error) { return entries(filepath.Join(proc, "fd")) }},
		{what: "mapped files", read: func() (float64, error) { files, _, err := mappings(proc); return files, err }},
		{what: "other maps", read: func() (float64, error) { _, others, err := mappings(proc); return others, err }},
		{what: "goroutines", read: func() (float64, error) { return float64(c.tasks.Load()), nil }},
	}
	s.mu.Lock()
	for _, x := range own {
		x.process, x.child = process, c
		s.all = append(s.all, x)
	}
	s.mu.Unlock()
	go func() {
		for t := time.NewTicker(time.Second); ; {
			select {
			case <-t.C:
			case <-c.ended:
				t.Stop()
				return
			}
			s.mu.Lock()
			for _, x := range own {
				v, err := x.read()
				if err == nil && !x.stopped && c.tasks.Load() > 0 {
					x.at, x.value = append(x.at, time.Since(begun).Seconds()), append(x.value, v)
				}
			}
			s.mu.Unlock()
		}
	}()
}

// stop ends the sampling of processes that are about to be told to end.
func (s *samples) stop(children []*child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		for _, c := range children {
			x.stopped = x.stopped || x.child == c
		}
	}
}

// settling is how long a process may take to be as large as it stays: retention, caches and pools fill.
const settling = time.Minute

// slope is the least-squares growth per second, and the mean, after the first quarter, or what settling takes.
func (x *series) slope() (perSecond, mean, seconds float64) {
	from := len(x.at) / 4
	for from < len(x.at) && x.at[from] < settling.Seconds() {
		from++
	}
	at, value := x.at[from:], x.value[from:]
	n := float64(len(at))
	if n < 2 {
		return 0, 0, 0
	}
	var sumT, sumV, sumTT, sumTV float64
	for i := range at {
		sumT += at[i]
		sumV += value[i]
		sumTT += at[i] * at[i]
		sumTV += at[i] * value[i]
	}
	return (n*sumTV - sumT*sumV) / (n*sumTT - sumT*sumT), sumV / n, at[len(at)-1] - at[0]
}

// judge prints the slopes. What grew by more than a tenth of its mean and by more than is tolerated is an error.
func (s *samples) judge(w io.Writer) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.begun) < 2*settling {
		fmt.Fprintf(w, "  too short to say what grows: that takes at least %v\n", 2*settling)
		return nil
	}
	fmt.Fprintf(w, "  %-15s %-12s %8s %8s %10s %12s\n", "process", "what", "samples", "mean", "per hour", "in the run")
	for _, x := range s.all {
		perSecond, mean, seconds := x.slope()
		grown := perSecond * seconds
		verdict := ""
		if grown > mean/10 && grown > tolerated[x.what] {
			verdict = "  GROWS"
			if err == nil {
				err = fmt.Errorf("%s of the %s process grow", x.what, x.process)
			}
		}
		fmt.Fprintf(w, "  %-15s %-12s %8d %8.1f %+10.2f %+12.2f%s\n", x.process, x.what, len(x.at), mean, perSecond*3600, grown, verdict)
	}
	return err
}

func statusMiB(proc, field string) (float64, error) {
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte(field+":"))
	if !ok {
		return 0, fmt.Errorf("no %s in %s/status", field, proc)
	}
	var kib float64
	_, err = fmt.Sscan(string(rest[:min(len(rest), 40)]), &kib)
	return kib / 1024, err
}

func entries(dir string) (float64, error) {
	names, err := os.ReadDir(dir)
	return float64(len(names)), err
}

// mappings counts the mappings of files that a process has, and all others. How many others there are is up to Go's heap, which each
// madvise with another advice divides.
func mappings(proc string) (files, others float64, err error) {
	text, err := os.ReadFile(filepath.Join(proc, "maps"))
	for line := range bytes.Lines(text) {
		// The columns: addresses, permissions, offset, device, inode, path. Anonymous memory has no inode.
		if c := bytes.Fields(line); len(c) > 5 && !bytes.Equal(c[4], []byte("0")) {
			files++
		} else {
			others++
		}
	}
	return files, others, err
}
