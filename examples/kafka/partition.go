package main

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

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

// openPartition opens or creates the log in dir and reads the state of idempotent producers off its tail.
func openPartition(dir string, settings layers, logger *slog.Logger) (*partition, error) {
	p := &partition{dir: dir, logger: logger}
	if err := p.open(settings); err != nil {
		return nil, err
	}
	p.producers.byID = map[int64]*producer{}
	if err := p.producers.load(p.log()); err != nil {
		return nil, errors.Join(fmt.Errorf("producers of %s: %w", dir, err), p.close())
	}
	return p, nil
}

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

func (p *partition) close() error {
	defer p.waiting.wake()
	return p.log().Close()
}
