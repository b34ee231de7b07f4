package seglog

import (
	"context"
	"iter"
)

// RecordBatches is like Records, but yields the records of one batch at each step. A batch holds the records of one Append,
// which are stored together or not at all. Of the first batch, only the records from offset from on are yielded. A reader
// that stores its position after each step never goes on, after a crash, in the middle of records that were appended
// together. The slice and its records are valid until the next step. Batches returns headers of batches instead.
func (l *Log) RecordBatches(from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.records(next, false, nil, &batcher{yield: yield}) }
}

// FollowBatches is like RecordBatches, but waits for more records as Follow does.
func (l *Log) FollowBatches(ctx context.Context, from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.followFrom(ctx, next, false, nil, &batcher{yield: yield}) }
}

// batcher collects the records that a walk yields, until it has those of a whole batch.
type batcher struct {
	yield   func([]Record, error) bool
	records []Record
	headers []Header // those of all records: the decoder reuses its own slice for the next record
}

// of returns a yield function for records that r decodes, and tells r that an interrupted walk must begin the batch again.
func (b *batcher) of(r *reader) func(Record, error) bool {
	r.batched = true
	return func(rec Record, err error) bool {
		if err != nil {
			return b.err(rec, err)
		}
		if n := len(b.records); n > 0 && rec.Offset <= b.records[n-1].Offset {
			b.records, b.headers = b.records[:0], b.headers[:0] // an interrupted walk has begun the batch again
		}
		if rec.Headers != nil {
			n := len(b.headers)
			b.headers = append(b.headers, rec.Headers...)
			rec.Headers = b.headers[n:len(b.headers):len(b.headers)]
		}
		b.records = append(b.records, rec)
		if r.d.left > 0 {
			return true
		}
		more := b.yield(b.records, nil)
		for i := range b.records {
			poison(&b.records[i])
		}
		b.records, b.headers = b.records[:0], b.headers[:0]
		return more
	}
}

// err yields an error, which ends the iteration. The records collected so far are dropped, since their batch is not whole.
func (b *batcher) err(_ Record, err error) bool { return b.yield(nil, err) }
