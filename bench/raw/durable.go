package raw

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

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
		d.more, d.laid = make(chan struct{}, 1), make(chan error, 1)
		d.zeroing.Go(d.layZeros)
		if err := d.wantZeros(zeroStretch / 2); err != nil {
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

	// ZeroedAhead only.
	more    chan struct{} // asks for the next stretch of zeros, and is closed at the end
	laid    chan error    // says that one is there
	asked   bool
	zeroed  int64 // bytes below are zero-filled or written
	zeroing sync.WaitGroup
}

// zeroStretch is laid and flushed at once; the next one is asked for when half of it is used up.
const zeroStretch = 16 << 20

func (d *durable) layZeros() {
	zeros := make([]byte, 1<<20)
	next := int64(0)
	for range d.more {
		var err error
		for end := next + zeroStretch; next < end && err == nil; next += int64(len(zeros)) {
			_, err = d.file.WriteAt(zeros, next)
		}
		d.laid <- errors.Join(err, unix.Fdatasync(int(d.file.Fd())))
	}
}

// wantZeros returns once there are zeros up to end, having asked for more in time. Zeros must never be laid where an
// append may be, so one that outruns them waits.
func (d *durable) wantZeros(end int64) error {
	for {
		if !d.asked && end+zeroStretch/2 > d.zeroed {
			d.more <- struct{}{}
			d.asked = true
		}
		if !d.asked {
			return nil
		}
		if end <= d.zeroed {
			select {
			case err := <-d.laid:
				d.asked = false
				d.zeroed += zeroStretch
				return err
			default:
				return nil
			}
		}
		if err := <-d.laid; err != nil {
			return err
		}
		d.asked = false
		d.zeroed += zeroStretch
	}
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
		if d.more != nil {
			if err := d.wantZeros(d.pos + int64(len(buf))); err != nil {
				return err
			}
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

func (d *durable) Close() error {
	if d.more != nil {
		close(d.more)
		d.zeroing.Wait()
	}
	return d.file.Close()
}
