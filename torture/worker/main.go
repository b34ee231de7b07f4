//go:build linux

// Worker drives a log through its public calls while something else makes system calls fail, fills the disk or kills it,
// and afterwards proves what is left. What it is answered goes to its standard output, line by line, before the next
// call: the journal.
//
//	worker -dir D -op mixed -policy sync > journal     # drive: append, roll, truncate, delete, transfer or mixed
//	worker -dir D -op check -journal journal           # prove: opens the log twice, the second time nothing may change
//	worker -dir D -op fill -ballast F > journal        # until the disk is full, and on when there is room again
//
// While it drives, it demands of each error that it names the file and the operation; of a log that has failed that it
// takes no append any more and that everything below is still read; and of one that has not, that it goes on.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/seglog/seglog"
)

var policies = map[string]seglog.FlushPolicy{"sync": seglog.FlushSync, "async": seglog.FlushAsync, "none": seglog.FlushNone}

func main() {
	c := config{}
	flag.StringVar(&c.dir, "dir", "", "directory of the log")
	policy := flag.String("policy", "sync", "sync, async or none")
	flag.StringVar(&c.op, "op", "mixed", "append, roll, truncate, delete, transfer, mixed, fill or check")
	flag.IntVar(&c.run, "run", 1, "number of this process among those that write the log")
	flag.IntVar(&c.steps, "steps", 40, "calls")
	acks := flag.Int("acks", 1, "descriptor to which the journal goes")
	flag.StringVar(&c.journal, "journal", "", "with check: the journals of all runs, one after the other")
	flag.StringVar(&c.ballast, "ballast", "", "with fill: a file that is removed to make room; default: the log's own oldest half goes")
	flag.StringVar(&c.spare, "spare", "", "with fill: a file that is removed if the log itself can make no room")
	flag.Int64Var(&c.segment, "segment", 1<<20, "with fill and check: SegmentBytes")
	flag.IntVar(&c.rounds, "rounds", 2, "with fill: how often there is room again")
	flag.Parse()
	var known bool
	if c.policy, known = policies[*policy]; !known || c.dir == "" {
		fmt.Fprintln(os.Stderr, "worker: -dir is missing, or -policy is none of sync, async, none")
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGXFSZ) // a file size limit is then the error EFBIG
	c.acks = os.NewFile(uintptr(*acks), "acks")
	var err error
	switch c.op {
	case "check":
		err = check(c)
	case "fill":
		err = fill(c)
	default:
		err = drive(c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}
