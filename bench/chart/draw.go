package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/seglog/seglog/bench/rows"
)

// ours is drawn thick and in one colour throughout, the limits of the machine dashed.
var ours = color.RGBA{R: 0xc8, G: 0x1e, B: 0x1e, A: 0xff}

// curve is one named line of a chart.
type curve struct {
	name   string
	points plotter.XYs
}

// curves gathers the lines of a result by name, in the order they first appear.
func curves(r *rows.Result, y func(rows.Line) float64) []curve {
	var out []curve
	for _, l := range r.Lines {
		if len(l.Rounds) == 0 {
			continue
		}
		at := slices.IndexFunc(out, func(c curve) bool { return c.name == l.Name })
		if at < 0 {
			at = len(out)
			out = append(out, curve{name: l.Name})
		}
		out[at].points = append(out[at].points, plotter.XY{X: l.X, Y: y(l)})
	}
	return out
}

// figure is a plot with its legend beside it.
type figure struct {
	*plot.Plot
	legend plot.Legend
}

func newFigure(title, x, y string) *figure {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(8)
	p.Add(plotter.NewGrid())
	f := &figure{Plot: p, legend: plot.NewLegend()}
	f.legend.Top, f.legend.Left = true, true
	f.legend.TextStyle.Font.Size = vg.Points(9)
	f.legend.Padding = vg.Points(3)
	return f
}

func (f *figure) save(path string) error {
	canvas := vgsvg.New(width, height)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	f.Draw(draw.Crop(all, 0, -legendWidth, 0, 0))
	f.legend.Draw(draw.Crop(all, width-legendWidth+vg.Centimeter/2, 0, 0, -vg.Centimeter))
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(file)
	return errors.Join(err, file.Close())
}

// palette holds colours that stay apart for most readers; red is left to ours.
var palette = []color.Color{
	color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}, color.RGBA{R: 0xff, G: 0x7f, B: 0x0e, A: 0xff},
	color.RGBA{R: 0x2c, G: 0xa0, B: 0x2c, A: 0xff}, color.RGBA{R: 0x94, G: 0x67, B: 0xbd, A: 0xff},
	color.RGBA{R: 0x8c, G: 0x56, B: 0x4b, A: 0xff}, color.RGBA{R: 0x17, G: 0xbe, B: 0xcf, A: 0xff},
	color.RGBA{R: 0xbc, G: 0xbd, B: 0x22, A: 0xff}, color.RGBA{R: 0xe3, G: 0x77, B: 0xc2, A: 0xff},
}

func (f *figure) addCurves(all []curve) error {
	for i, c := range all {
		line, points, err := plotter.NewLinePoints(c.points)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		line.Color, points.Color = palette[i%len(palette)], palette[i%len(palette)]
		points.Shape, points.Radius = plotutil.Shape(i), vg.Points(2.5)
		switch {
		case strings.HasPrefix(c.name, "seglog"):
			line.Width, line.Color, points.Color = vg.Points(2.5), ours, ours
			points.Shape = draw.CircleGlyph{}
		case strings.HasPrefix(c.name, "raw"):
			line.Color, points.Color = color.Gray{0x70}, color.Gray{0x70}
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		f.Add(line, points)
		f.legend.Add(c.name, line, points)
	}
	return nil
}

// labels places a tick at each of the values, with its own text.
type labels struct {
	at   []float64
	text func(float64) string
}

func (l labels) Ticks(_, _ float64) []plot.Tick {
	out := make([]plot.Tick, len(l.at))
	for i, v := range l.at {
		out[i] = plot.Tick{Value: v, Label: l.text(v)}
	}
	return out
}

// decades places a tick at each power of ten, labelled by text.
type decades struct{ text func(float64) string }

func (d decades) Ticks(low, high float64) []plot.Tick {
	var out []plot.Tick
	for v := math.Pow(10, math.Floor(math.Log10(low))); v <= high; v *= 10 {
		if v >= low {
			out = append(out, plot.Tick{Value: v, Label: d.text(v)})
		}
		for m := 2.0; m < 10; m++ {
			if v*m >= low && v*m <= high {
				out = append(out, plot.Tick{Value: v * m})
			}
		}
	}
	return out
}

func (p *figure) logLog(all []curve, xText, yText func(float64) string) {
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	var xs []float64
	for _, c := range all {
		for _, xy := range c.points {
			if !slices.Contains(xs, xy.X) {
				xs = append(xs, xy.X)
			}
		}
	}
	p.X.Tick.Marker = labels{xs, xText}
	p.Y.Tick.Marker = decades{yText}
}

func appendBySize(r *rows.Result) (*figure, error) {
	p := newFigure("Append, one caller, no flush: throughput by record size", "record", "payload per second")
	for i, l := range r.Lines {
		if strings.HasPrefix(l.Kill, "what was flushed") {
			r.Lines[i].Name += " (lost on kill -9)"
		}
	}
	all := curves(r, func(l rows.Line) float64 { return l.Value * l.X })
	p.logLog(all, func(v float64) string { return rows.BytesName(int64(v)) }, func(v float64) string { return si(v) + "B/s" })
	return p, p.addCurves(all)
}

func durableByCallers(r *rows.Result) (*figure, error) {
	p := newFigure("Durable append of 1 KiB: throughput by callers", "callers at once", "appends per second")
	all := curves(r, func(l rows.Line) float64 { return l.Value })
	p.logLog(all, func(v float64) string { return fmt.Sprint(int(v)) }, func(v float64) string { return si(v) + "/s" })
	return p, p.addCurves(all)
}

func latencyByPercentile(r *rows.Result) (*figure, error) {
	p := newFigure("Durable append of 1 KiB, 64 callers: latency by percentile", "percentile", "latency")
	names := []string{"50", "99", "99.9", "99.99"}
	var all []curve
	for _, l := range r.Lines {
		if l.Latency == nil || strings.HasPrefix(l.Name, "bbolt") || strings.HasSuffix(l.Name, "external group commit") {
			continue
		}
		c := curve{name: l.Name}
		for i, d := range []time.Duration{l.Latency.P50, l.Latency.P99, l.Latency.P999, l.Latency.P9999} {
			c.points = append(c.points, plotter.XY{X: float64(i), Y: float64(d)})
		}
		all = append(all, c)
	}
	p.Y.Scale = plot.LogScale{}
	p.X.Tick.Marker = labels{[]float64{0, 1, 2, 3}, func(v float64) string { return names[int(v)] }}
	p.Y.Tick.Marker = decades{func(v float64) string { return time.Duration(v).String() }}
	return p, p.addCurves(all)
}

func transferCPU(r *rows.Result) (*figure, error) {
	p := newFigure("Transfer over loopback TCP: processor time of the sender", "", "CPU s per GB")
	var names []string
	for i, l := range r.Lines {
		bar, err := plotter.NewBarChart(plotter.Values{l.CPU}, vg.Points(40))
		if err != nil {
			return nil, err
		}
		bar.XMin = float64(i)
		bar.LineStyle.Width = 0
		bar.Color = color.Gray{0x90}
		if strings.HasPrefix(l.Name, "seglog") {
			bar.Color = ours
		}
		p.Add(bar)
		names = append(names, l.Name)
	}
	p.NominalX(names...)
	p.X.Tick.Label.Font.Size = vg.Points(8)
	p.X.Tick.Label.Rotation = math.Pi / 9
	p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YTop
	p.Y.Min, p.Y.Max = 0, 1.1*p.Y.Max
	return p, nil
}

// growthCost draws each operation's cost at every size as a multiple of the cost at the first.
func growthCost(r *rows.Result) (*figure, error) {
	p := newFigure("Cost per operation as the log grows, as a multiple of the smallest", "size of the log", "cost")
	var all []curve
	for _, l := range r.Lines {
		op, _, _ := strings.Cut(l.Name, ",")
		if !strings.HasSuffix(l.Name, "GiB") || len(l.Rounds) == 0 {
			continue
		}
		at := slices.IndexFunc(all, func(c curve) bool { return c.name == op })
		if at < 0 {
			at = len(all)
			all = append(all, curve{name: op})
		}
		all[at].points = append(all[at].points, plotter.XY{X: l.X, Y: 1 / l.Value})
	}
	for _, c := range all {
		first := c.points[0].Y
		for i := range c.points {
			c.points[i].Y /= first
		}
	}
	p.logLog(all, func(v float64) string { return rows.BytesName(int64(v)) }, nil)
	p.Y.Scale, p.Y.Tick.Marker = plot.LinearScale{}, plot.DefaultTicks{}
	err := p.addCurves(all)
	p.Y.Min, p.Y.Max = 0, max(2, p.Y.Max*1.1)
	return p, err
}

// si writes a power of ten with a unit prefix.
func si(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.size {
			return fmt.Sprintf("%g %s", v/u.size, u.name)
		}
	}
	return fmt.Sprintf("%g ", v)
}
