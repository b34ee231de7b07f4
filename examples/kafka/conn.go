package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// conn is a client. One goroutine reads its requests, handles them and answers them, in order.
type conn struct {
	*net.TCPConn
	limits *Limits
	r      *bufio.Reader // a small one: it saves a system call on small requests, and the body of a large one goes past it
}

func (c *conn) Read(b []byte) (int, error) { return c.r.Read(b) }

// request is one request as its handler sees it. Byte slices in body alias the frame: what is kept longer than the
// handler runs must be cloned.
type request struct {
	conn        *conn
	frame       *frame
	clientID    string
	correlation int32
	api         *api
	body        kmsg.Request
}

// serveConn handles the requests of one connection, in order, until it ends.
func (s *Server) serveConn(tcp *net.TCPConn) error {
	c := &conn{tcp, &s.cfg.Limits, bufio.NewReaderSize(tcp, 4<<10)}
	for silence := c.limits.Patience; ; silence = idleTimeout {
		if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return clean(err)
		}
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return clean(err)
		}
		n := int64(int32(binary.BigEndian.Uint32(size[:])))
		if n < 8 || n > int64(c.limits.RequestBytes) {
			return fmt.Errorf("request of %d bytes, limit %d%s", n, c.limits.RequestBytes, speaksTLS(size))
		}
		f, err := readFrame(s.ctx, c, int(n), s.inFlight, c.limits)
		if err != nil {
			return clean(err)
		}
		if err := s.answer(c, f); err != nil {
			return clean(err)
		}
	}
}

// answer handles one request.
func (s *Server) answer(c *conn, f *frame) error {
	defer f.release()
	rq, err := parseRequest(s.ctx, f)
	if err != nil {
		return err
	}
	rq.conn = c
	s.log.Debug("request", "api", kmsg.NameForKey(rq.body.Key()), "version", rq.body.GetVersion(), "client", rq.clientID, "bytes", len(f.bytes))
	reply := rq.api.handle(s, rq)
	if reply == nil {
		return nil
	}
	return reply.send(c, rq)
}

// allow sets the time that a client has to take the next n bytes.
func (c *conn) allow(n int64) error { return c.SetWriteDeadline(time.Now().Add(c.limits.within(n))) }

// Why a request that waits is given up.
var (
	errLeft    = errors.New("the client has left")
	errCrowded = errors.New("the client has sent more than can be kept while a request of its waits")
)

// watch returns a context that ends when the client leaves. For a request that waits: nothing else reads from the
// connection then. What the client sends meanwhile stays in the buffer; once that is full there is no way to see it
// leave, and the context ends, too. stop must be called before the connection is read from again.
func (c *conn) watch(parent context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c.SetReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for c.r.Buffered() < c.r.Size() {
			if _, err := c.r.Peek(c.r.Buffered() + 1); err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					cancel(errLeft)
				}
				return
			}
		}
		cancel(errCrowded)
	}()
	return ctx, func() {
		c.SetReadDeadline(time.Unix(1, 0)) // interrupts Peek
		<-watched
		cancel(nil)
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
func parseRequest(ctx context.Context, f *frame) (*request, error) {
	b := kbin.Reader{Src: f.bytes}
	key, version := b.Int16(), b.Int16()
	rq := &request{frame: f, correlation: b.Int32(), api: apis[key]}
	if id := b.NullableString(); id != nil {
		rq.clientID = *id
	}
	if !b.Ok() {
		return nil, errors.New("request header: it ends early")
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
	flexible := rq.body.IsFlexible()
	elements, err := checkShape(b.Src, key, version, flexible)
	if err == nil {
		err = f.reserve(ctx, int64(len(f.bytes)-firstBytes+elements*elementBytes))
	}
	if err != nil {
		return nil, fmt.Errorf("%s version %d: %w", kmsg.NameForKey(key), version, err)
	}
	if flexible {
		kmsg.SkipTags(&b)
	}
	if err := rq.body.ReadFrom(b.Src); err != nil {
		return nil, fmt.Errorf("%s version %d: %w", kmsg.NameForKey(key), version, err)
	}
	return rq, nil
}

// reply is what a handler returns for its connection to send.
type reply interface {
	send(c *conn, rq *request) error
}

// message is a reply that kmsg encodes: all but Fetch.
type message struct{ kmsg.Response }

func (m message) send(c *conn, rq *request) error {
	b := m.AppendTo(appendResponseHeader(nil, rq))
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if err := c.allow(int64(len(b))); err != nil {
		return err
	}
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
