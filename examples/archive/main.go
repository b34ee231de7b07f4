// Archive copies each segment of a log to an archive, a directory here that stands for object storage, and lets
// retention delete a segment only once its copy is there and was read back. So a log of any size on disk has all of its
// history, and nothing is lost between the two, over any number of kills.
//
//	go run ./examples/archive                      # appends, is killed again and again, and shows that nothing is missing
//	go run ./examples/archive -dir d -to archive   # archives a log of yours, and goes on until interrupted
//
// It prints a line for each segment that was archived. The archive is in the format of the log: seglog.Open with
// ReadOnly, examples/tail and examples/inspect read it.
//
// What is left out: the active segment is archived once it is sealed, not before. DeleteBefore asks nobody and deletes
// what was not archived yet. An archived segment is never replaced: a log that was cut with TruncateTo or Reset and has
// other records at old offsets stops its archiver, and keeps what is not archived.
package main

import (
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

const about = `archive copies sealed segments away, and lets retention delete only what is there and verified.

  go run ./examples/archive                     appends, is killed again and again, and shows that nothing is missing
  go run ./examples/archive -dir d -to archive  archives a log of yours, and goes on until interrupted

`

// options are the command line.
type options struct {
	dir, to      string
	appends      bool // made-up records, as fast as they are taken
	segmentBytes int64
	keepBytes    int64
	quiet        bool
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "`directory` of the log; default: a demonstration in a temporary one")
	flag.StringVar(&o.to, "to", "", "`directory` of the archive")
	flag.BoolVar(&o.appends, "append", false, "append made-up records, as the demonstration does")
	flag.Int64Var(&o.segmentBytes, "segment", 0, "`bytes` of a segment; default: the log's")
	flag.Int64Var(&o.keepBytes, "keep", 0, "`bytes` to keep in the log, if the rest is archived; default: all")
	flag.BoolVar(&o.quiet, "quiet", false, "do not tell of each segment")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "archive: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case o.dir == "" && o.to == "":
		err = demonstrate(ctx)
	case o.dir == "" || o.to == "":
		err = errors.New("-dir and -to go together")
	default:
		err = run(ctx, o)
	}
	if err != nil {
		log.Fatal("archive: ", err)
	}
}

// run archives a log until ctx ends.
func run(ctx context.Context, o options) error {
	s, err := openStore(o.to)
	if err != nil {
		return err
	}
	a := newArchiver(s)
	if !o.quiet {
		a.tell = func(text string) { fmt.Println("archive:", text) }
	}
	l, err := seglog.Open(o.dir, &seglog.Options{Flush: seglog.FlushAsync, SegmentBytes: o.segmentBytes, RetentionBytes: o.keepBytes,
		OnSeal: a.sealed, MayDelete: a.mayDelete})
	if err != nil {
		return err
	}
	defer l.Close()
	if o.appends {
		go func() {
			if err := appendForEver(ctx, l); err != nil {
				fmt.Fprintln(os.Stderr, "archive: append:", err)
			}
		}()
	}
	err = a.run(ctx, l)
	return errors.Join(err, l.Close())
}

// value is what the record at an offset holds, so that a wrong one is seen.
func value(offset int64) []byte { return fmt.Appendf(nil, "record %d %0*d", offset, offset%300, 0) }

// appendForEver appends until ctx ends. It asks the log for its end once: nobody else appends.
func appendForEver(ctx context.Context, l *seglog.Log) error {
	batch := make([]seglog.Record, 100)
	for next := l.Offsets().End; ctx.Err() == nil; next += int64(len(batch)) {
		for i := range batch {
			batch[i].Value = value(next + int64(i))
		}
		if _, err := l.Append(batch...); err != nil {
			if errors.Is(err, seglog.ErrClosed) {
				return nil
			}
			return err
		}
		time.Sleep(time.Millisecond) // some 10 MB/s: a disk that keeps up is not what is shown
	}
	return nil
}
