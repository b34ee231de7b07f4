package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/seglog/seglog"
)

var verifyCommand = &command{
	name: "verify", short: "checks every byte",
	flags: "[-json] [-index-bytes n] ",
	long: `Reads every batch, record and index entry, and says what is wrong. Nothing is changed, and a program that writes the
log meanwhile is not disturbed. The exit status is 1 if records can't be read; wrong indexes, which the log makes anew,
are told as warnings.

  -json            print the whole report
  -index-bytes n   the interval that the indexes were written with; without it, any is fine

  inspect verify /var/lib/orders
  inspect verify -json /var/lib/orders | jq '.problems'`,
	run: (*tool).verify,
}

func (t *tool) verify(args []string) error {
	asJSON := t.flags.Bool("json", false, "")
	o := &seglog.VerifyOptions{Context: t.ctx}
	t.flags.IntVar(&o.IndexBytes, "index-bytes", 0, "")
	dir, err := t.directory(args)
	if err != nil {
		return err
	}
	if o.IndexBytes < 0 {
		return usageError{fmt.Errorf("verify: -index-bytes %d: less than nothing", o.IndexBytes)}
	}
	if t.terminal {
		bar := &progress{w: t.err, began: time.Now()}
		o.Progress = bar.show
		defer bar.clear()
	}
	r, err := seglog.Verify(dir, o)
	if err != nil {
		return err
	}
	if t.terminal {
		fmt.Fprint(t.err, eraseLine)
	}
	if *asJSON {
		err = printJSON(t.out, r)
	} else {
		t.printReport(r)
	}
	if err == nil && !r.OK() {
		err = errFound
	}
	return err
}

func (t *tool) printReport(r *seglog.Report) {
	counts := map[seglog.Severity]int{}
	alike := map[kindOfProblem]int{}
	for _, p := range r.Problems {
		counts[p.Severity]++
		alike[kindOf(p)]++
	}
	for _, p := range r.Problems {
		kind := kindOf(p)
		if n := alike[kind]; n > fewAlike {
			t.printAlike(p, n)
			alike[kind] = 0
		}
		if alike[kind] == 0 {
			continue
		}
		at := filepath.Base(p.Path)
		if p.Offset >= 0 {
			at += fmt.Sprintf(" at position %d, offset %d", p.Pos, p.Offset)
		}
		if p.Bytes > 0 {
			at += ", " + size(p.Bytes)
		}
		fmt.Fprintf(t.out, "%-8v %s: %s\n", p.Severity, at, p.Reason)
	}
	var undecoded int64
	for _, s := range r.Segments {
		undecoded += s.Undecoded
	}
	fmt.Fprintf(t.out, "%s batches with %s records, %s in %d segments, offsets %s to %s, looked at in %s; the log is %s\n", number(r.Batches), number(r.Records),
		size(r.Bytes), len(r.Segments), number(r.Start), number(r.End), duration(r.Duration), stateText(r.State))
	if undecoded > 0 {
		fmt.Fprintf(t.out, "of %s batches, compressed with a codec that this program does not have, only the CRC was checked\n", number(undecoded))
	}
	if r.Changed {
		fmt.Fprintln(t.out, "the log was cut meanwhile: some of this is as it was before")
	}
	if r.OK() {
		fmt.Fprintf(t.out, "good: every record can be read (%d warnings, %d notes)\n", counts[seglog.SeverityWarning], counts[seglog.SeverityNote])
	} else {
		fmt.Fprintf(t.out, "BAD: %d errors; inspect repair shows what can be done\n", counts[seglog.SeverityError])
	}
}

// kindOfProblem is what a directory may have hundreds of: one that was copied without its indexes has two for each
// segment, and nothing is wrong with it.
type kindOfProblem struct {
	severity seglog.Severity
	reason   string
}

// fewAlike is how many problems of a kind are listed one by one. Errors always are: each has lost something else.
const fewAlike = 3

func kindOf(p seglog.Problem) kindOfProblem {
	if p.Severity == seglog.SeverityError {
		return kindOfProblem{p.Severity, fmt.Sprint(p.Path, p.Pos, p.Reason)}
	}
	if strings.HasSuffix(p.Reason, "file is missing") {
		return kindOfProblem{p.Severity, "index file is missing"}
	}
	return kindOfProblem{p.Severity, p.Reason}
}

func (t *tool) printAlike(p seglog.Problem, n int) {
	if kind := kindOf(p); strings.HasSuffix(kind.reason, "file is missing") {
		fmt.Fprintf(t.out, "%-8v %s index files are missing, %s the first: the log makes them anew when it is opened for writing\n", p.Severity, number(int64(n)), filepath.Base(p.Path))
		return
	}
	fmt.Fprintf(t.out, "%-8v %s times, first in %s: %s; -json lists them\n", p.Severity, number(int64(n)), filepath.Base(p.Path), p.Reason)
}

func stateText(state string) string {
	switch state {
	case "closed":
		return "closed"
	case "none":
		return "not seglog's (Kafka's?)"
	}
	return "in use, or was not closed"
}

const eraseLine = "\r\x1b[K"

// progress is a bar with an estimate.
type progress struct {
	w           io.Writer
	began, last time.Time
}

func (p *progress) show(done, total int64) {
	now := time.Now()
	if now.Sub(p.last) < 100*time.Millisecond || total == 0 {
		return
	}
	p.last = now
	const width = 40
	part := float64(done) / float64(total)
	full := int(part * width)
	took := now.Sub(p.began)
	left := ""
	if took > time.Second && part > 0 {
		left = ", " + duration(time.Duration(float64(took)*(1-part)/part)) + " left"
	}
	rate := float64(done) / took.Seconds()
	fmt.Fprintf(p.w, "%s[%s%s] %3.0f%% of %s, %s/s%s", eraseLine, strings.Repeat("█", full), strings.Repeat("·", width-full), 100*part, size(total), size(int64(rate)), left)
}

func (p *progress) clear() {
	if !p.last.IsZero() {
		fmt.Fprint(p.w, eraseLine)
	}
}
