// Inspect looks into a log directory: what segments there are, what is in them, whether every byte is good, and how to
// get back what is if not. It works beside a program that writes the log, and on the directory of a Kafka partition.
//
//	go run ./examples/inspect ls /var/lib/orders
//	go run ./examples/inspect dump -n 10 -t -1h /var/lib/orders
//	go run ./examples/inspect verify /var/lib/orders
//
// Everything it shows comes from the public API: a log opened with ReadOnly, Segments, Batches, Records and Follow, and
// the functions Verify and Repair.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/seglog/seglog"
)

// command is one of the things that inspect does.
type command struct {
	name, short string
	flags       string // how they are shown in its usage
	long        string
	run         func(t *tool, args []string) error
}

// tool is one run: where it writes to, and until when.
type tool struct {
	ctx      context.Context
	out      *bufio.Writer
	err      io.Writer
	terminal bool // err is one
	cmd      *command
	flags    *flag.FlagSet
}

var commands []*command

func init() { // they refer to each other through help
	commands = []*command{lsCommand, dumpCommand, statCommand, verifyCommand, repairCommand}
}

const (
	exitFound = 1 // something is wrong with the log, or it can't be read
	exitUsage = 2
)

// usageError is about the arguments.
type usageError struct{ error }

// errFound: what is wrong was printed already.
var errFound = errors.New("problems found")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	buffered := bufio.NewWriter(out)
	t := &tool{ctx: ctx, out: buffered, err: errOut, terminal: isTerminal(errOut)}
	err := t.dispatch(args)
	if e := buffered.Flush(); err == nil {
		err = e
	}
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFound):
		return exitFound
	case errors.As(err, &usage):
		fmt.Fprintf(errOut, "inspect: %v (inspect help shows how)\n", err)
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitFound
	default:
		fmt.Fprintf(errOut, "inspect: %v\n", err)
		return exitFound
	}
}

func (t *tool) dispatch(args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("a command is missing: ls, dump, stat, verify or repair")}
	}
	name, args := args[0], args[1:]
	if name == "help" || name == "-h" || name == "--help" {
		return t.help(args)
	}
	for _, c := range commands {
		if c.name == name {
			t.cmd = c
			t.flags = flag.NewFlagSet(name, flag.ContinueOnError)
			t.flags.SetOutput(io.Discard)
			t.flags.Usage = func() {}
			if err := c.run(t, args); !errors.Is(err, flag.ErrHelp) {
				return err
			}
			return t.help([]string{name})
		}
	}
	return usageError{fmt.Errorf("%q is no command: there are ls, dump, stat, verify and repair", name)}
}

func (t *tool) help(args []string) error {
	if len(args) > 0 {
		for _, c := range commands {
			if c.name == args[0] {
				fmt.Fprintf(t.out, "inspect %s %s<directory>\n\n%s\n", c.name, c.flags, c.long)
				return nil
			}
		}
		return usageError{fmt.Errorf("%q is no command", args[0])}
	}
	fmt.Fprint(t.out, "inspect looks into a log directory, beside its writer too, or into that of a Kafka partition.\n\n  go run ./examples/inspect ls /var/lib/orders\n\n")
	for _, c := range commands {
		fmt.Fprintf(t.out, "  inspect %-6s [flags] <directory>   %s\n", c.name, c.short)
	}
	fmt.Fprint(t.out, "\ninspect help <command> says more, with the flags and examples. The exit status is 1 if something is wrong with the log, 2 for wrong arguments.\n")
	return nil
}

// directory parses the arguments, flags before or behind the one directory, and returns it.
func (t *tool) directory(args []string) (string, error) {
	var dirs []string
	for {
		if err := t.flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			return "", err
		} else if err != nil {
			return "", usageError{fmt.Errorf("%s: %s", t.cmd.name, strings.ReplaceAll(err.Error(), "\n", " "))}
		}
		if t.flags.NArg() == 0 {
			break
		}
		dirs = append(dirs, t.flags.Arg(0))
		args = t.flags.Args()[1:]
	}
	if len(dirs) != 1 {
		return "", usageError{fmt.Errorf("%s takes one directory, not %d", t.cmd.name, len(dirs))}
	}
	info, err := os.Stat(dirs[0])
	if err != nil {
		return "", usageError{err}
	}
	if !info.IsDir() {
		return "", usageError{fmt.Errorf("%s is not a directory", dirs[0])}
	}
	return dirs[0], nil
}

// open opens the log without touching anything.
func (t *tool) open(dir string) (*seglog.Log, error) {
	return seglog.Open(dir, &seglog.Options{ReadOnly: true})
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
