//go:build race

package seglog_test

// underRace: the race detector makes everything about ten times slower, so the counts of repetitions shrink.
const underRace = true
