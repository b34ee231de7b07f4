package raw

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// Layout is the state of a file's blocks before they are written, which decides what fdatasync has to journal.
type Layout int

const (
	Growing    Layout = iota // every append makes the file longer: size and block map are journaled
	Reserved                 // fallocate: the blocks are there but marked unwritten, the mark is journaled
	ZeroFilled               // written once and flushed: nothing but the data has to go out
)

func (l Layout) String() string { return [...]string{"growing", "reserved", "zero-filled"}[l] }

// The prepared file ends here, and the writer begins at its front again. Zeros cost time to lay, so there are fewer of
// them: written over a second time they are what they were, blocks that need no journal. The other layouts must not come
// round within a round, for they would be that too.
const (
	zeroFilledBytes = 256 << 20
	otherBytes      = 2 << 30
)

// Durable appends framed values with their CRC by one pwrite and one fdatasync per call. Callers beyond the first need
// peers.Group before it.
func Durable(dir string, layout Layout) (peers.Log, error) {
	file, err := os.Create(filepath.Join(dir, "000000.raw"))
	if err != nil {
		return nil, err
	}
	limit := int64(otherBytes)
	if layout == ZeroFilled {
		limit = zeroFilledBytes
	}
	if err := prepare(file, layout, limit); err != nil {
		file.Close()
		return nil, err
	}
	return &durable{file: file, limit: limit}, nil
}

func prepare(file *os.File, layout Layout, size int64) error {
	switch layout {
	case Reserved:
		if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
			return err
		}
	case ZeroFilled:
		zeros := make([]byte, 1<<20)
		for pos := int64(0); pos < size; pos += int64(len(zeros)) {
			if _, err := file.WriteAt(zeros, pos); err != nil {
				return err
			}
		}
	}
	return file.Sync()
}

type durable struct {
	file  *os.File
	pos   int64
	limit int64
}

func (d *durable) Appender() peers.Append {
	var buf []byte
	var offset int64
	return func(values [][]byte) error {
		buf = buf[:0]
		for _, v := range values {
			buf = AppendFrame(buf, offset, v)
			offset++
		}
		if d.pos+int64(len(buf)) > d.limit {
			d.pos = 0
		}
		if _, err := d.file.WriteAt(buf, d.pos); err != nil {
			return err
		}
		d.pos += int64(len(buf))
		return unix.Fdatasync(int(d.file.Fd()))
	}
}

func (d *durable) Close() error { return d.file.Close() }
