package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rawConn is a connection on which a test sends requests of any version.
type rawConn struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, addr string) *rawConn {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return &rawConn{t, c}
}

// roundTrip sends a request and returns the response after its correlation id.
func (c *rawConn) roundTrip(req kmsg.Request) []byte {
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))
	_, err := c.Write(f.AppendRequest(nil, req, 77))
	require.NoError(c.t, err)
	var size [4]byte
	_, err = io.ReadFull(c, size[:])
	require.NoError(c.t, err)
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err = io.ReadFull(c, b)
	require.NoError(c.t, err)
	require.EqualValues(c.t, 77, binary.BigEndian.Uint32(b))
	return b[4:]
}

func (c *rawConn) request(req kmsg.Request) kmsg.Response {
	b := c.roundTrip(req)
	resp := req.ResponseKind()
	if req.IsFlexible() && req.Key() != kmsg.ApiVersions.Int16() {
		r := kbin.Reader{Src: b}
		kmsg.SkipTags(&r)
		b = r.Src
	}
	require.NoError(c.t, resp.ReadFrom(b))
	return resp
}

// endsConnection reports whether the server closes the connection in reply to frame.
func (c *rawConn) endsConnection(frame []byte) bool {
	_, err := c.Write(frame)
	require.NoError(c.t, err)
	n, err := c.Read(make([]byte, 1))
	return n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestApiVersions(t *testing.T) {
	b := startBroker(t, Config{})
	for v := int16(0); v <= 3; v++ {
		req := kmsg.NewPtrApiVersionsRequest()
		req.Version = v
		resp := dial(t, b.addr).request(req).(*kmsg.ApiVersionsResponse)
		require.Zero(t, resp.ErrorCode)
		require.Len(t, resp.ApiKeys, len(apis))
	}
	newer := kmsg.NewPtrApiVersionsRequest()
	newer.Version = 4
	oldest := kmsg.NewPtrApiVersionsResponse()
	require.NoError(t, oldest.ReadFrom(dial(t, b.addr).roundTrip(newer)))
	require.Equal(t, kerr.UnsupportedVersion.Code, oldest.ErrorCode)
	require.Len(t, oldest.ApiKeys, len(apis))
}

// TestEveryVersionIsUnderstood sends an empty request of each kind in each supported version, and decodes the answer.
func TestEveryVersionIsUnderstood(t *testing.T) {
	b := startBroker(t, Config{})
	for key, api := range apis {
		for v := api.min; v <= api.max; v++ {
			req := kmsg.RequestForKey(key)
			req.SetVersion(v)
			if p, ok := req.(*kmsg.ProduceRequest); ok {
				p.Acks = -1
			}
			require.LessOrEqual(t, v, req.MaxVersion())
			dial(t, b.addr).request(req)
		}
	}
}

func TestInvalidRequestsEndTheConnection(t *testing.T) {
	b := startBroker(t, Config{Limits: Limits{RequestBytes: 1 << 20}})
	newer := kmsg.NewPtrMetadataRequest()
	newer.Version = 13
	f := kmsg.NewRequestFormatter()
	for name, frame := range map[string][]byte{
		"TLS":             {0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1},
		"too large":       {0x7f, 0, 0, 0, 0, 3, 0, 0},
		"negative":        {0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0},
		"unknown key":     f.AppendRequest(nil, kmsg.NewPtrSASLHandshakeRequest(), 1),
		"unknown version": f.AppendRequest(nil, newer, 1),
		"cut short":       {0, 0, 0, 12, 0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0, 9},
	} {
		t.Run(name, func(t *testing.T) { require.True(t, dial(t, b.addr).endsConnection(frame)) })
	}
}
