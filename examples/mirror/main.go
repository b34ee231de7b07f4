// Mirror keeps a copy of a log that examples/serve serves: the batches are checked and stored as they arrive, so that
// the copy's files equal the leader's, byte for byte. It needs no memory of how far it came: the end of its own log says
// it, whenever and however it was stopped.
//
//	go run ./examples/mirror                                  # starts a leader, is killed again and again, compares files
//	go run ./examples/mirror -from 127.0.0.1:7070 -dir copy   # follows examples/serve until interrupted
//
// It prints a live line: where it is, how far the leader is ahead, and the rate.
//
// A leader is believed what the batches prove: that they join the copy, in offsets and checksums. It is not believed
// lengths that it was not asked for, ends that it has nothing to show for, or that records of the copy are to go, unless
// -reset says so. What is left out: who the leader is nobody checks, and how much it may send nothing bounds but the disk.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/seglog/seglog"
)

const about = `mirror keeps a copy of a log that examples/serve serves, and goes on where the copy ends.

  go run ./examples/mirror                                 starts a leader, is killed again and again, compares files
  go run ./examples/mirror -from 127.0.0.1:7070 -dir copy  follows examples/serve until interrupted

`

func main() {
	from := flag.String("from", "", "`address` of the leader; default: a demonstration on loopback")
	dir := flag.String("dir", "", "`directory` of the copy")
	once := flag.Bool("once", false, "end once the copy has all that the leader has")
	reset := flag.Bool("reset", false, "drop records of the copy that the leader has no more; default: stop, and say so")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "mirror: unexpected arguments %q\n\n", flag.Args())
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *from == "" && *dir != "":
		err = errors.New("-dir goes with -from")
	case *from == "":
		err = demonstrate(ctx)
	case *dir == "":
		err = errors.New("-from goes with -dir")
	default:
		err = mirror(ctx, *from, *dir, *once, *reset)
	}
	if err != nil {
		log.Fatal("mirror: ", err)
	}
}

var (
	errCaughtUp = errors.New("caught up")
	errDiverged = errors.New("the copy is not one of this leader's log")
	errShorter  = errors.New("the copy has records that the leader has not; -reset drops them")
	errLies     = errors.New("the leader contradicts itself")
)

// mirror connects, and connects again, until ctx ends.
func mirror(ctx context.Context, from, dir string, once, reset bool) error {
	l, err := seglog.Open(dir, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	context.AfterFunc(ctx, func() { l.Close() }) // interrupts a transfer that waits
	f := newFollower(l, once, reset)
	const least, most = 200 * time.Millisecond, 30 * time.Second
	for pause := least; ctx.Err() == nil; {
		before := l.Offsets().End
		err := f.follow(ctx, from)
		end := l.Offsets().End
		switch {
		case ctx.Err() != nil:
			return l.Close()
		case errors.Is(err, errCaughtUp):
			f.live.say("mirror: the copy has all that the leader has, up to offset %d", end)
			return l.Close()
		case errors.Is(err, errDiverged), errors.Is(err, errShorter), errors.Is(err, seglog.ErrFailed), errors.Is(err, seglog.ErrTooLarge):
			return err
		}
		// The connection, or bytes that it damaged: what came before is stored, and is where the next one goes on.
		if end != before {
			pause = least
		}
		f.live.say("mirror: lost the leader (%v); the copy is good up to offset %d and goes on from there in %v", err, end, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, most)
	}
	return l.Close()
}

type follower struct {
	log      *seglog.Log
	once     bool
	reset    bool
	last     bool          // the last answer was the last batch here, and nothing behind it
	patience time.Duration // how long the leader may say nothing
	live     *live
	shown    time.Time // when the live line was printed last
	bytes    int64     // received until then
}

func newFollower(l *seglog.Log, once, reset bool) *follower {
	return &follower{log: l, once: once, reset: reset, patience: 30 * time.Second, live: newLive(os.Stdout), shown: time.Now()}
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
	empty := 0 // answers without batches for which the leader says that there are some
	f.last = false
	for ask := max(o.Start, o.End-1); ; ask = f.log.Offsets().End {
		a, err := f.request(conn, ask)
		if err != nil {
			return err
		}
		end := f.log.Offsets().End
		if err := f.take(conn, a, ask); err != nil {
			return err
		}
		if a.length < 0 {
			continue
		}
		now := f.log.Offsets().End
		f.last = a.length > 0 && now == end && ask < end
		if now > end || a.end <= now {
			empty = 0
		} else if empty++; empty == 3 { // once or twice it may have come just after the answer
			return fmt.Errorf("%w: its log ends at %d, and it sends nothing from %d on", errLies, a.end, ask)
		}
		f.show(a.end)
		if f.once && f.log.Offsets().End >= a.end {
			return errCaughtUp
		}
	}
}

// store stores n bytes of batches that come from conn. The leader sends what one of its segments has. If that was just now
// the last batch here, and no more, its next one may begin behind a gap, which only a stream that holds both can show: the
// batch is put in front again, from the copy.
func (f *follower) store(conn net.Conn, n, end int64) error {
	if !f.last {
		_, err := f.log.TransferFrom(conn, n)
		return err
	}
	s, err := f.log.Section(end-1, 1)
	if err != nil {
		return err
	}
	defer s.Close()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		return err
	}
	_, err = f.log.TransferFrom(behindLast{io.MultiReader(&b, conn), conn}, s.Len()+n)
	return err
}

// behindLast is a connection behind the last batch, whose reads Close can interrupt.
type behindLast struct {
	io.Reader
	conn net.Conn
}

func (r behindLast) SetReadDeadline(at time.Time) error { return r.conn.SetReadDeadline(at) }

// take does what an answer is for.
func (f *follower) take(conn net.Conn, a answer, ask int64) error {
	o := f.log.Offsets()
	switch {
	case a.length > 0:
		err := f.store(conn, a.length, o.End)
		if errors.Is(err, seglog.ErrNotJoined) && ask < o.End {
			err = fmt.Errorf("%w: %w", errDiverged, err)
		}
		return err
	case a.length < 0 && a.start > o.End:
		if o.End > o.Start && !f.reset {
			return fmt.Errorf("%w: its log begins at offset %d by now, the copy has [%d, %d) and nothing in between", errShorter, a.start, o.Start, o.End)
		}
		f.live.say("mirror: the leader's retention has deleted what comes next, its log begins at offset %d: the copy starts over there", a.start)
		return f.log.Reset(a.start)
	case a.length < 0 && a.start > ask:
		return nil // retention has taken what is here already: from the end on, then
	case a.length < 0:
		return fmt.Errorf("%w: offset %d is out of range, and its log begins at %d", errLies, ask, a.start)
	case a.end < o.End:
		if !f.reset {
			return fmt.Errorf("%w: its log ends at offset %d, the copy at %d", errShorter, a.end, o.End)
		}
		f.live.say("mirror: the leader's log was cut to offset %d, and so is the copy", a.end)
		return f.log.TruncateTo(max(a.end, o.Start))
	}
	return nil
}
