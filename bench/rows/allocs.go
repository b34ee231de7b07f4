package rows

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
)

// Allocation is one operation with the allocations it may make.
type Allocation struct {
	Name  string
	Limit float64
	Got   float64
}

// Allocations counts the allocations of each operation. It is the guard against their growth as well as row 14.
func Allocations(dir string) ([]Allocation, error) {
	log, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return nil, err
	}
	defer log.Close()
	conn, far, err := loopback()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	go io.Copy(io.Discard, far)

	const records = 100_000
	value := payload(0, 128)
	batch := make([]seglog.Record, 100)
	for i := range batch {
		batch[i].Value = value
	}
	for range records / len(batch) {
		if _, err := log.Append(batch...); err != nil {
			return nil, err
		}
	}
	var failed error
	check := func(err error) {
		if err != nil && failed == nil {
			failed = err
		}
	}
	at := int64(0)
	next := func() int64 { at = (at + 7919) % records; return at }
	count := func(name string, limit float64, f func()) Allocation {
		return Allocation{Name: name, Limit: limit, Got: testing.AllocsPerRun(2000, f)}
	}
	all := []Allocation{
		count("Append of one record", 0, func() { _, err := log.Append(batch[0]); check(err) }),
		count("Append of 100 records", 0, func() { _, err := log.Append(batch...); check(err) }),
		count("Read: the caller's copy", 1, func() { _, err := log.Read(next()); check(err) }),
		count("TransferTo", 0, func() { _, err := log.TransferTo(next(), 16<<10, conn); check(err) }),
	}
	// One pass over the records costs the same few allocations however many there are: what is counted is what each
	// further record adds.
	pass := func(limit int) float64 {
		return testing.AllocsPerRun(5, func() {
			n := 0
			for _, err := range log.Records(0) {
				check(err)
				if n++; n == limit {
					break
				}
			}
			if n < limit {
				check(fmt.Errorf("%d of %d records", n, limit))
			}
		})
	}
	all = append(all, Allocation{Name: "Records, per record in steady state", Limit: 0.001, Got: (pass(records) - pass(1000)) / (records - 1000)})
	return all, failed
}

func loopback() (conn, far net.Conn, err error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	if far, err = net.Dial("tcp4", listener.Addr().String()); err != nil {
		return nil, nil, err
	}
	conn, err = listener.Accept()
	return conn, far, err
}

func allocations(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	all, err := Allocations(dir)
	if err != nil {
		return nil, err
	}
	r := &Result{Guarantee: "counted by the runtime, not estimated", Unit: "allocations"}
	for _, a := range all {
		r.Lines = append(r.Lines, Line{Name: a.Name, Value: a.Got, Rounds: []float64{a.Got}, Allocs: a.Got})
		r.Checks = append(r.Checks, atMost(a.Name, a.Limit, a.Got))
	}
	return r, nil
}
