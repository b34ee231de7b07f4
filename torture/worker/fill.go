//go:build linux

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/torture/internal/proof"
)

// fill appends until there is no room, asks that the log goes on reading, makes room in the same process and with the
// same open log, appends again, and so on; at the end the disk is full, and the
// log is closed and left like that.
func fill(c config) error {
	d := &driver{config: c, ledger: proof.NewLedger(valueBytes, false), rng: rand.New(rand.NewPCG(uint64(c.run), 1))}
	if err := d.say("open %d", c.run); err != nil {
		return err
	}
	var err error
	if d.log, err = seglog.Open(d.dir, d.options()); err != nil {
		return err
	}
	for range c.rounds {
		if err := d.appendUntilFull(); err != nil {
			return err
		}
		if err := d.makeRoom(); err != nil {
			return err
		}
		if err := d.appendAgain(); err != nil {
			return err
		}
	}
	if c.rounds > 1 { // else it was a limit, and is gone
		if err := d.appendUntilFull(); err != nil {
			return err
		}
	}
	if err := d.log.Close(); err != nil {
		// No room for the indexes: what there is of the log must be enough for the next open.
		if e := d.met("Close", err); e != nil {
			return e
		}
	}
	return nil
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EFBIG) }

// one appends a batch and reports what became of it. It returns the error of the append as full if that is the disk's.
func (d *driver) one() (full, err error) {
	d.seq++
	b := proof.Batch{Run: d.run, Seq: d.seq}
	base, err := d.log.Append(b.Records(valueBytes)...)
	if err == nil {
		return nil, d.say("acked %d %d %d", b.Run, b.Seq, base)
	}
	if !isFull(err) || errors.Is(err, seglog.ErrFailed) {
		return nil, fmt.Errorf("the disk is full, and Append says: %w", err)
	}
	if e := d.met("Append", err); e != nil {
		return nil, e
	}
	return err, d.say("refused %d %d", b.Run, b.Seq)
}

// appendUntilFull also demands that a log on a full disk is still read, to the last record.
func (d *driver) appendUntilFull() error {
	for range 1_000_000 {
		full, err := d.one()
		if err != nil {
			return err
		}
		if full == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "full at offset %d: %v\n", d.log.Offsets().End, full)
		if err := d.readAll(); err != nil {
			return fmt.Errorf("read of a log on a full disk: %w", err)
		}
		return nil
	}
	return errors.New("the disk does not fill up")
}

// makeRoom lets something else go (a file, or a limit that the one who started this raises when it reads that the disk
// is full), or else the log's own oldest half.
func (d *driver) makeRoom() error {
	if d.ballast != "" {
		return os.Remove(d.ballast)
	}
	err := d.deleteOldest()
	if !isFull(err) || d.spare == "" || errors.Is(err, seglog.ErrFailed) {
		return err
	}
	// A copy-on-write file system has no room even to write the state file's own bytes again. The log must say so and
	// go on; then somebody else has to make room.
	if e := d.met("DeleteBefore", err); e != nil {
		return e
	}
	if err := os.Remove(d.spare); err != nil {
		return err
	}
	return d.deleteOldest()
}

func (d *driver) deleteOldest() error {
	o := d.log.Offsets()
	at := o.Start + (o.End-o.Start)/2
	if err := d.say("begin-delete %d", at); err != nil {
		return err
	}
	if err := d.log.DeleteBefore(at); err != nil {
		return fmt.Errorf("DeleteBefore on a full disk: %w", err)
	}
	return d.say("deleted %d", at)
}

// appendAgain demands that the same log takes appends again soon after there is room.
func (d *driver) appendAgain() error {
	d.ballast = "" // the next time, the log's own
	begun := time.Now()
	for stored := 0; stored < 50; {
		full, err := d.one()
		if err != nil {
			return err
		}
		if full == nil {
			stored++
			continue
		}
		if time.Since(begun) > 20*time.Second {
			return fmt.Errorf("there is room again, and after %v Append says: %w", time.Since(begun), full)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "appends work again after %v\n", time.Since(begun).Round(time.Millisecond))
	return d.readAll()
}
