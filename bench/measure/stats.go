package measure

import (
	"math"
	"slices"
)

// Median is the middle value, the mean of the two middle ones if their number is even, NaN if there are none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// Spread is half the distance from the least to the greatest value, as a share of the median: 0.05 reads ±5 %.
func Spread(values []float64) float64 {
	m := Median(values)
	if len(values) == 0 || m == 0 {
		return 0
	}
	return (slices.Max(values) - slices.Min(values)) / 2 / math.Abs(m)
}

// MedianRatio is the median of a[i]/b[i]: both sides of a ratio come from the same round, so that a machine that slows
// down between rounds slows both. Rounds that only one side has are left out.
func MedianRatio(a, b []float64) float64 {
	ratios := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return Median(ratios)
}
