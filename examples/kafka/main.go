// Kafka is a Kafka broker of one node whose partitions are seglogs. It exists to show the library at work: what a producer
// sends is stored as it came, and what a consumer fetches leaves the file by sendfile or splice.
//
//	go run . -dir /var/lib/demo -listen 127.0.0.1:9092
//	echo hello | kcat -b 127.0.0.1:9092 -t greetings -P
//	kcat -b 127.0.0.1:9092 -t greetings -C -e
//
// README.md says what works, and what is left out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	_ "github.com/seglog/seglog/codecs" // to find a time in compressed batches they have to be read
)

func main() {
	err := run(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

const about = `kafka is a Kafka broker of one node on seglog, for Kafka's own clients and tools. Whoever reaches the port may do anything.

  kafka -dir data -listen 127.0.0.1:9092

It serves until interrupted. The flags:
`

// usageError is about the command line.
type usageError struct{ error }

// parse reads the command line; it answers -h itself, and returns flag.ErrHelp.
func parse(args []string) (cfg Config, listen string, verbose bool, err error) {
	cfg = Config{Defaults: map[string]string{}}
	f := flag.NewFlagSet("kafka", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.StringVar(&listen, "listen", "127.0.0.1:9092", "`address` to serve on")
	f.BoolVar(&verbose, "v", false, "log every request")
	f.StringVar(&cfg.Dir, "dir", "", "`directory` of the logs (default: a temporary one, removed at the end)")
	f.StringVar(&cfg.Advertise, "advertise", "", "`host:port` that clients are told (default: the address by which they came)")
	f.IntVar(&cfg.Partitions, "partitions", 1, "partitions of a topic created on first use")
	f.BoolVar(&cfg.NoAutoCreate, "no-auto-create", false, "refuse unknown topics instead of creating them")
	f.IntVar(&cfg.Limits.Conns, "max-connections", 1000, "connections at once")
	f.IntVar(&cfg.Limits.Partitions, "max-partitions", 1000, "partitions of all topics together")
	f.IntVar(&cfg.Limits.Groups, "max-groups", 1000, "consumer groups with members")
	f.Func("set", "`name=value`: default of a topic setting, e.g. flush.messages=1 or retention.ms=-1 (repeatable)", func(v string) error {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want name=value")
		}
		cfg.Defaults[name] = value
		return checkSetting(name, value)
	})
	if err = f.Parse(args); err == nil && f.NArg() > 0 {
		err = fmt.Errorf("it takes no arguments, only flags, not %q", f.Args())
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(about)
		f.SetOutput(os.Stdout)
		f.PrintDefaults()
	case err != nil:
		err = usageError{fmt.Errorf("%w (kafka -h shows how)", err)}
	}
	return cfg, listen, verbose, err
}

func run(args []string) error {
	cfg, listen, verbose, err := parse(args)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "kafka"); err != nil {
			return err
		}
		defer os.RemoveAll(cfg.Dir)
		cfg.Logger.Warn("no -dir: topics are gone when the server ends", "dir", cfg.Dir)
	}
	server, err := NewServer(cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l.(*net.TCPListener)) }()
	cfg.Logger.Info("serving", "addr", l.Addr().String(), "dir", cfg.Dir)
	select {
	case <-ctx.Done():
		return server.Close()
	case err := <-served:
		return errors.Join(err, server.Close())
	}
}
