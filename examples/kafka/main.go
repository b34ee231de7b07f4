// Command kafka is a Kafka broker of one node whose partitions are seglogs. It exists to show the library at work: what
// a producer sends is stored as it came, and what a consumer fetches leaves the file by sendfile or splice.
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
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	_ "github.com/seglog/seglog/codecs" // to find a time in compressed batches they have to be read
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func run() error {
	cfg := Config{Defaults: map[string]string{}}
	listen := flag.String("listen", "127.0.0.1:9092", "`address` to serve on")
	verbose := flag.Bool("v", false, "log every request")
	flag.StringVar(&cfg.Dir, "dir", "kafka-data", "`directory` of the logs")
	flag.StringVar(&cfg.Advertise, "advertise", "", "`host:port` that clients are told (default: the address by which they came)")
	flag.IntVar(&cfg.Partitions, "partitions", 1, "partitions of a topic created on first use")
	flag.BoolVar(&cfg.NoAutoCreate, "no-auto-create", false, "refuse unknown topics instead of creating them")
	flag.Func("set", "`name=value`: default of a topic setting, e.g. flush.messages=1 or retention.ms=-1 (repeatable)", func(v string) error {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want name=value")
		}
		cfg.Defaults[name] = value
		return checkSetting(name, value)
	})
	flag.Parse()

	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))

	server, err := NewServer(cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
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
