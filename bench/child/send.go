package child

import (
	"io"
	"net"
	"os"
	"strconv"
)

// Part is the beginning of a file.
type Part struct {
	Path  string
	Bytes int64
}

// StartSender starts a process that connects to addr, sends the parts one behind the other and ends.
func StartSender(addr string, parts ...Part) (wait func() error, err error) {
	args := []string{addr}
	for _, part := range parts {
		args = append(args, strconv.FormatInt(part.Bytes, 10), part.Path)
	}
	p, err := start("send", args...)
	if err != nil {
		return nil, err
	}
	return p.stop, nil
}

func send(args []string) error {
	conn, err := net.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := Tune(conn.(*net.TCPConn)); err != nil {
		return err
	}
	for args = args[1:]; len(args) > 1; args = args[2:] {
		n, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		if _, err := io.CopyN(conn, f, n); err != nil { // sendfile(2)
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
