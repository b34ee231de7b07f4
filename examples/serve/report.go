package main

import (
	"context"
	"fmt"
	"time"
)

// report prints a live line until ctx ends.
func (s *server) report(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last, lastCPU, since := s.sent(), cpuTime(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		sent, cpu, now := s.sent(), cpuTime(), time.Now()
		s.live.show("%s: %d connections, end %d, %s", s.path(), s.conns.Load(), s.log.Offsets().HighWatermark,
			rate(sent-last, cpu-lastCPU, now.Sub(since)))
		last, lastCPU, since = sent, cpu, now
	}
}

func (s *server) sent() int64 {
	st := s.log.Stats()
	return st.SentZeroCopy + st.SentCopied
}

func (s *server) path() string {
	switch {
	case s.copied:
		return "copy"
	case s.log.Stats().SentZeroCopy == 0:
		return "WriteTo" // no zero-copy path here, or nothing sent yet
	}
	return "sendfile"
}

// rate says how fast bytes left, and what CPU of this process a GB cost.
func rate(bytes int64, cpu, took time.Duration) string {
	gb := float64(bytes) / 1e9
	text := fmt.Sprintf("%.3f GB/s", gb/took.Seconds())
	if bytes > 1e6 && cpu > 0 {
		text += fmt.Sprintf(", %.2f CPU s/GB", cpu.Seconds()/gb)
	}
	return text
}
