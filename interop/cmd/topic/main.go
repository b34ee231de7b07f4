// Command topic is seglog's side of broker.sh: it fills a directory, lists one, adds to one.
//
//	topic fill DIR N     N batches of all shapes, cut back and written over in places, the first records deleted
//	topic append DIR N   N more records, as a service that goes on with a directory
//	topic start DIR      the first offset there is
//	topic list DIR FROM  offset, time, key, value and headers of every record from an offset on, a line each
//	topic verify DIR     check every byte
//	topic kcat           what kcat -J prints, from stdin, in the form of list
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/seglog/seglog"
	_ "github.com/seglog/seglog/codecs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "topic:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "kcat" {
		return kcat(os.Stdin)
	}
	if len(args) < 2 {
		return fmt.Errorf("usage: topic fill|append|start|list|verify DIR [N], or topic kcat")
	}
	cmd, dir, n := args[0], args[1], 0
	if len(args) > 2 {
		var err error
		if n, err = strconv.Atoi(args[2]); err != nil {
			return err
		}
	}
	switch cmd {
	case "fill":
		return fill(dir, n)
	case "append":
		return appendMore(dir, n)
	case "start":
		return start(dir)
	case "list":
		return list(dir, int64(n))
	case "verify":
		return verify(dir)
	}
	return fmt.Errorf("unknown command %q", cmd)
}

// options make many segments out of little data. Retention is off: what was written has to be found again.
var options = seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 256 << 10}

func fill(dir string, n int) (err error) {
	l, err := seglog.Open(dir, &options)
	if err != nil {
		return err
	}
	defer func() { err = first(err, l.Close()) }()
	rnd := rand.New(rand.NewSource(int64(n)))
	for i := range n {
		batch := make([]seglog.Record, 1+rnd.Intn(5))
		for j := range batch {
			batch[j] = record(rnd, i)
		}
		if _, err := l.Append(batch...); err != nil {
			return err
		}
		// A few truncations: what was there gives way to other records at the same offsets.
		if i%(n/3+1) == n/4 {
			if err := l.TruncateTo(l.Offsets().End - 3); err != nil {
				return err
			}
		}
	}
	// Into the middle of a segment, of which the files say nothing.
	return l.DeleteBefore(int64(n) / 3)
}

func appendMore(dir string, n int) (err error) {
	l, err := seglog.Open(dir, &options)
	if err != nil {
		return err
	}
	defer func() { err = first(err, l.Close()) }()
	rnd := rand.New(rand.NewSource(l.Offsets().End))
	for i := range n {
		if _, err := l.Append(record(rnd, i)); err != nil {
			return err
		}
	}
	return nil
}

// record is printable: null and empty keys and values, headers, times that go back now and then.
func record(rnd *rand.Rand, i int) seglog.Record {
	r := seglog.Record{
		Time:  time.UnixMilli(1_700_000_000_000 + int64(i)*1000 - int64(rnd.Intn(5000))),
		Value: []byte(strings.Repeat("value ", rnd.Intn(60)) + strconv.Itoa(i)),
	}
	switch rnd.Intn(4) {
	case 0:
		r.Key = []byte{}
	case 1:
		r.Key = fmt.Appendf(nil, "key-%d", i%17)
	case 2:
		r.Key = []byte("clé-鍵")
		r.Headers = []seglog.Header{{Key: "trace", Value: fmt.Appendf(nil, "%x", i)}, {Key: "second", Value: []byte("2")}}
	}
	if rnd.Intn(20) == 0 {
		r.Value = nil
	}
	return r
}

func start(dir string) error {
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	fmt.Println(l.Offsets().Start)
	return l.Close()
}

func list(dir string, from int64) (err error) {
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = first(err, l.Close()) }()
	for r, err := range l.Records(max(from, l.Offsets().Start)) {
		if err != nil {
			return err
		}
		var headers []*string
		for _, h := range r.Headers {
			headers = append(headers, &h.Key, text(h.Value))
		}
		printRecord(r.Offset, r.Time.UnixMilli(), text(r.Key), text(r.Value), headers)
	}
	return nil
}

// kcat's format strings print null and empty alike, its JSON does not.
func kcat(in io.Reader) error {
	dec := json.NewDecoder(in)
	for {
		var m struct {
			Offset, TS   int64
			Key, Payload *string
			Headers      []*string
		}
		if err := dec.Decode(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		printRecord(m.Offset, m.TS, m.Key, m.Payload, m.Headers)
	}
}

func printRecord(offset, ms int64, key, value *string, headers []*string) {
	var hs []string
	for i := 0; i+1 < len(headers); i += 2 {
		hs = append(hs, orNull(headers[i])+"="+orNull(headers[i+1]))
	}
	fmt.Printf("%d\t%d\t%s\t%s\t%s\n", offset, ms, orNull(key), orNull(value), strings.Join(hs, ","))
}

func text(b []byte) *string {
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}

func orNull(s *string) string {
	if s == nil {
		return "NULL"
	}
	return *s
}

func verify(dir string) error {
	report, err := seglog.Verify(dir, nil)
	if err != nil {
		return err
	}
	fmt.Printf("%d segments, %d batches, %d records, offsets %d to %d\n",
		len(report.Segments), report.Batches, report.Records, report.Start, report.End)
	for _, p := range report.Problems {
		fmt.Println(p)
	}
	if !report.OK() { // notes and warnings are of indexes: Kafka spaces their entries wider after a restart
		return fmt.Errorf("records can't be read")
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
