package main

import (
	"encoding/binary"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"
)

// batchHeaderLen is the length of a RecordBatch header, whose layout docs/format.md has.
const batchHeaderLen = 61

const (
	attrTransactional = 1 << 4
	attrControl       = 1 << 5
)

// batchHeader is what this server has to know of a batch; the log checks the rest.
type batchHeader struct {
	base          int64
	size          int64 // of the whole batch
	lastDelta     int32
	attributes    int16
	producerID    int64 // -1: not an idempotent producer
	producerEpoch int16
	firstSequence int32
}

// parseBatchHeader reads the first of b's batches.
func parseBatchHeader(b []byte) (batchHeader, error) {
	if len(b) < batchHeaderLen {
		return batchHeader{}, refuse(kerr.InvalidRecord, "%d bytes are no record batch", len(b))
	}
	if magic := b[16]; magic != 2 {
		return batchHeader{}, refuse(kerr.UnsupportedForMessageFormat, "message format %d, want 2", magic)
	}
	size := 12 + int64(int32(binary.BigEndian.Uint32(b[8:])))
	if size < batchHeaderLen {
		return batchHeader{}, refuse(kerr.InvalidRecord, "a batch of %d bytes", size)
	}
	return batchHeader{
		base:          int64(binary.BigEndian.Uint64(b)),
		size:          size,
		attributes:    int16(binary.BigEndian.Uint16(b[21:])),
		lastDelta:     int32(binary.BigEndian.Uint32(b[23:])),
		producerID:    int64(binary.BigEndian.Uint64(b[43:])),
		producerEpoch: int16(binary.BigEndian.Uint16(b[51:])),
		firstSequence: int32(binary.BigEndian.Uint32(b[53:])),
	}, nil
}

// lastSequence counts on from the first, from 0 again after the largest int32.
func (h batchHeader) lastSequence() int32 {
	return int32((int64(h.firstSequence) + int64(h.lastDelta)) & math.MaxInt32)
}
