package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// checkProducer applies the rules by which a Kafka leader accepts the header of a producer's batch. It returns the rule that
// is broken, or "". A producer writes one record for each offset; the end of a transaction is a batch of one control record.
func (b batch) checkProducer() string {
	be := binary.BigEndian
	producer, producerEpoch := int64(be.Uint64(b[atProducerID:])), int16(be.Uint16(b[atProducerEpoch:]))
	sequence := int32(be.Uint32(b[atBaseSequence:]))
	switch {
	case b.count() == 0 || b.count() != b.lastDelta()+1:
		return fmt.Sprintf("records count is %d with last offset delta %d", b.count(), b.lastDelta())
	case b.codec() > CodecZstd:
		return b.codec().String() + " is not known"
	case b.control() && b.count() != 1:
		return fmt.Sprintf("control batch of %d records", b.count())
	case producer >= 0 && producerEpoch < 0:
		return fmt.Sprintf("producer id is %d with epoch %d", producer, producerEpoch)
	case producer >= 0 && sequence < 0 && !b.control():
		return fmt.Sprintf("producer id is %d with base sequence %d", producer, sequence)
	case producer < 0 && b.attributes()&attrTransactional != 0:
		return fmt.Sprintf("transactional batch with producer id %d", producer)
	}
	return ""
}

// checkRecords decodes the records of a producer's batch and checks that they agree with its header. It returns their greatest
// timestamp, which a Kafka leader computes too and does not take from the producer. If no decompressor is registered for the
// codec, it only checks that the compressed bytes can hold as many records as the header claims.
func (b batch) checkRecords(d *recordReader) (maxTimestamp int64, err error) {
	if err := d.reset(b); errors.Is(err, ErrCodec) {
		if most := mostRecords(b.codec(), b.size(), d.limit); b.count() > most {
			return 0, fmt.Errorf("records count is %d, where %d bytes of %v can't hold more than %d", b.count(), b.size()-headerLen, b.codec(), most)
		}
		return b.maxTimestamp(), nil
	} else if err != nil {
		return 0, err
	}
	maxTimestamp = noTimestamp
	var r Record
	for d.next(&r) {
		maxTimestamp = max(maxTimestamp, d.millis)
		if b.control() && len(r.Key) < minControlKey {
			return 0, fmt.Errorf("control record with a key of %d bytes", len(r.Key))
		}
	}
	if b.attributes()&attrLogAppendTime != 0 {
		maxTimestamp = b.maxTimestamp()
	}
	return maxTimestamp, d.err()
}

// minControlKey is the size of the smallest key of a control record: a version and a type, int16 each (Kafka's
// ControlRecordType.java).
const minControlKey = 4

// mostRecords returns a bound of the number of records in a compressed batch of size bytes that inflates to limit bytes at
// most. It assumes the greatest ratio that the codec can reach, and records of the smallest size. It replaces counting them
// where no decompressor is registered.
func mostRecords(c Codec, size, limit int64) int64 {
	ratio := int64(1 << 15) // zstd: a block of 4 bytes can inflate to 128 KiB
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

// minRecord is the size in bytes of the smallest record, whose seven fields have one byte each.
const minRecord = 7

// setMaxTimestamp sets the greatest timestamp in head, a copy of b's header, and the CRC that b then has.
func (b batch) setMaxTimestamp(head batch, ms int64) {
	binary.BigEndian.PutUint64(head[atMaxTimestamp:], uint64(ms))
	crc := crc32.Update(crc32.Checksum(head[atAttributes:headerLen], castagnoli), castagnoli, b[headerLen:])
	binary.BigEndian.PutUint32(head[atCRC:], crc)
}
