// Http puts a log on the web with net/http alone: a range of it as a body whose Content-Length is known before the first
// byte, thanks to Section, and a live tail as server-sent events that a browser shows.
//
//	go run ./examples/http                                  # serves itself on loopback, asks itself, and ends
//	go run ./examples/http -listen 127.0.0.1:8080 -dir d    # open http://127.0.0.1:8080/ in a browser
//
//	GET  /log?from=OFFSET&max=BYTES  whole batches in Kafka's format, for seglog.Decode or any Kafka client's parser
//	GET  /events?from=OFFSET         each record as an event, and then the ones to come; a browser that lost the
//	                                 connection goes on behind the last one it saw. ?last=N begins with the last N
//	POST /append                     a record with the body as its value; answers with its offset
//
// It prints the address; without -listen also what it got from itself.
//
// What a client may ask for, and how long it may take, is bounded, and the pages of other sites are kept out. There are
// no users and no rights, and nothing is encrypted: whoever reaches the port may read and append.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/seglog/seglog"
)

const about = `http puts a log on the web: ranges of it, a live tail that a browser shows, and a form that appends.

  go run ./examples/http                                 serves itself on loopback, asks itself, and ends
  go run ./examples/http -listen 127.0.0.1:8080 -dir d   open http://127.0.0.1:8080/ in a browser

`

func main() {
	listen := flag.String("listen", "", "`address` to serve at; default: a demonstration on loopback")
	dir := flag.String("dir", "", "`directory` of the log; default: a temporary one")
	host := flag.String("host", "", "`name` under which browsers reach the server, beside localhost and its address")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "http: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*listen, *dir, *host); err != nil {
		log.Fatal("http: ", err)
	}
}

func run(listen, dir, host string) error {
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
	server := newServer(ctx, &site{log: l, host: host, patience: 30 * time.Second})
	served := make(chan error, 1)
	go func() { served <- server.Serve(newLimited(listener, 1000)) }()
	if demo {
		err = demonstrate(ctx, "http://"+listener.Addr().String())
	} else {
		select {
		case <-ctx.Done():
		case err = <-served:
		}
	}
	stop() // ends the live tails
	return errors.Join(err, shutDown(server, 5*time.Second), l.Close())
}

// shutDown lets requests under way finish, for a while: a client that stalls is no reason to stay.
func shutDown(server *http.Server, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	return err
}

// newServer has a deadline for all that a client does: to send a request, to take the answer, to ask again. Handlers
// whose answer is long move the second one.
func newServer(ctx context.Context, s *site) *http.Server {
	return &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: s.patience,
		ReadTimeout:       2 * s.patience,
		WriteTimeout:      3 * s.patience,
		IdleTimeout:       3 * s.patience,
		MaxHeaderBytes:    16 << 10,
	}
}

// limited accepts a connection once there are fewer than so many.
type limited struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, most int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, slots: l.slots}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}
