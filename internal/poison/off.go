//go:build !seglog_poison

// Package poison tells whether a program is built with -tags seglog_poison. It then overwrites records that were lent, so that
// one that is kept without Clone shows at once rather than when its buffer is used again.
package poison

// On is true in a program built with -tags seglog_poison.
const On = false
