package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestProgress checks that a terminal shows one line that changes, and that a pipe gets a line for each state.
func TestProgress(t *testing.T) {
	tell := func(terminal bool) string {
		var out bytes.Buffer
		p := &progress{out: &out, terminal: terminal, from: 0, to: 3000, started: time.Now().Add(-time.Second)}
		for offset := range int64(3000) {
			p.at(offset)
		}
		p.at(3000) // caught up, so there is no progress to show
		return out.String()
	}
	piped := strings.Split(strings.TrimSuffix(tell(false), "\n"), "\n")
	require.Greater(t, len(piped), 2)
	for _, line := range piped {
		require.True(t, strings.HasPrefix(line, "tail: "), line)
		require.NotContains(t, line, "\r")
	}
	shown := tell(true)
	require.Equal(t, 1, strings.Count(shown, "\n"))
	require.True(t, strings.HasSuffix(shown, "\n"))
	require.Equal(t, strings.Count(shown, "tail: "), strings.Count(shown, "\r"))
}
