//go:build !race

package seglog_test

const underRace = false
