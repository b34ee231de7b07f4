package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/seglog/seglog"
)

// load gives the counters something to count.
func load(ctx context.Context, l *seglog.Log) {
	for i := 0; ctx.Err() == nil; i++ {
		if _, err := l.Append(seglog.Record{Value: fmt.Appendf(nil, "record %d", i)}); err != nil {
			if !errors.Is(err, seglog.ErrClosed) {
				fmt.Fprintln(os.Stderr, "metrics: append:", err)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// scrape prints what a scraper sees, comments left out.
func scrape(url string) error {
	for _, path := range []string{"/metrics", "/debug/vars"} {
		response, err := http.Get(url + path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "seglog_") || strings.HasPrefix(lines.Text(), `"seglog"`) {
				fmt.Println(lines.Text())
			}
		}
		if err := lines.Err(); err != nil {
			return err
		}
	}
	return nil
}
