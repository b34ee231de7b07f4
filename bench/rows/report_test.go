package rows

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/bench/measure"
)

func TestFigures(t *testing.T) {
	for want, v := range map[string]float64{
		"0": 0, "1.5": 1.5, "123": 123.4, "9999": 9999, "12.3 k": 12_345, "1.23 M": 1_234_567, "2 G": 2e9, "1.0e-04": 1e-4, "0.98": 0.98,
	} {
		require.Equal(t, want, figure(v))
	}
	for want, d := range map[string]time.Duration{
		"0s": 0, "999ns": 999, "1.23µs": 1234, "12.3ms": 12_345_678, "2.35s": 2_345_678_901,
	} {
		require.Equal(t, want, short(d))
	}
	for want, n := range map[string]int64{"17 B": 17, "4 KiB": 4 << 10, "128 MiB": 128 << 20, "10 GiB": 10 << 30} {
		require.Equal(t, want, BytesName(n))
	}
}

func TestChecksCompareTheRightWay(t *testing.T) {
	require.True(t, atLeast("", 2, 2).Reached)
	require.False(t, atLeast("", 2, 1.99).Reached)
	require.True(t, atMost("", 2, 2).Reached)
	require.False(t, atMost("", 2, 2.01).Reached)
	failed := atMost("x", 2, math.NaN())
	require.False(t, failed.Reached)
	_, err := json.Marshal(failed)
	require.NoError(t, err)
}

func TestPrintShowsTargetAndResultSideBySide(t *testing.T) {
	r := &Result{
		Row: "5", Work: "work", Guarantee: "kept", Unit: "records/s", CPUUnit: "ns/record",
		Lines: []Line{
			{Name: "seglog", Value: 2e6, Rounds: []float64{2e6}, CPU: 5e-7, Kill: "all", Power: "all", CRC: "yes", Latency: &measure.Percentiles{P50: 10, P99: 20, P999: 30, P9999: 40, Max: 50, Count: 5000}},
			{Name: "gone", Note: "refused"},
		},
		Checks: []Check{atLeast("seglog / peer", 2, 1.5), atMost("allocations", 0, 0)},
	}
	var b strings.Builder
	r.Print(&b)
	out := b.String()
	require.Contains(t, out, "| seglog | 2 M | ±0 % | 500 | 0 | 10ns | 20ns | 30ns | too few | 50ns | all | all | yes |")
	require.Contains(t, out, "| gone (refused) |")
	require.Contains(t, out, "| seglog / peer | 1.5 | >= 2 | SHORT |")
	require.Contains(t, out, "| allocations | 0 | <= 0 | reached |")
	columns := -1
	for line := range strings.Lines(out[strings.Index(out, "| subject"):]) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if n := strings.Count(line, "|"); columns < 0 {
			columns = n
		} else {
			require.Equal(t, columns, n, line)
		}
	}
}

func TestEveryRowHasAnIdentifierOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range All() {
		require.False(t, seen[r.ID], r.ID)
		seen[r.ID] = true
	}
	for i := range 15 {
		require.True(t, seen[figure(float64(i+1))], i+1)
	}
	for _, id := range []string{"7b", "7c", "16", "17", "17b"} {
		require.True(t, seen[id], id)
	}
}
