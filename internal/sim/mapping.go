package sim

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"

	"github.com/seglog/seglog/internal/vfs"
)

// mapping has memory of its own. A store reaches the file only when the engine announces it, so a store that the engine
// fails to announce is lost, and the test fails.
type mapping struct {
	node int
	b    []byte
	gone bool
}

func (f *File) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Map, false); err != nil {
		return nil, err
	}
	if !f.s.Mapped || n <= 0 {
		return nil, &fs.PathError{Op: "mmap", Path: f.Path, Err: errors.ErrUnsupported}
	}
	if writable && f.Mode == vfs.OpenRead {
		f.s.wrong("%s is opened for reading and mapped for writing", f.Path)
	}
	m := &mapping{node: f.Node, b: make([]byte, n)}
	copy(m.b, f.Content())
	f.s.Mappings[m] = true
	out := &vfs.Mapping{Bytes: m.b, Unmap: func() error { return f.s.unmap(m) }}
	if writable {
		path, name := f.Path, f.Name // the mapping outlives the descriptor
		out.Stored = func(pos, n int64) error { return f.s.stored(m, path, name, pos, n) }
	}
	return out, nil
}

// stored copies a range of a mapping to the file.
func (s *FS) stored(m *mapping, path, name string, pos, n int64) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	fault, err := s.enter(Store, path)
	if err != nil && fault == nil {
		return err
	}
	size := int64(len(s.World.Nodes[m.node].Cache))
	if m.gone || pos < 0 || n < 0 || pos+n > size {
		s.wrong("store to [%d, %d) of %s, which has %d bytes, unmapped: %v", pos, pos+n, path, size, m.gone)
		return &fs.PathError{Op: "store", Path: path, Err: errors.New("past the end of the file")}
	}
	p := slices.Clone(m.b[pos : pos+n])
	if err != nil {
		done := 0
		if fault.Short {
			done = len(p) / 2
		}
		copy(m.b[pos+int64(done):], s.World.Nodes[m.node].Cache[pos+int64(done):pos+n])
		p = p[:done]
	}
	if len(p) > 0 {
		s.do(&Op{Kind: Store, Node: m.node, Name: name, Pos: pos, Data: p})
		s.copyToMappings(m.node, pos, p, m)
	}
	return err
}

// copyToMappings copies written bytes to the mappings of the file, since mappings and reads share the page cache. It does not
// touch equal bytes: recovery writes some again while readers look at them, which the race detector would report.
func (s *FS) copyToMappings(node int, pos int64, p []byte, but *mapping) {
	for m := range s.Mappings {
		if m.node != node || m == but || pos >= int64(len(m.b)) {
			continue
		}
		if n := min(len(p), len(m.b)-int(pos)); !bytes.Equal(m.b[pos:int(pos)+n], p[:n]) {
			copy(m.b[pos:], p)
		}
	}
}

func (s *FS) truncateMappings(node int, size int64) {
	for m := range s.Mappings {
		if m.node == node && size < int64(len(m.b)) {
			clear(m.b[size:])
		}
	}
}

// unmap overwrites the memory. If somebody still reads it, a test sees wrong bytes, and the race detector a race.
func (s *FS) unmap(m *mapping) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if m.gone {
		s.wrong("file #%d unmapped twice", m.node)
	}
	m.gone = true
	delete(s.Mappings, m)
	for i := range m.b {
		m.b[i] = 0xdb
	}
	return nil
}
