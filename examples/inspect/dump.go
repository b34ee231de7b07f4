package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seglog/seglog"
)

var dumpCommand = &command{
	name: "dump", short: "records or batches, from an offset or a time",
	flags: "[-o offset | -t time] [-n limit] [-f] [-batches] [-json] [-full] ",
	long: `Prints records, one a line, or with -batches the headers of their batches.

  -o offset   start at this offset; a negative one counts from the end
  -t time     start at the first record of this time or later: 2026-01-31, "2026-01-31 18:00", 18:00, or -90m (ago)
  -n limit    print that many
  -f          go on as more is appended, until interrupted
  -json       one JSON object a line; bytes that are no text are in base64
  -full       do not shorten long values

  inspect dump -o -10 /var/lib/orders             the last ten
  inspect dump -t -5m -f /var/lib/orders          the last five minutes, and what comes
  inspect dump -json /var/lib/orders | jq .value
  inspect dump -batches -n 3 /var/lib/kafka/orders-0`,
	run: (*tool).dump,
}

// dumper is one run of dump.
type dumper struct {
	t                   *tool
	l                   *seglog.Log
	limit               int64
	follow, json, full  bool
	printed             int64
	undecoded, position int64 // position: the offset to go on from
}

var errEnough = errors.New("enough")

func (t *tool) dump(args []string) error {
	offset := t.flags.Int64("o", 0, "")
	at := t.flags.String("t", "", "")
	d := &dumper{t: t}
	t.flags.Int64Var(&d.limit, "n", 0, "")
	t.flags.BoolVar(&d.follow, "f", false, "")
	batches := t.flags.Bool("batches", false, "")
	t.flags.BoolVar(&d.json, "json", false, "")
	t.flags.BoolVar(&d.full, "full", false, "")
	dir, err := t.directory(args)
	if err != nil {
		return err
	}
	given := false
	for _, a := range args {
		given = given || a == "-o" || a == "--o" || strings.HasPrefix(a, "-o=") || strings.HasPrefix(a, "--o=")
	}
	if given && *at != "" {
		return usageError{errors.New("dump takes -o or -t, not both")}
	}
	if d.limit < 0 {
		return usageError{fmt.Errorf("dump: -n %d: less than nothing", d.limit)}
	}
	var from time.Time
	if *at != "" {
		if from, err = parseTime(*at, time.Now()); err != nil {
			return usageError{err}
		}
	}
	if d.l, err = t.open(dir); err != nil {
		return err
	}
	defer d.l.Close()
	o := d.l.Offsets()
	switch {
	case *at != "":
		if d.position, err = d.l.OffsetForTime(from); err != nil {
			return err
		}
	case given && *offset < 0:
		d.position = max(o.Start, o.HighWatermark+*offset)
	case given:
		d.position = *offset
	default:
		d.position = o.Start
	}
	err = d.run(*batches)
	if d.undecoded > 0 {
		fmt.Fprintf(t.err, "inspect: %s batches are compressed with a codec that this program does not have\n", number(d.undecoded))
	}
	if errors.Is(err, errEnough) || t.ctx.Err() != nil {
		return nil
	}
	return err
}

func (d *dumper) run(batches bool) error {
	for {
		var err error
		if batches {
			err = d.batches()
		} else {
			err = d.records()
		}
		if err != nil || !d.follow {
			return err
		}
		if err := d.t.out.Flush(); err != nil {
			return err
		}
		if err := d.l.Wait(d.t.ctx, d.position); err != nil {
			return err
		}
	}
}

// line counts what is printed.
func (d *dumper) line(v any, text string) error {
	if d.json {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		text = string(b)
	}
	if _, err := fmt.Fprintln(d.t.out, text); err != nil {
		return err
	}
	if d.printed++; d.printed == d.limit {
		return errEnough
	}
	return d.t.ctx.Err()
}

func (d *dumper) records() error {
	for {
		err := d.decoded()
		if !errors.Is(err, seglog.ErrCodec) {
			return err
		}
		// Go on behind the batch that can't be decoded.
		d.undecoded++
		for b, err := range d.l.Batches(d.position) {
			if err != nil {
				return err
			}
			d.position = b.Next
			break
		}
	}
}

func (d *dumper) decoded() error {
	for r, err := range d.l.Records(d.position) {
		if err != nil {
			return err
		}
		d.position = r.Offset + 1
		if err := d.line(recordJSON(r), d.text(r)); err != nil {
			return err
		}
	}
	return nil
}

func (d *dumper) text(r seglog.Record) string {
	if d.json {
		return ""
	}
	s := fmt.Sprintf("%10d  %s  ", r.Offset, when(r.Time))
	if r.Key != nil {
		s += show(r.Key, d.full) + " = "
	}
	s += show(r.Value, d.full)
	for _, h := range r.Headers {
		s += fmt.Sprintf("  [%s: %s]", h.Key, show(h.Value, d.full))
	}
	return s
}

type jsonHeader struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

// recordJSON keeps what the format tells apart: null, empty, text, and other bytes, which become {"base64": ...}.
func recordJSON(r seglog.Record) any {
	var headers []jsonHeader
	for _, h := range r.Headers {
		headers = append(headers, jsonHeader{h.Key, bytesJSON(h.Value)})
	}
	return struct {
		Offset  int64        `json:"offset"`
		Time    string       `json:"time,omitempty"`
		Key     any          `json:"key"`
		Value   any          `json:"value"`
		Headers []jsonHeader `json:"headers,omitempty"`
	}{r.Offset, timeJSON(r.Time), bytesJSON(r.Key), bytesJSON(r.Value), headers}
}

func bytesJSON(b []byte) any {
	switch {
	case b == nil:
		return nil
	case utf8.Valid(b):
		return string(b)
	}
	return struct {
		Base64 []byte `json:"base64"`
	}{b}
}

func (d *dumper) batches() error {
	for b, err := range d.l.Batches(d.position) {
		if err != nil {
			return err
		}
		d.position = b.Next
		s := fmt.Sprintf("%10d to %-10d  %s  %s at %d  %s records  %s  %s", b.Base, b.Next-1, when(b.MaxTime), filepath.Base(b.Path), b.Pos, number(b.Records), size(b.Bytes), b.Codec)
		for _, is := range []struct {
			so   bool
			what string
		}{{b.Control, "control"}, {b.Transactional, "transactional"}, {b.LogAppendTime, "log append time"}} {
			if is.so {
				s += ", " + is.what
			}
		}
		if b.ProducerID >= 0 {
			s += fmt.Sprintf("  producer %d/%d seq %d", b.ProducerID, b.ProducerEpoch, b.BaseSequence)
		}
		if err := d.line(batchJSON(b), s); err != nil {
			return err
		}
	}
	return nil
}

func batchJSON(b seglog.BatchInfo) any {
	return struct {
		Base          int64  `json:"base"`
		Next          int64  `json:"next"`
		Records       int64  `json:"records"`
		File          string `json:"file"`
		Pos           int64  `json:"pos"`
		Bytes         int64  `json:"bytes"`
		Codec         string `json:"codec"`
		BaseTime      string `json:"baseTime,omitempty"`
		MaxTime       string `json:"maxTime,omitempty"`
		LogAppendTime bool   `json:"logAppendTime,omitempty"`
		Transactional bool   `json:"transactional,omitempty"`
		Control       bool   `json:"control,omitempty"`
		LeaderEpoch   int32  `json:"leaderEpoch"`
		ProducerID    int64  `json:"producerId"`
		ProducerEpoch int16  `json:"producerEpoch"`
		BaseSequence  int32  `json:"baseSequence"`
		CRC           uint32 `json:"crc"`
	}{b.Base, b.Next, b.Records, filepath.Base(b.Path), b.Pos, b.Bytes, b.Codec.String(), timeJSON(b.BaseTime), timeJSON(b.MaxTime),
		b.LogAppendTime, b.Transactional, b.Control, b.LeaderEpoch, b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.CRC}
}
