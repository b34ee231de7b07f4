//go:build !linux

package main

import "time"

type used struct {
	cpu     time.Duration
	written int64
}

// usage: only Linux says how much a process wrote.
func usage() used { return used{} }
