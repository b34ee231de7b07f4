package codecs

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/seglog/seglog"
)

const (
	// zstdMaxWindow is what level 22 uses and what the reference decoder takes by default.
	zstdMaxWindow = 128 << 20
	// zstdMaxBlock is what a block yields at most (RFC 8878, 3.1.1.2).
	zstdMaxBlock = 128 << 10
	// zstdMost bounds the decoders that are made: no batch holds more.
	zstdMost = 64 << 30
	// zstdWindowAt is the position of the window descriptor in a frame that has one: behind magic and frame descriptor.
	zstdWindowAt = 5
	// zstdChecksum is the size of the checksum that a frame may end with.
	zstdChecksum = 4
	// zstdSlack behind the output lets the decoder copy in whole words.
	zstdSlack = 64
	// zstdFirst is the room that a frame gets at first if it does not say how much it holds.
	zstdFirst = 64 << 10
)

// zstdDecoders, by the power of two at which they stop, are used by DecodeAll alone, which is safe for concurrent use, and
// which takes the output for the window. A streaming decoder allocates the window, which for a writer at a high level is
// 128 MiB for a batch of any size.
var zstdDecoders sync.Map // uint64 to *zstd.Decoder

func zstdDecoder(most uint64) (*zstd.Decoder, error) {
	if d, ok := zstdDecoders.Load(most); ok {
		return d.(*zstd.Decoder), nil
	}
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(min(most, zstdMaxWindow)),
		zstd.WithDecoderMaxMemory(most))
	if err != nil {
		return nil, err
	}
	other, _ := zstdDecoders.LoadOrStore(most, d)
	return other.(*zstd.Decoder), nil
}

func newZstd(r io.Reader) (io.ReadCloser, error) { return inflated(r, decodeZstd) }

// decodeZstd decodes frame by frame. The header of a frame may claim any size; what its blocks can hold is the most that
// room is made for.
func decodeZstd(src []byte, limit int64) (dst []byte, err error) {
	if len(src) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	for len(src) > 0 {
		f, err := parseZstdFrame(src)
		if err != nil {
			return nil, err
		}
		if !f.skip {
			if dst, err = appendZstdFrame(dst, src[:f.size], f, limit); err != nil {
				return nil, err
			}
		}
		src = src[f.size:]
	}
	return dst, nil
}

func appendZstdFrame(dst, src []byte, f zstdFrame, limit int64) ([]byte, error) {
	room := min(f.most, max(zstdFirst, 8*int64(len(src))))
	if f.claims {
		if f.content > f.most {
			return nil, fmt.Errorf("zstd frame of %d bytes claims to hold %d", f.size, f.content)
		}
		room = f.content
	}
	left := limit - int64(len(dst))
	if f.claims && room > left {
		return nil, fmt.Errorf("%w: zstd frame holds %d bytes", seglog.ErrInflated, room)
	}
	most := max(left, zstdMaxBlock)
	log := bits.Len64(uint64(min(most, zstdMost) - 1))
	d, err := zstdDecoder(1 << log)
	if err != nil {
		return nil, err
	}
	if f.window > 1<<log {
		// No match reaches further back than there is output, so a smaller window does as well, and this decoder takes no
		// larger one.
		src[f.windowAt] = byte(log-10) << 3
	}
	dst = grow(dst, int(min(room, left))+zstdSlack)
	at := len(dst)
	out, err := d.DecodeAll(src, dst[at:at:cap(dst)])
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) || int64(len(out)) > left {
		return nil, fmt.Errorf("%w: zstd frame of %d bytes", seglog.ErrInflated, f.size)
	}
	if err != nil {
		return nil, err
	}
	return append(dst, out...), nil // moves nothing, if there was room enough
}

// zstdFrame is what a frame says of itself.
type zstdFrame struct {
	size    int   // of the frame
	skip    bool  // it holds no data
	claims  bool  // the header says that it holds
	content int64 // so many bytes
	most    int64 // what its blocks can hold at most

	window   uint64 // what the decoder is asked to keep
	windowAt int    // position of the byte that says so
}

// parseZstdFrame walks over the first frame of src, from block header to block header.
func parseZstdFrame(src []byte) (f zstdFrame, err error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return f, err
	}
	at := int64(h.HeaderSize)
	if h.Skippable {
		at += int64(h.SkippableSize)
		if at > int64(len(src)) {
			return f, fmt.Errorf("zstd skippable frame: %w", io.ErrUnexpectedEOF)
		}
		return zstdFrame{size: int(at), skip: true}, nil
	}
	if h.WindowSize > zstdMaxWindow {
		return f, zstd.ErrWindowSizeExceeded
	}
	f.window, f.windowAt = h.WindowSize, zstdWindowAt
	if h.HasFCS {
		f.claims, f.content = true, int64(min(h.FrameContentSize, 1<<62))
	}
	for last := false; !last; {
		if int64(len(src))-at < 3 {
			return f, fmt.Errorf("zstd block header: %w", io.ErrUnexpectedEOF)
		}
		b := int64(src[at]) | int64(src[at+1])<<8 | int64(src[at+2])<<16
		at += 3
		last = b&1 != 0
		size := b >> 3
		switch b >> 1 & 3 {
		case 0: // raw
			f.most += size
		case 1: // one byte, repeated
			f.most += size
			size = 1
		default:
			f.most += zstdMaxBlock
		}
		if at += size; at > int64(len(src)) {
			return f, fmt.Errorf("zstd block of %d bytes: %w", size, io.ErrUnexpectedEOF)
		}
	}
	if h.HasCheckSum {
		at += zstdChecksum
	}
	if at > int64(len(src)) {
		return f, fmt.Errorf("zstd checksum: %w", io.ErrUnexpectedEOF)
	}
	f.size = int(at)
	return f, nil
}

// zstdEncoder is used by EncodeAll alone, which is safe for concurrent use.
var zstdEncoder = func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}()

func encodeZstd(src []byte) []byte { return zstdEncoder.EncodeAll(src, nil) }
