// Quickstart does with a log what a service does with it: append, read one record, iterate, send it over a socket, open
// it again. The lines of a text become records; each is compared with its line when it comes back over TCP. It works
// with a few MiB of heap however large the text is, since everything streams.
//
//	go run ./examples/quickstart                       # its own source text, in a temporary directory
//	go run ./examples/quickstart -file big.txt -dir d  # a file of yours ("-": standard input), in a log that stays
//
// It prints one sentence for each step, with how long it took.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"time"

	"github.com/seglog/seglog"
)

const about = `quickstart does with a log what a service does with it: append, read, iterate, send over a socket, open again.

  go run ./examples/quickstart                       its own source text, in a temporary directory
  go run ./examples/quickstart -file big.txt -dir d  a file of yours, in a log that stays

`

func main() {
	dir := flag.String("dir", "", "`directory` of the log; default: a temporary one, removed at the end")
	file := flag.String("file", "", "`text` to append, - for standard input; default: the source of this program")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: unexpected arguments %q: a text goes with -file\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*dir, *file); err != nil {
		log.Fatal("quickstart: ", err)
	}
}

func run(dir, file string) (err error) {
	tmp, err := os.MkdirTemp("", "quickstart")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if dir == "" {
		dir = tmp
	}
	text, err := openText(file, tmp)
	if err != nil {
		return err
	}
	defer text.Close()

	l, err := seglog.Open(dir, nil) // nil: what Append acknowledges is on stable storage
	if err != nil {
		return err
	}
	defer func() { l.Close() }() // Close is idempotent

	first := l.Offsets().End
	clock := time.Now()
	size, err := appendLines(l, text)
	if err != nil {
		return err
	}
	end := l.Offsets().End
	report(clock, size, "Appended %d lines to %s, each on stable storage,", end-first, dir)
	if first == end {
		return fmt.Errorf("%s holds no line", file)
	}

	middle := first + (end-first)/2
	r, err := l.Read(middle)
	if err != nil {
		return err
	}
	fmt.Printf("The record at offset %d is %.60q, appended at %s.\n", r.Offset, r.Value, r.Time.Format(time.TimeOnly))

	clock, size = time.Now(), 0
	for r, err := range l.Records(first) {
		if err != nil {
			return err
		}
		size += int64(len(r.Value))
	}
	report(clock, size, "Iterated over them, every CRC checked,")

	clock = time.Now()
	sent, err := overTCP(l, first, text)
	if err != nil {
		return err
	}
	report(clock, sent, "Sent them over TCP, decoded and compared every line,")
	if s := l.Stats(); s.SentZeroCopy > 0 {
		fmt.Printf("%d bytes went from the page cache to the socket without passing through this process.\n", s.SentZeroCopy)
	}

	if err := l.Close(); err != nil {
		return err
	}
	clock = time.Now()
	if l, err = seglog.Open(dir, nil); err != nil {
		return err
	}
	o := l.Offsets()
	fmt.Printf("Opened the log again in %v: it holds offsets %d to %d, durable up to %d.\n",
		time.Since(clock).Round(time.Microsecond), o.Start, o.End-1, o.RecoveryPoint-1)
	if o.End != end {
		return fmt.Errorf("the log ended at %d before it was closed", end)
	}
	fmt.Printf("The heap never took more than %.0f MiB.\n", heapMiB())
	return l.Close()
}

// appendLines appends some thousand lines at a time: a call is a batch, and a batch is flushed once.
func appendLines(l *seglog.Log, text io.ReadSeeker) (size int64, err error) {
	const batchBytes, batchLines = 512 << 10, 8 << 10
	batch := make([]seglog.Record, 0, batchLines)
	pending := make([]byte, 0, batchBytes) // the batch's lines, back to back
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := l.Append(batch...)
		batch, pending = batch[:0], pending[:0]
		return err
	}
	lines, err := linesOf(text)
	if err != nil {
		return 0, err
	}
	for lines.Scan() {
		if len(batch) == batchLines || len(pending)+len(lines.Bytes()) > batchBytes {
			if err := flush(); err != nil {
				return size, err
			}
		}
		from := len(pending)
		pending = append(pending, lines.Bytes()...) // an array that moves leaves the records of before intact
		batch = append(batch, seglog.Record{Value: pending[from:len(pending):len(pending)]})
		size += int64(len(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		return size, err
	}
	return size, flush()
}

// overTCP sends the log from an offset on through a connection and compares what arrives with the text.
func overTCP(l *seglog.Log, from int64, text io.ReadSeeker) (size int64, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = l.TransferTo(from, math.MaxInt64, conn)
		}
		served <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	lines, err := linesOf(text)
	if err != nil {
		return 0, err
	}
	for r, err := range seglog.Decode(conn) {
		if err != nil {
			return size, err
		}
		if !lines.Scan() || !bytes.Equal(r.Value, lines.Bytes()) {
			return size, fmt.Errorf("offset %d: %.60q arrived where the text has %.60q", r.Offset, r.Value, lines.Bytes())
		}
		size += int64(len(r.Value))
	}
	if err := <-served; err != nil {
		return size, err
	}
	if lines.Scan() {
		return size, fmt.Errorf("%.60q did not arrive", lines.Bytes())
	}
	return size, nil
}
