package commit

import (
	"errors"
	"sync"
	"sync/atomic"
)

// File is the part of a file that a Device needs.
type File interface {
	// StartWriteBack begins to send [pos, pos+n) to the device. It may do nothing.
	StartWriteBack(pos, n int64)
	// WriteBack sends [pos, pos+n) to the device and waits until it has arrived, which does not make it durable. The error
	// wraps errors.ErrUnsupported where that is not possible.
	WriteBack(pos, n int64) error
	// Flush makes everything durable that was written to the file, and everything that the device was sent.
	Flush() error
}

// Flusher is a file whose flush makes durable all that its device was sent.
type Flusher interface{ Flush() error }

// Device lets files share flushes of the device on which they are. The flushes that are asked for while one runs are done
// together: the data of each file is sent to the device, and then one flush makes all of it durable. That is only right for a
// file system on which the flush of any file does so.
type Device struct {
	rounds *Group
	asked  atomic.Int64 // number of requests so far; raised with mu held
	served atomic.Int64 // number of requests whose round has ended

	mu sync.Mutex
	// Guarded by mu:
	waiting []*request
	queued  int // number of requests that wait or are in a round
	alone   int // number of flushes that run outside of rounds
	crowded int // number of requests to come that go into rounds
}

// mostAlone is the number of files that are flushed side by side and not in rounds, as long as there are no more. A disk does a few
// flushes at a time nearly as fast as one, and few files take turns rather than meet in a round.
const mostAlone = 4

// staysCrowded is the number of requests that go into rounds after one has found mostAlone others. To go back and forth costs
// more than either way: flushes of single files delay the rounds.
const staysCrowded = 100

// request is a range of a file that is to be durable.
type request struct {
	f      File
	via    Flusher // nil: f
	pos, n int64
	err    error // set before the request counts as served
}

// NewDevice returns a Device.
func NewDevice() *Device {
	d := new(Device)
	d.rounds = New(d.round, func() {}, d.asked.Load)
	return d
}

// Observe sets Started and Woken of the group that runs the rounds.
func (d *Device) Observe(started, woken func()) { d.rounds.Started, d.rounds.Woken = started, woken }

// Flush makes [pos, pos+n) of f durable. The caller vouches that this takes no flush of f itself: its blocks were allocated
// and durable before the range was written, and so was a size of the file that includes it. An error is that of f, and says
// nothing about other files.
//
// If via is not nil, it is flushed where f would be. A flush of f waits for everything that was written to f, and via should be a
// file to which nothing is.
func (d *Device) Flush(f File, via Flusher, pos, n int64) error {
	d.mu.Lock()
	if d.alone+d.queued >= mostAlone {
		d.crowded = staysCrowded
	}
	if d.crowded == 0 {
		d.alone++
		d.mu.Unlock()
		err := flushAlone(f, via, pos, n)
		d.mu.Lock()
		d.alone--
		d.mu.Unlock()
		return err
	}
	d.crowded--
	r := &request{f: f, via: via, pos: pos, n: n}
	d.waiting = append(d.waiting, r)
	d.queued++
	number := d.asked.Add(1)
	d.mu.Unlock()
	_ = d.rounds.To(number, func() (bool, error) { return d.served.Load() >= number, nil }) // a round does not fail as a whole
	return r.err
}

// round serves the requests that wait when it starts.
func (d *Device) round() error {
	d.mu.Lock()
	requests, number := d.waiting, d.asked.Load()
	d.waiting = nil
	d.mu.Unlock()
	if len(requests) == 1 {
		r := requests[0]
		r.err = flushAlone(r.f, r.via, r.pos, r.n)
	} else {
		flushTogether(requests)
	}
	d.mu.Lock()
	d.queued -= len(requests)
	d.mu.Unlock()
	d.served.Store(number)
	return nil
}

// flushAlone is Device.Flush for a file that shares its flush with no other.
func flushAlone(f File, via Flusher, pos, n int64) error {
	if via == nil {
		return f.Flush()
	}
	switch err := f.WriteBack(pos, n); {
	case errors.Is(err, errors.ErrUnsupported):
		return f.Flush()
	case err != nil:
		return err
	}
	return via.Flush()
}

// flushTogether makes the ranges durable, and sets the errors of the requests. There may be none, if the round before served
// whoever waited for this one.
func flushTogether(requests []*request) {
	for _, r := range requests {
		r.f.StartWriteBack(r.pos, r.n)
	}
	for _, r := range requests {
		r.err = r.f.WriteBack(r.pos, r.n)
	}
	flushed := false
	for _, r := range requests {
		// A flush that fails may have failed for reasons of its file alone, before it came to the device, so the next one's is tried.
		switch {
		case errors.Is(r.err, errors.ErrUnsupported):
			r.err = r.f.Flush()
		case r.err == nil && !flushed:
			via := r.via
			if via == nil {
				via = r.f
			}
			r.err = via.Flush()
			flushed = r.err == nil
		}
	}
}
