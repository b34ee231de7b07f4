package main

import (
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
}

// openPartition opens or creates the log in dir and reads the state of idempotent producers off its tail.
func openPartition(dir string, settings layers, logger *slog.Logger) (*partition, error) {
	p := &partition{dir: dir, logger: logger}
	if err := p.open(settings); err != nil {
		return nil, err
	}
	p.producers.byID = map[int64]*producer{}
	if err := p.producers.load(dir, p.log()); err != nil {
		return nil, err
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

// reopen gives the log other settings. Calls under way on the old one end with ErrClosed.
func (p *partition) reopen(settings layers) error {
	if err := p.log().Close(); err != nil {
		return err
	}
	return p.open(settings)
}

func (p *partition) log() *seglog.Log { return p.current.Load() }

func (p *partition) close() error { return p.log().Close() }
