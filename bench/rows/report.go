package rows

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/seglog/seglog/bench/measure"
)

// Report is what a run keeps as JSON and the charts are drawn from.
type Report struct {
	Machine string    `json:"machine"`
	Quick   bool      `json:"quick"`
	Rounds  int       `json:"rounds"`
	Results []*Result `json:"results"`
}

// Row is the result of the given row, nil if it was not run.
func (r *Report) Row(id string) *Result {
	for _, result := range r.Results {
		if result.Row == id {
			return result
		}
	}
	return nil
}

// Print writes a result as a Markdown table, then its targets.
func (r *Result) Print(w io.Writer) {
	fmt.Fprintf(w, "\n### %s: %s\n\nGuarantee: %s. Unit: %s.\n\n", r.Row, r.Work, r.Guarantee, r.Unit)
	latency, promises, flushes := false, false, false
	for _, l := range r.Lines {
		latency = latency || l.Latency != nil
		flushes = flushes || l.Flushes > 0
		promises = promises || l.Kill != ""
	}
	head := []string{"subject"}
	if r.XName != "" {
		head = append(head, r.XName)
	}
	head = append(head, r.Unit, "spread", r.CPUUnit, "allocs/op")
	if flushes {
		head = append(head, "flushes/op")
	}
	if latency {
		head = append(head, "p50", "p99", "p99.9", "p99.99", "max")
	}
	if promises {
		head = append(head, "after kill -9", "after a power cut", "CRC on read")
	}
	row(w, head)
	row(w, strings.Split(strings.Repeat("---,", len(head)-1)+"---", ","))
	for _, l := range r.Lines {
		row(w, r.cells(l, latency, promises, flushes))
	}
	for _, t := range r.Tables {
		fmt.Fprintln(w)
		row(w, t.Head)
		row(w, strings.Split(strings.Repeat("---,", len(t.Head)-1)+"---", ","))
		for _, cells := range t.Rows {
			row(w, cells)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\n%s.\n", n)
	}
	fmt.Fprintf(w, "\nOther processes, the kernel's threads included, took %.0f %% of the processors meanwhile.\n", 100*r.Others)
	if len(r.Checks) > 0 {
		fmt.Fprintln(w)
		row(w, []string{"target", "is", "wanted", ""})
		row(w, []string{"---", "---", "---", "---"})
	}
	for _, c := range r.Checks {
		row(w, []string{c.What, figure(c.Result), c.wanted(), c.verdict()})
	}
}

func (c Check) wanted() string {
	if c.AtMost {
		return "<= " + figure(c.Target)
	}
	return ">= " + figure(c.Target)
}

func (c Check) verdict() string {
	if c.Reached {
		return "reached"
	}
	return "SHORT"
}

func (r *Result) cells(l Line, latency, promises, flushes bool) []string {
	cells := []string{l.Name}
	if l.Note != "" {
		cells[0] += " (" + l.Note + ")"
	}
	if r.XName != "" {
		x := figure(l.X)
		if l.X == 0 && len(l.Rounds) == 0 { // of a subject that is absent from the whole row
			x = ""
		}
		cells = append(cells, x)
	}
	if len(l.Rounds) > 0 {
		cells = append(cells, r.value(l.Value), fmt.Sprintf("±%.0f %%", 100*l.Spread), r.cpu(l.CPU), figure(l.Allocs))
	} else {
		cells = append(cells, "", "", "", "")
	}
	if flushes {
		cells = append(cells, figure(l.Flushes))
	}
	if latency {
		cells = append(cells, percentiles(l.Latency)...)
	}
	if promises {
		cells = append(cells, l.Kill, l.Power, l.CRC)
	}
	return cells
}

// percentiles leaves out those that too few samples stand behind.
func percentiles(p *measure.Percentiles) []string {
	if p == nil {
		return make([]string, 5)
	}
	from := func(least uint64, d time.Duration) string {
		if p.Count < least {
			return "too few"
		}
		return short(d)
	}
	return []string{short(p.P50), from(100, p.P99), from(1000, p.P999), from(10_000, p.P9999), short(p.Max)}
}

func (r *Result) value(v float64) string {
	if r.Unit == "s" {
		return short(time.Duration(v * 1e9))
	}
	return figure(v)
}

// cpu converts processor seconds per operation into the row's unit.
func (r *Result) cpu(v float64) string {
	switch {
	case strings.HasPrefix(r.CPUUnit, "ns/"):
		return figure(v * 1e9)
	case strings.HasPrefix(r.CPUUnit, "CPU us/"):
		return figure(v * 1e6)
	case r.CPUUnit == "":
		return ""
	}
	return figure(v)
}

// Setups writes how each subject of the results is configured, and its release.
func Setups(w io.Writer, results []*Result) {
	fmt.Fprintf(w, "\n### How each is set up\n\n")
	row(w, []string{"subject", "release", "setup"})
	row(w, []string{"---", "---", "---"})
	seen := map[string]bool{}
	for _, r := range results {
		for _, l := range r.Lines {
			if l.Version != "" && l.Setup != "" && !seen[l.Setup] {
				seen[l.Setup] = true
				row(w, []string{l.Name, l.Version, l.Setup})
			}
		}
	}
}

// Summary writes one line per target over all results.
func Summary(w io.Writer, results []*Result) {
	fmt.Fprintf(w, "\n### Targets\n\n")
	row(w, []string{"row", "work", "target", "is", "wanted", ""})
	row(w, []string{"---", "---", "---", "---", "---", "---"})
	for _, r := range results {
		for _, c := range r.Checks {
			row(w, []string{r.Row, r.Work, c.What, figure(c.Result), c.wanted(), c.verdict()})
		}
	}
}

func row(w io.Writer, cells []string) { fmt.Fprintln(w, "| "+strings.Join(cells, " | ")+" |") }

// figure writes a number to three digits with a unit prefix.
func figure(v float64) string {
	abs := v
	if abs < 0 {
		abs = -abs
	}
	switch {
	case abs >= 1e9:
		return fmt.Sprintf("%.3g G", v/1e9)
	case abs >= 1e6:
		return fmt.Sprintf("%.3g M", v/1e6)
	case abs >= 1e4:
		return fmt.Sprintf("%.3g k", v/1e3)
	case abs >= 100:
		return fmt.Sprintf("%.0f", v)
	case abs != 0 && abs < 0.0005:
		return fmt.Sprintf("%.1e", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// short rounds a duration to three digits.
func short(d time.Duration) string {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
}

// BytesName writes a size in the unit it is a whole number of.
func BytesName(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
