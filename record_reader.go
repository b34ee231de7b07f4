package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
	"unsafe"
)

// recordReader decodes the records of one batch after another. A decoded Record aliases the batch and the reader's own slice
// of headers, both until the next call.
type recordReader struct {
	body []byte // the encoded records
	at   int    // index in body of the next record
	left int64  // number of records from at on

	// From the header of the batch:
	count    int64 // number of records
	base     int64 // base offset
	most     int64 // last offset delta
	baseTime int64 // base timestamp
	appended int64 // the timestamp of all records of a batch with LogAppendTime, else noTimestamp

	lastDelta int64     // offset delta of the record decoded last
	millis    int64     // its timestamp
	time      time.Time // the time of timeOf, which neighbours share
	timeOf    int64
	why       string // the reason why next has stopped before the end of the batch; "" if it has not
	headers   []Header
	names     map[string]string // header keys seen before, so that a repeated key is allocated once

	limit     int64  // bound, in bytes, of the inflated size of a compressed batch; 0 means defaultMaxInflated
	checkOnly bool   // headers are checked and not returned
	inflated  []byte // buffer for the records of a compressed batch
	room      int64  // the part of limit that is left for the headers of a record; -1 if the batch is not compressed
	over      bool   // why says that limit is exceeded, which is no damage
}

const (
	// maxNames and maxNameLen bound recordReader.names: real topics have a handful of short header keys.
	maxNames   = 64
	maxNameLen = 128
	// headerSize is the size of a Header in memory. In the format a header takes two bytes or more.
	headerSize = int64(unsafe.Sizeof(Header{}))
	// maxPooledHeaders is the capacity of the largest slice of headers that is kept for the next batch. No record has so many
	// headers unless it was made to use up memory.
	maxPooledHeaders = 4 << 10
)

// trim releases the last batch, and the buffers that only an unusual batch needs: the one for inflated records if it is
// larger than most bytes, and that for headers.
func (d *recordReader) trim(most int) {
	d.body = nil
	if cap(d.inflated) > most {
		d.inflated = nil
	}
	if cap(d.headers) > maxPooledHeaders {
		d.headers = nil
	}
}

// reset begins a whole batch, which it inflates if necessary. The error does not name the batch.
func (d *recordReader) reset(b batch) error {
	limit := d.limit
	if limit == 0 {
		limit = defaultMaxInflated
	}
	limit = min(limit, math.MaxInt-inflateChunk) // inflate adds inflateChunk to it
	body, inflated, err := b.inflate(d.inflated, limit)
	d.inflated = inflated
	if err != nil {
		return err
	}
	d.resetTo(b, body)
	if b.codec() != CodecNone {
		d.room = limit - int64(len(body))
	}
	return nil
}

// resetTo begins the batch with header b, whose records, inflated, are in body.
func (d *recordReader) resetTo(b batch, body []byte) {
	d.body, d.at, d.count, d.left, d.base, d.most = body, 0, b.count(), b.count(), b.base(), b.lastDelta()
	d.baseTime, d.appended, d.lastDelta, d.why = b.baseTimestamp(), noTimestamp, -1, ""
	d.room, d.over = -1, false
	if b.attributes()&attrLogAppendTime != 0 {
		d.appended = b.maxTimestamp()
	}
}

// inflate returns the encoded records of a whole batch: a part of b if it is not compressed, otherwise the inflated records in
// buf, which grows with the bytes that really come out and to no more than twice their number. The error is ErrInflated if
// there are more than limit bytes; it does not name the batch.
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
			size := max(inflateChunk, 2*int64(cap(buf)))
			if size >= limit { // in one step, so that all buffers together are twice the limit
				size = limit + inflateChunk
			}
			bigger := make([]byte, len(buf), int(size))
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

// next decodes one record into r. It returns false at the end of the batch, and before it if the batch is malformed; err then
// returns the reason.
func (d *recordReader) next(r *Record) bool {
	if d.left == 0 {
		if n := len(d.body) - d.at; n != 0 {
			d.why = fmt.Sprintf("%d bytes after the last record", n)
		}
		return false
	}
	var length int64
	i := d.at
	if i+1 < len(d.body) && d.body[i]&d.body[i+1] < 0x80 { // here and below varintAt and bytesAt are inlined for the usual sizes
		length, i = shortVarint(d.body[i], d.body[i+1], i)
	} else {
		length, i = varintAt(d.body, i)
	}
	if length < 1 || length > int64(len(d.body)-i) {
		return d.wrong("its length does not fit the batch")
	}
	p := d.body[i : i+int(length)]
	d.at = i + int(length)
	// p[0] holds the attributes, of which the format defines none.
	var timeDelta, delta int64
	if len(p) > 3 && (p[1]|p[2]) < 0x80 { // as in most records
		timeDelta, delta, i = unzigzag(p[1]), unzigzag(p[2]), 3
	} else {
		timeDelta, i = varintAt(p, 1)
		delta, i = varintAt(p, i)
	}
	if i < len(p) && p[i] == 1 { // no key
		r.Key, i = nil, i+1
	} else {
		r.Key, i = bytesAt(p, i)
	}
	if i+1 < len(p) && p[i]&p[i+1] < 0x80 && p[i]&1 == 0 { // a value
		var n int64
		n, i = shortVarint(p[i], p[i+1], i)
		if n > int64(len(p)-i) {
			return d.wrong(d.misfit(len(p)+1, len(p), delta))
		}
		r.Value, i = p[i:i+int(n):i+int(n)], i+int(n)
	} else {
		r.Value, i = bytesAt(p, i)
	}
	r.Headers = nil
	if i < len(p) && p[i] == 0 {
		i++
	} else {
		var headers int64
		headers, i = varintAt(p, i)
		if headers < 0 || headers > int64(len(p)-i) { // a header takes two bytes or more
			return d.wrong("its headers count does not fit")
		}
		if d.room >= 0 && headers > d.room/headerSize {
			d.over = true
			return d.wrong(fmt.Sprintf("its %d headers take more memory than is left", headers))
		}
		i = d.readHeaders(p, i, headers)
		r.Headers = d.headers
	}
	if i != len(p) || delta <= d.lastDelta || delta > d.most {
		return d.wrong(d.misfit(i, len(p), delta))
	}
	d.left--
	d.lastDelta = delta
	d.millis = d.baseTime + timeDelta
	if d.appended != noTimestamp {
		d.millis = d.appended
	}
	if d.millis != d.timeOf || d.time.IsZero() {
		d.time, d.timeOf = timeOf(d.millis), d.millis
	}
	r.Offset, r.Time = d.base+delta, d.time
	return true
}

// skip skips n records by their lengths, without a look at anything else. It returns false if a length does not fit the body.
func (d *recordReader) skip(n int64) bool {
	for ; n > 0; n-- {
		length, i := varintAt(d.body, d.at)
		if length < 1 || length > int64(len(d.body)-i) {
			return false
		}
		d.at = i + int(length)
	}
	return true
}

// misfit describes a record of n bytes whose fields end at i, or whose offset delta is out of order.
func (d *recordReader) misfit(i, n int, delta int64) string {
	switch {
	case i > n:
		return "a field does not fit the record"
	case i < n:
		return "there are bytes after its last field"
	default:
		return fmt.Sprintf("its offset delta is %d, after %d, and the last of the batch is %d", delta, d.lastDelta, d.most)
	}
}

// wrong notes the reason why the next record can't be decoded, and returns false.
func (d *recordReader) wrong(reason string) bool {
	d.why = fmt.Sprintf("record %d of %d: %s", d.count-d.left, d.count, reason)
	return false
}

// readHeaders decodes count headers from p[i:] into d.headers, or only checks them if checkOnly is set. It returns the index
// of the byte after them, or one beyond len(p) if they do not fit.
func (d *recordReader) readHeaders(p []byte, i int, count int64) int {
	d.headers = d.headers[:0]
	if count > int64(cap(d.headers)) || d.checkOnly {
		// A Header takes up to 20 times as much memory as in the record: allocate only after a check that all of them are there.
		if end := skipHeaders(p, i, count); end > len(p) || d.checkOnly {
			return end
		}
		d.headers = make([]Header, 0, max(count, 8))
	}
	for range count {
		var key, value []byte
		key, i = bytesAt(p, i)
		value, i = bytesAt(p, i)
		if key == nil || i > len(p) {
			return len(p) + 1
		}
		name, ok := d.names[string(key)]
		if !ok {
			name = string(key)
			if d.names == nil {
				d.names = make(map[string]string)
			}
			if len(d.names) < maxNames && len(name) <= maxNameLen {
				d.names[name] = name
			}
		}
		d.headers = append(d.headers, Header{Key: name, Value: value})
	}
	return i
}

// skipHeaders returns the index of the byte after count headers, or one beyond len(p) if they do not fit.
func skipHeaders(p []byte, i int, count int64) int {
	for range count {
		var key []byte
		key, i = bytesAt(p, i)
		_, i = bytesAt(p, i)
		if key == nil || i > len(p) {
			return len(p) + 1
		}
	}
	return i
}

// err returns the reason why next has stopped, as an error that does not name the batch; nil at the end of a good batch.
func (d *recordReader) err() error {
	switch {
	case d.why == "":
		return nil
	case d.over:
		return fmt.Errorf("%w: %s", ErrInflated, d.why)
	}
	return errors.New(d.why)
}

// unzigzag returns the value of a varint of one byte.
func unzigzag(c byte) int64 { return int64(c>>1) ^ -int64(c&1) }

// shortVarint is varintAt for a varint of one or two bytes: b0 at index i and, if b0 does not end it, b1.
func shortVarint(b0, b1 byte, i int) (int64, int) {
	u, n := uint64(b0), i+1
	if b0 >= 0x80 {
		u, n = u&0x7f|uint64(b1)<<7, i+2
	}
	return int64(u>>1) ^ -int64(u&1), n
}

// varintAt decodes the varint at p[i] and returns the index of the byte after it. If there is no varint, the index is one
// beyond len(p), and it remains so in further calls, so that a caller checks it once, after the last field.
func varintAt(p []byte, i int) (int64, int) {
	if i+1 < len(p) && p[i]&p[i+1] < 0x80 {
		return shortVarint(p[i], p[i+1], i)
	}
	if i < len(p) {
		if v, k := binary.Varint(p[i:]); k > 0 {
			return v, i + k
		}
	}
	return 0, len(p) + 1
}

// bytesAt decodes the field at p[i], which begins with its length; a length of -1 gives nil. The index is that of the byte
// after the field, or one beyond len(p), as with varintAt.
func bytesAt(p []byte, i int) ([]byte, int) {
	if i < len(p) && p[i] == 1 {
		return nil, i + 1
	}
	n, i := varintAt(p, i)
	if n < 0 || n > int64(len(p)-i) {
		if n == -1 {
			return nil, i
		}
		return nil, len(p) + 1
	}
	return p[i : i+int(n) : i+int(n)], i + int(n)
}

// timeOf returns the time of a timestamp. It is zero for -1, which stands for no time, and for other negative timestamps,
// which no writer may store.
func timeOf(ms int64) time.Time {
	if ms < 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// cutBatch returns a batch of the records of b below offset, for a TruncateTo that cuts inside b. At least one offset of b must
// be below offset. The records are compressed with the codec of b if a compressor is registered for it, so that the batch does
// not become larger than followers accept. limit is Options.MaxInflatedBytes.
func cutBatch(b batch, offset, limit int64) (batch, error) {
	d := recordReader{limit: limit, checkOnly: true}
	if err := d.reset(b); err != nil {
		return nil, err
	}
	var kept, count int
	greatest := int64(noTimestamp)
	var r Record
	for d.next(&r) && r.Offset < offset {
		kept, count = d.at, count+1
		greatest = max(greatest, d.millis)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	plain, attributes := d.body[:kept], b.attributes()
	body := plain
	if b.codec() != CodecNone {
		out, ok, err := deflate(b.codec(), plain)
		if err != nil {
			return nil, invalid("%v", err)
		}
		if ok && count > 0 {
			body = out
		} else {
			attributes &^= attrCodec
		}
	}
	cut := make(batch, headerLen+len(body))
	copy(cut, b[:headerLen])
	copy(cut[headerLen:], body)
	be := binary.BigEndian
	be.PutUint16(cut[atAttributes:], uint16(attributes))
	be.PutUint32(cut[atLastOffsetDelta:], uint32(offset-1-b.base()))
	be.PutUint64(cut[atMaxTimestamp:], uint64(greatest))
	be.PutUint32(cut[atRecordsCount:], uint32(count))
	cut.seal()
	if cut.codec() == CodecNone {
		return cut, nil
	}
	// The batch is about to take the place of b, so a compressor that lost something must be noticed now.
	if back, _, err := cut.inflate(nil, int64(len(plain))); err != nil || !bytes.Equal(back, plain) {
		return nil, invalid("the compressor registered for %v does not give back what it was given: %d bytes came to %d, and inflate to %d (%v)",
			cut.codec(), len(plain), len(body), len(back), err)
	}
	return cut, nil
}
