package raw

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// Cutter is a file of frames of one size that loses its last ones, by the least that makes this durable.
type Cutter struct {
	file *os.File
	note *os.File // two pages, written in turn
	size int64    // of a frame
	next int64    // frame
	// inPlace, if not 0, is how often a cut writes and flushes the note, all that it does then: what so many flushes cost where no file changes
	// its size. Otherwise a cut is noted, done and noted as done, a flush each.
	inPlace int
	notes   int64
	page    []byte
}

// NewCutter makes a file of n frames with values of the given size.
func NewCutter(dir string, n int64, size, inPlace int) (c *Cutter, err error) {
	c = &Cutter{size: int64(FrameSize(1, size)), inPlace: inPlace, page: make([]byte, 4096)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.file, err = os.Create(filepath.Join(dir, "000000.raw")); err != nil {
		return c, err
	}
	if c.note, err = os.Create(filepath.Join(dir, "note.raw")); err != nil {
		return c, err
	}
	if _, err := c.note.WriteAt(make([]byte, 2*len(c.page)), 0); err != nil {
		return c, err
	}
	value := make([]byte, size)
	var out []byte
	for ; c.next < n; c.next++ {
		out = AppendFrame(out, c.next, value)
		if len(out) >= 1<<20 || c.next == n-1 {
			if _, err := c.file.WriteAt(out, (c.next+1)*c.size-int64(len(out))); err != nil {
				return c, err
			}
			out = out[:0]
		}
	}
	return c, errors.Join(c.note.Sync(), c.file.Sync())
}

// Appender writes values of the size that the file was made with.
func (c *Cutter) Appender() peers.Append {
	var buf []byte
	return func(values [][]byte) error {
		buf = buf[:0]
		for i, v := range values {
			buf = AppendFrame(buf, c.next+int64(i), v)
		}
		if _, err := c.file.WriteAt(buf, c.next*c.size); err != nil {
			return err
		}
		c.next += int64(len(values))
		return unix.Fdatasync(int(c.file.Fd()))
	}
}

// Truncate keeps the first n frames.
func (c *Cutter) Truncate(n int64) error {
	c.next = n
	for range c.inPlace {
		if err := c.putNote(); err != nil {
			return err
		}
	}
	if c.inPlace > 0 {
		return nil
	}
	if err := c.putNote(); err != nil {
		return err
	}
	if err := c.file.Truncate(n * c.size); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(c.file.Fd())); err != nil {
		return err
	}
	return c.putNote()
}

// LayAhead lays n bytes of zeros behind the last frame and flushes them, as a log does that prepares for appends to come. The
// next cut gives their blocks back.
func (c *Cutter) LayAhead(n int64) error {
	end := c.next * c.size
	if err := unix.Fallocate(int(c.file.Fd()), 0, end, n); err != nil {
		return err
	}
	if _, err := c.file.WriteAt(make([]byte, n), end); err != nil {
		return err
	}
	return unix.Fdatasync(int(c.file.Fd()))
}

func (c *Cutter) putNote() error {
	c.notes++
	c.page[0] = byte(c.notes)
	if _, err := c.note.WriteAt(c.page, c.notes%2*int64(len(c.page))); err != nil {
		return err
	}
	return unix.Fdatasync(int(c.note.Fd()))
}

// Close closes the files.
func (c *Cutter) Close() (err error) {
	for _, f := range []*os.File{c.file, c.note} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
