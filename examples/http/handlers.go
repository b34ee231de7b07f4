package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/seglog/seglog"
)

func sendRange(l *seglog.Log, w http.ResponseWriter, r *http.Request) {
	from, err := number(r.FormValue("from"), l.Offsets().Start)
	most, err2 := number(r.FormValue("max"), 1<<20)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	section, err := l.Section(from, most)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	defer section.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(section.Len(), 10))
	w.Header().Set("Seglog-Next-Offset", strconv.FormatInt(section.Next(), 10))
	// A ResponseWriter is not a bare connection, it may chunk, compress or encrypt: the bytes go through its Write.
	section.WriteTo(w) // an error is the client's, who sees fewer bytes than announced
}

func sendEvents(l *seglog.Log, w http.ResponseWriter, r *http.Request) {
	from, err := number(r.FormValue("from"), l.Offsets().HighWatermark)
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		from, err = number(id, 0)
		from++
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flusher := http.NewResponseController(w)
	flusher.Flush() // the headers: the browser knows that it is connected
	for rec, err := range l.Follow(r.Context(), from) {
		if err != nil {
			fmt.Fprintf(w, "event: failure\ndata: %s\n\n", err)
			return
		}
		data, _ := json.Marshal(string(rec.Value)) // JSON: a value may hold line feeds, an event's line may not
		fmt.Fprintf(w, "id: %d\ndata: %s\n\n", rec.Offset, data)
		if rec.Offset+1 >= l.Offsets().HighWatermark && flusher.Flush() != nil {
			return
		}
	}
}

// number is a query's value, or what holds without one.
func number(text string, without int64) (int64, error) {
	if text == "" {
		return without, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, seglog.ErrOutOfRange):
		return http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, seglog.ErrClosed):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
