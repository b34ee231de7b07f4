package sim

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/vfs"
)

// File is a descriptor.
type File struct {
	s          *FS
	Node       int
	Path, Name string
	Mode       vfs.OpenMode
	Closed     bool
	Told       int // the number of write-back errors that this descriptor has been told of
}

// enter is FS.enter for an operation on this file. The caller holds Mu.
func (f *File) enter(kind Kind, writes bool) (*Fault, error) {
	if f.Closed {
		return nil, &fs.PathError{Op: kind.String(), Path: f.Path, Err: fs.ErrClosed}
	}
	if writes && f.Mode == vfs.OpenRead {
		f.s.wrong("%v on %s, opened for reading", kind, f.Path)
	}
	fault, err := f.s.enter(kind, f.Path)
	if fault != nil && fault.Late {
		if len(f.s.World.Nodes[f.Node].pending) > 0 {
			f.do(&Op{Kind: Flush, Failed: true, Keep: fault.Keep})
		}
		return nil, nil
	}
	return fault, err
}

func (f *File) Content() []byte { return f.s.World.Nodes[f.Node].Cache }

func (f *File) do(op *Op) {
	op.Node, op.Name = f.Node, f.Name
	f.s.do(op)
}

func (f *File) ReadAt(p []byte, pos int64) (int, error) {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Read, false); err != nil {
		return 0, err
	}
	b := f.Content()
	if pos >= int64(len(b)) {
		return 0, io.EOF
	}
	if page, ok := f.s.Bad[f.Name]; ok && pos < (page+1)*PageBytes && pos+int64(len(p)) > page*PageBytes {
		if f.s.BadTries--; f.s.BadTries == 0 {
			delete(f.s.Bad, f.Name)
		}
		err := &fs.PathError{Op: "read", Path: f.Path, Err: syscall.EIO}
		f.s.Faults = append(f.s.Faults, Hit{"read", f.Path, syscall.EIO})
		if pos >= page*PageBytes {
			return 0, err
		}
		return copy(p, b[pos:min(page*PageBytes, int64(len(b)))]), err
	}
	n := copy(p, b[pos:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *File) WriteAt(p []byte, pos int64) (int, error) {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	fault, err := f.enter(Write, true)
	if err != nil {
		if fault == nil || !fault.Short {
			return 0, err
		}
		p = p[:len(p)/2]
	}
	if len(p) > 0 {
		f.do(&Op{Kind: Write, Pos: pos, Data: slices.Clone(p)})
		f.s.copyToMappings(f.Node, pos, p, nil)
	}
	return len(p), err
}

func (f *File) Close() error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if f.Closed {
		f.s.wrong("%s closed twice", f.Path)
		return &fs.PathError{Op: "close", Path: f.Path, Err: fs.ErrClosed}
	}
	f.Closed = true
	delete(f.s.Files, f)
	return nil
}

func (f *File) Size() (int64, error) {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Stat, false); err != nil {
		return 0, err
	}
	return int64(len(f.Content())), nil
}

func (f *File) Truncate(size int64) error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Truncate, true); err != nil {
		return err
	}
	f.do(&Op{Kind: Truncate, N: size})
	f.s.truncateMappings(f.Node, size)
	return nil
}

func (f *File) Reserve(pos, n int64) error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Reserve, true); err != nil {
		return err
	}
	if !f.s.Mapped {
		return &fs.PathError{Op: "reserve", Path: f.Path, Err: errors.ErrUnsupported}
	}
	f.do(&Op{Kind: Reserve, Pos: pos, N: n})
	return nil
}

func (f *File) StartWriteBack(int64, int64) {}

// WriteBack makes nothing durable by itself. A fault is a failed write of all dirty pages.
func (f *File) WriteBack(pos, n int64) error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if f.s.NoWriteBack {
		return &fs.PathError{Op: "write back", Path: f.Path, Err: errors.ErrUnsupported}
	}
	fault, err := f.enter(WriteBack, true)
	if fault != nil {
		f.do(&Op{Kind: Flush, Failed: true, Keep: fault.Keep})
		f.tell()
		return err
	}
	if err != nil {
		return err
	}
	f.do(&Op{Kind: WriteBack, Pos: pos, N: n})
	if f.tell() {
		err = &fs.PathError{Op: "write back", Path: f.Path, Err: syscall.EIO}
		f.s.Faults = append(f.s.Faults, Hit{"write back", f.Path, syscall.EIO})
	}
	return err
}

func (f *File) Device() *commit.Device { return f.s.Shared }

func (f *File) Alone() (bool, error) {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Stat, false); err != nil {
		return false, err
	}
	holds := 0
	for _, n := range f.s.World.Names {
		if n == f.Node {
			holds++
		}
	}
	for g := range f.s.Files {
		if g.Node == f.Node && g != f {
			holds++
		}
	}
	for m := range f.s.Mappings {
		if m.node == f.Node {
			holds++
		}
	}
	return holds <= 1, nil
}

func (f *File) Unlock() error { return nil }

func (f *File) Lock() error { return nil } // the directory's lock is enough for one process

func (f *File) Zero(pos, n int64) error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	if _, err := f.enter(Zero, true); err != nil {
		return err
	}
	f.do(&Op{Kind: Zero, Pos: pos, N: n})
	f.s.copyToMappings(f.Node, pos, make([]byte, n), nil)
	return nil
}

func (f *File) Flush() error {
	f.s.Mu.Lock()
	defer f.s.Mu.Unlock()
	fault, err := f.enter(Flush, true)
	if fault != nil {
		f.do(&Op{Kind: Flush, Failed: true, Keep: fault.Keep})
		f.tell()
		return err
	}
	if err == nil {
		f.do(&Op{Kind: Flush})
		if f.tell() {
			err = &fs.PathError{Op: "flush", Path: f.Path, Err: syscall.EIO}
			f.s.Faults = append(f.s.Faults, Hit{"flush", f.Path, syscall.EIO})
		}
	}
	return err
}

// tell reports whether the file has a write-back error that was not reported to this descriptor, and counts it as reported.
func (f *File) tell() bool {
	n := f.s.World.Nodes[f.Node]
	if f.Told == n.wbErr {
		return false
	}
	f.Told = n.wbErr
	f.do(&Op{Kind: Told})
	return true
}

func (f *File) OSFile() *os.File { return nil }
