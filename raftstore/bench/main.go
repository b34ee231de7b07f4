// Bench compares raftstore with raft-wal and raft-boltdb: by themselves, and under the same cluster of three servers in one
// process over raft's TCP transport. Every row is measured with all of them, one after the other, -rounds times, in an order
// that turns; the table has the median.
//
//	go run . -quick                   under three minutes
//	go run . -rows leader -log 1024   leader change with a log of 1 GiB
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

var errEnough = errors.New("nothing left to measure")

type bench struct {
	dir     string
	round   time.Duration
	rounds  int
	logMiB  int
	awayMiB int

	rows    []string
	figures map[string]map[string][]float64 // row, peer
	turn    int                             // the peer that is measured first
}

func main() {
	quick := flag.Bool("quick", false, "short rounds and small logs")
	b := &bench{figures: make(map[string]map[string][]float64)}
	flag.StringVar(&b.dir, "dir", "", "where the stores are kept; a temporary directory, if empty")
	flag.DurationVar(&b.round, "round", 2*time.Second, "how long each row is measured")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each row is measured")
	flag.IntVar(&b.logMiB, "log", 256, "size of the log with which the leader changes, in MiB")
	flag.IntVar(&b.awayMiB, "away", 128, "what a server that was away has to get, in MiB")
	only := flag.String("rows", "store,cluster,away,leader", "what to measure")
	flag.Parse()
	if *quick {
		b.round, b.rounds, b.logMiB, b.awayMiB = 200*time.Millisecond, 3, 64, 16
	}
	if err := b.run(strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(only []string) error {
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "raftstore-bench")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		b.dir = dir
	}
	parts := map[string]func() error{"store": b.storeRows, "cluster": b.clusterRows, "away": b.catchUpRows, "leader": b.leaderRows}
	for b.turn = range b.rounds {
		for _, part := range only {
			f, ok := parts[part]
			if !ok {
				return fmt.Errorf("no rows %q", part)
			}
			if err := f(); err != nil {
				return err
			}
		}
	}
	b.print()
	return nil
}

// each calls f with every peer; the directories of its stores are removed afterwards.
func (b *bench) each(f func(name string, open func() (store, error)) error) error {
	for i := range peers {
		p := peers[(i+b.turn)%len(peers)]
		runtime.GC()
		var dirs []string
		err := f(p.name, func() (store, error) {
			dir, err := os.MkdirTemp(b.dir, p.name)
			if err != nil {
				return nil, err
			}
			dirs = append(dirs, dir)
			return p.open(dir)
		})
		for _, dir := range dirs {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (b *bench) note(row, peer string, figure float64) {
	if b.figures[row] == nil {
		b.figures[row] = make(map[string][]float64)
		b.rows = append(b.rows, row)
	}
	b.figures[row][peer] = append(b.figures[row][peer], figure)
}

func (b *bench) print() {
	fmt.Printf("|")
	for _, p := range peers {
		fmt.Printf(" | %s", p.name)
	}
	fmt.Printf(" |\n|---%s|\n", strings.Repeat("|---:", len(peers)))
	for _, row := range b.rows {
		fmt.Printf("| %s", row)
		for _, p := range peers {
			fmt.Printf(" | %s", figure(median(b.figures[row][p.name])))
		}
		fmt.Println(" |")
	}
}

func median(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[len(sorted)/2]
}

// figure has three digits.
func figure(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}
