package codecs

import (
	"io"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// lz4Readers: a reader has the buffers for one block of its frame, at most 4 MiB each, and is dear to set up.
var lz4Readers = sync.Pool{New: func() any { return lz4.NewReader(nil) }}

func newLZ4(r io.Reader) (io.ReadCloser, error) {
	z := lz4Readers.Get().(*lz4.Reader)
	z.Reset(r)
	return &lz4Reader{z}, nil
}

// newLZ4Writer writes frames as Kafka's own clients do: independent blocks of 64 KiB, without checksums.
func newLZ4Writer(w io.Writer) (io.WriteCloser, error) {
	z := lz4.NewWriter(w)
	return z, z.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))
}

type lz4Reader struct{ *lz4.Reader }

// Close gives the reader back; a second Close does nothing.
func (r *lz4Reader) Close() error {
	if r.Reader != nil {
		r.Reader.Reset(nil)
		lz4Readers.Put(r.Reader)
		r.Reader = nil
	}
	return nil
}
