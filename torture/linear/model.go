package linear

import (
	"encoding/binary"
	"fmt"

	"github.com/anishathalye/porcupine"
)

type kind int

const (
	doAppend kind = iota
	doAppendAt
	doAck // not a call: the moment at which an append returned, from which on its records are readable
	doRead
	doOffsets
	doTruncateTo
	doReset
	doDeleteBefore
)

var kindNames = [...]string{"Append", "AppendAt", "acknowledged", "Read", "Offsets", "TruncateTo", "Reset", "DeleteBefore"}

// call is what a client asks for. Records are known by a number each, consecutive in a batch.
type call struct {
	kind   kind
	offset int64
	id     uint32 // of the first record of an append
	count  int64  // of its records
}

// result is what it got. An append that returned a conflict, and any other call that was refused for its offset, has no other
// effect.
type result struct {
	refused    bool
	base       int64  // of an append
	id         uint32 // of a record that was read
	start, end int64
	readable   int64 // the high watermark
}

// log is the state of a log between two calls: records from start on, of which those below readable are certain to be so. It
// never changes, and two can be compared by ==.
type log struct {
	start    int64
	readable int64
	ids      string // four bytes a record
}

func (l log) end() int64 { return l.start + int64(len(l.ids)/4) }

// has reports whether the record at offset is the one with that number.
func (l log) has(offset int64, id uint32) bool {
	return offset >= l.start && offset < l.end() && binary.BigEndian.Uint32([]byte(l.ids[4*(offset-l.start):])) == id
}

// step is the log after a call, and whether it can have had that result. visible: what is stored is readable at once.
func (l log) step(c call, r result, visible bool) (bool, log) {
	switch c.kind {
	case doAppendAt, doAppend:
		if r.refused {
			return c.kind == doAppendAt && c.offset != l.end(), l
		}
		if r.base != l.end() || c.kind == doAppendAt && c.offset != r.base {
			return false, l
		}
		b := []byte(l.ids)
		for i := range c.count {
			b = binary.BigEndian.AppendUint32(b, c.id+uint32(i))
		}
		l.ids = string(b)
		if visible {
			l.readable = l.end()
		}
	case doAck:
		if last := c.offset + c.count - 1; l.has(last, c.id+uint32(c.count)-1) { // else it was cut away
			l.readable = max(l.readable, last+1)
		}
	case doRead:
		if r.refused {
			return c.offset < l.start || c.offset >= l.readable, l
		}
		if !l.has(c.offset, r.id) {
			return false, l
		}
		l.readable = max(l.readable, c.offset+1)
	case doOffsets:
		if r.start != l.start || r.end != l.end() || r.readable < l.readable || r.readable > r.end {
			return false, l
		}
		l.readable = r.readable
	case doTruncateTo:
		inside := c.offset >= l.start && c.offset <= l.end()
		if r.refused {
			return !inside, l
		}
		if !inside {
			return false, l
		}
		if c.offset < l.end() { // everything below is flushed first
			l.ids = l.ids[:4*(c.offset-l.start)]
			l.readable = c.offset
		}
	case doReset:
		l = log{start: c.offset, readable: c.offset}
	case doDeleteBefore:
		if r.refused {
			return c.offset > l.readable, l
		}
		if c.offset > l.end() {
			return false, l
		}
		if c.offset > l.start {
			l.ids = l.ids[4*(c.offset-l.start):]
			l.start = c.offset
			l.readable = max(l.readable, c.offset)
		}
	}
	return true, l
}

// model is a log that starts empty. visible: see log.step.
func model(visible bool) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return log{} },
		Step: func(state, in, out any) (bool, any) {
			ok, next := state.(log).step(in.(call), out.(result), visible)
			return ok, next
		},
		Equal: func(a, b any) bool { return a.(log) == b.(log) },
		DescribeOperation: func(in, out any) string {
			c, r := in.(call), out.(result)
			return fmt.Sprintf("%s %+v: %+v", kindNames[c.kind], c, r)
		},
	}
}
