// Crash shows what a kill -9 leaves of a log. A child process appends and tells each offset that was acknowledged; it is
// killed at a random moment, the log is opened again, and what is there is compared with what was acknowledged.
//
//	go run ./examples/crash             # three kills under each flush policy
//	go run ./examples/crash -kills 100
//
// It prints a table: under every policy nothing acknowledged is lost, since it is in the page cache, which outlives the
// process. (A power cut is another matter: then only FlushSync keeps all, see docs/recovery.md.) What was appended and
// not acknowledged any more may be there or not.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/seglog/seglog"
)

const about = `crash kills a process that appends, again and again, and shows what is there of what it was told is stored.

  go run ./examples/crash             three kills under each flush policy
  go run ./examples/crash -kills 100

`

func main() {
	kills := flag.Int("kills", 3, "how often to kill under each policy")
	child := flag.String("child", "", "append to the log in this directory until killed")
	policy := flag.Int("policy", 0, "flush policy of the child")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "crash: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	if *child != "" {
		log.Fatal("child: ", appendForEver(*child, seglog.FlushPolicy(*policy)))
	}
	fmt.Println("policy  kills  acknowledged  recovered  lost  not acknowledged, yet there  slowest open")
	for _, p := range []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone} {
		if err := torture(p, *kills); err != nil {
			log.Fatalf("crash: %v: %v", p, err)
		}
	}
}

// torture prints a line of the table. One log lives through all the kills.
func torture(p seglog.FlushPolicy, kills int) error {
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var acknowledged, recovered, lost, beyond int64
	var slowest time.Duration
	for range kills {
		n, err := killOne(dir, p)
		if err != nil {
			return err
		}
		acknowledged += max(0, n-recovered) // recovered: what it started from
		start := time.Now()
		l, err := seglog.Open(dir, nil)
		if err != nil {
			return err
		}
		slowest = max(slowest, time.Since(start))
		must := max(n, recovered) // what an earlier open showed must stay, too
		if recovered, err = check(l); err != nil {
			return err
		}
		lost += max(0, must-recovered)
		beyond += max(0, recovered-must)
		if err := l.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("%-6v  %5d  %12d  %9d  %4d  %27d  %12v\n", p, kills, acknowledged, recovered, lost, beyond, slowest.Round(10*time.Microsecond))
	if lost > 0 {
		return fmt.Errorf("%d acknowledged records are not there", lost)
	}
	return nil
}

// killOne runs a child for a while and returns the end of what it acknowledged.
func killOne(dir string, p seglog.FlushPolicy) (acknowledged int64, err error) {
	child := exec.Command(os.Args[0], "-child", dir, "-policy", strconv.Itoa(int(p)))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := child.Start(); err != nil {
		return 0, err
	}
	timer := time.AfterFunc(time.Duration(20+rand.IntN(200))*time.Millisecond, func() { child.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // the end of the pipe; a line without its end was not told
			break
		}
		if acknowledged, err = strconv.ParseInt(line[:len(line)-1], 10, 64); err != nil {
			return 0, err
		}
	}
	child.Wait() // says that it was killed
	return acknowledged, nil
}

// check reads everything: no hole, no duplicate, no wrong byte.
func check(l *seglog.Log) (end int64, err error) {
	for r, err := range l.Records(0) {
		if err != nil {
			return end, err
		}
		if r.Offset != end || string(r.Value) != string(value(end)) {
			return end, fmt.Errorf("offset %d holds %.40q where %.40q is due", r.Offset, r.Value, value(end))
		}
		end++
	}
	return end, nil
}
