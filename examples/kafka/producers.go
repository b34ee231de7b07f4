package main

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
)

// producers are the idempotent producers of one partition: for each the epoch and the last batches, so that a batch sent
// again, because its answer was lost, is answered again and not stored again. It is all in the batches themselves:
// after a restart it is read off the log's tail, once it is asked for.
type producers struct {
	mu    sync.Mutex          // guards byID and swept, not what is in them
	byID  map[int64]*producer // nil until the tail is read
	swept time.Time
	from  int64 // where the log's tail began when it was opened
}

type producer struct {
	mu     sync.Mutex // held over check, append and note: a producer's batches are in order anyway, others don't wait
	epoch  int16
	recent []stored
	used   time.Time // guarded by producers.mu
}

// stored is a batch as its producer numbered it, and where it is.
type stored struct {
	first, last int32
	base        int64
}

const (
	// recentBatches is how many a producer may have in flight (max.in.flight.requests.per.connection <= 5), thus how
	// many may come again.
	recentBatches = 5
	// forgetAfter is Kafka's producer.id.expiration.ms. A forgotten producer may go on with any sequence number.
	forgetAfter = 24 * time.Hour
)

// get returns a producer of the partition in log. The first call reads what there is to know of all of them; so a start does
// not have to read the tails of all logs.
func (ps *producers) get(log *seglog.Log, id int64) (*producer, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.byID == nil {
		ps.byID = map[int64]*producer{}
		if err := ps.load(log); err != nil {
			ps.byID = nil
			return nil, fmt.Errorf("producers: %w", err)
		}
	}
	return ps.find(id), nil
}

// find returns a producer, a new one if there is none. ps.mu is held.
func (ps *producers) find(id int64) *producer {
	now := time.Now()
	if now.Sub(ps.swept) > time.Hour {
		ps.swept = now
		ps.forget(now.Add(-forgetAfter))
	}
	p := ps.byID[id]
	if p == nil {
		if len(ps.byID) >= maxProducers {
			ps.forget(ps.medianUse())
		}
		p = &producer{epoch: -1}
		ps.byID[id] = p
	}
	p.used = now
	return p
}

// forget drops the producers not heard of since. ps.mu is held.
func (ps *producers) forget(since time.Time) {
	for id, p := range ps.byID {
		if !p.used.After(since) {
			delete(ps.byID, id)
		}
	}
}

// medianUse is a time after which half of the producers were heard of, or fewer. ps.mu is held.
func (ps *producers) medianUse() time.Time {
	times := make([]time.Time, 0, len(ps.byID))
	for _, p := range ps.byID {
		times = append(times, p.used)
	}
	slices.SortFunc(times, time.Time.Compare)
	return times[len(times)/2]
}

// check says whether a batch is the next of its producer. For one that is in the log already it returns where.
// p.mu is held.
func (p *producer) check(h batchHeader) (base int64, duplicate bool, err error) {
	switch {
	case h.firstSequence < 0 || h.producerEpoch < 0:
		return 0, false, refuse(kerr.InvalidRecord, "producer %d without epoch or sequence number", h.producerID)
	case p.epoch < 0: // not known (any more)
		return 0, false, nil
	case h.producerEpoch < p.epoch:
		return 0, false, refuse(kerr.InvalidProducerEpoch, "producer %d has epoch %d, current is %d", h.producerID, h.producerEpoch, p.epoch)
	case h.producerEpoch > p.epoch:
		if h.firstSequence != 0 {
			return 0, false, refuse(kerr.OutOfOrderSequenceNumber, "producer %d begins epoch %d with sequence number %d", h.producerID, h.producerEpoch, h.firstSequence)
		}
		return 0, false, nil
	}
	for _, b := range p.recent {
		if b.first == h.firstSequence && b.last == h.lastSequence() {
			return b.base, true, nil
		}
	}
	next := int32((int64(p.recent[len(p.recent)-1].last) + 1) & math.MaxInt32)
	if h.firstSequence != next {
		return 0, false, refuse(kerr.OutOfOrderSequenceNumber, "producer %d sent sequence number %d, %d is next", h.producerID, h.firstSequence, next)
	}
	return 0, false, nil
}

// note remembers a batch that was appended at base. p.mu is held.
func (p *producer) note(h batchHeader, base int64) {
	if h.producerEpoch != p.epoch {
		p.epoch, p.recent = h.producerEpoch, nil
	}
	if len(p.recent) == recentBatches {
		p.recent = slices.Delete(p.recent, 0, 1)
	}
	p.recent = append(p.recent, stored{h.firstSequence, h.lastSequence(), base})
}

// tailBytes is how much of a log's end is read for the state of its producers: enough for what producers with requests
// in flight at a crash had sent last, and read in a moment.
const tailBytes = 32 << 20

// tailOf is the offset where the tail of a log begins, reckoned by the average size of a record: nothing depends on it being
// exact.
func tailOf(log *seglog.Log) int64 {
	o := log.Offsets()
	if size := log.Stats().Bytes; size > tailBytes {
		return o.End - int64(float64(o.End-o.Start)*tailBytes/float64(size))
	}
	return o.Start
}

// load reads the state off the log's tail. A producer that is not found there may go on with any sequence number.
func (ps *producers) load(log *seglog.Log) error {
	for b, err := range log.Batches(max(ps.from, log.Offsets().Start)) {
		if err != nil {
			return err
		}
		if b.ProducerID >= 0 && !b.Control {
			h := batchHeader{producerEpoch: b.ProducerEpoch, firstSequence: b.BaseSequence, lastDelta: int32(b.Next - b.Base - 1)}
			ps.find(b.ProducerID).note(h, b.Base)
		}
	}
	return nil
}
