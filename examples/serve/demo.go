package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/seglog/seglog"
)

const (
	demoBytes  = 256 << 20
	demoRounds = 4 // of each way, in turn: what else the machine does comes and goes
	demoTime   = 400 * time.Millisecond
	fetchMost  = 1 << 20 // a request of the client
)

// demonstrate serves a made-up log to a client in a process of its own, so that the CPU it reports is the server's
// alone: by the zero-copy path and through a buffer, in turn.
func demonstrate(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "serve")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return err
	}
	defer l.Close()
	batch := make([]seglog.Record, 64)
	for i := range batch {
		batch[i].Value = fmt.Appendf(nil, "%01023d", i)
	}
	for l.Stats().AppendedBytes < demoBytes {
		if _, err := l.Append(batch...); err != nil {
			return err
		}
	}
	ways := [2]*server{newServer(l, false), newServer(l, true)}
	out := ways[0].live
	var bytes [2]int64
	var cpu, took [2]time.Duration
	for round := range 2 * demoRounds {
		w := round % 2
		sent, cpuBefore, start := ways[w].sent(), cpuTime(), time.Now()
		if err := measure(ctx, ways[w]); err != nil {
			return err
		}
		bytes[w] += ways[w].sent() - sent
		cpu[w] += cpuTime() - cpuBefore
		took[w] += time.Since(start)
		if out.terminal {
			out.show("%-10s %s", ways[w].path(), rate(bytes[w], cpu[w], took[w]))
		}
	}
	if out.terminal {
		out.show("")
	}
	for w := range ways {
		fmt.Printf("%-10s %s\n", ways[w].path(), rate(bytes[w], cpu[w], took[w]))
	}
	return nil
}

// measure serves one client for a while.
func measure(ctx context.Context, s *server) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go s.accept(listener)
	client := exec.CommandContext(ctx, os.Args[0], "-fetch", listener.Addr().String(), "-for", demoTime.String())
	client.Stderr = os.Stderr
	return client.Run()
}

// fetchAll reads the log at addr again and again until ctx ends, and throws away what it gets.
func fetchAll(ctx context.Context, addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReaderSize(conn, fetchMost+64)
	var request, reply [16]byte
	for ctx.Err() == nil {
		for offset, end := int64(0), int64(1); offset < end && ctx.Err() == nil; {
			binary.BigEndian.PutUint64(request[:], uint64(offset))
			binary.BigEndian.PutUint64(request[8:], fetchMost)
			if _, err := conn.Write(request[:]); err != nil {
				return err
			}
			if _, err := io.ReadFull(in, reply[:]); err != nil {
				return err
			}
			length := int64(binary.BigEndian.Uint64(reply[:]))
			end = int64(binary.BigEndian.Uint64(reply[8:]))
			if length <= 0 {
				return fmt.Errorf("reply with length %d for offset %d", length, offset)
			}
			body, err := in.Peek(int(min(length, fetchMost)))
			if err != nil {
				return err
			}
			if offset, err = nextOffset(body); err != nil {
				return err
			}
			if _, err := in.Discard(int(length)); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextOffset walks the headers of whole batches: base offset and length stand first, the last offset's delta at 23. A
// client that wants the records uses seglog.Decode, which checks all of it; this one would measure itself.
func nextOffset(batches []byte) (next int64, err error) {
	for len(batches) >= 61 {
		size := 12 + int64(binary.BigEndian.Uint32(batches[8:]))
		if size > int64(len(batches)) {
			break
		}
		next = int64(binary.BigEndian.Uint64(batches)) + int64(binary.BigEndian.Uint32(batches[23:])) + 1
		batches = batches[size:]
	}
	if len(batches) != 0 {
		return next, fmt.Errorf("section ends inside a batch, behind offset %d", next)
	}
	return next, nil
}

// appendSome gives followers something to follow: every 10 ms, as one batch, the records that are due.
func appendSome(ctx context.Context, l *seglog.Log, perSecond int) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	start, n := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var batch []seglog.Record
		for due := int(time.Since(start).Seconds() * float64(perSecond)); n < due && len(batch) < 1000; n++ {
			batch = append(batch, seglog.Record{Value: fmt.Appendf(nil, "record %d of this run", n)})
		}
		if len(batch) == 0 {
			continue
		}
		if _, err := l.Append(batch...); err != nil {
			if !errors.Is(err, seglog.ErrClosed) {
				fmt.Fprintln(os.Stderr, "serve: append:", err)
			}
			return
		}
	}
}
