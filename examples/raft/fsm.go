package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/seglog/seglog"
)

// command is what the clients' appends are in the Raft log. A client has one append under way and repeats it until it is
// acknowledged, with the same number, so that it happens once.
type command struct {
	client string
	number uint64
	value  []byte
}

func (c command) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(len(c.client)))
	b = append(b, c.client...)
	b = binary.AppendUvarint(b, c.number)
	return append(b, c.value...)
}

func decodeCommand(b []byte) (c command, err error) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return c, errors.New("malformed command")
	}
	c.client, b = string(b[k:k+int(n)]), b[k+int(n):]
	if c.number, k = binary.Uvarint(b); k <= 0 {
		return c, errors.New("malformed command")
	}
	c.value = b[k:]
	return c, nil
}

// session is the last append of a client.
type session struct {
	Number uint64 `json:"number"`
	Offset int64  `json:"offset"`
}

// replica is one server's copy of the replicated log: a seglog that every server appends the same records to. It needs no
// flush, since raft restores it from its own log and snapshots.
type replica struct {
	dir string

	mu       sync.RWMutex
	grown    *sync.Cond // applied has changed
	log      *seglog.Log
	sessions map[string]session
	applied  uint64 // index of the last command
	last     string // value of the last record
}

func newReplica(dir string) (*replica, error) {
	if err := os.RemoveAll(dir); err != nil { // raft makes it anew
		return nil, err
	}
	log, err := seglog.Open(filepath.Join(dir, "log"), &seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return nil, err
	}
	r := &replica{dir: dir, log: log, sessions: make(map[string]session)}
	r.grown = sync.NewCond(&r.mu)
	return r, nil
}

// Apply appends a command's value, and returns its offset or an error.
func (r *replica) Apply(entry *raft.Log) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.grown.Broadcast()
	r.applied = entry.Index
	c, err := decodeCommand(entry.Data)
	if err != nil {
		return err
	}
	switch s := r.sessions[c.client]; {
	case c.number == s.Number:
		return s.Offset // it was repeated, and is there
	case c.number < s.Number:
		return fmt.Errorf("append %d of %s is older than %d", c.number, c.client, s.Number)
	}
	offset, err := r.log.Append(seglog.Record{Key: strconv.AppendUint([]byte(c.client+" "), c.number, 10), Value: c.value, Time: entry.AppendedAt})
	if err != nil {
		panic(err) // a replica that misses a record must not go on
	}
	r.sessions[c.client] = session{c.number, offset}
	r.last = string(c.value)
	return offset
}

// view is the end of the log, and the value before it.
type view struct {
	End  int64  `json:"end"`
	Last string `json:"last"`
}

func (r *replica) view() view {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return view{r.log.Offsets().End, r.last}
}

// header begins a snapshot; the log's batches follow.
type header struct {
	Applied  uint64             `json:"applied"`
	Last     string             `json:"last"`
	Sessions map[string]session `json:"sessions"`
}

// Snapshot links the log's segments, which takes a moment; they are sent while Apply goes on.
func (r *replica) Snapshot() (raft.FSMSnapshot, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	head, err := json.Marshal(header{r.applied, r.last, r.sessions})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(r.dir, "snapshot")
	if err != nil {
		return nil, err
	}
	if err := r.log.Snapshot(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &snapshot{head, dir}, nil
}

type snapshot struct {
	head []byte
	dir  string
}

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.writeTo(sink)
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) writeTo(w io.Writer) error {
	log, err := seglog.Open(s.dir, &seglog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := w.Write(append(binary.AppendUvarint(nil, uint64(len(s.head))), s.head...)); err != nil {
		return err
	}
	return writeBatches(w, log)
}

// writeBatches sends all there is of a log as it is stored.
func writeBatches(w io.Writer, log *seglog.Log) error {
	o := log.Offsets()
	for next := o.Start; next < o.HighWatermark; {
		section, err := log.Section(next, 1<<20)
		if err != nil {
			return err
		}
		next = section.Next()
		_, err = section.WriteTo(w)
		if err = errors.Join(err, section.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *snapshot) Release() { _ = os.RemoveAll(s.dir) }

// Restore replaces everything by a snapshot.
func (r *replica) Restore(from io.ReadCloser) error {
	defer from.Close()
	b := bufio.NewReaderSize(from, 1<<16)
	n, err := binary.ReadUvarint(b)
	if err != nil || n > 64<<20 {
		return fmt.Errorf("snapshot begins with a header of %d bytes: %w", n, err)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(b, text); err != nil {
		return err
	}
	var head header
	if err := json.Unmarshal(text, &head); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.grown.Broadcast()
	if err := r.log.Reset(0); err != nil {
		return err
	}
	if _, err := r.log.TransferFrom(b, -1); err != nil {
		return err
	}
	r.applied, r.last, r.sessions = head.Applied, head.Last, head.Sessions
	event("restored a snapshot with the records 0 to %d", r.log.Offsets().End-1)
	return nil
}
