package raw

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// Layout is the state of a file's blocks before they are written, which decides what fdatasync has to journal.
type Layout int

const (
	Growing     Layout = iota // every append makes the file longer: size and block map are journaled
	Reserved                  // fallocate: the blocks are there but marked unwritten, the mark is journaled
	ZeroFilled                // written once and flushed: nothing but the data has to go out
	ZeroedAhead               // zero-filled too, but the zeros are written and flushed while the appends run, as a log that goes on has to
)

// Layouts are all of them.
var Layouts = []Layout{Growing, Reserved, ZeroFilled, ZeroedAhead}

func (l Layout) String() string {
	return [...]string{"growing", "reserved", "zero-filled before", "zero-filled as it goes"}[l]
}

// The prepared file ends here, and the writer begins at its front again. Zeros cost time to lay, so there are fewer of
// them: written over a second time they are what they were, blocks that need no journal. The other layouts must not come
// round within a round, for they would be that too.
const (
	zeroFilledBytes = 128 << 20
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
	d := &durable{file: file, limit: limit}
	if layout == ZeroedAhead {
		if d.zeros, err = newAhead(zeroStretch, d.layZeros); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

func prepare(file *os.File, layout Layout, size int64) error {
	switch layout {
	case Reserved, ZeroedAhead:
		if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
			return err
		}
	case ZeroFilled:
		for pos := int64(0); pos < size; pos += int64(len(zeroPiece)) {
			if _, err := file.WriteAt(zeroPiece, pos); err != nil {
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
	zeros *ahead // ZeroedAhead only
}

// zeroStretch is laid and flushed at once.
const zeroStretch = 16 << 20

var zeroPiece = make([]byte, 1<<20)

func (d *durable) layZeros(pos int64) (err error) {
	for end := pos + zeroStretch; pos < end && err == nil; pos += int64(len(zeroPiece)) {
		_, err = d.file.WriteAt(zeroPiece, pos)
	}
	return errors.Join(err, unix.Fdatasync(int(d.file.Fd())))
}

// place is where the next n bytes go.
func (d *durable) place(n int) (pos int64, err error) {
	if d.zeros != nil {
		if err := d.zeros.want(d.pos + int64(n)); err != nil {
			return 0, err
		}
	}
	if d.pos+int64(n) > d.limit {
		d.pos = 0
	}
	pos = d.pos
	d.pos += int64(n)
	return pos, nil
}

func (d *durable) Appender() peers.Append {
	var buf []byte
	var offset int64
	return func(values [][]byte) error {
		buf = appendFrames(buf[:0], &offset, values)
		pos, err := d.place(len(buf))
		if err != nil {
			return err
		}
		if _, err := d.file.WriteAt(buf, pos); err != nil {
			return err
		}
		return unix.Fdatasync(int(d.file.Fd()))
	}
}

// appendFrames appends the values as frames from *offset on, which it moves behind them.
func appendFrames(dst []byte, offset *int64, values [][]byte) []byte {
	for _, v := range values {
		dst = AppendFrame(dst, *offset, v)
		*offset++
	}
	return dst
}

func (d *durable) Close() error {
	if d.zeros != nil {
		d.zeros.close()
	}
	return d.file.Close()
}
