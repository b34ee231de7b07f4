package seglog_test

import (
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// A child between fork and exec held a copy of the lock's descriptor, and the log that its parent had closed could not
// be opened again.
func TestReopenBesideForks(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program to start: ", err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command(program).Run()
				}
			}
		}()
	}
	dir := t.TempDir()
	for range 50 {
		l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	close(stop)
	wg.Wait()
}

// A last segment larger than Options.SegmentBytes, as a Kafka directory has it, could not be opened.
func TestOpenWithSmallerSegmentBytes(t *testing.T) {
	for _, p := range policies {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 1 << 20})
		appendN(t, l, 0, 600)
		require.NoError(t, l.Close())
		l = open(t, dir, &seglog.Options{Flush: p, SegmentBytes: 8 << 10})
		requireN(t, l, 0, 600)
		appendN(t, l, 600, 200)
		requireN(t, l, 0, 800)
		require.Greater(t, l.Stats().Segments, 2)
		require.NoError(t, l.Close())
	}
}
