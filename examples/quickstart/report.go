package main

import (
	"fmt"
	"runtime"
	"time"
)

// report ends a sentence about a step that began at start and moved size bytes.
func report(start time.Time, size int64, format string, args ...any) {
	took := time.Since(start)
	fmt.Printf(format+" in %v: %.0f MB/s.\n", append(args, took.Round(10*time.Microsecond), float64(size)/1e6/took.Seconds())...)
}

// heapMiB is what the heap has taken from the operating system at most.
func heapMiB() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapSys) / (1 << 20)
}
