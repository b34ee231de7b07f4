package raw

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compressor is how a frame's records are compressed, as Kafka's clients do.
type Compressor struct {
	Name     string
	bits     uint16 // of the attributes
	compress func(plain []byte) ([]byte, error)
}

// Compressors are those that inflate fast enough for a read of one record to be thinkable.
func Compressors() ([]Compressor, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return []Compressor{
		{Name: "zstd", bits: 4, compress: func(plain []byte) ([]byte, error) { return z.EncodeAll(plain, nil), nil }},
		{Name: "lz4", bits: 3, compress: compressLZ4},
	}, nil
}

// compressLZ4 makes a frame of blocks of 64 KiB without checksums, as Kafka's Java client does.
func compressLZ4(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)); err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Frame is a frame of these values, compressed. Its first offset is 0.
func (c Compressor) Frame(values [][]byte) ([]byte, error) {
	var plain []byte
	for i, v := range values {
		plain = appendRecord(plain, int64(i), v)
	}
	body, err := c.compress(plain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	frame := append(make([]byte, FrameHeader), body...)
	binary.BigEndian.PutUint16(frame[crcFrom:], c.bits)
	finishFrame(frame, 0, len(values))
	return frame, nil
}
