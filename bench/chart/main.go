// Chart draws what a run of the benchmarks kept as JSON, as SVG.
//
//	go run . -row 5,9,15,sizes,callers -json results.json
//	go run ./chart -json results.json -out ../docs/img
//
// A chart whose row is not in the file is left out.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"gonum.org/v1/plot/vg"

	"github.com/seglog/seglog/bench/rows"
)

func main() {
	in := flag.String("json", "results.json", "the figures, as go run . -json wrote them")
	out := flag.String("out", filepath.Join("..", "docs", "img"), "directory for the charts")
	flag.Parse()
	if err := run(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// chart is one file: the row it is drawn from, and how.
type chart struct {
	file string
	row  string
	draw func(*rows.Result) (*figure, error)
}

var charts = []chart{
	{"append-by-size.svg", "sizes", appendBySize},
	{"durable-by-callers.svg", "callers", durableByCallers},
	{"durable-latency.svg", "5", latencyByPercentile},
	{"transfer-cpu.svg", "9", transferCPU},
	{"growth.svg", "15", growthCost},
}

const (
	width       = 26 * vg.Centimeter
	height      = 12 * vg.Centimeter
	legendWidth = 8 * vg.Centimeter // on the right, where no curve can run through it
)

func run(in, out string) error {
	b, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var report rows.Report
	if err := json.Unmarshal(b, &report); err != nil {
		return fmt.Errorf("%s: %w", in, err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	drawn := 0
	for _, c := range charts {
		result := report.Row(c.row)
		if result == nil {
			continue
		}
		f, err := c.draw(result)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		if err := f.save(filepath.Join(out, c.file)); err != nil {
			return err
		}
		fmt.Println(filepath.Join(out, c.file))
		drawn++
	}
	if drawn == 0 {
		return errors.New(in + " holds none of the rows that charts are drawn from")
	}
	return nil
}
