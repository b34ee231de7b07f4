//go:build !race

// Package race tells tests whether the race detector is on, which makes everything about ten times slower, so that they repeat
// less.
package race

// On is true with the race detector.
const On = false
