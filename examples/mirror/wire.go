package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	mostBytes = 4 << 20  // asked for
	mostBatch = 16 << 20 // a single batch may be larger: Options.MaxBatchBytes of the copy
	slowest   = 64 << 10 // bytes a second at which a leader has to send them
)

// answer is what the leader says before it sends batches; see examples/serve.
type answer struct {
	length     int64 // of the batches that follow; -1: what was asked for is out of range, and
	start, end int64 // its log begins at start (if length is -1) or ends at end
}

// request asks for the batches from offset on.
func (f *follower) request(conn net.Conn, offset int64) (a answer, err error) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(offset))
	binary.BigEndian.PutUint64(b[8:], mostBytes)
	conn.SetDeadline(time.Now().Add(f.patience)) // the leader answers within a second, if only that it has nothing
	if _, err := conn.Write(b[:]); err != nil {
		return answer{}, err
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return answer{}, err
	}
	length, second := int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint64(b[8:]))
	if length < -1 || length > mostBatch || second < 0 {
		return answer{}, fmt.Errorf("%w: %d bytes of batches, offset %d", errLies, length, second)
	}
	conn.SetDeadline(time.Now().Add(f.patience + time.Duration(max(length, 0))*time.Second/slowest))
	if length < 0 {
		return answer{length: length, start: second}, nil
	}
	return answer{length: length, end: second}, nil
}

// show prints the live line, four times a second at most.
func (f *follower) show(leaderEnd int64) {
	took := time.Since(f.shown)
	end := f.log.Offsets().End
	every := 250 * time.Millisecond
	if !f.live.terminal {
		every = 5 * time.Second
	}
	if took < every {
		return
	}
	received := f.log.Stats().Received
	f.live.show("mirror: at offset %d, %d behind, %.1f MB/s", end, max(0, leaderEnd-end), float64(received-f.bytes)/1e6/took.Seconds())
	f.shown, f.bytes = time.Now(), received
}
