package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// request asks for the batches from offset on; see examples/serve for what comes back.
func request(conn net.Conn, offset int64) (length, second int64, err error) {
	const most = 4 << 20
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(offset))
	binary.BigEndian.PutUint64(b[8:], most)
	conn.SetDeadline(time.Now().Add(30 * time.Second)) // the leader answers within a second, if only that it has nothing
	if _, err := conn.Write(b[:]); err != nil {
		return 0, 0, err
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return 0, 0, err
	}
	return int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint64(b[8:])), nil
}

// show prints the live line, four times a second at most.
func (f *follower) show(leaderEnd int64) {
	took := time.Since(f.shown)
	end := f.log.Offsets().End
	if took < 250*time.Millisecond && !(f.once && end >= leaderEnd) {
		return
	}
	received := f.log.Stats().Received
	fmt.Printf("\rmirror: at offset %d, %d behind, %.1f MB/s   ", end, max(0, leaderEnd-end), float64(received-f.bytes)/1e6/took.Seconds())
	f.shown, f.bytes = time.Now(), received
}
