// Mirror keeps a copy of a log that examples/serve serves: the batches are checked and stored as they arrive, so that
// the copy's files equal the leader's, byte for byte. It needs no memory of how far it came: the end of its own log says
// it, whenever and however it was stopped.
//
//	go run ./examples/mirror                                  # starts a leader, is killed again and again, compares files
//	go run ./examples/mirror -from 127.0.0.1:7070 -dir copy   # follows examples/serve until interrupted
//
// It prints a live line: where it is, how far the leader is ahead, and the rate.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/seglog/seglog"
)

func main() {
	from := flag.String("from", "", "address of the leader; default: a demonstration on loopback")
	dir := flag.String("dir", "", "directory of the copy")
	once := flag.Bool("once", false, "end once the copy has all that the leader has")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *from == "":
		err = demonstrate(ctx)
	case *dir == "":
		err = errors.New("-from goes with -dir")
	default:
		err = mirror(ctx, *from, *dir, *once)
	}
	if err != nil {
		log.Fatal("mirror: ", err)
	}
}

var (
	errCaughtUp = errors.New("caught up")
	errDiverged = errors.New("the copy is not one of this leader's log")
)

// mirror connects, and connects again, until ctx ends.
func mirror(ctx context.Context, from, dir string, once bool) error {
	l, err := seglog.Open(dir, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	context.AfterFunc(ctx, func() { l.Close() }) // interrupts a transfer that waits
	f := follower{log: l, once: once, shown: time.Now()}
	for ctx.Err() == nil {
		err := f.follow(ctx, from)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errCaughtUp):
			return l.Close()
		case errors.Is(err, errDiverged), errors.Is(err, seglog.ErrFailed), errors.Is(err, seglog.ErrTooLarge):
			return err
		default: // the connection, or bytes that it damaged: what came before is stored, go on behind it
			fmt.Printf("\nmirror: at offset %d: %v\n", l.Offsets().End, err)
			time.Sleep(200 * time.Millisecond)
		}
	}
	return l.Close()
}

type follower struct {
	log   *seglog.Log
	once  bool
	shown time.Time // when the live line was printed last
	bytes int64     // received until then
}

// follow goes on where the copy ends, over one connection.
func (f *follower) follow(ctx context.Context, from string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", from)
	if err != nil {
		return err
	}
	defer conn.Close()
	// The first request is for the last record that is here already: TransferFrom compares that batch with its own,
	// which shows a leader with another history, and joins one whose offsets have a gap at the end of the copy.
	o := f.log.Offsets()
	for ask := max(o.Start, o.End-1); ; ask = f.log.Offsets().End {
		length, second, err := request(conn, ask)
		if err != nil {
			return err
		}
		end := f.log.Offsets().End
		switch {
		case length > 0:
			_, err = f.log.TransferFrom(conn, length)
			if errors.Is(err, seglog.ErrNotJoined) && ask < end {
				err = fmt.Errorf("%w: %w", errDiverged, err)
			}
		case length < 0 && second > end:
			fmt.Printf("\nmirror: the leader starts at offset %d by now: starting over there\n", second)
			err = f.log.Reset(second)
		case length == 0 && second < end:
			fmt.Printf("\nmirror: the leader was cut to offset %d: cutting the copy\n", second)
			err = f.log.TruncateTo(max(second, f.log.Offsets().Start))
		}
		if err != nil {
			return err
		}
		if length >= 0 {
			f.show(second)
		}
		if f.once && length >= 0 && f.log.Offsets().End >= second {
			return errCaughtUp
		}
	}
}
