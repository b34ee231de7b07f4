package seglog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"sync"
)

// Codec is how the records of a batch are compressed (bits 0 to 2 of its attributes). The log itself writes CodecNone
// and stores the batches of other writers as they are.
type Codec int8

const (
	CodecNone   Codec = 0
	CodecGzip   Codec = 1
	CodecSnappy Codec = 2
	CodecLZ4    Codec = 3
	CodecZstd   Codec = 4
)

func (c Codec) String() string {
	names := [...]string{"none", "gzip", "snappy", "lz4", "zstd"}
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("codec %d", int8(c))
	}
	return names[c]
}

// maxInflated bounds what one compressed batch may grow to, so that a small file can't take all memory. Kafka's
// producers stay below 1 MiB by default.
const maxInflated = 256 << 20

var decompressors sync.Map // Codec to func(io.Reader) (io.ReadCloser, error)

func init() {
	RegisterDecompressor(CodecGzip, func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) })
}

// RegisterDecompressor makes every log of this process able to read records compressed with c; f is given the
// compressed records of one batch. CodecGzip is registered from the start, the module
// github.com/seglog/seglog/codecs registers the others. It may be called at any time from any goroutine; the last
// call for a codec holds. Storing and transferring compressed batches needs no decompressor.
func RegisterDecompressor(c Codec, f func(io.Reader) (io.ReadCloser, error)) {
	decompressors.Store(c, f)
}

// body returns the encoded records of a whole batch: a part of it, or what its compressed part inflates to. The error
// does not name the batch.
func (b batch) body() ([]byte, error) {
	c := b.codec()
	if c == CodecNone || b.count() == 0 {
		return b[headerLen:], nil
	}
	f, ok := decompressors.Load(c)
	if !ok {
		return nil, fmt.Errorf("%w: %v", ErrCodec, c)
	}
	r, err := f.(func(io.Reader) (io.ReadCloser, error))(bytes.NewReader(b[headerLen:]))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, maxInflated+1))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	if len(out) > maxInflated {
		return nil, fmt.Errorf("%v: inflates to more than %d bytes", c, maxInflated)
	}
	return out, nil
}
