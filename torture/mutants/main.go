// Mutants changes the engine in many small ways, one at a time, and tells which changes no test notices: conditions
// negated, borders moved by one, operands and statements left out. It copies the tree, puts all changes into one program of
// tests, and runs for each change the tests that come across it until one fails.
//
//	go run ./torture/mutants flush.go roll.go        the mutants of these files
//	go run ./torture/mutants -one-of 10 truncate.go  one in ten
//	go run ./torture/mutants -only 17,230 flush.go   these alone, by their numbers
//	go run ./torture/mutants -done out flush.go      those that an earlier run, which wrote out, did not come to
//	go run ./torture/mutants -prepare dir flush.go   only compiles the program of tests into dir
//	mutants -prepared dir                            tries what is there, on a machine that may have no Go
//
// It goes over the files again and again, so that a run which is broken off is a sample. The numbers are the same in each
// run over the same files, as long as these don't change.
package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	oneOf   = flag.Int("one-of", 1, "only one mutant of so many")
	only    = flag.String("only", "", "only the mutants of these numbers, with commas between them")
	prepare = flag.String("prepare", "", "only compile the tests, with a copy of the tree, into this directory")
	ready   = flag.String("prepared", "", "try the mutants in this directory, which an earlier run prepared")
	done    = flag.String("done", "", "the output of an earlier run over the same files: the mutants in it are left out")
	which   = flag.String("tests", "", "only the tests whose names match, without the schedules")
	workers = flag.Int("workers", 2, "how many run at once")
	most    = flag.Duration("longest", 2*time.Second, "tests that take longer are left out")
	limit   = flag.Duration("limit", 10*time.Second, "a mutant whose tests take so much longer than six times as long as usual is found: it hangs")
	skip    = flag.String("skip", "^(TestDoc|TestArch|TestStrace|TestKill|TestAlloc|TestCrash|TestInject$|TestSchedule|TestReadme|TestExample|Benchmark|Fuzz|Example)", "tests that are left out")
)

// schedules are run where the other tests find nothing: orders of many goroutines, each crashed at a few points.
var schedules = [][]string{
	{"-test.run", "^TestSchedule$", "-schedules", "150", "-schedule-crashes", "3"},
}

// suite is the compiled tests, and which of them come across which mutant.
type suite struct {
	dir, binary string
	listed      string // a file that lists the mutants
	tests       []test

	mu      sync.Mutex
	foundBy map[int]string // by mutant: the test that found it
}

type test struct {
	args []string
	took time.Duration
	seen map[int]bool
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	if err := run(flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(files []string) error {
	if *prepare != "" {
		return newSuite(*prepare).prepare(files)
	}
	dir := *ready
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "mutants"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := newSuite(dir).prepare(files); err != nil {
			return err
		}
	}
	s := newSuite(dir)
	mutants, err := s.list()
	if err != nil {
		return err
	}
	tried, err := numbersIn(*done)
	if err != nil {
		return err
	}
	if err := s.measure(); err != nil {
		return err
	}
	s.try(mutants, tried)
	return nil
}

func newSuite(dir string) *suite {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // the tests run in another one
	}
	return &suite{dir: filepath.Join(dir, "tree"), binary: filepath.Join(dir, "seglog.test"), listed: filepath.Join(dir, "mutants")}
}

// prepare copies the tree, changes the files in the copy, compiles the tests, and lists the mutants.
func (s *suite) prepare(files []string) error {
	if out, err := exec.Command("bash", "-c", "mkdir -p $0 && git ls-files -z --cached --others --exclude-standard | tar --null -cf - -T - | tar -xf - -C $0", s.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy: %w: %s", err, out)
	}
	var mutants []mutant
	for _, name := range files {
		if err := mutateFile(filepath.Join(s.dir, name), &mutants); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "mutated.go"), fmt.Appendf(nil, support, len(mutants)+1), 0o666); err != nil {
		return err
	}
	build := exec.Command("go", "test", "-vet=off", "-ldflags=-s -w", "-c", "-o", s.binary, ".")
	build.Dir = s.dir
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("compile: %w\n%s", err, out)
	}
	var list []byte
	for _, m := range mutants {
		list = fmt.Appendf(list, "%d %s %d %q\n", m.id, m.file, m.line, m.what)
	}
	return os.WriteFile(s.listed, list, 0o666)
}

// list returns the mutants that prepare listed.
func (s *suite) list() (mutants []mutant, err error) {
	b, err := os.ReadFile(s.listed)
	for line := range strings.Lines(string(b)) {
		var m mutant
		if _, err := fmt.Sscanf(line, "%d %s %d %q", &m.id, &m.file, &m.line, &m.what); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", s.listed, line, err)
		}
		mutants = append(mutants, m)
	}
	return mutants, err
}

// numbersIn returns the numbers of the mutants that an earlier run told of.
func numbersIn(output string) (map[int]bool, error) {
	numbers := map[int]bool{}
	if output == "" {
		return numbers, nil
	}
	b, err := os.ReadFile(output)
	for line := range strings.Lines(string(b)) {
		if words := strings.Fields(line); len(words) > 1 && slices.Contains([]string{"LIVES", "UNMET", "found"}, words[0]) {
			id, _ := strconv.Atoi(words[1])
			numbers[id] = true
		}
	}
	return numbers, err
}

// command runs tests with a mutant turned on, or with a file for what they come across.
func (s *suite) command(limit time.Duration, args []string, env ...string) (out []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, s.binary, append([]string{"-test.failfast"}, args...)...)
	c.Dir, c.Env = s.dir, append(os.Environ(), env...)
	out, err = c.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("hangs")
	}
	return out, err
}

// measure runs each test alone, on the engine as it is.
func (s *suite) measure() error {
	out, err := s.command(time.Minute, []string{"-test.list", "^Test"})
	if err != nil {
		return err
	}
	left, wanted := regexp.MustCompile(*skip), regexp.MustCompile(*which)
	if *which != "" {
		left, schedules = regexp.MustCompile("^$"), nil
	}
	var all [][]string
	for name := range strings.FieldsSeq(string(out)) {
		if wanted.MatchString(name) && !left.MatchString(name) {
			all = append(all, []string{"-test.run", "^" + name + "$", "-test.short"})
		}
	}
	all = append(all, schedules...)
	s.each(len(all), func(i int) {
		seen := filepath.Join(filepath.Dir(s.dir), fmt.Sprint("seen", i))
		begun := time.Now()
		_, err := s.command(time.Minute, all[i], "SEGLOG_MUTANTS_SEEN="+seen)
		took := time.Since(begun)
		if last := i >= len(all)-len(schedules); err != nil || took > *most && !last {
			fmt.Printf("left out: %s, %v, %v\n", all[i][1], took.Round(time.Millisecond), err)
			return
		}
		t := test{args: all[i], took: took, seen: map[int]bool{}}
		b, _ := os.ReadFile(seen) // absent: it meets none
		for n := range strings.FieldsSeq(string(b)) {
			id, _ := strconv.Atoi(n)
			t.seen[id] = true
		}
		s.mu.Lock()
		s.tests = append(s.tests, t)
		s.mu.Unlock()
	})
	slices.SortFunc(s.tests, func(a, b test) int { return int(a.took - b.took) })
	return nil
}

// each calls f with the numbers below n, some at once.
func (s *suite) each(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range *workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				f(i)
			}
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// try runs what meets each mutant, and tells which live.
func (s *suite) try(mutants []mutant, tried map[int]bool) {
	wanted := map[string]bool{}
	for n := range strings.SplitSeq(*only, ",") {
		wanted[n] = true
	}
	s.foundBy = map[int]string{}
	count, begun := map[string]int{}, time.Now()
	// In an order that goes over all files again and again, so that a run which is broken off is a sample.
	slices.SortFunc(mutants, func(a, b mutant) int { return cmp.Or(a.id%50-b.id%50, a.id-b.id) })
	s.each(len(mutants), func(i int) {
		m := mutants[i]
		if *only != "" && !wanted[strconv.Itoa(m.id)] || *only == "" && (m.id%*oneOf != 0 || tried[m.id]) {
			return
		}
		by := s.find(m.id)
		s.mu.Lock()
		defer s.mu.Unlock()
		count["mutants"]++
		switch by {
		case "":
			count["live"]++
			fmt.Printf("LIVES   %4d %v\n", m.id, m)
		case unmet:
			count["met by no test"]++
			fmt.Printf("UNMET   %4d %v\n", m.id, m)
		default:
			count["found"]++
			s.foundBy[m.id] = by
			fmt.Printf("found   %4d %v: by %s\n", m.id, m, by)
		}
	})
	fmt.Printf("%v in %v\n", count, time.Since(begun).Round(time.Second))
}

const unmet = "unmet"

// near returns the tests that found the mutants next to this one, which are likely to find it too.
func (s *suite) near(id int) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := 1; d < 40 && len(names) < 3; d++ {
		for _, n := range []int{id - d, id + d} {
			if by := s.foundBy[n]; by != "" && !slices.Contains(names, by) {
				names = append(names, by)
			}
		}
	}
	return names
}

// failing runs tests and names the one that fails, if it fails again when it runs alone: a busy machine can trip one for once.
func (s *suite) failing(names []string, limit time.Duration, env string) string {
	for {
		args := []string{"-test.short", "-test.run", "^(" + strings.Join(names, "|") + ")$"}
		out, err := s.command(limit, args, env)
		at := bytes.Index(out, []byte("--- FAIL: "))
		switch {
		case err == nil:
			return ""
		case at < 0:
			return err.Error()
		}
		by := strings.Fields(string(out[at+10:]))[0]
		if _, err := s.command(limit, []string{"-test.short", "-test.run", "^" + by + "$"}, env); err != nil {
			return by
		}
		if names = slices.DeleteFunc(names, func(name string) bool { return name == by }); len(names) == 0 {
			return ""
		}
	}
}

// find names the tests that fail with a mutant: those that found its neighbours first, then quick ones, many in one process.
func (s *suite) find(id int) string {
	env := "SEGLOG_MUTANT=" + strconv.Itoa(id)
	var names []string
	var took time.Duration
	met := false
	flush := func() string {
		if len(names) == 0 {
			return ""
		}
		by := s.failing(names, *limit+6*took, env)
		names, took = nil, 0
		return by
	}
	var late []test
	near := s.near(id)
	tests := slices.DeleteFunc(slices.Clone(s.tests), func(t test) bool { return !t.seen[id] })
	first := func(t test) int {
		return map[bool]int{true: 0, false: 1}[slices.Contains(near, strings.Trim(t.args[1], "^$"))]
	}
	slices.SortStableFunc(tests, func(a, b test) int { return first(a) - first(b) })
	for i, t := range tests {
		if i > 0 && first(t) != first(tests[i-1]) {
			if by := flush(); by != "" {
				return by
			}
		}
		met = true
		if slices.Contains(t.args, "-schedules") {
			late = append(late, t)
			continue
		}
		names = append(names, strings.Trim(t.args[1], "^$"))
		if took += t.took; took > time.Second {
			if by := flush(); by != "" {
				return by
			}
		}
	}
	if by := flush(); by != "" {
		return by
	}
	for _, t := range late {
		if _, err := s.command(*limit+6*t.took, t.args, env); err != nil {
			return t.args[1]
		}
	}
	if !met {
		return unmet
	}
	return ""
}
