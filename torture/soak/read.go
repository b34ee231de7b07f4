//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

// readAt reads again and again from the same relative distance between the start of the log (0) and its end (1), in each
// of the ways there are.
func readAt(ctx context.Context, l *seglog.Log, distance float64, rng *rand.Rand) error {
	for rest(ctx, rng, 100*time.Millisecond) {
		o := l.Offsets()
		if o.HighWatermark == o.Start {
			continue
		}
		from := o.Start + int64(distance*float64(o.HighWatermark-1-o.Start))
		var err error
		switch rng.IntN(4) {
		case 0:
			var r seglog.Record
			if r, err = l.Read(from); err == nil {
				err = right(r, from)
			}
		case 1:
			err = readSection(l, from, rng)
		case 2:
			_, err = l.OffsetForTime(time.Now().Add(-time.Duration(rng.Int64N(int64(time.Minute)))))
		default:
			err = readSome(l, from, 1+rng.IntN(100))
		}
		// Retention or a cut may have passed by.
		if err != nil && !errors.Is(err, seglog.ErrOutOfRange) && !(errors.Is(err, seglog.ErrClosed) && ctx.Err() != nil) {
			return fmt.Errorf("read at offset %d: %w", from, err)
		}
	}
	return nil
}

func right(r seglog.Record, offset int64) error {
	if r.Offset != offset {
		return fmt.Errorf("got offset %d where %d comes next", r.Offset, offset)
	}
	_, err := proof.Identify(r, valueBytes)
	return err
}

func readSome(l *seglog.Log, from int64, n int) error {
	for r, err := range l.Records(from) {
		if err == nil {
			err = right(r, from)
		}
		if err != nil || n == 0 {
			return err
		}
		from++
		n--
	}
	return nil
}

// readSection decodes what a transfer would send.
func readSection(l *seglog.Log, from int64, rng *rand.Rand) error {
	s, err := l.Section(from, 1+rng.Int64N(100<<10))
	if err != nil {
		return err
	}
	defer s.Close()
	next := s.Base()
	for r, err := range seglog.Decode(&sectionReader{s: s}) {
		if err == nil {
			err = right(r, next)
		}
		if err != nil {
			return err
		}
		next++
	}
	if next != s.Next() {
		return fmt.Errorf("section ends at offset %d, not at %d", next, s.Next())
	}
	return nil
}

// sectionReader reads a section from memory.
type sectionReader struct {
	s    *seglog.Section
	buf  []byte
	read bool
}

func (r *sectionReader) Write(p []byte) (int, error) {
	r.buf = append(r.buf, p...)
	return len(p), nil
}

func (r *sectionReader) Read(p []byte) (int, error) {
	if !r.read {
		r.read = true
		if _, err := r.s.WriteTo(r); err != nil {
			return 0, err
		}
	}
	if len(r.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// followOn follows from the start of the log, and from there again when retention or a cut took the place from it.
func followOn(ctx context.Context, l *seglog.Log) error {
	for ctx.Err() == nil {
		at := l.Offsets().Start
		for r, err := range l.Follow(ctx, at) {
			if errors.Is(err, seglog.ErrOutOfRange) {
				break
			}
			if err == nil {
				err = right(r, at)
			}
			if err != nil {
				return fmt.Errorf("follow at offset %d: %w", at, err)
			}
			at++
		}
	}
	return nil
}

// follow is a process beside the writing one: ReadOnly, with followers and readers of its own. It outlives the writers.
func follow(dir string) (err error) {
	ctx := untilStdinCloses()
	l, err := seglog.Open(filepath.Join(dir, "main"), &seglog.Options{ReadOnly: true, MaxOpenSegments: 8, Logger: problems()})
	if err != nil {
		return err
	}
	defer closeLog(l, &err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error)
	go func() { errs <- reportHeap(ctx) }()
	go func() { errs <- followOn(ctx, l) }()
	go func() { errs <- followOn(ctx, l) }()
	for i := range 4 {
		go func() { errs <- readAt(ctx, l, float64(i)/3, seeded(0, i)) }()
	}
	for range 7 {
		if e := <-errs; e != nil && err == nil {
			err = e
			cancel()
		}
	}
	return err
}
