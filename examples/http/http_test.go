package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

func newSite(t *testing.T, records int) (*site, string) {
	dir := t.TempDir()
	l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	for n := 0; n < records; {
		batch := make([]seglog.Record, min(1000, records-n))
		for i := range batch {
			batch[i].Value = fmt.Appendf(nil, "record %d %0100d", n, 0)
			n++
		}
		_, err := l.Append(batch...)
		require.NoError(t, err)
	}
	return &site{log: l, patience: 30 * time.Second}, dir
}

// serve runs the server as main does.
func serve(t *testing.T, s *site, conns int) (addr string) {
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := newServer(ctx, s)
	served := make(chan error)
	go func() { served <- server.Serve(newLimited(l, conns)) }()
	t.Cleanup(func() {
		cancel()
		server.Close()
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	return l.Addr().String()
}

// leaver is a client that leaves after some bytes.
type leaver struct {
	httptest.ResponseRecorder
	left, after int
}

var errGone = errors.New("gone")

func (w *leaver) Header() http.Header { return http.Header{} }

func (w *leaver) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		w.after++
		return 0, errGone
	}
	return len(b), nil
}

// TestClientThatLeftCostsNothing checks that the first failed write ends a tail, however long the log is.
func TestClientThatLeftCostsNothing(t *testing.T) {
	s, _ := newSite(t, 10_000)
	w := &leaver{left: 10_000}
	s.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/events?from=0", nil))
	require.Equal(t, 1, w.after)
	require.Zero(t, s.tails.Load())

	gone, cancel := context.WithCancel(context.Background())
	cancel()
	w = &leaver{left: 1 << 30}
	s.handler().ServeHTTP(w, httptest.NewRequestWithContext(gone, http.MethodGet, "http://localhost/events?from=0", nil))
	require.Equal(t, 1<<30, w.left, "the server must send nothing to a client that has left")
}

// TestSlowClients checks that a client that does not read its answer loses the connection, but that a tail with nothing to
// send keeps it.
func TestSlowClients(t *testing.T) {
	s, _ := newSite(t, 200_000) // more than the buffers of two sockets hold
	s.patience = 200 * time.Millisecond
	addr := serve(t, s, 10)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprintf(c, "GET /events?from=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	_, err = c.Read(make([]byte, 1)) // until the answer has begun
	require.NoError(t, err)
	waitTails(t, s, 0)

	c, err = net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	waitTails(t, s, 1)
	time.Sleep(5 * s.patience) // longer than every deadline of an ordinary request
	_, err = s.log.Append(seglog.Record{Value: []byte("late")})
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		if line == "data: \"late\"\n" {
			break
		}
	}
	c.Close()
	waitTails(t, s, 0)
}

func waitTails(t *testing.T, s *site, n int64) {
	t.Helper()
	require.Eventually(t, func() bool { return s.tails.Load() == n }, 20*time.Second, time.Millisecond)
}

func TestLimits(t *testing.T) {
	s, _ := newSite(t, 100)
	h := s.handler()
	for name, c := range map[string]struct {
		body   io.Reader
		status int
	}{
		"exactly":     {bytes.NewReader(make([]byte, mostValue)), http.StatusOK},
		"a byte more": {bytes.NewReader(make([]byte, mostValue+1)), http.StatusRequestEntityTooLarge},
		"in chunks":   {io.MultiReader(bytes.NewReader(make([]byte, mostValue)), strings.NewReader("x")), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://localhost/append", c.body))
			require.Equal(t, c.status, w.Code)
		})
	}
	s.tails.Store(mostTails)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/events", nil))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.EqualValues(t, mostTails, s.tails.Load())
	for range 20 {
		_, err := s.log.Append(seglog.Record{Value: make([]byte, 1<<20)})
		require.NoError(t, err)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/log?from=0&max=9000000000000000000", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.LessOrEqual(t, w.Body.Len(), mostRange)
}

// TestConnectionLimit checks that connections beyond the limit wait until another ends.
func TestConnectionLimit(t *testing.T) {
	s, _ := newSite(t, 1)
	addr := serve(t, s, 2)
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer c.Close()
		conns = append(conns, c)
	}
	ask := func(c net.Conn, wait time.Duration) error {
		fmt.Fprintf(c, "GET /log HTTP/1.1\r\nHost: localhost\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(wait))
		_, err := c.Read(make([]byte, 1))
		return err
	}
	require.NoError(t, ask(conns[0], 10*time.Second))
	require.NoError(t, ask(conns[1], 10*time.Second))
	require.ErrorIs(t, ask(conns[2], 50*time.Millisecond), os.ErrDeadlineExceeded)
	conns[0].Close()
	conns[2].SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := conns[2].Read(make([]byte, 1))
	require.NoError(t, err)
}

// TestStalledClientsDoNotHoldUpTheEnd checks that the server stops even if a request never arrives in full.
func TestStalledClientsDoNotHoldUpTheEnd(t *testing.T) {
	s, _ := newSite(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := newServer(context.Background(), s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(newLimited(l, 10)) }()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprintf(c, "GET /log HTTP/1.1\r\nHost: localhost\r\n\r\nPOST /append HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
	_, err = c.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, shutDown(server, 50*time.Millisecond))
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}

// TestOtherSites checks that a page of another site can't append records, nor read them by means of a host name of its own.
func TestOtherSites(t *testing.T) {
	s, _ := newSite(t, 1)
	s.host = "log.example"
	for name, c := range map[string]struct {
		method, host string
		header       map[string]string
		status       int
	}{
		"a program":              {"POST", "127.0.0.1:8080", nil, 200},
		"its own page":           {"POST", "localhost:8080", map[string]string{"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}, 200},
		"its own page, old":      {"POST", "[::1]:8080", map[string]string{"Origin": "http://[::1]:8080"}, 200},
		"under its name":         {"POST", "log.example", map[string]string{"Origin": "http://log.example"}, 200},
		"another site":           {"POST", "127.0.0.1:8080", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"another port":           {"POST", "127.0.0.1:8080", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		"another site, old":      {"POST", "127.0.0.1:8080", map[string]string{"Origin": "http://evil.example"}, 403},
		"a file":                 {"POST", "127.0.0.1:8080", map[string]string{"Origin": "null"}, 403},
		"a foreign host name":    {"GET", "evil.example:8080", nil, 421},
		"a foreign host, append": {"POST", "evil.example:8080", map[string]string{"Origin": "http://evil.example:8080", "Sec-Fetch-Site": "same-origin"}, 421},
		"a link from elsewhere":  {"GET", "127.0.0.1:8080", map[string]string{"Sec-Fetch-Site": "cross-site"}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.log.Offsets().End
			path := map[string]string{"POST": "/append", "GET": "/log"}[c.method]
			r := httptest.NewRequest(c.method, "http://"+c.host+path, strings.NewReader("x"))
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			s.handler().ServeHTTP(w, r)
			require.Equal(t, c.status, w.Code, w.Body.String())
			require.Equal(t, c.method == "POST" && c.status == 200, s.log.Offsets().End > before)
		})
	}
}

// TestErrorsNameNoFiles checks that error messages to clients do not show the path of the log.
func TestErrorsNameNoFiles(t *testing.T) {
	s, dir := newSite(t, 10)
	require.NoError(t, s.log.Close())
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	b, err := os.ReadFile(logs[0])
	require.NoError(t, err)
	b[100] ^= 1
	require.NoError(t, os.WriteFile(logs[0], b, 0o644))
	s.log, err = seglog.Open(dir, nil)
	require.NoError(t, err)
	for _, path := range []string{"/log?from=0", "/events?from=0", "/log?from=99", "/log?from=x"} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil))
		cancel()
		require.NotContains(t, w.Body.String(), dir, path)
		require.NotContains(t, w.Body.String(), ".log", path)
	}
	s.log.Close()
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://localhost/append", strings.NewReader("x")))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotContains(t, w.Body.String(), dir)
}

// TestPageBeginsWithLastRecords checks that the page asks for the last records, and gets them.
func TestPageBeginsWithLastRecords(t *testing.T) {
	require.Contains(t, string(page), `"last=" + shown`)
	s, _ := newSite(t, 1000)
	for query, first := range map[string]string{"?last=200": "id: 800\n", "?last=5000": "id: 0\n", "?from=3&last=5": "id: 3\n", "?last=1": "id: 999\n"} {
		ctx, cancel := context.WithCancel(context.Background())
		addr := serve(t, s, 10)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/events"+query, nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		line, err := bufio.NewReader(response.Body).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, first, line, query)
		response.Body.Close()
		cancel()
	}
}
