//go:build race

package seglog_test

// underRace reports whether the race detector is on. It makes everything about ten times slower, so tests repeat less.
const underRace = true
