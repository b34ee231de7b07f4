//go:build race

package seglog

// raceEnabled is true with the race detector, which makes everything about ten times slower.
const raceEnabled = true
