package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/rows"
)

func TestEveryChartIsDrawnFromItsRow(t *testing.T) {
	line := func(name string, x, value float64) rows.Line {
		return rows.Line{Name: name, X: x, Value: value, CPU: 0.2, Rounds: []float64{value},
			Latency: &measure.Percentiles{P50: time.Microsecond, P99: time.Millisecond, P999: time.Millisecond, P9999: time.Second}}
	}
	report := rows.Report{Results: []*rows.Result{
		{Row: "sizes", Lines: []rows.Line{line("seglog", 16, 1e6), line("seglog", 1024, 1e5), line("raw pwrite", 16, 1e5), line("raw pwrite", 1024, 1e4)}},
		{Row: "callers", Lines: []rows.Line{line("seglog", 1, 1e3), line("seglog", 64, 1e5)}},
		{Row: "5", Lines: []rows.Line{line("seglog", 0, 1e5), line("pebble", 0, 1e5), {Name: "absent"}}},
		{Row: "9", Lines: []rows.Line{line("seglog TransferTo", 0, 5e9), line("read + write", 0, 2e9)}},
		{Row: "15", Lines: []rows.Line{line("read, 1 GiB", 1<<30, 1e6), line("read, 10 GiB", 10<<30, 9e5), line("read, 1 segment", 1, 1e6)}},
	}}
	b, err := json.Marshal(report)
	require.NoError(t, err)
	in := filepath.Join(t.TempDir(), "results.json")
	require.NoError(t, os.WriteFile(in, b, 0o644))
	out := filepath.Join(t.TempDir(), "img")
	require.NoError(t, run(in, out))
	for _, c := range charts {
		svg, err := os.ReadFile(filepath.Join(out, c.file))
		require.NoError(t, err)
		require.Contains(t, string(svg), "<svg")
		require.NotContains(t, string(svg), "NaN")
	}
}

func TestNothingToDrawIsAnError(t *testing.T) {
	in := filepath.Join(t.TempDir(), "results.json")
	require.NoError(t, os.WriteFile(in, []byte(`{"results":[]}`), 0o644))
	require.Error(t, run(in, t.TempDir()))
}
