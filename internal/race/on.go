//go:build race

package race

// On is true with the race detector.
const On = true
