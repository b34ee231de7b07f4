package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/seglog/seglog"
)

var statCommand = &command{
	name: "stat", short: "totals, and a picture of where bytes and times lie",
	flags: "",
	long: `Reads all batches and shows totals, sizes and codecs, where along the offsets the bytes lie, and when they were written.

  inspect stat /var/lib/orders`,
	run: (*tool).stat,
}

const (
	pictureWidth = 60
	pictureRows  = 16
)

// statistics are kept in as many cells as the picture has, whatever the size of the log.
type statistics struct {
	batches, records, bytes int64
	largest                 seglog.BatchInfo
	codecs                  map[seglog.Codec]int64
	from, to                time.Time // of all of them
	start, end              int64
	byOffset                [pictureRows]int64
	rowFrom, rowTo          [pictureRows]time.Time
	byTime                  [pictureWidth]int64
}

func (t *tool) stat(args []string) error {
	dir, err := t.directory(args)
	if err != nil {
		return err
	}
	l, err := t.open(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	o := l.Offsets()
	s := &statistics{codecs: map[seglog.Codec]int64{}, start: o.Start, end: o.HighWatermark}
	// Two walks: the first learns between which times the picture lies.
	for _, add := range []func(seglog.BatchInfo){s.add, s.addTime} {
		for b, err := range l.Batches(o.Start) {
			if err != nil {
				return err
			}
			if t.ctx.Err() != nil {
				return t.ctx.Err()
			}
			if b.Base < s.end {
				add(b)
			}
		}
	}
	s.print(t)
	return nil
}

func (s *statistics) add(b seglog.BatchInfo) {
	s.batches++
	s.records += b.Records
	s.bytes += b.Bytes
	s.codecs[b.Codec]++
	if b.Bytes > s.largest.Bytes {
		s.largest = b
	}
	row := min(pictureRows-1, int(float64(max(b.Base, s.start)-s.start)/float64(s.end-s.start)*pictureRows))
	s.byOffset[row] += b.Bytes
	if b.MaxTime.IsZero() {
		return
	}
	for _, span := range [][2]*time.Time{{&s.from, &s.to}, {&s.rowFrom[row], &s.rowTo[row]}} {
		if span[0].IsZero() || b.MaxTime.Before(*span[0]) {
			*span[0] = b.MaxTime
		}
		if b.MaxTime.After(*span[1]) {
			*span[1] = b.MaxTime
		}
	}
}

func (s *statistics) addTime(b seglog.BatchInfo) {
	if b.MaxTime.IsZero() || b.MaxTime.Before(s.from) || b.MaxTime.After(s.to) {
		return // appended since
	}
	column := 0
	if span := s.to.Sub(s.from); span > 0 {
		column = min(pictureWidth-1, int(float64(b.MaxTime.Sub(s.from))/float64(span)*pictureWidth))
	}
	s.byTime[column] += b.Bytes
}

func (s *statistics) print(t *tool) {
	if s.batches == 0 {
		fmt.Fprintf(t.out, "empty: the next record gets offset %s\n", number(s.end))
		return
	}
	fmt.Fprintf(t.out, "offsets   %s to %s\n", number(s.start), number(s.end))
	fmt.Fprintf(t.out, "records   %s in %s batches, %.1f each\n", number(s.records), number(s.batches), float64(s.records)/float64(s.batches))
	fmt.Fprintf(t.out, "bytes     %s, %.0f a record, the largest batch %s at offset %s\n", size(s.bytes), float64(s.bytes)/float64(max(1, s.records)), size(s.largest.Bytes), number(s.largest.Base))
	var codecs []string
	for c := seglog.CodecNone; c <= seglog.CodecZstd; c++ {
		if n := s.codecs[c]; n > 0 {
			codecs = append(codecs, fmt.Sprintf("%v %.0f%%", c, 100*float64(n)/float64(s.batches)))
		}
	}
	fmt.Fprintf(t.out, "codecs    %s\n", strings.Join(codecs, ", "))
	fmt.Fprintf(t.out, "times     %s to %s\n\n", when(s.from), when(s.to))
	s.printOffsets(t)
	s.printTimes(t)
}

// printOffsets draws a bar for each part of the offsets.
func (s *statistics) printOffsets(t *tool) {
	rows := int(min(pictureRows, s.end-s.start))
	most := int64(1)
	for _, n := range s.byOffset {
		most = max(most, n)
	}
	list := table{head: []string{"OFFSET", "BYTES", "", "FROM", "TO"}, left: map[int]bool{2: true, 3: true, 4: true}}
	for i, n := range s.byOffset {
		if rows < pictureRows && n == 0 {
			continue
		}
		at := s.start + int64(float64(i)/pictureRows*float64(s.end-s.start))
		list.add(number(at), size(n), bar(n, most, 30), when(s.rowFrom[i]), when(s.rowTo[i]))
	}
	list.print(t.out)
}

// printTimes draws when the bytes were written.
func (s *statistics) printTimes(t *tool) {
	if !s.to.After(s.from) {
		return
	}
	most := int64(1)
	for _, n := range s.byTime {
		most = max(most, n)
	}
	const height = 6
	fmt.Fprintf(t.out, "\nbytes over time; a column is %s, the highest %s\n", duration(s.to.Sub(s.from)/pictureWidth), size(most))
	for row := height - 1; row >= 0; row-- {
		var b strings.Builder
		for _, n := range s.byTime {
			b.WriteRune(eighth(float64(n)/float64(most)*height - float64(row)))
		}
		fmt.Fprintf(t.out, "  %s\n", strings.TrimRight(b.String(), " "))
	}
	left, right := s.from.Local().Format("2006-01-02 15:04:05"), s.to.Local().Format("2006-01-02 15:04:05")
	fmt.Fprintf(t.out, "  %s\n  %s%*s\n", strings.Repeat("─", pictureWidth), left, pictureWidth-len(left), right)
}

// eighth is a cell filled from below; something is shown of all that is not nothing.
func eighth(part float64) rune {
	switch {
	case part <= 0:
		return ' '
	case part >= 1:
		return '█'
	}
	return []rune("▁▁▂▃▄▅▆▇")[int(part*8)]
}

// bar is filled from the left, to an eighth of a cell.
func bar(n, most int64, width int) string {
	eighths := int(float64(n) / float64(most) * float64(8*width))
	if n > 0 {
		eighths = max(1, eighths)
	}
	s := strings.Repeat("█", eighths/8)
	if r := eighths % 8; r > 0 {
		s += string([]rune(" ▏▎▍▌▋▊▉")[r])
	}
	return s
}
