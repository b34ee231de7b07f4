//go:build race

package seglog

// raceEnabled: the race detector makes everything some ten times slower.
const raceEnabled = true
