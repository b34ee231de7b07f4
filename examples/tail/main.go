// Tail shows the end of a log and then each record as it comes, like tail -f: beside the process that writes it, without
// a lock and without a single write. It sees the writer's rolls, deletions and truncations.
//
//	go run ./examples/tail                       # a log that a goroutine appends to, for two seconds
//	go run ./examples/tail -dir d                # the last ten records, and what comes until ctrl-C
//	go run ./examples/tail -dir d -from 0 > all  # the whole history first, with progress on standard error
//
// It prints offset, time, key and value of each record, one a line.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/seglog/seglog"
)

const about = `tail shows the end of a log and then each record as it comes, beside the process that writes it.

  go run ./examples/tail                       a log that a goroutine appends to, for two seconds
  go run ./examples/tail -dir d                the last ten records, and what comes until ctrl-C
  go run ./examples/tail -dir d -from 0 > all  the whole history first

`

func main() {
	dir := flag.String("dir", "", "`directory` of the log; default: one made up for a demonstration")
	from := flag.Int64("from", -1, "`offset` of the first record to show; -1: the last -n records")
	n := flag.Int64("n", 10, "how many records to begin with")
	follow := flag.Bool("follow", true, "wait for more at the end")
	forTime := flag.Duration("for", 0, "stop after that time; default: at an interrupt")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "tail: unexpected arguments %q: the directory of a log goes with -dir\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	if *n < 0 {
		log.Fatalf("tail: -n %d: less than nothing", *n)
	}
	if err := run(*dir, *from, *n, *follow, *forTime); err != nil {
		log.Fatal("tail: ", err)
	}
}

func run(dir string, from, n int64, follow bool, forTime time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if dir == "" {
		made, remove, err := madeUp()
		if err != nil {
			return err
		}
		defer remove()
		dir, forTime = made, 2*time.Second
	}
	if forTime > 0 {
		ctx, stop = context.WithTimeout(ctx, forTime)
		defer stop()
	}
	return tail(ctx, dir, from, n, follow)
}

func tail(ctx context.Context, dir string, from, n int64, follow bool) error {
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer l.Close()
	o := l.Offsets()
	if from < 0 {
		from = max(o.Start, o.HighWatermark-n)
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	defer out.Flush()
	p := newProgress(from, o.HighWatermark)
	records := l.Records(from)
	if follow {
		records = l.Follow(ctx, from)
	}
	for r, err := range records {
		if err != nil {
			var gone *seglog.OffsetError
			if errors.As(err, &gone) {
				return fmt.Errorf("%w; -from %d shows the first there is", err, gone.Offsets.Start)
			}
			return err
		}
		if ctx.Err() != nil {
			break
		}
		show(out, r)
		p.at(r.Offset)
		// Buffered while it reads what is there, at once when it waits for more.
		if r.Offset+1 >= l.Offsets().HighWatermark {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func show(out *bufio.Writer, r seglog.Record) {
	fmt.Fprintf(out, "%d\t%s\t", r.Offset, r.Time.Local().Format("2006-01-02 15:04:05.000"))
	if r.Key != nil {
		fmt.Fprintf(out, "%s\t", r.Key)
	}
	switch {
	case r.Value == nil:
		out.WriteString("(tombstone)")
	default:
		out.Write(r.Value)
	}
	out.WriteByte('\n')
}
