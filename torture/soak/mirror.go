//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/seglog/seglog"
)

// The protocol of the mirror: it asks for an offset (8 bytes) and gets a length (8 bytes) and that many bytes of
// batches; a negative length -n says that the log starts at n-1 by now.

const sectionBytes = 512 << 10

// serve sends sections to whoever asks, by sendfile.
func serve(ctx context.Context, l *seglog.Log, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // the one of a predecessor that was killed
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			for answer(ctx, l, conn) == nil {
			}
		}()
	}
}

func answer(ctx context.Context, l *seglog.Log, conn net.Conn) error {
	var b [8]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	offset := int64(binary.BigEndian.Uint64(b[:]))
	err := l.Wait(ctx, offset)
	if err == nil {
		var s *seglog.Section
		if s, err = l.Section(offset, sectionBytes); err == nil {
			defer s.Close()
			binary.BigEndian.PutUint64(b[:], uint64(s.Len()))
			s.SetHeader(b[:])
			_, err = s.WriteTo(conn)
			return err
		}
	}
	if errors.Is(err, seglog.ErrOutOfRange) {
		binary.BigEndian.PutUint64(b[:], uint64(-l.Offsets().Start-1))
		_, err = conn.Write(b[:])
	}
	return err
}

// mirror is a process that keeps a copy of the main log. It outlives the leaders.
func mirror(dir string) (err error) {
	ctx := untilStdinCloses()
	l, err := seglog.Open(filepath.Join(dir, "mirror"), mainOptions(seglog.FlushAsync))
	if err != nil {
		return err
	}
	defer closeLog(l, &err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go reportHeap(ctx)
	for ctx.Err() == nil {
		err := pull(ctx, l, filepath.Join(dir, "socket"))
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
		select { // the leader was killed
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// wrongError is an error that no death of the leader explains.
type wrongError struct{ error }

func (e *wrongError) Unwrap() error { return e.error }

func pull(ctx context.Context, l *seglog.Log, socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	o := l.Offsets()
	ask := max(o.Start, o.End-1) // the last record first: TransferFrom compares it with what is here
	for {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(ask))
		if _, err := conn.Write(b[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint64(b[:]))
		if n < 0 {
			report("behind")
			if err := l.Reset(-n - 1); err != nil {
				return &wrongError{fmt.Errorf("reset the copy: %w", err)}
			}
		} else {
			read, err := l.TransferFrom(conn, n)
			if err != nil && (errors.Is(err, seglog.ErrNotJoined) || errors.Is(err, seglog.ErrFailed) ||
				errors.Is(err, seglog.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF)) {
				return &wrongError{fmt.Errorf("copy from offset %d: %w", ask, err)}
			}
			if err != nil {
				return err
			}
			if read != n { // the leader died
				return io.ErrUnexpectedEOF
			}
		}
		o = l.Offsets()
		ask = o.End
		report("at %d", o.End)
	}
}

// sameFiles compares the segments that the copy and the leader both have, byte for byte, and returns how many. Glob sorts
// them.
func sameFiles(leader, copied string) (n int, err error) {
	paths, err := filepath.Glob(filepath.Join(copied, "*.log"))
	if err != nil {
		return 0, err
	}
	for _, path := range paths {
		theirs, err := os.ReadFile(filepath.Join(leader, filepath.Base(path)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return n, err
		}
		ours, err := os.ReadFile(path)
		if err != nil {
			return n, err
		}
		if path == paths[len(paths)-1] && len(ours) < len(theirs) {
			theirs = theirs[:len(ours)] // the leader was closed before the copy had it all
		}
		if string(ours) != string(theirs) {
			return n, fmt.Errorf("%s: the copy (%d bytes) differs from the leader's (%d bytes)", path, len(ours), len(theirs))
		}
		n++
	}
	return n, nil
}
