// Bench measures seglog against the logs a Go service can import and against what the machine allows, and prints one
// table per piece of work with target and result side by side.
//
//	go run .                     every row, at full length
//	go run . -quick              the same comparisons in six to eight minutes
//	go run . -row 4,5,6          some rows
//	go run . -json out.json      keep the figures; go run ./chart draws them
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/rows"
)

func main() {
	child.Main()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type flags struct {
	dir, rows, peers, json, profile string
	quick                           bool
	rounds                          int
}

func parseFlags() flags {
	var f flags
	flag.StringVar(&f.dir, "dir", "", "directory for the data, on a disk file system (default: a new one below the current directory)")
	flag.StringVar(&f.rows, "row", "", "comma-separated rows, of: "+strings.Join(ids(), ","))
	flag.StringVar(&f.peers, "peer", "", "comma-separated names of the peers to measure (default: all)")
	flag.StringVar(&f.json, "json", "", "write the figures to this file as well")
	flag.StringVar(&f.profile, "cpuprofile", "", "write a CPU profile of the whole run to this file")
	flag.BoolVar(&f.quick, "quick", false, "short rounds and small logs")
	flag.IntVar(&f.rounds, "rounds", 7, "rounds of each comparison")
	flag.Parse()
	return f
}

func ids() []string {
	var out []string
	for _, r := range rows.All() {
		out = append(out, r.ID)
	}
	return out
}

func run() (err error) {
	f := parseFlags()
	selected, err := selectRows(f.rows)
	if err != nil {
		return err
	}
	dir, remove, err := dataDir(f.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	fs, err := measure.Disk(dir)
	if err != nil {
		return err
	}
	if f.profile != "" {
		out, err := os.Create(f.profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	report := rows.Report{Machine: machine(fs), Quick: f.quick, Rounds: f.rounds}
	fmt.Printf("%s; %d rounds interleaved, median; spread is half of (greatest - least) over the median\n", report.Machine, f.rounds)
	env := &rows.Env{Dir: dir, Quick: f.quick, Rounds: f.rounds, Log: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	if f.peers != "" {
		env.Only = strings.Split(f.peers, ",")
	}
	var failed []error
	for _, row := range selected {
		env.Log("row %s: %s", row.ID, row.Work)
		began, others := time.Now(), measure.StartNeighbours()
		result, err := row.Run(env)
		if err != nil {
			failed = append(failed, fmt.Errorf("row %s: %w", row.ID, err))
			env.Log("  failed: %v", err)
			continue
		}
		result.Row, result.Work, result.Others = row.ID, row.Work, others()
		result.Print(os.Stdout)
		report.Results = append(report.Results, result)
		env.Log("  %v", time.Since(began).Round(100*time.Millisecond))
	}
	rows.Setups(os.Stdout, report.Results)
	rows.Summary(os.Stdout, report.Results)
	if f.json != "" {
		failed = append(failed, save(f.json, report))
	}
	return errors.Join(failed...)
}

func save(path string, report rows.Report) error {
	b, err := json.MarshalIndent(report, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// selectRows returns the rows asked for. Without a list these are the fifteen of the targets; the sweeps for the charts
// run when they are named.
func selectRows(list string) ([]rows.Row, error) {
	all := rows.All()
	if list == "" {
		return slices.DeleteFunc(all, func(r rows.Row) bool { return r.ID[0] < '0' || r.ID[0] > '9' }), nil
	}
	var out []rows.Row
	for id := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(r rows.Row) bool { return r.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("no row %q; there are %s", id, strings.Join(ids(), ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// dataDir makes a directory of this run's own, and sees to it that it goes, also on an interrupt.
func dataDir(base string) (string, func() error, error) {
	if base == "" {
		base = "."
	}
	dir, err := os.MkdirTemp(base, "bench-data-")
	if err != nil {
		return "", nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, unix.SIGTERM)
	go func() {
		<-interrupted
		os.RemoveAll(dir)
		os.Exit(130)
	}()
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// machine describes where the figures were measured.
func machine(fs string) string {
	var u unix.Utsname
	kernel := ""
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	cpu := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%d x %s, Linux %s, %s, %s %s/%s, %s", runtime.NumCPU(), cpu, kernel, fs, runtime.Version(), runtime.GOOS, runtime.GOARCH,
		time.Now().UTC().Format("2006-01-02"))
}
