package seglog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"sync"
)

// Codec is the compression of the records of a batch; its values are those of bits 0 to 2 of a batch's attributes. Append does
// not compress; AppendBatch and TransferFrom store batches compressed as they arrive.
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

const (
	// inflateChunk is the size of the first buffer for inflated records. Most batches of producers inflate to a few times as much.
	inflateChunk = 4 << 10
	// maxIdleReads is the number of reads in a row without bytes and without an error after which a Reader counts as broken. It
	// is that of package bufio.
	maxIdleReads = 100
)

var (
	decompressors sync.Map // Codec to func(io.Reader) (io.ReadCloser, error)
	compressors   sync.Map // Codec to func(io.Writer) (io.WriteCloser, error)
)

func init() {
	RegisterDecompressor(CodecGzip, newGzipReader)
	RegisterCompressor(CodecGzip, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

// RegisterDecompressor registers f as the decompressor for c, for all logs of the process. It replaces an earlier one, and may
// be called at any time from any goroutine. CodecGzip is registered from the start, and the module
// github.com/seglog/seglog/codecs registers the others. Only reading and checking records needs a decompressor; storing
// compressed batches and transferring them does not.
//
// The argument of f reads the compressed records of one batch. It also has a method MaxInflated() int64, which returns the
// number of bytes that are accepted from the result of f. A decompressor that inflates in one piece must not allocate more
// than that, and returns an error that wraps ErrInflated instead. Its memory must be bounded by its real output, whatever
// lengths the compressed bytes claim.
func RegisterDecompressor(c Codec, f func(io.Reader) (io.ReadCloser, error)) {
	decompressors.Store(c, f)
}

// RegisterCompressor registers f as the compressor for c, for all logs of the process. It replaces an earlier one, and may be
// called at any time from any goroutine. CodecGzip is registered from the start, and the module
// github.com/seglog/seglog/codecs registers the others.
//
// A log compresses only when TruncateTo cuts inside a compressed batch: it compresses the remaining records again, so that the
// batch does not become larger than it was. Without a compressor for c it stores them uncompressed.
func RegisterCompressor(c Codec, f func(io.Writer) (io.WriteCloser, error)) {
	compressors.Store(c, f)
}

func decompressor(c Codec) (f func(io.Reader) (io.ReadCloser, error), ok bool) {
	v, ok := decompressors.Load(c)
	if !ok {
		return nil, false
	}
	f, ok = v.(func(io.Reader) (io.ReadCloser, error))
	return f, ok && f != nil
}

// compressed is the argument of a decompressor.
type compressed struct {
	bytes.Reader
	limit int64
}

// MaxInflated is the number of bytes that are accepted from the decompressor.
func (c *compressed) MaxInflated() int64 { return c.limit }

// deflate compresses encoded records with c. It returns false for ok if no compressor is registered for c.
func deflate(c Codec, body []byte) (out []byte, ok bool, err error) {
	v, ok := compressors.Load(c)
	if !ok {
		return nil, false, nil
	}
	f, ok := v.(func(io.Writer) (io.WriteCloser, error))
	if !ok || f == nil {
		return nil, false, nil
	}
	var b bytes.Buffer
	w, err := f(&b)
	if err == nil {
		_, err = w.Write(body)
		if e := w.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return nil, true, fmt.Errorf("compress with %v: %w", c, err)
	}
	return b.Bytes(), true, nil
}

// gzipReaders are kept because each has a window and tables of 40 KiB.
var gzipReaders sync.Pool

func newGzipReader(r io.Reader) (io.ReadCloser, error) {
	z, _ := gzipReaders.Get().(*gzip.Reader)
	var err error
	if z == nil {
		z, err = gzip.NewReader(r)
	} else if err = z.Reset(r); err != nil {
		gzipReaders.Put(z)
	}
	if err != nil {
		return nil, err
	}
	return &gzipReader{z}, nil
}

type gzipReader struct{ *gzip.Reader }

// Close returns the reader to the pool; a second Close does nothing.
func (r *gzipReader) Close() error {
	if r.Reader != nil {
		_ = r.Reset(noBytes{}) // so that the pooled reader does not keep the batch alive; its error is io.EOF
		gzipReaders.Put(r.Reader)
		r.Reader = nil
	}
	return nil
}

// noBytes is an empty reader. It has ReadByte, so that gzip does not allocate a bufio.Reader around it.
type noBytes struct{}

func (noBytes) Read([]byte) (int, error) { return 0, io.EOF }
func (noBytes) ReadByte() (byte, error)  { return 0, io.EOF }
