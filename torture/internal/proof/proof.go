// Package proof makes batches whose records say themselves what they must be, and keeps the ledger of those that a log
// acknowledged: after whatever was done to the log, the two show what is missing, what never was, and what is wrong.
package proof

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/seglog/seglog"
)

// Batch names what one Append of one writer stores; Seq counts that writer's appends within a run. All the rest follows
// from the name.
type Batch struct{ Run, Writer, Seq int }

// ID names a record of a batch.
type ID struct {
	Batch
	Index int
}

func (id ID) String() string {
	return fmt.Sprintf("%d/%d/%d/%d", id.Run, id.Writer, id.Seq, id.Index)
}

// mix is splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (b Batch) hash() uint64 {
	return mix(mix(mix(uint64(b.Run))+uint64(b.Writer)) + uint64(b.Seq))
}

// Len is how many records the batch has.
func (b Batch) Len() int { return 1 + int(b.hash()%8) }

// value is up to most bytes that follow from the name of the record.
func (id ID) value(most int) []byte {
	h := mix(id.hash() + uint64(id.Index))
	v := make([]byte, h%uint64(most+1))
	for i := range v {
		if i%8 == 0 {
			h = mix(h)
		}
		v[i] = byte(h >> (i % 8 * 8))
	}
	return v
}

// Records is the batch; most bounds the size of a value.
func (b Batch) Records(most int) []seglog.Record {
	records := make([]seglog.Record, b.Len())
	for i := range records {
		id := ID{b, i}
		records[i] = seglog.Record{Key: []byte(id.String()), Value: id.value(most)}
	}
	return records
}

// Identify returns which record r is; an error if its value is not that record's.
func Identify(r seglog.Record, most int) (ID, error) {
	var id ID
	parts := strings.Split(string(r.Key), "/")
	fields := []*int{&id.Run, &id.Writer, &id.Seq, &id.Index}
	if len(parts) != len(fields) {
		return id, fmt.Errorf("offset %d: the key %q is none of ours", r.Offset, r.Key)
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return id, fmt.Errorf("offset %d: the key %q is none of ours", r.Offset, r.Key)
		}
		*fields[i] = n
	}
	if id.Index >= id.Len() || !bytes.Equal(r.Value, id.value(most)) {
		return id, fmt.Errorf("offset %d: the value is not that of record %v", r.Offset, id)
	}
	return id, nil
}
