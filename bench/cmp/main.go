// Cmp compares the benchmarks of the package at two revisions: the working tree against -ref. The two run in turn, one
// round after the other; benchstat prints the result, and more allocations per operation than at the base are an error.
//
//	go run ./cmp -ref main~1
//	go run ./cmp -ref v0.1.0 -bench 'Append|Read' -count 10
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	var c comparison
	flag.StringVar(&c.ref, "ref", "HEAD", "the base revision")
	flag.StringVar(&c.bench, "bench", ".", "which benchmarks")
	flag.StringVar(&c.time, "time", "200ms", "time of each benchmark in each round")
	flag.IntVar(&c.count, "count", 7, "rounds")
	flag.StringVar(&c.root, "root", "..", "the package's directory")
	flag.Parse()
	if err := c.run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cmp:", err)
		os.Exit(1)
	}
}

type comparison struct {
	ref, bench, time, root string
	count                  int
}

func (c comparison) run(w io.Writer) (err error) {
	tmp, err := os.MkdirTemp("", "seglog-cmp-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	root, err := filepath.Abs(c.root)
	if err != nil {
		return err
	}
	base := filepath.Join(tmp, "base")
	if err := extract(root, c.ref, base); err != nil {
		return err
	}
	sides := []side{{name: "base", dir: base}, {name: "now", dir: root}}
	for i := range sides {
		if err := sides[i].build(tmp); err != nil {
			return err
		}
	}
	for range c.count {
		for i := range sides {
			if err := sides[i].round(c); err != nil {
				return err
			}
		}
	}
	if err := benchstat(w, sides); err != nil {
		return err
	}
	return grown(parseAllocs(sides[0].output.String()), parseAllocs(sides[1].output.String()))
}

// side is one of the two revisions.
type side struct {
	name, dir string
	binary    string
	file      string
	output    strings.Builder
}

func (s *side) build(tmp string) error {
	s.binary, s.file = filepath.Join(tmp, s.name+".test"), filepath.Join(tmp, s.name+".txt")
	build := exec.Command("go", "test", "-c", "-o", s.binary, ".")
	build.Dir, build.Stderr = s.dir, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the benchmarks of %s: %w", s.name, err)
	}
	return nil
}

func (s *side) round(c comparison) error {
	run := exec.Command(s.binary, "-test.run=^$", "-test.bench="+c.bench, "-test.benchmem", "-test.benchtime="+c.time)
	run.Dir, run.Stdout, run.Stderr = s.dir, &s.output, os.Stderr
	if err := run.Run(); err != nil {
		return fmt.Errorf("benchmarks of %s: %w", s.name, err)
	}
	return os.WriteFile(s.file, []byte(s.output.String()), 0o644)
}

func benchstat(w io.Writer, sides []side) error {
	stat := exec.Command("go", "tool", "benchstat", "base="+sides[0].file, "now="+sides[1].file)
	stat.Stdout, stat.Stderr = w, os.Stderr
	return stat.Run()
}

// extract lays the files of a revision into dir, without touching the repository's own work tree.
func extract(root, ref, dir string) error {
	top, err := exec.Command("git", "-C", root, "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("no git repository at %s: %w", root, err)
	}
	archive := exec.Command("git", "-C", strings.TrimSpace(string(top)), "archive", "--format=tar", ref)
	archive.Stderr = os.Stderr
	out, err := archive.StdoutPipe()
	if err != nil {
		return err
	}
	if err := archive.Start(); err != nil {
		return err
	}
	if err := untar(out, dir); err != nil {
		return errors.Join(err, archive.Process.Kill(), archive.Wait())
	}
	return archive.Wait()
}

func untar(r io.Reader, dir string) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
	}
}
