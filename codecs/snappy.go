package codecs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/snappy"

	"github.com/seglog/seglog"
)

// The framing of snappy-java, which Kafka's own clients write: this magic, two int32 versions, then blocks, each an
// int32 length and that many bytes of raw snappy. Some other clients write one raw block and nothing around it.
const (
	xerialMagic     = "\x82SNAPPY\x00"
	xerialHeaderLen = len(xerialMagic) + 8
	xerialVersion   = 1 // the only one there ever was
)

// snappyMaxRatio is above the best a snappy block can do: a copy of 64 bytes takes 3 (format_description.txt).
const snappyMaxRatio = 22

func newSnappy(r io.Reader) (io.ReadCloser, error) { return inflated(r, decodeSnappy) }

func decodeSnappy(src []byte, limit int64) ([]byte, error) {
	if !bytes.HasPrefix(src, []byte(xerialMagic)) {
		return appendSnappyBlock(nil, src, limit)
	}
	var dst []byte
	for len(src) > 0 {
		// Streams that were appended to each other begin with a header again.
		if bytes.HasPrefix(src, []byte(xerialMagic)) {
			if len(src) < xerialHeaderLen {
				return nil, fmt.Errorf("xerial header: %w", io.ErrUnexpectedEOF)
			}
			if v := binary.BigEndian.Uint32(src[len(xerialMagic)+4:]); v > xerialVersion {
				return nil, fmt.Errorf("xerial framing needs version %d, known is %d", v, xerialVersion)
			}
			src = src[xerialHeaderLen:]
			continue
		}
		if len(src) < 4 {
			return nil, fmt.Errorf("xerial block length: %w", io.ErrUnexpectedEOF)
		}
		n := uint64(binary.BigEndian.Uint32(src))
		src = src[4:]
		if n > uint64(len(src)) {
			return nil, fmt.Errorf("xerial block of %d bytes, %d are left: %w", n, len(src), io.ErrUnexpectedEOF)
		}
		var err error
		if dst, err = appendSnappyBlock(dst, src[:n], limit); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	return dst, nil
}

// appendSnappyBlock checks the length that the block claims before it makes room for it.
func appendSnappyBlock(dst, block []byte, limit int64) ([]byte, error) {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return nil, err
	}
	if n > snappyMaxRatio*len(block) {
		return nil, fmt.Errorf("snappy block of %d bytes claims to hold %d", len(block), n)
	}
	if int64(n) > limit-int64(len(dst)) {
		return nil, fmt.Errorf("%w: snappy block holds %d bytes", seglog.ErrInflated, n)
	}
	dst = grow(dst, n)
	if _, err := snappy.Decode(dst[len(dst):len(dst)+n], block); err != nil {
		return nil, err
	}
	return dst[:len(dst)+n], nil
}

// snappyBlock is the size of the blocks that snappy-java makes.
const snappyBlock = 32 << 10

// encodeSnappy writes what Kafka's own clients do.
func encodeSnappy(src []byte) []byte {
	dst := append([]byte(xerialMagic), 0, 0, 0, xerialVersion, 0, 0, 0, xerialVersion)
	for len(src) > 0 {
		block := snappy.Encode(nil, src[:min(snappyBlock, len(src))])
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(block))), block...)
		src = src[min(snappyBlock, len(src)):]
	}
	return dst
}
