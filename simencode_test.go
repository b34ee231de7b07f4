package seglog

import "encoding/binary"

// encoded returns a batch as another program would write it. It follows the description of the format, not the engine's encoder,
// so that the two check each other.
func encoded(recs []Record, base int64) []byte {
	be := binary.BigEndian
	first := recs[0].Time.UnixMilli()
	greatest := first
	b := make([]byte, headerLen)
	for i := range recs {
		ms := recs[i].Time.UnixMilli()
		greatest = max(greatest, ms)
		body := binary.AppendVarint([]byte{0}, ms-first)
		body = binary.AppendVarint(body, int64(i))
		body = encodedBytes(body, recs[i].Key)
		body = encodedBytes(body, recs[i].Value)
		body = binary.AppendVarint(body, int64(len(recs[i].Headers)))
		for _, h := range recs[i].Headers {
			body = encodedBytes(body, append([]byte{}, h.Key...))
			body = encodedBytes(body, h.Value)
		}
		b = append(binary.AppendVarint(b, int64(len(body))), body...)
	}
	be.PutUint64(b[atBaseOffset:], uint64(base))
	b[atMagic] = magicV2
	be.PutUint32(b[atLastOffsetDelta:], uint32(len(recs)-1))
	be.PutUint64(b[atBaseTimestamp:], uint64(first))
	be.PutUint64(b[atMaxTimestamp:], uint64(greatest))
	for i := atProducerID; i < atRecordsCount; i++ {
		b[i] = 0xff // no producer
	}
	be.PutUint32(b[atRecordsCount:], uint32(len(recs)))
	batch(b).seal()
	return b
}

func encodedBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}
