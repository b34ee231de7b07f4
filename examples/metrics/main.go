// Metrics publishes what Log.Stats counts, in the two ways Go services do it: expvar, which needs nothing but the
// standard library, and Prometheus' client. It is a module of its own, so that the log itself depends on neither.
//
//	cd examples/metrics && go run .                          # serves on loopback, scrapes itself, and ends
//	cd examples/metrics && go run . -listen 127.0.0.1:9100   # /metrics and /debug/vars until interrupted
//
// It prints the address; without -listen also what a scraper sees.
package main

import (
	"context"
	"errors"
	"expvar"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seglog/seglog"
)

const about = `metrics publishes what a log counts, for expvar and for Prometheus.

  cd examples/metrics && go run .                         serves on loopback, scrapes itself, and ends
  cd examples/metrics && go run . -listen 127.0.0.1:9100  /metrics and /debug/vars until interrupted

`

func main() {
	listen := flag.String("listen", "", "`address` to serve at; default: a demonstration on loopback")
	dir := flag.String("dir", "", "`directory` of the log; default: a temporary one")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "metrics: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*listen, *dir); err != nil {
		log.Fatal("metrics: ", err)
	}
}

func run(listen, dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if dir == "" {
		tmp, err := os.MkdirTemp("", "metrics")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	l, err := seglog.Open(dir, nil)
	if err != nil {
		return err
	}
	defer l.Close()

	expvar.Publish("seglog", expvar.Func(func() any { return l.Stats() }))
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(l, dir))
	mux := http.NewServeMux()
	mux.Handle("/debug/vars", expvar.Handler())
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	demo := listen == ""
	if demo {
		listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// A scraper that stalls is let go of.
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Printf("http://%s/metrics\n", listener.Addr())
	go load(ctx, l)
	if demo {
		time.Sleep(500 * time.Millisecond)
		err = scrape("http://" + listener.Addr().String())
	} else {
		select {
		case <-ctx.Done():
		case err = <-served:
		}
	}
	stop()
	return errors.Join(err, server.Close(), l.Close())
}
