package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// simUser calls a log, and reports its calls and their results to an oracle and to the trace of the simulation, if there is one.
// Its methods return the error of the log's call. If the log breaks its contract, they set wrong.
type simUser struct {
	fsys  vfs.FS
	sim   *sim.FS // nil if the file system is not simulated
	dir   string
	opts  Options
	log   *Log
	o     *oracle
	rng   *rand.Rand
	id    int64         // the number of the last record
	doubt []*concurrent // concurrent appends that failed
	// retained is the greatest start offset seen.
	retained int64
	wrong    error // the first violation
}

func newSimUser(fsys *sim.FS, opts Options, seed uint64) *simUser {
	return &simUser{fsys: fsys, sim: fsys, dir: sim.Dir, opts: opts, o: newOracle(0), rng: rand.New(rand.NewPCG(seed, 2))}
}

func (u *simUser) event(name string, f func(*oracle)) {
	f(u.o)
	if u.sim != nil {
		u.sim.Event(name, f)
	}
}

func (u *simUser) bad(format string, args ...any) {
	if u.wrong == nil {
		u.wrong = fmt.Errorf(format, args...)
	}
}

// record makes a unique record.
func (u *simUser) record() Record {
	u.id++
	r := Record{Time: time.UnixMilli(1_700_000_000_000 + u.id*10 - int64(u.rng.IntN(2)*u.rng.IntN(3000))).UTC()}
	r.Value = binary.BigEndian.AppendUint64(nil, uint64(u.id))
	switch n := u.rng.IntN(20); {
	case n == 0:
		r.Key, r.Value = r.Value, nil
	case n == 1: // zeros, which look like the end of the data in a segment
		r.Key = []byte{}
		r.Value = append(r.Value, make([]byte, u.rng.IntN(600))...)
	case n == 2: // bytes that look like a batch
		fake := []Record{{Time: r.Time, Value: []byte("fake")}}
		r.Value = append(r.Value, encoded(fake, u.id)...)
	case n == 3:
		r.Headers = []Header{{Key: "h"}, {Key: "", Value: []byte{}}, {Key: "id", Value: slices.Clone(r.Value)}}
	default:
		size := 40
		if n < 8 {
			size = 1300
		}
		filler := make([]byte, u.rng.IntN(size))
		for i := range filler {
			filler[i] = byte(u.rng.Uint32())
		}
		r.Value = append(r.Value, filler...)
	}
	return r
}

// batch makes up to n records, as the log will show them from offset base on.
func (u *simUser) batch(n int, base int64) []Record {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = u.record()
		recs[i].Offset = base + int64(i)
	}
	for len(encoded(recs, base)) > minSegmentBytes { // too large for any log
		recs = recs[:len(recs)-1]
	}
	return recs
}

// given returns records as a caller passes them: with offsets that the log must ignore.
func given(recs []Record) []Record {
	in := slices.Clone(recs)
	for i := range in {
		in[i].Offset = -7
	}
	return in
}

func (u *simUser) open() error {
	l, err := openFS(u.fsys, u.dir, &u.opts)
	if err != nil {
		return err
	}
	u.log = l
	got, err := readLog(l)
	if err != nil {
		ignore(l.Close())
		return err
	}
	u.retained = max(u.retained, got.start)
	u.settle(got)
	if err := u.o.check(got, false); err != nil {
		u.bad("after open: %w", err)
	}
	u.event("opened "+fmt.Sprint(got.start, " to ", got.end), func(o *oracle) { o.opened(got) })
	return nil
}

// observe notes the bounds that the log reports, and checks them.
func (u *simUser) observe() {
	o := u.log.Offsets()
	if o.Start > o.RecoveryPoint || o.RecoveryPoint > o.HighWatermark || o.HighWatermark > o.End {
		u.bad("offsets out of order: %+v", o)
	}
	if u.opts.Flush == FlushSync && o.HighWatermark > o.RecoveryPoint {
		u.bad("shows records that are not durable: %+v", o)
	}
	u.retained = max(u.retained, o.Start)
	u.event(fmt.Sprintf("claims %+v", o), func(or *oracle) { or.flushed(o.RecoveryPoint) })
}

func (u *simUser) end() int64 { return u.o.only().end() }

// appended notes the result of an append. A failed append must have left no trace, unless the log has latched: then it may have.
func (u *simUser) appended(recs []Record, base int64, err error) error {
	want, end := recs[0].Offset, recs[len(recs)-1].Offset+1
	if err != nil {
		if o := u.log.Offsets(); o.End == want && u.log.failed() == nil {
			u.event("not appended", func(o *oracle) { o.forget(want) })
		}
		return err
	}
	if base != want {
		u.bad("append returned offset %d, want %d", base, want)
	}
	u.event(fmt.Sprint("acknowledged to ", end), func(o *oracle) {
		o.ack(end)
		if u.opts.Flush == FlushSync {
			o.flushed(end)
		}
	})
	u.observe()
	return nil
}

func (u *simUser) append(n int) error {
	recs := u.batch(n, u.end())
	u.event(fmt.Sprint("append ", n, " at ", recs[0].Offset), func(o *oracle) { o.begin(recs) })
	base, err := u.log.Append(given(recs)...)
	return u.appended(recs, base, err)
}

func (u *simUser) appendBatch(n int) error {
	recs := u.batch(n, u.end())
	u.event(fmt.Sprint("append batch of ", n, " at ", recs[0].Offset), func(o *oracle) { o.begin(recs) })
	base, err := u.log.AppendBatch(encoded(recs, 12345))
	return u.appended(recs, base, err)
}

// leaderEpoch returns an epoch for the next batches of a leader: at random either the one that the log's own appends would get,
// or the epoch of the last batch, which may be below the fence that a cut left and then lifts it.
func (u *simUser) leaderEpoch() (int32, error) {
	l := u.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.rng.IntN(2) == 0 || l.writable() != nil {
		return l.writer.nextEpoch(), nil
	}
	epoch, err := l.lastEpoch()
	return max(0, epoch), err
}

// transferFrom receives batches from a leader, at the end of the log.
func (u *simUser) transferFrom(batches int) error {
	var all []Record
	var stream []byte
	at := u.end()
	epoch, err := u.leaderEpoch()
	if err != nil {
		return err
	}
	for range batches {
		recs := u.batch(1+u.rng.IntN(3), at+int64(len(all)))
		u.event(fmt.Sprint("transfer ", len(recs), " at ", recs[0].Offset), func(o *oracle) { o.begin(recs) })
		all = append(all, recs...)
		b := batch(encoded(recs, recs[0].Offset))
		b.setEpoch(epoch)
		stream = append(stream, b...)
	}
	n, err := u.log.TransferFrom(bytes.NewReader(stream), int64(len(stream)))
	if err == nil && n != int64(len(stream)) {
		u.bad("TransferFrom took %d bytes of %d without error", n, len(stream))
	}
	if err != nil {
		if end := u.log.Offsets().End; u.log.failed() == nil {
			u.event("transferred in part", func(o *oracle) { o.forget(end); o.ack(end) })
		}
		return err
	}
	return u.appended(all, at, nil)
}

// concurrent is one of several concurrent appends. Its offset is known once it returns or, if it fails and leaves its records in
// doubt, once the log has been opened again. The events in the trace that depend on the offset are resolved then.
type concurrent struct {
	recs  []Record
	base  int64
	err   error
	known bool // base is known
}

func (c *concurrent) at(base int64) {
	for i := range c.recs {
		c.recs[i].Offset = base + int64(i)
	}
	c.base, c.known = base, true
}

func (c *concurrent) begin(o *oracle) {
	if c.known {
		o.begin(c.recs)
	}
}

// appendTogether appends from several goroutines at once.
func (u *simUser) appendTogether(callers int) error {
	calls := make([]*concurrent, callers)
	for i := range calls {
		calls[i] = &concurrent{recs: u.batch(1+u.rng.IntN(3), 0)}
	}
	var wg sync.WaitGroup
	for _, c := range calls {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if u.sim != nil {
				u.sim.Event("append together", c.begin)
			}
			c.base, c.err = u.log.Append(given(c.recs)...)
			if u.sim != nil {
				u.sim.Event("acknowledged together", func(o *oracle) { u.ackTogether(o, c.recs, c.err) })
			}
		}()
	}
	wg.Wait()
	slices.SortFunc(calls, func(a, b *concurrent) int { return int(a.base - b.base) })
	var errs []error
	at := u.end()
	for _, c := range calls {
		errs = append(errs, c.err)
		if c.err != nil {
			u.doubt = append(u.doubt, c)
			continue
		}
		if c.base != at {
			u.bad("concurrent append returned offset %d, want %d", c.base, at)
		}
		c.at(c.base)
		at += int64(len(c.recs))
		u.o.begin(c.recs)
		u.ackTogether(u.o, c.recs, nil)
	}
	u.observe()
	return errors.Join(errs...)
}

// settle finds, in the contents of a log that was opened again, the failed appends that were stored all the same.
func (u *simUser) settle(got *content) {
	for len(u.doubt) > 0 && len(u.o.lineages) == 1 {
		at := u.end() - got.start
		if at < 0 || at >= int64(len(got.recs)) {
			break
		}
		i := slices.IndexFunc(u.doubt, func(c *concurrent) bool {
			first := c.recs[0]
			first.Offset = got.recs[at].Offset
			return differ(&got.recs[at], &first) == ""
		})
		if i < 0 {
			break
		}
		u.doubt[i].at(got.recs[at].Offset)
		u.doubt[i].begin(u.o)
		u.doubt = slices.Delete(u.doubt, i, i+1)
	}
	u.doubt = nil
}

func (u *simUser) ackTogether(o *oracle, recs []Record, err error) {
	if err != nil {
		return
	}
	o.ack(recs[len(recs)-1].Offset + 1)
	if u.opts.Flush == FlushSync {
		o.flushed(recs[len(recs)-1].Offset + 1)
	}
}

// remove runs a call that removes records.
func (u *simUser) remove(name string, offset int64, call func(int64) error, after func(*lineage, int64)) error {
	u.event(fmt.Sprint("begin ", name, " ", offset), func(o *oracle) { o.remove(func(l *lineage) { after(l, offset) }) })
	err := call(offset)
	u.event(fmt.Sprint("end ", name, " ", offset, " ", err), func(o *oracle) { o.removed(err == nil) })
	if err == nil {
		u.observe()
	}
	return err
}

func (u *simUser) truncateTo(offset int64) error {
	return u.remove("TruncateTo", offset, u.log.TruncateTo, (*lineage).truncate)
}

func (u *simUser) reset(offset int64) error {
	return u.remove("Reset", offset, u.log.Reset, (*lineage).reset)
}

func (u *simUser) deleteBefore(offset int64) error {
	return u.remove("DeleteBefore", offset, u.log.DeleteBefore, (*lineage).deleteBefore)
}

func (u *simUser) sync() error {
	err := u.log.Sync()
	if err == nil {
		end := u.end()
		u.event(fmt.Sprint("synced to ", end), func(o *oracle) { o.flushed(end) })
	}
	return err
}

func (u *simUser) close() error {
	err := u.log.Close()
	if err == nil {
		end := u.end()
		u.event(fmt.Sprint("closed at ", end), func(o *oracle) { o.flushed(end) })
	}
	u.log = nil
	return err
}

// verify reads and checks everything: without a crash, a log shows exactly the acknowledged records.
func (u *simUser) verify() error {
	got, err := readLog(u.log)
	if err != nil {
		return err
	}
	u.retained = max(u.retained, got.start)
	if err := u.o.check(got, false); err != nil {
		u.bad("read: %w", err)
	}
	if end := u.end(); got.end != end {
		u.bad("shows records below %d, want those below %d", got.end, end)
	}
	return nil
}

// step makes a random call.
func (u *simUser) step() error {
	l := u.o.only()
	between := func(lo, hi int64) int64 { return lo + u.rng.Int64N(hi-lo+1) }
	lo := max(l.start, u.log.Offsets().Start)
	switch n := u.rng.IntN(100); {
	case n < 40:
		return u.append(1)
	case n < 55:
		return u.append(2 + u.rng.IntN(4))
	case n < 62:
		return u.appendBatch(1 + u.rng.IntN(3))
	case n < 69:
		return u.transferFrom(1 + u.rng.IntN(3))
	case n < 73:
		return u.appendTogether(2 + u.rng.IntN(4))
	case n < 79:
		return u.truncateTo(between(max(lo, l.end()-6), l.end()))
	case n < 81:
		return u.truncateTo(between(lo, l.end()))
	case n < 82:
		return u.reset(between(0, l.end()+20))
	case n < 86:
		return u.deleteBefore(between(lo, l.end()))
	case n < 90:
		return u.log.rest(n < 88)
	case n < 94:
		return u.sync()
	case n < 96:
		return u.verify()
	}
	if err := u.close(); err != nil {
		return err
	}
	return u.open()
}
