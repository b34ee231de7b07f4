package raw

import "encoding/binary"

// Directory holds where every so many records of the frames of a Store begin. It is what a log can keep in memory of a large
// batch that it has walked once.
type Directory struct {
	step     int64 // records from one entry to the next
	perFrame int64 // records of a frame, all but the last
	slots    int64 // entries of a frame
	at       []uint32
}

// BuildDirectory walks the frames of a store with perFrame records each, and notes where every step-th of their records
// begins.
func (s *Store) BuildDirectory(perFrame, step int64) *Directory {
	d := &Directory{step: step, perFrame: perFrame, slots: (perFrame + step - 1) / step}
	for b := s.data; len(b) > 0; {
		frame := b[:frameSize(b)]
		b = b[len(frame):]
		pos := FrameHeader
		for i := range d.slots * step {
			if i%step == 0 {
				d.at = append(d.at, uint32(min(pos, len(frame))))
			}
			if pos < len(frame) {
				pos += recordSize(frame[pos:])
			}
		}
	}
	return d
}

// Bytes is the memory that the entries take.
func (d *Directory) Bytes() int64 { return 4 * int64(len(d.at)) }

// ReadWalk finds a record over the mapping: the index, the frame, its CRC if check is set, the walk from the frame's first record or
// the next one before that is in the directory, if there is one, and a copy.
func (s *Store) ReadWalk(offset int64, check bool, d *Directory) ([]byte, error) {
	from, to := s.interval(offset)
	frame, err := frameOf(s.data[from:to], offset)
	if err != nil {
		return nil, err
	}
	if check && !frameIntact(frame) {
		return nil, errDamaged
	}
	left, pos := offset-int64(binary.BigEndian.Uint64(frame)), FrameHeader
	if d != nil {
		pos = int(d.at[offset/d.perFrame*d.slots+left/d.step])
		left %= d.step
	}
	for b := frame[pos:]; ; left-- {
		if left == 0 {
			return append([]byte(nil), valueAt(b)...), nil
		}
		b = b[recordSize(b):]
	}
}

// recordSize is the size of the record that begins at b, its length field included.
func recordSize(b []byte) int {
	length, n := binary.Varint(b)
	return n + int(length)
}
