package main

import (
	"errors"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/seglog/seglog"
)

// partition is a log and what is known of its producers.
type partition struct {
	dir       string
	logger    *slog.Logger
	current   atomic.Pointer[seglog.Log] // replaced by reopen
	producers producers
	waiting   waiters
}

// opensAtOnce bounds how many partitions are opened or closed at the same time. Most of it is waiting for the disk, one thread
// each.
const opensAtOnce = 32

// each calls f for all partitions, up to opensAtOnce at a time, and returns the errors of all.
func each(ps []*partition, f func(*partition) error) error {
	errs := make([]error, len(ps))
	var g errgroup.Group
	g.SetLimit(opensAtOnce)
	for i, p := range ps {
		g.Go(func() error {
			errs[i] = f(p)
			return nil
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

// open opens or creates the log.
func (p *partition) open(settings layers) error {
	o, err := settings.options()
	if err != nil {
		return err
	}
	o.Logger = p.logger
	log, err := seglog.Open(p.dir, o)
	if err != nil {
		return err
	}
	if p.log() == nil {
		p.producers.from = tailOf(log)
	}
	p.current.Store(log)
	return nil
}

// reopen gives the log other settings. Calls under way on the old one end with ErrClosed. A log that has failed, and
// says so at Close, gets a new start by it.
func (p *partition) reopen(settings layers) error {
	defer p.waiting.wake()
	err := p.log().Close()
	return errors.Join(err, p.open(settings))
}

func (p *partition) log() *seglog.Log { return p.current.Load() }

// close may be called of a partition that could not be opened.
func (p *partition) close() error {
	defer p.waiting.wake()
	if log := p.log(); log != nil {
		return log.Close()
	}
	return nil
}
