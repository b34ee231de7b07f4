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

const (
	// inflateChunk: most batches of producers inflate to a few times that.
	inflateChunk = 4 << 10
	// maxIdleReads is bufio's: a Reader that returns neither bytes nor an error so many times in a row is broken.
	maxIdleReads = 100
)

// defaultMaxInflated is the default of Options.MaxInflatedBytes, and the limit of Decode, Verify and Repair. Kafka's
// producers stay below 1 MiB by default.
const defaultMaxInflated = 256 << 20

var (
	decompressors sync.Map // Codec to func(io.Reader) (io.ReadCloser, error)
	compressors   sync.Map // Codec to func(io.Writer) (io.WriteCloser, error)
)

func init() {
	RegisterDecompressor(CodecGzip, newGzipReader)
	RegisterCompressor(CodecGzip, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

// RegisterDecompressor makes every log of this process able to read records compressed with c; f is given the
// compressed records of one batch. CodecGzip is registered from the start, the module
// github.com/seglog/seglog/codecs registers the others. It may be called at any time from any goroutine; the last
// call for a codec holds. Storing and transferring compressed batches needs no decompressor.
//
// The reader that f is given also has a method MaxInflated() int64, the number of bytes that are accepted from the
// result. A decompressor that inflates in one piece must not allocate more than that, and returns an error that wraps
// ErrInflated instead. Its memory must be bounded by its real output, whatever the compressed bytes claim.
func RegisterDecompressor(c Codec, f func(io.Reader) (io.ReadCloser, error)) {
	decompressors.Store(c, f)
}

// RegisterCompressor is the counterpart of RegisterDecompressor. The log compresses in one case only: when TruncateTo
// cuts inside a compressed batch, the records that remain are compressed again, so that the batch does not become larger
// than it was. Without a compressor for c they are stored uncompressed. CodecGzip is registered from the start, the
// module github.com/seglog/seglog/codecs registers the others.
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

// compressed is the reader that a decompressor is given.
type compressed struct {
	bytes.Reader
	limit int64
}

// MaxInflated is the number of bytes that are accepted from the decompressor.
func (c *compressed) MaxInflated() int64 { return c.limit }

// inflate returns the encoded records of a whole batch: a part of b, or the inflated records in buf, which grows as
// needed but never past twice the bytes that really come out. More than limit bytes are ErrInflated. The error does not
// name the batch.
func (b batch) inflate(buf []byte, limit int64) (body, grown []byte, err error) {
	c := b.codec()
	if c == CodecNone || b.count() == 0 {
		return b[headerLen:], buf, nil
	}
	f, ok := decompressor(c)
	if !ok {
		return nil, buf, fmt.Errorf("%w: %v", ErrCodec, c)
	}
	src := &compressed{limit: limit}
	src.Reset(b[headerLen:])
	r, err := f(src)
	if err != nil {
		return nil, buf, fmt.Errorf("%v: %w", c, err)
	}
	defer r.Close()
	buf = buf[:0]
	for idle := 0; ; {
		if len(buf) == cap(buf) {
			bigger := make([]byte, len(buf), int(max(inflateChunk, min(2*int64(cap(buf)), limit+inflateChunk))))
			copy(bigger, buf)
			buf = bigger
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		if n < 0 || n > cap(buf)-len(buf) {
			return nil, buf, fmt.Errorf("%v: %w", c, errCount)
		}
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, buf, fmt.Errorf("%w: %v batch of %d bytes inflates to more than %d", ErrInflated, c, len(b), limit)
		}
		if err == io.EOF {
			return buf, buf, nil
		}
		if err != nil {
			return nil, buf, fmt.Errorf("%v: %w", c, err)
		}
		if n > 0 {
			idle = 0
		} else if idle++; idle == maxIdleReads {
			return nil, buf, fmt.Errorf("%v: %w", c, io.ErrNoProgress)
		}
	}
}

// deflate compresses encoded records with c; ok is false if no compressor is registered.
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

// minRecord is the size of the smallest record: seven fields of one byte.
const minRecord = 7

// mostRecords is how many records a compressed batch of size bytes may hold at most, whatever is in it: the densest a
// codec can be, in records of the smallest size. It stands in where nobody can look inside.
func mostRecords(c Codec, size, limit int64) int64 {
	ratio := int64(1 << 15) // zstd: a block of 4 bytes yields 128 KiB
	switch c {
	case CodecGzip:
		ratio = 1032
	case CodecSnappy:
		ratio = 22
	case CodecLZ4:
		ratio = 255
	}
	return min(limit, (size-headerLen)*ratio) / minRecord
}

// gzipReaders: a reader has a window and tables of 40 KiB.
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

// Close gives the reader back; a second Close does nothing.
func (r *gzipReader) Close() error {
	if r.Reader != nil {
		_ = r.Reset(noBytes{}) // lets go of the batch
		gzipReaders.Put(r.Reader)
		r.Reader = nil
	}
	return nil
}

// noBytes is an empty reader. Since it can read bytes, gzip wraps no buffer around it.
type noBytes struct{}

func (noBytes) Read([]byte) (int, error) { return 0, io.EOF }
func (noBytes) ReadByte() (byte, error)  { return 0, io.EOF }
