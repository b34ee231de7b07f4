// Serve hands a log to anybody who connects: a request names an offset, the reply is a length and that many bytes of
// whole batches, which on Linux go from the page cache to the socket without passing through this process. That is what
// a Section is for: it knows its length before the first byte leaves.
//
//	go run ./examples/serve                                         # a made-up log, sent by sendfile and by a copy
//	go run ./examples/serve -listen 127.0.0.1:7070 -dir d           # a log of yours, until interrupted
//	go run ./examples/serve -listen 127.0.0.1:7070 -dir d -append 100 # and 100 new records a second (see ../mirror)
//	go run ./examples/serve -listen 127.0.0.1:7070 -dir d -copy     # through a buffer instead, to compare the CPU
//
// It prints a live line: connections, rate, and what a GB costs in CPU.
//
// The protocol, all integers big-endian int64: the request is the offset and the most bytes wanted, of which 16 MiB are
// sent; the reply is a length, the end of the log, and that many bytes. A length of 0 means that nothing came within a
// second, one of -1 that the offset is out of range; the second number is where the log starts then.
//
// Connections are limited, and so is the time that a client may take to ask and to receive. Who a client is, and what it
// may read, nobody asks: serve on loopback or a network of your own.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seglog/seglog"
)

const about = `serve hands a log to anybody who connects, by sendfile where there is one, and shows what that costs.

  go run ./examples/serve                                a made-up log, sent by sendfile and by a copy
  go run ./examples/serve -listen 127.0.0.1:7070 -dir d  a log of yours, until interrupted

`

func main() {
	listen := flag.String("listen", "", "`address` to serve at; default: a demonstration on loopback")
	dir := flag.String("dir", "", "`directory` of the log")
	copied := flag.Bool("copy", false, "send through a buffer of this process")
	appends := flag.Int("append", 0, "append that many records a second")
	forTime := flag.Duration("for", 0, "stop after that time; default: at an interrupt")
	fetch := flag.String("fetch", "", "be a client of the server at this address, for the demonstration")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "serve: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *forTime > 0 {
		ctx, stop = context.WithTimeout(ctx, *forTime)
		defer stop()
	}
	var err error
	switch {
	case *fetch != "":
		err = fetchAll(ctx, *fetch)
	case *listen == "" && *dir != "":
		err = errors.New("-dir goes with -listen")
	case *listen == "":
		err = demonstrate(ctx)
	case *dir == "":
		err = errors.New("-listen goes with -dir")
	default:
		err = serveDir(ctx, *listen, *dir, *copied, *appends)
	}
	if err != nil {
		log.Fatal("serve: ", err)
	}
}

func serveDir(ctx context.Context, listen, dir string, copied bool, appends int) error {
	l, err := seglog.Open(dir, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	s := newServer(l, copied)
	fmt.Printf("serving %s at %s, offsets %d to %d\n", dir, listener.Addr(), l.Offsets().Start, l.Offsets().End)
	go s.report(ctx, time.Second)
	if appends > 0 {
		go appendSome(ctx, l, appends)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	if err := s.accept(listener); ctx.Err() == nil {
		return err
	}
	return l.Close() // before the process ends: the log is closed cleanly, and transfers that wait are interrupted
}

const (
	mostBytes = 16 << 20  // of a reply, if not a single batch is larger
	slowest   = 256 << 10 // bytes a second at which a client has to receive them
)

type server struct {
	log       *seglog.Log
	copied    bool
	live      *live
	mostConns int64
	patience  time.Duration // how long a client may ask nothing, or take nothing
	conns     atomic.Int64
}

func newServer(l *seglog.Log, copied bool) *server {
	return &server{log: l, copied: copied, live: newLive(os.Stdout), mostConns: 1000, patience: time.Minute}
}

func (s *server) accept(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // too many open files, say: wait for some to be closed
			s.live.say("serve: no connection accepted: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if s.conns.Add(1) > s.mostConns {
			s.conns.Add(-1)
			conn.Close()
			continue
		}
		go func() {
			defer s.conns.Add(-1)
			defer conn.Close()
			if err := s.serve(conn); !hasLeft(err) && !errors.Is(err, seglog.ErrClosed) {
				s.live.say("serve: %v: %v", conn.RemoteAddr(), err)
			}
		}()
	}
}

// hasLeft says whether an error means no more than that the client is gone, in whatever way: one that is killed with
// bytes on their way to it resets the connection, which is no fault of anybody's.
func hasLeft(err error) bool {
	var network *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &network) && !network.Timeout()
}

// serve answers the requests of one connection, one after the other.
func (s *server) serve(conn net.Conn) error {
	var request, reply [16]byte
	for {
		conn.SetReadDeadline(time.Now().Add(s.patience))
		if _, err := io.ReadFull(conn, request[:]); err != nil {
			return err
		}
		offset := int64(binary.BigEndian.Uint64(request[:]))
		most := min(int64(binary.BigEndian.Uint64(request[8:])), mostBytes)
		section, err := s.section(offset, most)
		length, second := int64(0), s.log.Offsets().HighWatermark
		switch {
		case errors.Is(err, context.DeadlineExceeded):
		case errors.Is(err, seglog.ErrOutOfRange):
			length, second = -1, s.log.Offsets().Start
		case err != nil:
			return err
		default:
			length = section.Len()
		}
		binary.BigEndian.PutUint64(reply[:], uint64(length))
		binary.BigEndian.PutUint64(reply[8:], uint64(second))
		conn.SetWriteDeadline(time.Now().Add(s.patience + time.Duration(max(length, 0))*time.Second/slowest))
		if section == nil {
			_, err = conn.Write(reply[:])
		} else {
			section.SetHeader(reply[:]) // leaves together with the first bytes
			_, err = section.WriteTo(s.way(conn))
			err = errors.Join(err, section.Close())
		}
		if err != nil {
			return err
		}
	}
}

// section waits a second for the record at offset, and pins the batches from there on.
func (s *server) section(offset, most int64) (*seglog.Section, error) {
	if offset < 0 { // seglog.Oldest and Newest are no offsets of this protocol
		return nil, seglog.ErrOutOfRange
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.log.Wait(ctx, offset); err != nil {
		return nil, err
	}
	return s.log.Section(offset, most)
}

// way is where a section is written to: the bare connection, or with -copy one whose type is hidden, which gets a copy.
func (s *server) way(conn net.Conn) io.Writer {
	if s.copied {
		return struct{ io.Writer }{conn}
	}
	return conn
}
