package measure

import (
	"runtime"
	"syscall"
	"time"
)

// Usage is what a stretch of work took from the process.
type Usage struct {
	Elapsed time.Duration
	CPU     time.Duration // user and system time of all threads
	Mallocs uint64
	Bytes   uint64 // allocated
}

// StartUsage collects garbage, so that no subject pays for the one before, and returns the function that ends the
// stretch. Reading the allocation counters stops the world: both readings lie outside the timed stretch.
func StartUsage() (stop func() Usage) {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := processTime()
	start := time.Now()
	return func() Usage {
		u := Usage{Elapsed: time.Since(start), CPU: processTime() - cpu}
		runtime.ReadMemStats(&after)
		u.Mallocs = after.Mallocs - before.Mallocs
		u.Bytes = after.TotalAlloc - before.TotalAlloc
		return u
	}
}

func processTime() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err) // it fails for a bad argument only
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
