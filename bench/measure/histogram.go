// Package measure is the harness: rounds that interleave the subjects, the clock, the processor time and the
// allocations of each round, and the medians and percentiles made from them.
package measure

import (
	"math/bits"
	"time"
)

const (
	// subBits sets the precision: 128 steps per power of two keep a percentile within 0.8 % of the true value.
	subBits = 7
	// maxBits bounds the range at 2^36 ns, about 68 s; what is longer counts as that.
	maxBits = 36
)

// Histogram counts durations in logarithmic steps, as HDR histograms do. Its size is fixed, so that recording never
// allocates. It is not safe for concurrent use: every caller records into its own, and Merge adds them up.
type Histogram struct {
	counts [(maxBits - subBits + 1) << subBits]uint32
	total  uint64
	max    time.Duration
}

func bucketOf(v uint64) int {
	if v >= 1<<maxBits {
		v = 1<<maxBits - 1
	}
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - 1<<subBits
}

// highestIn is the greatest value that falls into bucket b.
func highestIn(b int) uint64 {
	if b < 1<<subBits {
		return uint64(b)
	}
	shift := b>>subBits - 1
	return uint64(b&(1<<subBits-1)+1<<subBits+1)<<shift - 1
}

// Record counts d.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))]++
	h.total++
	h.max = max(h.max, d)
}

// Merge adds what other counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, c := range other.counts {
		h.counts[i] += c
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// Count is how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Max is the longest duration recorded, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile is the duration that the share q (0 to 1) of the recorded ones do not exceed, to the histogram's precision
// and never above Max.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q*float64(h.total) + 0.5)
	rank = min(max(rank, 1), h.total)
	var seen uint64
	for b, c := range h.counts {
		seen += uint64(c)
		if seen >= rank {
			return min(time.Duration(highestIn(b)), h.max)
		}
	}
	return h.max
}

// Percentiles are the four that every latency in the tables is stated by, the longest, and how many it was taken from: a
// percentile of fewer samples than it has nines is the longest by another name.
type Percentiles struct {
	P50, P99, P999, P9999, Max time.Duration
	Count                      uint64
}

// Percentiles reads them off.
func (h *Histogram) Percentiles() Percentiles {
	return Percentiles{
		P50: h.Quantile(0.50), P99: h.Quantile(0.99), P999: h.Quantile(0.999), P9999: h.Quantile(0.9999), Max: h.max,
		Count: h.total,
	}
}
