package measure

import (
	"runtime"
	"time"
)

// Laps adds up stretches of work between which there is other work that is not to count.
type Laps struct{ s Sample }

// NewLaps begins without any lap. It collects garbage, so that no subject pays for the one before.
func NewLaps() *Laps {
	runtime.GC()
	return &Laps{Sample{Latency: new(Histogram)}}
}

// Time adds one lap.
func (l *Laps) Time(work func() error) error {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := processTime()
	start := time.Now()
	err := work()
	took := time.Since(start)
	l.s.Usage.CPU += processTime() - cpu
	runtime.ReadMemStats(&after)
	l.s.Usage.Elapsed += took
	l.s.Usage.Mallocs += after.Mallocs - before.Mallocs
	l.s.Usage.Bytes += after.TotalAlloc - before.TotalAlloc
	l.s.Latency.Record(took)
	l.s.Ops++
	return err
}

// Sample is what the laps came to.
func (l *Laps) Sample() Sample { return l.s }
