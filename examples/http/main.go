// Http puts a log on the web with net/http alone: a range of it as a body whose Content-Length is known before the first
// byte, thanks to Section, and a live tail as server-sent events that a browser shows.
//
//	go run ./examples/http                                  # serves itself on loopback, asks itself, and ends
//	go run ./examples/http -listen 127.0.0.1:8080 -dir d    # open http://127.0.0.1:8080/ in a browser
//
//	GET  /log?from=OFFSET&max=BYTES  whole batches in Kafka's format, for seglog.Decode or any Kafka client's parser
//	GET  /events?from=OFFSET         each record as an event, and then the ones to come; a browser that lost the
//	                                 connection goes on behind the last one it saw
//	POST /append                     a record with the body as its value; answers with its offset
//
// It prints the address; without -listen also what it got from itself.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/seglog/seglog"
)

//go:embed page.html
var page []byte

func main() {
	listen := flag.String("listen", "", "address to serve at; default: a demonstration on loopback")
	dir := flag.String("dir", "", "directory of the log; default: a temporary one")
	flag.Parse()
	if err := run(*listen, *dir); err != nil {
		log.Fatal("http: ", err)
	}
}

func run(listen, dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if dir == "" {
		tmp, err := os.MkdirTemp("", "http")
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
	demo := listen == ""
	if demo {
		listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/\n", listener.Addr())
	server := &http.Server{Handler: handler(l), BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if demo {
		err = demonstrate(ctx, "http://"+listener.Addr().String())
	} else {
		select {
		case <-ctx.Done():
		case err = <-served:
		}
	}
	stop() // ends the live tails
	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, server.Shutdown(closing), l.Close())
}

func handler(l *seglog.Log) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.Write(page) })
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, r *http.Request) { sendRange(l, w, r) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { sendEvents(l, w, r) })
	mux.HandleFunc("POST /append", func(w http.ResponseWriter, r *http.Request) {
		value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		offset, err := l.Append(seglog.Record{Value: value})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, offset)
	})
	return mux
}
