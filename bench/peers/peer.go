// Package peers puts the logs a Go service can import behind one small interface, each set up as its own documentation
// recommends for the work at hand. What differs in the promises is stated beside the figures, not hidden in them.
package peers

import (
	"errors"
	"runtime/debug"
	"strings"
)

// Setup is the work a log is opened for.
type Setup struct {
	Durable bool // an append returns once it is on stable storage, or as close to that as the peer comes
	Callers int  // appenders at once
}

// Append writes the values as one call of the log's own, in its batch form if there are several. It belongs to one caller.
type Append func(values [][]byte) error

// Log is an open log.
type Log interface {
	Appender() Append // one for each caller
	Close() error
}

// Reader is a Log that finds a record by its number, counted from 0 in the order of the appends.
type Reader interface {
	Read(i int64) ([]byte, error)
}

// Scanner is a Log that runs over all of its records from the first to the last.
type Scanner interface {
	Scan(each func(value []byte) error) error
}

// Truncater is a Log that can take back its last records. Opened for durable work, it returns once that is on stable storage.
type Truncater interface {
	// Truncate keeps the first n records, at least one; the next append follows them.
	Truncate(n int64) error
}

// Peer is one of the logs measured.
type Peer struct {
	Name   string
	Module string // its import path, by which the version is looked up
	Setup  string // how it is configured
	Kill   string // what a kill -9 leaves of appends that returned
	Power  string // what a power cut leaves of durable appends that returned
	CRC    string // whether a read checks the bytes

	SurvivesKill bool // everything that returned is there after kill -9, also without a flush
	NonDurable   bool // has a mode without a flush per append
	Durable      bool // has a mode with one
	Groups       bool // shares one flush among concurrent appends by itself
	Open         func(dir string, s Setup) (Log, error)

	Absent string // why it is not measured
}

// All lists the peers in the order of the tables.
func All() []Peer {
	return []Peer{
		tidwallWAL, raftWAL, etcdWAL, Prometheus, natsFileStore, Pebble, boltDB,
		absent("rosedblabs/wal", "github.com/rosedblabs/wal"),
		absent("klevdb", "github.com/klev-dev/klevdb"),
		absent("liftbridge commitlog", "github.com/liftbridge-io/liftbridge"),
	}
}

// absent stands for a peer that the module proxy refuses to hand out, so that its line in the table says so.
func absent(name, module string) Peer {
	return Peer{Name: name, Module: module, Absent: "the Go module proxy refuses it (403: this module version is not available)"}
}

// Version is the release of the peer's module that this program was built with.
func (p Peer) Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	best := ""
	version := ""
	for _, dep := range info.Deps {
		if (p.Module == dep.Path || strings.HasPrefix(p.Module, dep.Path+"/")) && len(dep.Path) > len(best) {
			best, version = dep.Path, dep.Version
		}
	}
	return version
}

var errLost = errors.New("the record read is not the one asked for")
