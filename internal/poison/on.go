//go:build seglog_poison

package poison

// On is true in a program built with -tags seglog_poison.
const On = true
