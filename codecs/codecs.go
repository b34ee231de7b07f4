// Package codecs makes seglog read records that were compressed with snappy, lz4 or zstd. Import it for its effect:
//
//	import _ "github.com/seglog/seglog/codecs"
//
// With gzip, which seglog reads by itself, these are all codecs that a Kafka directory can hold. The decoders come
// from github.com/klauspost/compress and github.com/pierrec/lz4, which is why this is a module of its own.
//
// What a decoder allocates is bounded by what its input can really inflate to, and by 256 MiB, whatever length the
// input claims.
package codecs

import (
	"io"

	"github.com/seglog/seglog"
)

// maxInflated is the most that seglog takes from one batch; a decoder that inflates in one piece stops there.
const maxInflated = 256 << 20

func init() {
	seglog.RegisterDecompressor(seglog.CodecSnappy, newSnappy)
	seglog.RegisterDecompressor(seglog.CodecLZ4, newLZ4)
	seglog.RegisterDecompressor(seglog.CodecZstd, newZstd)
}

// inflated is the reader for a codec that inflates a batch in one piece.
func inflated(r io.Reader, decode func([]byte) ([]byte, error)) (io.ReadCloser, error) {
	src, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	dst, err := decode(src)
	if err != nil {
		return nil, err
	}
	return &piece{dst}, nil
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

func (p *piece) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(p.b)
	p.b = p.b[n:]
	return int64(n), err
}

func (p *piece) Close() error {
	p.b = nil
	return nil
}
