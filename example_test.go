package seglog_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"os"
	"time"

	"github.com/seglog/seglog"
)

// orders returns a directory for a log, and a function that removes it.
func orders() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "orders")
	if err != nil {
		log.Fatal(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}

// consumer returns a connection whose other end decodes the batches sent. The function received closes the connection and
// prints the records.
func consumer() (conn net.Conn, received func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	conn, err = net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r, err := range seglog.Decode(far) {
			if err != nil {
				log.Fatal(err)
			}
			lines <- fmt.Sprintf("received %d %s=%s", r.Offset, r.Key, r.Value)
		}
	}()
	return conn, func() {
		conn.Close()
		for line := range lines {
			fmt.Println(line)
		}
	}
}

// The README shows the body of this example between the markers.
func Example() {
	dir, remove := orders()
	defer remove()
	conn, received := consumer()

	// README
	l, err := seglog.Open(dir, nil) // durable by default
	if err != nil {
		log.Fatal(err)
	}
	offset, err := l.Append(seglog.Record{Key: []byte("42"), Value: []byte("paid")}) // on stable storage when it returns
	fmt.Println("appended at", offset, err)
	for r, err := range l.Records(0) { // every CRC is checked; r is lent until the next step, r.Clone() keeps it
		fmt.Printf("%d %s=%s %v\n", r.Offset, r.Key, r.Value, err)
	}
	sent, err := l.TransferTo(0, 1<<20, conn) // whole batches, by sendfile
	fmt.Println("sent", sent, "bytes", err)
	// README end

	received()
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// appended at 0 <nil>
	// 0 42=paid <nil>
	// sent 74 bytes <nil>
	// received 0 42=paid
}

func ExampleLog_Append() {
	dir, remove := orders()
	defer remove()
	l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushAsync, FlushInterval: 50 * time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	// The records form one batch, which is stored as a whole or not at all.
	base, err := l.Append(
		seglog.Record{Value: []byte("debit 10")},
		seglog.Record{Value: []byte("credit 10"), Headers: []seglog.Header{{Key: "trace", Value: []byte("a1")}}},
	)
	if err != nil {
		log.Fatal(err)
	}
	// Wait until the records would survive a power cut, whatever the flush policy.
	if err := l.WaitDurable(context.Background(), base+1); err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Offsets())
	// Output: {0 2 2 2}
}

func ExampleLog_Read() {
	dir, remove := orders()
	defer remove()
	l, err := seglog.Open(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Append(seglog.Record{Value: []byte("paid")}); err != nil {
		log.Fatal(err)
	}
	_, err = l.Read(7)
	var out *seglog.OffsetError
	if errors.As(err, &out) {
		fmt.Printf("asked for %d, there are [%d, %d)\n", out.Offset, out.Offsets.Start, out.Offsets.HighWatermark)
	}
	// Output: asked for 7, there are [0, 1)
}

func ExampleLog_Follow() {
	dir, remove := orders()
	defer remove()
	l, err := seglog.Open(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		for i := range 3 {
			if _, err := l.Append(seglog.Record{Value: fmt.Appendf(nil, "order %d", i)}); err != nil {
				log.Fatal(err)
			}
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for r, err := range l.Follow(ctx, 0) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s\n", r.Offset, r.Value)
		if r.Offset == 2 {
			cancel() // ends the sequence
		}
	}
	// Output:
	// 0 order 0
	// 1 order 1
	// 2 order 2
}

// A follower asks its leader for the batches from its own end on, and appends them.
func ExampleLog_TransferFrom() {
	dir, remove := orders()
	defer remove()
	leader, err := seglog.Open(dir+"/leader", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer leader.Close()
	follower, err := seglog.Open(dir+"/follower", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer follower.Close()
	if _, err := leader.Append(seglog.Record{Value: []byte("paid")}); err != nil {
		log.Fatal(err)
	}
	from, to := net.Pipe()
	go func() {
		defer from.Close()
		if _, err := leader.TransferTo(follower.Offsets().End, math.MaxInt64, from); err != nil {
			log.Fatal(err)
		}
	}()
	if _, err := follower.TransferFrom(to, -1); err != nil {
		log.Fatal(err)
	}
	r, err := follower.Read(0)
	fmt.Printf("%s %v\n", r.Value, err)
	// Output: paid <nil>
}
