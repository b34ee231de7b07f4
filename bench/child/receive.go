package child

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Receiver is the far end of a transfer, in a process of its own.
type Receiver struct {
	Conn    *net.TCPConn // this end
	process *process
}

// StartReceiver connects to a new receiver over loopback.
func StartReceiver() (*Receiver, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	p, err := start("receive", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	conn, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	r := &Receiver{Conn: conn.(*net.TCPConn), process: p}
	return r, Tune(r.Conn)
}

// Expect announces n bytes.
func (r *Receiver) Expect(n int64) error {
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(n))
	_, err := r.Conn.Write(head[:])
	return err
}

// Arrived waits until all of them were received.
func (r *Receiver) Arrived() error {
	var ack [1]byte
	_, err := io.ReadFull(r.Conn, ack[:])
	return err
}

// Close ends the connection and the process.
func (r *Receiver) Close() error {
	r.Conn.Close()
	return r.process.stop()
}

func receive(args []string) error {
	conn, err := net.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	if err := Tune(tcp); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for {
		var head [8]byte
		if _, err := io.ReadFull(tcp, head[:]); err != nil {
			return nil // the sender is done
		}
		for left := int64(binary.BigEndian.Uint64(head[:])); left > 0; {
			n, err := tcp.Read(buf[:min(left, int64(len(buf)))])
			if err != nil {
				return fmt.Errorf("with %d bytes to come: %w", left, err)
			}
			left -= int64(n)
		}
		if _, err := tcp.Write([]byte{1}); err != nil {
			return err
		}
	}
}
