package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/seglog/seglog"
)

// madeUp is a log with a history, to which a record is appended five times a second until remove.
func madeUp() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "tail")
	if err != nil {
		return "", nil, err
	}
	l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushAsync})
	if err != nil {
		return "", nil, err
	}
	for i := range 1000 {
		if _, err := l.Append(seglog.Record{Key: []byte("history"), Value: fmt.Appendf(nil, "record %d", i)}); err != nil {
			return "", nil, err
		}
	}
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
				if _, err := l.Append(seglog.Record{Key: []byte("live"), Value: fmt.Appendf(nil, "record %d", i)}); err != nil {
					fmt.Fprintln(os.Stderr, "tail: append:", err)
				}
			}
		}
	}()
	return dir, func() {
		close(done)
		writer.Wait()
		l.Close()
		os.RemoveAll(dir)
	}, nil
}
