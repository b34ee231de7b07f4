package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
)

// A Fetch response is written here by hand, field by field as kmsg's FetchResponse documents them, and the bytes of each
// section go from the file to the socket between two pieces of it:
//
//	size, header, .. partition fields, records length | section | .. partition fields, records length | section | ..
//
// A section knows its length before it is sent, which is what makes the length in front of it possible.

// inlineBytes is the size up to which a section is copied into the response: up to about there one write of everything
// costs less than a header, a sendfile and a write of what follows (measured for the library: docs/performance.md).
const inlineBytes = 64 << 10

// inlineMost bounds what all the sections that are copied into one response may take.
const inlineMost = 1 << 20

// cut is a place in the encoded response at which a section is to be sent.
type cut struct {
	at      int
	section *seglog.Section
}

func (r *fetchResponse) send(c *conn, rq *request) error {
	defer r.close()
	b, cuts, err := r.encode(rq)
	if err != nil {
		return err
	}
	size := int64(len(b) - 4)
	for _, cut := range cuts {
		size += cut.section.Len()
	}
	if size > math.MaxInt32 {
		return fmt.Errorf("fetch response of %d bytes", size)
	}
	binary.BigEndian.PutUint32(b, uint32(size))
	sent := 0
	for _, cut := range cuts {
		cut.section.SetHeader(b[sent:cut.at])
		sent = cut.at
		if err := c.allow(cut.section.Len()); err != nil {
			return err
		}
		if _, err := cut.section.WriteTo(c.TCPConn); err != nil {
			return err
		}
	}
	if err := c.allow(int64(len(b) - sent)); err != nil {
		return err
	}
	_, err = c.Write(b[sent:])
	return err
}

// encode lays out all but the sections that leave by sendfile.
func (r *fetchResponse) encode(rq *request) (b []byte, cuts []cut, err error) {
	v := rq.body.GetVersion()
	flexible := rq.body.IsFlexible()
	b = appendResponseHeader(nil, rq)
	b = kbin.AppendInt32(b, 0) // throttle time
	if v >= 7 {
		b = kbin.AppendInt16(b, 0)
		b = kbin.AppendInt32(b, 0) // session id: none, every request names its partitions in full
	}
	b = appendArrayLen(b, len(r.req.Topics), flexible)
	parts, inline := r.parts, int64(inlineMost)
	for _, t := range r.req.Topics {
		if flexible {
			b = kbin.AppendCompactString(b, t.Topic)
		} else {
			b = kbin.AppendString(b, t.Topic)
		}
		b = appendArrayLen(b, len(t.Partitions), flexible)
		for i := range t.Partitions {
			b = parts[i].appendFields(b, t.Partitions[i].Partition, v)
			s := parts[i].section
			switch {
			case s == nil:
				b = appendRecordsLen(b, 0, flexible)
			case s.Len() <= min(inlineBytes, inline):
				inline -= s.Len()
				b = appendRecordsLen(b, s.Len(), flexible)
				w := bytes.NewBuffer(b)
				if _, err := s.WriteTo(w); err != nil {
					return nil, nil, err
				}
				b = w.Bytes()
			default:
				b = appendRecordsLen(b, s.Len(), flexible)
				cuts = append(cuts, cut{len(b), s})
			}
			b = appendNoTags(b, flexible)
		}
		parts = parts[len(t.Partitions):]
		b = appendNoTags(b, flexible)
	}
	return appendNoTags(b, flexible), cuts, nil
}

// appendFields adds what comes before the records of a partition.
func (f *fetched) appendFields(b []byte, partition int32, v int16) []byte {
	start, high := f.offsets.Start, f.offsets.HighWatermark
	if f.err != nil && code(f.err) != kerr.OffsetOutOfRange.Code {
		start, high = -1, -1
	}
	b = kbin.AppendInt32(b, partition)
	b = kbin.AppendInt16(b, code(f.err))
	b = kbin.AppendInt64(b, high)
	b = kbin.AppendInt64(b, high) // last stable offset: the same where there are no transactions
	if v >= 5 {
		b = kbin.AppendInt64(b, start)
	}
	b = appendArrayLen(b, 0, v >= 12) // aborted transactions
	if v >= 11 {
		b = kbin.AppendInt32(b, -1) // preferred read replica
	}
	return b
}

func appendArrayLen(b []byte, n int, flexible bool) []byte {
	if flexible {
		return kbin.AppendCompactArrayLen(b, n)
	}
	return kbin.AppendArrayLen(b, n)
}

// appendRecordsLen adds the length of a byte field whose bytes follow.
func appendRecordsLen(b []byte, n int64, flexible bool) []byte {
	if flexible {
		return kbin.AppendUvarint(b, uint32(n)+1)
	}
	return kbin.AppendInt32(b, int32(n))
}

func appendNoTags(b []byte, flexible bool) []byte {
	if flexible {
		return append(b, 0)
	}
	return b
}
