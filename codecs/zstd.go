package codecs

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	// zstdMaxWindow is what level 22 uses and what the reference decoder takes by default.
	zstdMaxWindow = 128 << 20
	// A zstd block takes at least a header of 3 bytes and one of content, and yields at most 128 KiB.
	zstdMinBlock   = 4
	zstdBlockYield = 128 << 10
)

// zstdDecoder is used by DecodeAll alone, which is safe for concurrent use, takes the output for the window, and so
// allocates what a batch really holds. A streaming decoder allocates the window, which for a writer at a high level
// is 128 MiB for a batch of any size.
var zstdDecoder = func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdMaxWindow),
		zstd.WithDecoderMaxMemory(maxInflated))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}()

func newZstd(r io.Reader) (io.ReadCloser, error) { return inflated(r, decodeZstd) }

func decodeZstd(src []byte) ([]byte, error) {
	// DecodeAll makes room for the content size in the header at once: it has to be one that src can hold.
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return nil, err
	}
	most := uint64(len(src)/zstdMinBlock+1) * zstdBlockYield
	if h.HasFCS && h.FrameContentSize > most {
		return nil, fmt.Errorf("zstd frame of %d bytes claims to hold %d", len(src), h.FrameContentSize)
	}
	return zstdDecoder.DecodeAll(src, nil)
}
