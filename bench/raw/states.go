package raw

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stateBytes is the size of a state file.
const stateBytes = 4 << 10

// States are files of a block, each in a directory of its own as that of a log. To open one and read it, and to write it, flush
// it and close it, is what opening and closing a log is held against.
type States struct {
	dir   string
	files []*os.File
}

// MakeStates makes n of them. They are closed.
func MakeStates(dir string, n int) (*States, error) {
	s := &States{dir, make([]*os.File, n)}
	for i := range n {
		if err := os.Mkdir(filepath.Dir(s.path(i)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(s.path(i), make([]byte, stateBytes), 0o644); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *States) path(i int) string { return filepath.Join(s.dir, fmt.Sprint(i), "state") }

// Open opens and reads file i.
func (s *States) Open(i int) error {
	f, err := os.OpenFile(s.path(i), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.files[i] = f
	_, err = f.ReadAt(make([]byte, stateBytes), 0)
	return err
}

// Close writes file i, flushes and closes it.
func (s *States) Close(i int) error {
	f := s.files[i]
	_, err := f.WriteAt(make([]byte, stateBytes), 0)
	return errors.Join(err, unix.Fdatasync(int(f.Fd())), f.Close())
}
