package raw

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// segmentBytes is where the raw appenders begin anew at the front of a fresh file, so that their files do not grow without bound.
const segmentBytes = 128 << 20

// Pwrite appends bare values by one pwrite each: no frame, no CRC, nothing to find them by.
func Pwrite(dir string) (peers.Log, error) { return newWriter(dir, false) }

// PwriteFramed appends framed values with their CRC, one pwrite per call.
func PwriteFramed(dir string) (peers.Log, error) { return newWriter(dir, true) }

// writer is for one caller.
type writer struct {
	dir    string
	file   *os.File
	pos    int64
	files  int
	framed bool
}

func newWriter(dir string, framed bool) (peers.Log, error) {
	w := &writer{dir: dir, framed: framed}
	return w, w.roll()
}

func (w *writer) roll() error {
	if w.file != nil {
		if err := w.file.Close(); err != nil {
			return err
		}
	}
	file, err := os.Create(filepath.Join(w.dir, fmt.Sprintf("%06d.raw", w.files)))
	w.file, w.pos = file, 0
	w.files++
	return err
}

func (w *writer) Appender() peers.Append {
	var buf []byte
	var offset int64
	return func(values [][]byte) error {
		out := buf[:0]
		switch {
		case w.framed:
			for _, v := range values {
				out = AppendFrame(out, offset, v)
				offset++
			}
			buf = out
		case len(values) == 1:
			out = values[0]
		default:
			for _, v := range values {
				out = append(out, v...)
			}
			buf = out
		}
		if w.pos+int64(len(out)) > segmentBytes {
			if err := w.roll(); err != nil {
				return err
			}
		}
		n, err := w.file.WriteAt(out, w.pos)
		w.pos += int64(n)
		return err
	}
}

func (w *writer) Close() error { return w.file.Close() }

// Mapped appends framed values with their CRC by stores into a mapping of reserved blocks. The mapping of the first file
// is populated before the clock runs if ahead is set, and faults in as it is written otherwise.
func Mapped(dir string, ahead bool) (peers.Log, error) {
	m := &mapped{dir: dir, ahead: ahead}
	return m, m.roll()
}

type mapped struct {
	dir   string
	data  []byte
	pos   int
	files int
	ahead bool
}

func (m *mapped) roll() error {
	if m.data != nil {
		if err := unix.Munmap(m.data); err != nil {
			return err
		}
		m.data = nil
	}
	file, err := os.Create(filepath.Join(m.dir, fmt.Sprintf("%06d.raw", m.files)))
	if err != nil {
		return err
	}
	defer file.Close()
	m.files++
	if err := unix.Fallocate(int(file.Fd()), 0, 0, segmentBytes); err != nil {
		return err
	}
	flags := unix.MAP_SHARED
	if m.ahead {
		flags |= unix.MAP_POPULATE
	}
	m.data, err = unix.Mmap(int(file.Fd()), 0, segmentBytes, unix.PROT_READ|unix.PROT_WRITE, flags)
	m.pos = 0
	return err
}

func (m *mapped) Appender() peers.Append {
	var offset int64
	return func(values [][]byte) error {
		for _, v := range values {
			if m.pos+len(v)+FrameHeader+32 > len(m.data) {
				if m.ahead {
					m.pos = 0 // the populated pages again: a mapping that is always ready
				} else if err := m.roll(); err != nil {
					return err
				}
			}
			out := AppendFrame(m.data[m.pos:m.pos], offset, v)
			m.pos += len(out)
			offset++
		}
		return nil
	}
}

func (m *mapped) Close() error { return unix.Munmap(m.data) }
