package seglog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"time"
	"unicode/utf8"
)

// RecordBatch v2, the format of Kafka's .log files and of its wire protocol since 0.11. All integers are big-endian.
// Source: apache/kafka, clients/src/main/java/org/apache/kafka/common/record/DefaultRecordBatch.java, DefaultRecord.java.
const (
	atBaseOffset      = 0  // int64; offset of the first record
	atBatchLength     = 8  // int32; bytes after this field
	atLeaderEpoch     = 12 // int32
	atMagic           = 16 // int8; 2
	atCRC             = 17 // uint32; CRC-32C of everything from atAttributes on; no checksum covers the fields before that
	atAttributes      = 21 // int16
	atLastOffsetDelta = 23 // int32; last offset - base offset
	atBaseTimestamp   = 27 // int64; ms since 1970
	atMaxTimestamp    = 35 // int64
	atProducerID      = 43 // int64; -1: none
	atProducerEpoch   = 51 // int16; -1
	atBaseSequence    = 53 // int32; -1
	atRecordsCount    = 57 // int32
	headerLen         = 61 // the records, or one compressed blob of all of them, follow

	lengthOverhead = 12 // size of a batch = lengthOverhead + batchLength
	magicV2        = 2
	noTimestamp    = -1

	attrCodec         = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20

	// maxSegmentBytes is the largest size of a segment: positions in index entries are int32 (Kafka's OffsetIndex.java).
	maxSegmentBytes = math.MaxInt32
	// maxBatchSize is the size of the largest batch that any writer can have made: a batch lies within one segment.
	maxBatchSize = maxSegmentBytes
)

// The constant does not compile if the header's last field reaches into the records.
const _ = uint(headerLen - (atRecordsCount + 4))

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is a view of an encoded batch whose header was checked by parseHeader.
type batch []byte

func (b batch) base() int64 { return int64(binary.BigEndian.Uint64(b[atBaseOffset:])) }
func (b batch) size() int64 {
	return lengthOverhead + int64(int32(binary.BigEndian.Uint32(b[atBatchLength:])))
}
func (b batch) attributes() int16    { return int16(binary.BigEndian.Uint16(b[atAttributes:])) }
func (b batch) codec() Codec         { return Codec(b.attributes() & attrCodec) }
func (b batch) lastDelta() int64     { return int64(int32(binary.BigEndian.Uint32(b[atLastOffsetDelta:]))) }
func (b batch) last() int64          { return b.base() + b.lastDelta() }
func (b batch) baseTimestamp() int64 { return int64(binary.BigEndian.Uint64(b[atBaseTimestamp:])) }
func (b batch) maxTimestamp() int64  { return int64(binary.BigEndian.Uint64(b[atMaxTimestamp:])) }
func (b batch) count() int64         { return int64(int32(binary.BigEndian.Uint32(b[atRecordsCount:]))) }
func (b batch) crc() uint32          { return binary.BigEndian.Uint32(b[atCRC:]) }
func (b batch) control() bool        { return b.attributes()&attrControl != 0 }

func (b batch) epoch() int32 { return int32(binary.BigEndian.Uint32(b[atLeaderEpoch:])) }

func (b batch) setEpoch(epoch int32) { binary.BigEndian.PutUint32(b[atLeaderEpoch:], uint32(epoch)) }

func (b batch) setBase(offset int64) { binary.BigEndian.PutUint64(b[atBaseOffset:], uint64(offset)) }

func (b batch) seal() {
	binary.BigEndian.PutUint32(b[atBatchLength:], uint32(len(b)-lengthOverhead))
	binary.BigEndian.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
}

// walkLen is the length of the part of a header that a walk from batch to batch reads. In most cases it lies in one cache line
// less than the whole header.
const walkLen = atLastOffsetDelta + 4

// parseWalk checks the fields that a walk from header to header relies on. It returns the reason why they are invalid, or "".
// b holds at least walkLen bytes.
func parseWalk(b []byte) string {
	h := batch(b[:walkLen])
	switch size := h.size(); {
	case h[atMagic] != magicV2:
		return fmt.Sprintf("magic is %d, want 2", h[atMagic])
	case size < headerLen || size > maxBatchSize:
		return fmt.Sprintf("batch length is %d, want %d to %d", size-lengthOverhead, headerLen-lengthOverhead, maxBatchSize-lengthOverhead)
	case h.base() < 0 || h.base() > math.MaxInt64-math.MaxInt32:
		return fmt.Sprintf("base offset is %d", h.base())
	case h.lastDelta() < 0:
		return fmt.Sprintf("last offset delta is %d", h.lastDelta())
	}
	return ""
}

// parseHeader checks everything in a header that can be checked without the records. It returns the reason why the header is
// invalid, or ""; its fields must not be relied on before. b holds at least headerLen bytes.
func parseHeader(b []byte) string {
	h := batch(b[:headerLen])
	if why := parseWalk(h); why != "" {
		return why
	}
	if h.count() < 0 || h.count() > h.lastDelta()+1 {
		return fmt.Sprintf("records count is %d with last offset delta %d", h.count(), h.lastDelta())
	}
	return ""
}

// checkCRC returns the reason why the CRC of b, which is a whole batch, does not match, or "".
func (b batch) checkCRC() string {
	if got := crc32.Checksum(b[atAttributes:], castagnoli); got != b.crc() {
		return fmt.Sprintf("CRC is %08x, want %08x", got, b.crc())
	}
	return ""
}

// rangeCRC returns the CRC of the last n bytes of a range, given the CRC of all of it and of the part before them. It works
// like zlib's crc32_combine: a CRC is shifted over n bytes by multiplying it with x^8n modulo the polynomial.
func rangeCRC(before, all uint32, n int64) uint32 {
	shift := uint32(1) << 31 // x^0
	for k := 3; n > 0; n, k = n>>1, k+1 {
		if n&1 != 0 {
			shift = multiplyCRC(crcPowers[k], shift)
		}
	}
	return all ^ multiplyCRC(shift, before)
}

// crcPowers are x^(2^k) modulo the polynomial.
var crcPowers = func() (p [3 + 32]uint32) {
	p[0] = 1 << 30 // x^1
	for k := range len(p) - 1 {
		p[k+1] = multiplyCRC(p[k], p[k])
	}
	return p
}()

// multiplyCRC multiplies two polynomials modulo that of CRC-32C; the highest bit is the coefficient of x^0.
func multiplyCRC(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}

// varintLen is the size of v as putVarint writes it: zigzag, then LEB128.
func varintLen(v int64) int {
	u := uint64(v)<<1 ^ uint64(v>>63)
	switch {
	case u < 1<<7:
		return 1
	case u < 1<<14:
		return 2
	}
	return (bits.Len64(u) + 6) / 7
}

// putVarint writes v to b[i:] and returns the index of the byte after it.
func putVarint(b []byte, i int, v int64) int {
	u := uint64(v)<<1 ^ uint64(v>>63)
	for ; u >= 0x80; u >>= 7 {
		b[i] = byte(u) | 0x80
		i++
	}
	b[i] = byte(u)
	return i + 1
}

// bytesLen is the size of a field with its length in front. The length of a nil field is encoded as -1.
func bytesLen(b []byte) int {
	if b == nil {
		return 1
	}
	return varintLen(int64(len(b))) + len(b)
}

func putBytes(b []byte, i int, field []byte) int {
	if field == nil {
		b[i] = 1 // varint -1
		return i + 1
	}
	i = putVarint(b, i, int64(len(field)))
	return i + copy(b[i:], field)
}

// bodyLen is the size of a record without its length field.
func (r *Record) bodyLen(timeDelta, offsetDelta int64) int {
	n := 1 + varintLen(timeDelta) + varintLen(offsetDelta) + bytesLen(r.Key) + bytesLen(r.Value) + varintLen(int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintLen(int64(len(h.Key))) + len(h.Key) + bytesLen(h.Value)
	}
	return n
}

// millis is the timestamp of a record that is appended at time now, in ms since 1970.
func (r *Record) millis(now int64) int64 {
	if r.Time.IsZero() {
		return now
	}
	return unixMilli(r.Time)
}

// lastTime is the last time whose timestamp the format can hold, in the year 292278994.
var lastTime = time.UnixMilli(math.MaxInt64).Add(time.Millisecond - 1)

// unixMilli is t.UnixMilli(), except that a time outside the range of a timestamp gives the nearest end of the range instead
// of wrapping around.
func unixMilli(t time.Time) int64 {
	const last = math.MaxInt64 / 1000
	sec := t.Unix()
	switch ms := sec*1000 + int64(t.Nanosecond())/1e6; {
	case sec > last || sec == last && ms < 0:
		return math.MaxInt64
	case sec < -last:
		return math.MinInt64
	default:
		return ms
	}
}

// encodedSize checks records, and returns the size of a batch of them and their greatest timestamp. now, in ms since 1970, is
// the time of the records that have none.
func encodedSize(records []Record, now int64) (size, greatest int64, err error) {
	first := records[0].millis(now)
	greatest, size = first, headerLen
	for i := range records {
		r := &records[i]
		ms := r.millis(now)
		if ms < 0 {
			return 0, 0, invalid("record %d: time %v is before 1970, which the format can't hold", i, r.Time)
		}
		if ms == math.MaxInt64 && r.Time.After(lastTime) {
			return 0, 0, invalid("record %d: time %v is after %v, the last time that the format can hold", i, r.Time, lastTime.UTC())
		}
		for j := range r.Headers {
			if !utf8.ValidString(r.Headers[j].Key) {
				return 0, 0, invalid("record %d: key of header %d is not UTF-8", i, j)
			}
		}
		greatest = max(greatest, ms)
		n := int64(r.bodyLen(ms-first, int64(i)))
		size += int64(varintLen(n)) + n
	}
	return size, greatest, nil
}

// encode writes records as one batch to dst, whose length must be the result of encodedSize for the same records and now.
func encode(dst []byte, base int64, epoch int32, records []Record, now int64) {
	first := records[0].millis(now)
	greatest := first
	b, at := dst, headerLen
	for i := range records {
		r := &records[i]
		ms := r.millis(now)
		greatest = max(greatest, ms)
		at = putVarint(b, at, int64(r.bodyLen(ms-first, int64(i))))
		b[at] = 0 // attributes: none are defined
		at = putVarint(b, at+1, ms-first)
		at = putVarint(b, at, int64(i))
		at = putBytes(b, at, r.Key)
		at = putBytes(b, at, r.Value)
		at = putVarint(b, at, int64(len(r.Headers)))
		for j := range r.Headers {
			h := &r.Headers[j]
			at = putVarint(b, at, int64(len(h.Key)))
			at += copy(b[at:], h.Key)
			at = putBytes(b, at, h.Value)
		}
	}
	h := batch(dst)
	putHeader(h, base, epoch, int64(len(records)), first, greatest)
	h.seal()
}

// putHeader writes all fields of a header except length and CRC, which seal adds.
func putHeader(h batch, base int64, epoch int32, count, baseTimestamp, maxTimestamp int64) {
	be := binary.BigEndian
	be.PutUint64(h[atBaseOffset:], uint64(base))
	h.setEpoch(epoch)
	h[atMagic] = magicV2
	be.PutUint16(h[atAttributes:], 0)
	be.PutUint32(h[atLastOffsetDelta:], uint32(count-1))
	be.PutUint64(h[atBaseTimestamp:], uint64(baseTimestamp))
	be.PutUint64(h[atMaxTimestamp:], uint64(maxTimestamp))
	be.PutUint64(h[atProducerID:], math.MaxUint64)
	be.PutUint16(h[atProducerEpoch:], math.MaxUint16)
	be.PutUint32(h[atBaseSequence:], math.MaxUint32)
	be.PutUint32(h[atRecordsCount:], uint32(count))
}
