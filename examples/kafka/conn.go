package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// idleTimeout ends a connection on which nothing was read or written for so long; Kafka's default.
	idleTimeout = 10 * time.Minute
	// keepBuffer is the largest request buffer a connection holds on to. Producers send up to 1 MiB unless told otherwise.
	keepBuffer = 4 << 20
)

// request is one request as its handler sees it. Byte slices in body alias the connection's buffer: what is kept longer
// than the handler runs must be cloned.
type request struct {
	conn        net.Conn
	clientID    string
	correlation int32
	api         *api
	body        kmsg.Request
}

// serveConn handles the requests of one connection, in order, until it ends.
func (s *Server) serveConn(c *net.TCPConn) error {
	// A small reader saves a system call on small requests; a large body goes past it, straight into buf.
	r := bufio.NewReaderSize(c, 4<<10)
	var buf []byte
	for {
		if err := c.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return err
		}
		var size [4]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return clean(err)
		}
		n := int(int32(binary.BigEndian.Uint32(size[:])))
		if n < 8 || n > s.cfg.MaxRequestBytes {
			return fmt.Errorf("request of %d bytes, limit %d%s", n, s.cfg.MaxRequestBytes, speaksTLS(size))
		}
		if cap(buf) > keepBuffer {
			buf = nil
		}
		buf = slices.Grow(buf[:0], n)[:n]
		if _, err := io.ReadFull(r, buf); err != nil {
			return clean(err)
		}
		rq, err := parseRequest(buf)
		if err != nil {
			return err
		}
		rq.conn = c
		s.log.Debug("request", "api", kmsg.NameForKey(rq.body.Key()), "version", rq.body.GetVersion(), "client", rq.clientID, "bytes", n)
		reply := rq.api.handle(s, rq)
		if reply == nil {
			continue
		}
		// A handler may have waited as long as its client asked for; the time to write starts now.
		if err := c.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return err
		}
		if err := reply.send(c, rq); err != nil {
			return clean(err)
		}
	}
}

// clean drops the errors that say no more than that the peer has left.
func clean(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// speaksTLS explains the commonest cause of an absurd size: 0x16 0x03 begins a TLS handshake.
func speaksTLS(size [4]byte) string {
	if size[0] == 0x16 && size[1] == 0x03 {
		return ": the client speaks TLS, this server does not"
	}
	return ""
}

// parseRequest decodes a frame: int16 key, int16 version, int32 correlation id, nullable client id, tags, body.
func parseRequest(frame []byte) (*request, error) {
	b := kbin.Reader{Src: frame}
	key, version := b.Int16(), b.Int16()
	rq := &request{correlation: b.Int32(), api: apis[key]}
	if id := b.NullableString(); id != nil {
		rq.clientID = *id
	}
	if err := b.Complete(); err != nil {
		return nil, fmt.Errorf("request header: %w", err)
	}
	if rq.api == nil {
		return nil, fmt.Errorf("%s (key %d) is not supported by this server", kmsg.NameForKey(key), key)
	}
	rq.body = kmsg.RequestForKey(key)
	rq.body.SetVersion(version)
	if version < rq.api.min || version > rq.api.max {
		if key == kmsg.ApiVersions.Int16() {
			// The client learns from the answer which version to ask in; its body need not be understood.
			return rq, nil
		}
		return nil, fmt.Errorf("%s version %d is not supported by this server, %d to %d are", kmsg.NameForKey(key), version, rq.api.min, rq.api.max)
	}
	if rq.body.IsFlexible() {
		kmsg.SkipTags(&b)
	}
	if err := b.Complete(); err != nil {
		return nil, fmt.Errorf("request header: %w", err)
	}
	if err := rq.body.ReadFrom(b.Src); err != nil {
		return nil, fmt.Errorf("%s version %d: %w", kmsg.NameForKey(key), version, err)
	}
	return rq, nil
}

// reply is what a handler returns for its connection to send.
type reply interface {
	send(c *net.TCPConn, rq *request) error
}

// message is a reply that kmsg encodes: all but Fetch.
type message struct{ kmsg.Response }

func (m message) send(c *net.TCPConn, rq *request) error {
	b := m.AppendTo(appendResponseHeader(nil, rq))
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := c.Write(b)
	return err
}

// appendResponseHeader adds the size, still 0, the correlation id, and the tags of a flexible version. ApiVersions never
// has tags there, so that a client of any age can read the answer.
func appendResponseHeader(b []byte, rq *request) []byte {
	b = kbin.AppendInt32(b, 0)
	b = kbin.AppendInt32(b, rq.correlation)
	if rq.body.IsFlexible() && rq.body.Key() != kmsg.ApiVersions.Int16() {
		b = append(b, 0)
	}
	return b
}
