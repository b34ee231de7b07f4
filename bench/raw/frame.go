// Package raw measures what the machine itself allows: the system calls and memory operations that any log is made of,
// with nothing around them. A target stated against it is a target against the limit, not against another program.
package raw

import (
	"encoding/binary"
	"hash/crc32"
)

// The frames of the raw limits are Kafka's RecordBatch v2 with one record, so that a limit moves the same bytes as the
// log that is held against it.
const (
	// FrameHeader is the batch header: base offset, length, epoch, magic, CRC and the fields behind them.
	FrameHeader = 61
	crcPos      = 17
	crcFrom     = 21
	lengthPos   = 8
	lengthBase  = 12 // size of a batch over its length field's value
	frameTime   = 1_700_000_000_000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendFrame appends value as the batch of one record at offset, with its CRC.
func AppendFrame(dst []byte, offset int64, value []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, FrameHeader)...)
	dst = appendRecord(dst, 0, value)
	finishFrame(dst[start:], offset, 1)
	return dst
}

// FrameSize is the size of a frame of that many records, of values of that many bytes.
func FrameSize(records, size int) int {
	value := make([]byte, size)
	frame := make([]byte, FrameHeader)
	for i := range records {
		frame = appendRecord(frame, int64(i), value)
	}
	return len(frame)
}

func appendRecord(dst []byte, delta int64, value []byte) []byte {
	var head [32]byte
	body := append(head[:0], 0, 0) // attributes, time delta
	body = binary.AppendVarint(body, delta)
	body = append(body, 1) // no key
	body = binary.AppendVarint(body, int64(len(value)))
	dst = binary.AppendVarint(dst, int64(len(body)+len(value)+1))
	dst = append(dst, body...)
	dst = append(dst, value...)
	return append(dst, 0) // no headers
}

func finishFrame(frame []byte, offset int64, records int) {
	be := binary.BigEndian
	be.PutUint64(frame[0:], uint64(offset))
	be.PutUint32(frame[lengthPos:], uint32(len(frame)-lengthBase))
	frame[16] = 2
	be.PutUint32(frame[23:], uint32(records-1))
	be.PutUint64(frame[27:], frameTime)
	be.PutUint64(frame[35:], frameTime)
	be.PutUint64(frame[43:], ^uint64(0))
	be.PutUint16(frame[51:], ^uint16(0))
	be.PutUint32(frame[53:], ^uint32(0))
	be.PutUint32(frame[57:], uint32(records))
	be.PutUint32(frame[crcPos:], crc32.Checksum(frame[crcFrom:], castagnoli))
}

// frameSize is the size of the frame that begins at b, which must hold its length field.
func frameSize(b []byte) int { return int(binary.BigEndian.Uint32(b[lengthPos:])) + lengthBase }

// lastOffset is the offset of the frame's last record.
func lastOffset(b []byte) int64 {
	return int64(binary.BigEndian.Uint64(b)) + int64(binary.BigEndian.Uint32(b[23:]))
}

func frameIntact(frame []byte) bool {
	return crc32.Checksum(frame[crcFrom:], castagnoli) == binary.BigEndian.Uint32(frame[crcPos:])
}

// valueOf is the value of the only record of the frame. It trusts the frame: callers check the CRC first.
func valueOf(frame []byte) []byte { return valueAt(frame[FrameHeader:]) }

// valueAt is the value of the record that begins at b.
func valueAt(b []byte) []byte {
	skip := func() int64 {
		v, n := binary.Varint(b)
		b = b[n:]
		return v
	}
	skip()    // record length
	b = b[1:] // attributes
	skip()    // time delta
	skip()    // offset delta
	skip()    // key length: none
	n := skip()
	return b[:n]
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
