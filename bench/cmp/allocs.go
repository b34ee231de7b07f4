package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/seglog/seglog/bench/measure"
)

// parseAllocs reads the allocations per operation of each round out of the output of go test -benchmem, by benchmark.
func parseAllocs(output string) map[string][]float64 {
	all := map[string][]float64{}
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		for i := 1; i+1 < len(fields); i++ {
			if fields[i+1] != "allocs/op" {
				continue
			}
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				all[fields[0]] = append(all[fields[0]], v)
			}
		}
	}
	return all
}

// grown is an error that names every benchmark whose median of allocations per operation is above the base's. Benchmarks
// that only one side has are not compared; none in common is an error too, for then nothing was guarded.
func grown(base, now map[string][]float64) error {
	var errs []error
	common := 0
	for _, name := range slices.Sorted(maps.Keys(base)) {
		if len(now[name]) == 0 {
			continue
		}
		common++
		was, is := measure.Median(base[name]), measure.Median(now[name])
		if is > was {
			errs = append(errs, fmt.Errorf("%s: %g allocs/op, %g at the base", name, is, was))
		}
	}
	if common == 0 {
		return errors.New("no benchmark in common whose allocations could be compared")
	}
	return errors.Join(errs...)
}
