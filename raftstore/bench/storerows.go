package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// storeRows measures each store by itself, one caller.
func (b *bench) storeRows() error {
	return b.each(func(name string, open func() (store, error)) error {
		if err := b.singles(name, open); err != nil {
			return err
		}
		if err := b.batches(name, open); err != nil {
			return err
		}
		return b.truncate(name, open)
	})
}

// singles are entries that were stored one by one, as a leader with one client does.
func (b *bench) singles(name string, open func() (store, error)) error {
	s, err := open()
	if err != nil {
		return err
	}
	defer s.Close()
	next := uint64(1)
	list := entries(1, 1, 1024)
	err = b.time(name, "StoreLogs of 1 x 1 KiB", func() error {
		list[0].Index = next
		next++
		return s.StoreLogs(list)
	})
	if err != nil {
		return err
	}
	var got raft.Log
	return b.time(name, "GetLog at random, stored 1 x 1 KiB", func() error { return s.GetLog(1+rand.Uint64N(next-1), &got) })
}

// batches are entries that were stored 64 at a time, as a follower does that catches up.
func (b *bench) batches(name string, open func() (store, error)) error {
	s, err := open()
	if err != nil {
		return err
	}
	defer s.Close()
	next := uint64(1)
	list := entries(1, 64, 1024)
	put := func() error {
		for _, entry := range list {
			entry.Index = next
			next++
		}
		return s.StoreLogs(list)
	}
	if err := b.time(name, "StoreLogs of 64 x 1 KiB", put); err != nil {
		return err
	}
	var got raft.Log
	err = b.time(name, "StoreLogs of 64 x 1 KiB, then GetLog of each", func() error {
		if err := put(); err != nil {
			return err
		}
		for _, entry := range list {
			if err := s.GetLog(entry.Index, &got); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	index := uint64(0)
	err = b.time(name, "GetLog one after the other, stored 64 x 1 KiB", func() error {
		if index++; index == next {
			index = 1
		}
		return s.GetLog(index, &got)
	})
	if err != nil {
		return err
	}
	return b.time(name, "GetLog at random, stored 64 x 1 KiB", func() error { return s.GetLog(1+rand.Uint64N(next-1), &got) })
}

// truncate cuts and compacts a log of 32 MiB, and sets keys.
func (b *bench) truncate(name string, open func() (store, error)) error {
	s, err := open()
	if err != nil {
		return err
	}
	defer s.Close()
	next := uint64(1)
	for next < 32<<10 {
		if err := s.StoreLogs(entries(next, 256, 1024)); err != nil {
			return err
		}
		next += 256
	}
	// Each cut is measured, and storing the entries again is not.
	err = b.timed(name, "DeleteRange of the last 5 of 32 MiB, µs", func() (time.Duration, error) {
		begin := time.Now()
		err := s.DeleteRange(next-5, next-1)
		took := time.Since(begin)
		if err == nil {
			err = s.StoreLogs(entries(next-5, 5, 1024))
		}
		return took, err
	})
	if err != nil {
		return err
	}
	first := uint64(1)
	err = b.timed(name, "DeleteRange of the first 64, µs", func() (time.Duration, error) {
		if first+128 >= next {
			return 0, errEnough
		}
		begin := time.Now()
		err := s.DeleteRange(first, first+63)
		first += 64
		return time.Since(begin), err
	})
	if err != nil {
		return err
	}
	key := []byte("CurrentTerm")
	term := uint64(0)
	return b.time(name, "SetUint64", func() error {
		term++
		return s.SetUint64(key, term)
	})
}

// time calls f for the time of a round, and notes what a call took: time and processor time in µs.
func (b *bench) time(name, row string, f func() error) error {
	n := 0
	before := usage()
	begin := time.Now()
	warm := false // what a store does once, such as zeros ahead of its first entries, is not measured
	for time.Since(begin) < b.round || n == 0 {
		if !warm && time.Since(begin) > b.round/4 {
			warm, n, before, begin = true, 0, usage(), time.Now()
		}
		for range 8 { // time.Now costs more than some calls
			if err := f(); err != nil {
				return fmt.Errorf("%s: %s: %w", name, row, err)
			}
			n++
		}
	}
	b.note(row+", µs", name, float64(time.Since(begin).Nanoseconds())/1e3/float64(n))
	b.note(row+", CPU µs", name, float64((usage().cpu-before.cpu).Nanoseconds())/1e3/float64(n))
	return nil
}

// timed is time for calls that say themselves how long they took.
func (b *bench) timed(name, row string, f func() (time.Duration, error)) error {
	n, took := 0, time.Duration(0)
	for begin := time.Now(); time.Since(begin) < b.round || n == 0; n++ {
		d, err := f()
		if err == errEnough && n > 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", name, row, err)
		}
		took += d
	}
	b.note(row, name, float64(took.Nanoseconds())/1e3/float64(n))
	return nil
}
