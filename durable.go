package seglog

import (
	"context"
	"iter"
	"net"
)

// DurableReader reads the records of a log that are on stable storage, up to the recovery point, so that a power cut takes
// none of them back. It does not flush: under FlushAsync it lags by up to Options.FlushInterval, under FlushNone until a
// Sync, a WaitDurable, or the seal that follows a roll. Its methods are like those of Log, and may be called from any
// goroutine.
type DurableReader struct{ l *Log }

// Durable returns a reader of the records that are on stable storage. Under FlushSync the log's own methods read no others.
//
// Use it to hand records on, to another machine or to a person: under FlushAsync and FlushNone a power cut may take back
// records that were read, and their offsets are then given to other records.
func (l *Log) Durable() DurableReader { return DurableReader{l} }

// Read is Log.Read of a record below the recovery point.
func (d DurableReader) Read(offset int64) (Record, error) { return d.l.readAgain(offset, true) }

// Records is Log.Records up to the recovery point.
func (d DurableReader) Records(from int64) iter.Seq2[Record, error] {
	next := d.l.newest(from)
	return func(yield func(Record, error) bool) { d.l.records(next, true, yield, nil) }
}

// Follow is Log.Follow, but yields each record only once it is on stable storage.
func (d DurableReader) Follow(ctx context.Context, from int64) iter.Seq2[Record, error] {
	next := d.l.newest(from)
	return func(yield func(Record, error) bool) { d.l.followFrom(ctx, next, true, yield, nil) }
}

// FollowBatches is Log.FollowBatches, but yields each batch only once it is on stable storage.
func (d DurableReader) FollowBatches(ctx context.Context, from int64) iter.Seq2[[]Record, error] {
	next := d.l.newest(from)
	return func(yield func([]Record, error) bool) { d.l.followFrom(ctx, next, true, nil, &batcher{yield: yield}) }
}

// Wait is Log.Wait for a record that is on stable storage. Unlike Log.WaitDurable it starts no flush.
func (d DurableReader) Wait(ctx context.Context, offset int64) error {
	return d.l.waitFor(ctx, d.l.newest(offset), -1, true)
}

// Section is Log.Section up to the recovery point.
func (d DurableReader) Section(offset, n int64) (*Section, error) {
	return d.l.sectionOf(offset, n, true)
}

// TransferTo is Log.TransferTo up to the recovery point.
func (d DurableReader) TransferTo(offset, n int64, conn net.Conn) (written int64, err error) {
	return d.l.transferTo(offset, n, conn, true)
}

// WaitDurable returns once the record at offset is on stable storage. It starts a flush if necessary, so under any policy
// those records that need it can be durable. If the record is not appended yet, WaitDurable waits for that too: with Oldest
// for the first record of the log, with Newest for the next one. Errors: those of ctx and of Sync; an *OffsetError if a Reset
// moved the log above the offset of a record that was not appended yet.
func (l *Log) WaitDurable(ctx context.Context, offset int64) error {
	oldest := offset == Oldest
	if offset = l.newest(offset); oldest {
		offset = l.start.Load()
	}
	asked := l.moment()
	for {
		err := l.durableWaiters.wait(ctx, func() (bool, error) {
			if err := l.writable(); err != nil {
				return false, err
			}
			return l.durable.Load() > offset || l.end.Load() > offset, nil
		})
		switch reset := offset >= asked.end && l.cuts.Load() != asked.cuts && l.start.Load() > offset; {
		case err == nil && reset && oldest:
			offset, asked = l.start.Load(), l.moment()
			continue
		case err == nil && reset:
			return &OffsetError{Offset: offset, Offsets: l.Offsets()}
		case err != nil || l.durable.Load() > offset:
			return err
		}
		if m := l.moment(); m.end > offset {
			if err := l.flushTo(moment{m.cuts, offset + 1}); err != nil {
				return err
			}
		}
	}
}
