package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// table is rows of cells in columns as wide as their widest. Numbers stand to the right.
type table struct {
	head  []string
	left  map[int]bool // columns of text
	cells [][]string
}

func (t *table) add(cells ...string) { t.cells = append(t.cells, cells) }

func (t *table) print(w io.Writer) {
	rows := append([][]string{t.head}, t.cells...)
	widths := make([]int, len(t.head))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i > 0 {
				b.WriteString("  ")
			}
			if t.left[i] {
				b.WriteString(c + pad)
			} else {
				b.WriteString(pad + c)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// number writes n with a comma between thousands.
func number(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes bytes with the unit that keeps it short.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f := float64(n)
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

const timeLayout = "2006-01-02 15:04:05.000"

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(timeLayout)
}

// timeJSON is a time as package json writes it, and "" for none. That package has no years after 9999, which a producer that
// takes microseconds for milliseconds reaches; they get a sign, as in ISO 8601.
func timeJSON(t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case t.Year() > 9999:
		return "+" + t.Format(time.RFC3339Nano)
	}
	return t.Format(time.RFC3339Nano)
}

// parseTime takes a time as people write it: with or without its day, or how long ago.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		if d > 0 {
			d = -d
		}
		return now.Add(d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999", "2006-01-02T15:04:05.999", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			y, m, d := now.Date()
			return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, time.Local), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: try 2026-01-31, \"2026-01-31 18:00\", 18:00 or -90m", s)
}

// show writes bytes as text if they are some, and quoted if not; of long ones the beginning, unless all is asked for.
func show(b []byte, all bool) string {
	const mostText, mostBytes = 100, 24
	if b == nil {
		return "null"
	}
	n, most, text := len(b), mostText, isText(b)
	if !text {
		most = mostBytes
	}
	if all || n <= most {
		most = n
	}
	for text && most < n && !utf8.RuneStart(b[most]) {
		most--
	}
	s := string(b[:most])
	if !text {
		s = strconv.Quote(s)
	}
	if most < n {
		s += fmt.Sprintf("… (%s)", size(int64(n)))
	}
	return s
}

func isText(b []byte) bool {
	for _, r := range string(b) {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

// duration rounds to what a person reads.
func duration(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Millisecond).String()
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
