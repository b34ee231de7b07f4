package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"
)

const (
	// firstBytes of a request are received at once; for each further step at most as many as are there already. So a
	// request takes twice the memory of what really came, whatever length it claims.
	firstBytes = 64 << 10
	// keepBuffer is the largest buffer that is kept for other requests. Producers send up to 1 MiB unless told otherwise.
	keepBuffer = 4 << 20
)

// frame is a request as it arrived, without its length. Its bytes are valid until release.
type frame struct {
	bytes    []byte
	buffer   *[]byte // where bytes lie
	reserved int64   // of inFlight
	inFlight *semaphore.Weighted
	limits   *Limits
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// release gives the frame's memory back. It may be called more than once.
func (f *frame) release() {
	if f.buffer == nil {
		return
	}
	if cap(*f.buffer) <= keepBuffer {
		buffers.Put(f.buffer)
	}
	f.inFlight.Release(f.reserved)
	f.buffer, f.bytes = nil, nil
}

// source is where frames come from: a connection, behind a buffer.
type source interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// readFrame receives a frame of n bytes. It waits while inFlight has no room for it, as long as a slow peer may take.
func readFrame(ctx context.Context, src source, n int, inFlight *semaphore.Weighted, limits *Limits) (_ *frame, err error) {
	f := &frame{buffer: buffers.Get().(*[]byte), inFlight: inFlight, limits: limits}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	for len(f.bytes) < n {
		have := len(f.bytes)
		step := min(n-have, max(firstBytes, have))
		if err := f.reserve(ctx, int64(have+step-firstBytes)); err != nil {
			return nil, err
		}
		if cap(*f.buffer) < have+step {
			larger := make([]byte, have+step)
			copy(larger, f.bytes)
			*f.buffer = larger
		}
		f.bytes = (*f.buffer)[:have+step]
		if err := src.SetReadDeadline(time.Now().Add(limits.within(int64(step)))); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(src, f.bytes[have:]); err != nil {
			return nil, err
		}
		if key := int16(binary.BigEndian.Uint16(f.bytes)); have == 0 && n > maxControlBytes && key != kmsg.Produce.Int16() {
			return nil, fmt.Errorf("%s request of %d bytes, limit %d", kmsg.NameForKey(key), n, maxControlBytes)
		}
	}
	return f, nil
}

// reserve makes sure of n bytes of what all requests may take; the first bytes of each are free.
func (f *frame) reserve(ctx context.Context, n int64) error {
	more := n - f.reserved
	if more <= 0 || f.inFlight.TryAcquire(more) {
		f.reserved += max(more, 0)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.limits.Patience)
	defer cancel()
	if err := f.inFlight.Acquire(ctx, more); err != nil {
		return fmt.Errorf("no room for a request of more than %d bytes beside the others: %w", n, err)
	}
	f.reserved += more
	return nil
}
