// Package codecs makes seglog read records that were compressed with snappy, lz4 or zstd, and compress them again where
// TruncateTo cuts inside a batch. Import it for its effect:
//
//	import _ "github.com/seglog/seglog/codecs"
//
// With gzip, which seglog reads by itself, these are all codecs that a Kafka directory can hold. The decoders come
// from github.com/klauspost/compress and github.com/pierrec/lz4, which is why this is a module of its own.
//
// A decoder allocates at most four times the bytes that its input really inflates to or, if that is more, 12 MiB, whatever
// lengths the input claims; past Options.MaxInflatedBytes it stops with seglog.ErrInflated.
package codecs

import (
	"bytes"
	"io"
	"math"

	"github.com/seglog/seglog"
)

func init() {
	seglog.RegisterDecompressor(seglog.CodecSnappy, newSnappy)
	seglog.RegisterDecompressor(seglog.CodecLZ4, newLZ4)
	seglog.RegisterDecompressor(seglog.CodecZstd, newZstd)
	seglog.RegisterCompressor(seglog.CodecSnappy, deflated(encodeSnappy))
	seglog.RegisterCompressor(seglog.CodecLZ4, newLZ4Writer)
	seglog.RegisterCompressor(seglog.CodecZstd, deflated(encodeZstd))
}

// inflated is the reader for a codec that inflates a batch in one piece.
func inflated(r io.Reader, decode func(src []byte, limit int64) ([]byte, error)) (io.ReadCloser, error) {
	limit := int64(math.MaxInt)
	if l, ok := r.(interface{ MaxInflated() int64 }); ok {
		limit = l.MaxInflated()
	}
	src, err := readAll(r)
	if err != nil {
		return nil, err
	}
	dst, err := decode(src, limit)
	if err != nil {
		return nil, err
	}
	return &piece{dst}, nil
}

// readAll is io.ReadAll, without growing a buffer where the length is known.
func readAll(r io.Reader) ([]byte, error) {
	sized, ok := r.(interface{ Len() int })
	if !ok {
		return io.ReadAll(r)
	}
	b := make([]byte, sized.Len())
	_, err := io.ReadFull(r, b)
	return b, err
}

// piece reads from memory. Unlike bytes.Reader behind io.NopCloser it lets go of the memory at Close.
type piece struct{ b []byte }

func (p *piece) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

func (p *piece) Close() error {
	p.b = nil
	return nil
}

// grow makes room for n bytes behind dst, by at least doubling, so that many small pieces cost no more than one.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	return append(make([]byte, 0, max(2*cap(dst), len(dst)+n)), dst...)
}

// deflated is the writer for a codec that compresses a batch in one piece.
func deflated(encode func([]byte) []byte) func(io.Writer) (io.WriteCloser, error) {
	return func(w io.Writer) (io.WriteCloser, error) { return &whole{w: w, encode: encode}, nil }
}

type whole struct {
	bytes.Buffer
	w      io.Writer
	encode func([]byte) []byte
}

func (p *whole) Close() error {
	_, err := p.w.Write(p.encode(p.Bytes()))
	return err
}
