//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

// attempts is how often a call that met an error is made again before it counts as broken for good. A tool that makes
// the nth call of each thread fail can hit several times.
const attempts = 50

// driver makes one call after the other, so that at most one is not answered for when it dies.
type driver struct {
	config
	ledger *proof.Ledger
	log    *seglog.Log
	rng    *rand.Rand
	seq    int
	failed bool // the log is, for good
}

// say writes a line to the journal and takes it into account here too.
func (d *driver) say(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(d.acks, line); err != nil {
		return err
	}
	return note(d.ledger, line)
}

// met reports an error that a call met, and demands of it what an operator needs.
func (d *driver) met(call string, err error) error {
	fmt.Fprintf(os.Stderr, "error: %s: %v\n", call, err)
	var path *fs.PathError
	var link *os.LinkError
	var sys *os.SyscallError
	if !errors.As(err, &path) && !errors.As(err, &link) && !errors.As(err, &sys) {
		return fmt.Errorf("%s: the error names no operation: %w", call, err)
	}
	if !strings.Contains(err.Error(), filepath.Clean(d.dir)) {
		return fmt.Errorf("%s: the error names no file of the log: %w", call, err)
	}
	return nil
}

// isDataFlush is a failure after which nothing may go on: what it was to make durable is in doubt.
func isDataFlush(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && path.Op == "fdatasync" && strings.HasSuffix(path.Path, ".log")
}

func drive(c config) error {
	d := &driver{config: c, ledger: proof.NewLedger(valueBytes, false), rng: rand.New(rand.NewPCG(uint64(c.run), 1))}
	if err := d.say("open %d", c.run); err != nil {
		return err
	}
	if err := d.open(); err != nil {
		return err
	}
	for i := range c.steps {
		if err := d.step(i); err != nil {
			return err
		}
		if d.failed {
			return d.close()
		}
	}
	if err := d.readAll(); err != nil {
		return err
	}
	return d.close()
}

func (d *driver) open() error {
	var err error
	for range attempts {
		if d.log, err = seglog.Open(d.dir, d.options()); err == nil {
			return nil
		}
		if e := d.met("Open", err); e != nil {
			return e
		}
	}
	return fmt.Errorf("open, again and again: %w", err)
}

// close may fail; what is left then is for the next open.
func (d *driver) close() error {
	before := d.log.Offsets()
	err := d.log.Close()
	if err != nil && !d.failed {
		if e := d.met("Close", err); e != nil {
			return e
		}
	}
	if d.failed && !errors.Is(err, seglog.ErrFailed) {
		return fmt.Errorf("close of a failed log: %v", err)
	}
	if _, err := d.log.Read(before.Start); !errors.Is(err, seglog.ErrClosed) {
		return fmt.Errorf("read of a closed log: %v", err)
	}
	return nil
}

func (d *driver) step(i int) error {
	op := d.op
	if op == "mixed" {
		op = []string{"append", "append", "append", "append", "roll", "truncate", "delete", "transfer", "reopen"}[d.rng.IntN(9)]
	} else if i%4 < 3 && op != "roll" {
		op = "append"
	}
	switch op {
	case "append":
		return d.append(1)
	case "roll": // three batches or so fill a segment
		return d.append(3)
	case "truncate":
		return d.truncate()
	case "delete":
		return d.delete()
	case "transfer":
		return d.transfer()
	case "reopen":
		if err := d.close(); err != nil {
			return err
		}
		return d.open()
	}
	return fmt.Errorf("-op %s is not known", d.op)
}

func (d *driver) append(n int) error {
	for range n {
		d.seq++
		b := proof.Batch{Run: d.run, Seq: d.seq}
		base, err := d.log.Append(b.Records(valueBytes)...)
		if err == nil {
			err = d.say("acked %d %d %d", b.Run, b.Seq, base)
		} else if err = d.after("Append", err); err == nil && !d.failed {
			err = d.say("refused %d %d", b.Run, b.Seq)
		}
		if err != nil || d.failed {
			return err
		}
	}
	return d.readAll()
}

func (d *driver) truncate() error {
	o := d.log.Offsets()
	at := o.End - d.rng.Int64N(1+min(20, o.End-o.Start))
	if err := d.say("begin-truncate %d", at); err != nil {
		return err
	}
	if err := d.log.TruncateTo(at); err != nil {
		if err = d.after("TruncateTo", err); err != nil || d.failed {
			return err
		}
		return d.say("begin-truncate -1") // not failed: nothing has changed
	}
	return d.say("truncated %d", at)
}

func (d *driver) delete() error {
	o := d.log.Offsets()
	at := o.Start + d.rng.Int64N(1+(o.HighWatermark-o.Start)/2)
	if err := d.say("begin-delete %d", at); err != nil {
		return err
	}
	if err := d.log.DeleteBefore(at); err != nil {
		return d.after("DeleteBefore", err)
	}
	return d.say("deleted %d", at)
}

// after judges an error of a call that writes: the log has failed for good, or it goes on.
func (d *driver) after(call string, err error) error {
	if e := d.met(call, err); e != nil {
		return e
	}
	sync := d.log.Sync()
	if !errors.Is(sync, seglog.ErrFailed) {
		if isDataFlush(err) {
			return fmt.Errorf("a failed flush of data does not latch: %w", err)
		}
		return nil
	}
	d.failed = true
	_, e1 := d.log.Append(seglog.Record{Value: []byte("must not be stored")})
	e2 := d.log.TruncateTo(d.log.Offsets().Start)
	e3 := d.log.DeleteBefore(d.log.Offsets().HighWatermark)
	for _, e := range []error{e1, e2, e3, d.log.Sync()} {
		if !errors.Is(e, seglog.ErrFailed) {
			return fmt.Errorf("a call of a log that has failed answers: %v", e)
		}
		if err := d.met("later call", e); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "latched")
	return d.readFailed()
}

// readAll reads every record; an error may pass, wrong records may not.
func (d *driver) readAll() error {
	var err error
	for range attempts {
		if _, err = d.walk(); err == nil {
			return nil
		}
		var osErr syscall.Errno
		if !errors.As(err, &osErr) {
			return err
		}
		if e := d.met("Records", err); e != nil {
			return e
		}
	}
	return fmt.Errorf("read, again and again: %w", err)
}

// walk returns the offset at which it ended.
func (d *driver) walk() (int64, error) {
	o := d.log.Offsets()
	at := o.Start
	for r, err := range d.log.Records(o.Start) {
		if err != nil {
			return at, err
		}
		if err := d.ledger.Holds(r); err != nil || r.Offset != at {
			return at, errors.Join(fmt.Errorf("offset %d comes where %d is next", r.Offset, at), err)
		}
		at++
	}
	if at < o.HighWatermark {
		return at, fmt.Errorf("the records end at offset %d, the high watermark is %d", at, o.HighWatermark)
	}
	return at, nil
}

// readFailed reads what a failed log must still give: every acknowledged record that it was not told to cut away.
func (d *driver) readFailed() error {
	promised, ok := d.ledger.Promised()
	if !ok {
		return nil
	}
	for range attempts {
		o := d.log.Offsets()
		at, err := d.walk()
		if err == nil || at > promised && (errors.Is(err, seglog.ErrFailed) || errors.Is(err, seglog.ErrOutOfRange)) {
			return nil
		}
		if at = max(at, o.Start); at <= promised && o.Start <= promised && errors.Is(err, seglog.ErrFailed) {
			return fmt.Errorf("reads of a failed log end at offset %d, acknowledged and not to be cut are those up to %d: %w", at, promised, err)
		}
		if e := d.met("Records", err); e != nil {
			return e
		}
	}
	return errors.New("a failed log can't be read again and again")
}

// transfer sends a part of the log to a socket, and checks what arrives.
func (d *driver) transfer() error {
	o := d.log.Offsets()
	if o.Start == o.HighWatermark {
		return nil
	}
	from := o.Start + d.rng.Int64N(o.HighWatermark-o.Start)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	here, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer here.Close()
	there, err := ln.Accept()
	if err != nil {
		return err
	}
	defer there.Close()
	arrived := make(chan error, 1)
	go func() { arrived <- d.receive(there) }()
	for next := from; next < o.HighWatermark; {
		s, err := d.log.Section(next, 1<<20)
		if err == nil {
			next = s.Next()
			_, err = s.WriteTo(here)
			if e := s.Close(); err == nil {
				err = e
			}
		}
		if err == nil {
			continue
		}
		if e := d.met("WriteTo", err); e != nil {
			return e
		}
		break // what was sent so far is whole batches and maybe a part of one
	}
	here.Close()
	return <-arrived
}

func (d *driver) receive(conn net.Conn) error {
	for r, err := range seglog.Decode(conn) {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err == nil {
			err = d.ledger.Holds(r)
		}
		if err != nil {
			return fmt.Errorf("what a transfer sent: %w", err)
		}
	}
	return nil
}
