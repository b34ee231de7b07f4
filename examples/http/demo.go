package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/seglog/seglog"
)

// demonstrate is a client of every address: it appends, reads a range, and follows over a lost connection.
func demonstrate(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for i := range 5 {
		if _, err := call(ctx, http.MethodPost, url+"/append", fmt.Sprintf("line %d\nof two", i)); err != nil {
			return err
		}
	}
	reply, err := call(ctx, http.MethodGet, url+"/log?from=1&max=200", "")
	if err != nil {
		return err
	}
	fmt.Printf("GET /log?from=1&max=200: Content-Length %s, next offset %s\n", reply.header.Get("Content-Length"), reply.header.Get("Seglog-Next-Offset"))
	for r, err := range seglog.Decode(strings.NewReader(reply.body)) {
		if err != nil {
			return err
		}
		fmt.Printf("  offset %d: %q\n", r.Offset, r.Value)
	}
	last, err := follow(ctx, url+"/events?from=0", "", 2)
	if err != nil {
		return err
	}
	_, err = follow(ctx, url+"/events?from=0", last, 3)
	return err
}

type reply struct {
	header http.Header
	body   string
}

func call(ctx context.Context, method, url, body string) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s %s: %s: %s", method, url, response.Status, got))
	}
	return reply{response.Header, string(got)}, err
}

// follow prints n events, as a browser that has seen the one with the id last would get them, and returns the id of the
// newest.
func follow(ctx context.Context, url, last string, n int) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if last != "" {
		request.Header.Set("Last-Event-ID", last)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	fmt.Printf("GET /events, behind %q:\n", last)
	lines := bufio.NewScanner(response.Body)
	for n > 0 && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			last = id
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			fmt.Printf("  offset %s: %s\n", last, data)
			n--
		}
	}
	return last, lines.Err()
}
