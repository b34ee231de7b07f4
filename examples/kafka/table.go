package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/seglog/seglog"
)

// table is a map kept in a seglog: every change is a record, the last one of a key wins, a nil value removes the key.
// It is read into memory at open. When most of the log is history, what is still true is appended once more and the
// log before it deleted: compaction for a table that fits in memory.
type table struct {
	log *seglog.Log

	mu   sync.Mutex // guards rows, and keeps their order that of the log
	rows map[string][]byte
}

// row is one key of a table. A nil value removes it.
type row struct {
	key   string
	value []byte
}

// Compaction begins when the log holds slack more records than compactAt times the rows there are.
const (
	compactAt    = 4
	compactSlack = 10_000
	compactBatch = 1000 // rows per batch, well below what a batch may hold
)

func openTable(dir string, flush seglog.FlushPolicy, logger *slog.Logger) (*table, error) {
	log, err := seglog.Open(dir, &seglog.Options{Flush: flush, SegmentBytes: 4 << 20, Logger: logger})
	if err != nil {
		return nil, err
	}
	t := &table{log: log, rows: map[string][]byte{}}
	for r, err := range log.Records(log.Offsets().Start) {
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
		r = r.Clone()
		t.set(row{string(r.Key), r.Value})
	}
	return t, nil
}

func (t *table) set(r row) {
	if r.value == nil {
		delete(t.rows, r.key)
		return
	}
	t.rows[r.key] = r.value
}

// put makes all changes or, on an error, none.
func (t *table) put(rows ...row) error {
	if len(rows) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.append(rows); err != nil {
		return err
	}
	for _, r := range rows {
		t.set(r)
	}
	o := t.log.Offsets()
	if o.End-o.Start > int64(compactAt*len(t.rows)+compactSlack) {
		return t.compact()
	}
	return nil
}

func (t *table) append(rows []row) error {
	records := make([]seglog.Record, len(rows))
	for i, r := range rows {
		records[i] = seglog.Record{Key: []byte(r.key), Value: r.value}
	}
	_, err := t.log.Append(records...)
	return err
}

// compact may be cut short anywhere: rows that are in the log twice are read twice, to the same effect. That what it
// deletes is on stable storage in its newer copy is what WaitDurable waits for.
func (t *table) compact() error {
	keep := t.log.Offsets().End
	batch := make([]row, 0, compactBatch)
	for key, value := range t.rows {
		batch = append(batch, row{key, value})
		if len(batch) == cap(batch) {
			if err := t.append(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) > 0 {
		if err := t.append(batch); err != nil {
			return err
		}
	}
	if err := t.log.WaitDurable(context.Background(), t.log.Offsets().End-1); err != nil {
		return err
	}
	return t.log.DeleteBefore(keep)
}

// get returns a key's value, which must not be changed, or nil.
func (t *table) get(key string) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[key]
}

// each calls f for every row until it returns false. f must not use the table.
func (t *table) each(f func(key string, value []byte) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, value := range t.rows {
		if !f(key, value) {
			return
		}
	}
}

func (t *table) close() error { return t.log.Close() }
