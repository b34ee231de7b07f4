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
