package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog"
)

//go:embed page.html
var page []byte

// What a client may ask for.
const (
	mostValue = 1 << 20  // bytes of a request's body
	mostRange = 16 << 20 // bytes of a range; the rest is to be asked for by another request
	mostTails = 100      // live tails at once
	slowest   = 64 << 10 // bytes per second at which a client has to take what it asked for
)

// site is the log on the web.
type site struct {
	log      *seglog.Log
	host     string        // name under which it may be reached, beside localhost and any address
	patience time.Duration // how long a client may take nothing of what is sent to it
	tails    atomic.Int64
}

func (s *site) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.Write(page) })
	mux.HandleFunc("GET /log", s.sendRange)
	mux.HandleFunc("GET /events", s.sendEvents)
	mux.HandleFunc("POST /append", s.append)
	return http.MaxBytesHandler(s.sameSite(mux), mostValue)
}

// sameSite keeps out the pages of others that the user's browser has open. They may not have it append (a form or a
// fetch from elsewhere says so in Sec-Fetch-Site, in older browsers by a foreign Origin), nor read what it reads by
// giving their own name the address of this server, for which the name must be known. Programs send neither header.
func (s *site) sameSite(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := hostname(r.Host); name != "localhost" && name != s.host && net.ParseIP(name) == nil {
			http.Error(w, "this server has another name: -host sets it", http.StatusMisdirectedRequest)
			return
		}
		site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
		foreign := site != "" && site != "same-origin" && site != "none"
		if origin != "" {
			u, err := url.Parse(origin)
			foreign = foreign || err != nil || u.Host != r.Host
		}
		if foreign && r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "a page of another site may not do that", http.StatusForbidden)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

func hostname(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if len(host) > 2 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	return host
}

func (s *site) append(w http.ResponseWriter, r *http.Request) {
	value, err := io.ReadAll(r.Body)
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		http.Error(w, tooLarge.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "the body did not arrive", http.StatusBadRequest)
		return
	}
	offset, err := s.log.Append(seglog.Record{Value: value})
	if err != nil {
		fail(w, err)
		return
	}
	fmt.Fprintln(w, offset)
}

func (s *site) sendRange(w http.ResponseWriter, r *http.Request) {
	from, err := number(r.FormValue("from"), s.log.Offsets().Start)
	most, err2 := number(r.FormValue("max"), 1<<20)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	section, err := s.log.Section(from, min(most, mostRange))
	if err != nil {
		fail(w, err)
		return
	}
	defer section.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(section.Len(), 10))
	w.Header().Set("Seglog-Next-Offset", strconv.FormatInt(section.Next(), 10))
	allowed := s.patience + time.Duration(section.Len())*time.Second/slowest
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(allowed))
	// A ResponseWriter is not a bare connection, it may chunk, compress or encrypt: the bytes go through its Write.
	section.WriteTo(w) // an error is the client's, who sees fewer bytes than announced
}

func (s *site) sendEvents(w http.ResponseWriter, r *http.Request) {
	from, err := s.firstEvent(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer s.tails.Add(-1)
	if s.tails.Add(1) > mostTails {
		http.Error(w, "too many follow the log by now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flusher := http.NewResponseController(w)
	var extended time.Time
	// A client that takes nothing for so long is gone, and so is one whose connection is: then its tail ends.
	extend := func() {
		if now := time.Now(); now.Sub(extended) > s.patience/10 {
			extended = now
			flusher.SetWriteDeadline(now.Add(s.patience))
		}
	}
	extend()
	flusher.SetReadDeadline(time.Time{}) // the request is read; what is read from now on is that the client leaves
	flusher.Flush()                      // the headers: the browser knows that it is connected
	for rec, err := range s.log.Follow(r.Context(), from) {
		extend()
		if err != nil {
			text, _ := outside(err)
			fmt.Fprintf(w, "event: failure\ndata: %s\n\n", text)
			return
		}
		if r.Context().Err() != nil {
			return
		}
		data, _ := json.Marshal(string(rec.Value)) // JSON: a value may hold line feeds, an event's line may not
		if err := writeEvent(w, rec.Offset, data); err != nil {
			return
		}
		if rec.Offset+1 >= s.log.Offsets().HighWatermark && flusher.Flush() != nil {
			return
		}
	}
}

// writeEvent sends data as it is: formatted with the rest it would be copied once more, for each tail.
func writeEvent(w io.Writer, id int64, data []byte) error {
	if _, err := fmt.Fprintf(w, "id: %d\ndata: ", id); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n\n")
	return err
}

// firstEvent is where a tail begins: behind the last event that the browser has seen; at the offset it names; with the
// last records, or with the next one.
func (s *site) firstEvent(r *http.Request) (int64, error) {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		last, err := number(id, 0)
		return last + 1, err
	}
	o := s.log.Offsets()
	last, err := number(r.FormValue("last"), 0)
	if err != nil {
		return 0, err
	}
	return number(r.FormValue("from"), max(o.Start, o.HighWatermark-max(last, 0)))
}

// number is a query's value, or what holds without one.
func number(text string, without int64) (int64, error) {
	if text == "" {
		return without, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// outside is what a client is told about an error: nothing about files, which are nobody's business.
func outside(err error) (text string, status int) {
	switch {
	case errors.Is(err, seglog.ErrOutOfRange):
		return err.Error(), http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, seglog.ErrTooLarge):
		return "too large", http.StatusRequestEntityTooLarge
	case errors.Is(err, seglog.ErrClosed):
		return "the log is being closed", http.StatusServiceUnavailable
	}
	log.Print("http: ", err)
	return "the log could not do it; the server's own log says why", http.StatusInternalServerError
}

func fail(w http.ResponseWriter, err error) {
	text, status := outside(err)
	http.Error(w, text, status)
}
