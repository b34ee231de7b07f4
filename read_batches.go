package seglog

import (
	"context"
	"iter"
)

// RecordBatches is Records by the batch, which is what one Append stored, whole or not at all: each step gives the records of
// one, those from offset from on. A reader that keeps its own position moves it by whole steps, so that after a crash it
// never goes on in the middle of what was appended together. The records, and the slice, are valid until the next step.
// Batches is about headers instead.
func (l *Log) RecordBatches(from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.records(next, false, nil, &batcher{yield: yield}) }
}

// FollowBatches is RecordBatches that goes on, as Follow does.
func (l *Log) FollowBatches(ctx context.Context, from int64) iter.Seq2[[]Record, error] {
	next := l.newest(from)
	return func(yield func([]Record, error) bool) { l.followFrom(ctx, next, false, nil, &batcher{yield: yield}) }
}

// batcher gathers the records that a walk yields into those of whole batches.
type batcher struct {
	yield   func([]Record, error) bool
	records []Record
	headers []Header // of all of them: the decoder uses its own again for each
}

// of takes the records that r decodes.
func (b *batcher) of(r *reader) func(Record, error) bool {
	r.batched = true
	return func(rec Record, err error) bool {
		if err != nil {
			return b.err(rec, err)
		}
		if n := len(b.records); n > 0 && rec.Offset <= b.records[n-1].Offset {
			b.records, b.headers = b.records[:0], b.headers[:0] // the walk was interrupted, and begins the batch again
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

// err ends the sequence; a batch that was begun is not whole.
func (b *batcher) err(_ Record, err error) bool { return b.yield(nil, err) }
