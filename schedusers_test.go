//go:build go1.25

package seglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/sim"
)

// phase opens the log, runs its users, and closes it. It reports whether the log can be opened again.
func (r *schedRun) phase(w *schedLog, number, phase int) bool {
	c := r.c
	rng := rand.New(rand.NewPCG(c.seed, uint64(100+10*number+phase)))
	opts := c.options(rng, w)
	for tries := 0; ; tries++ {
		err := w.open(opts)
		if err == nil {
			break
		}
		if tries > 400 || !c.forgives(w.sim, err) {
			w.bad("open: %w", err)
			return false
		}
	}
	var wg sync.WaitGroup
	for i := range c.users {
		name := fmt.Sprintf("log%d.%d user%d", number, phase, i)
		u := &schedUser{w: w, name: name, rng: rand.New(rand.NewPCG(c.seed, sim.FNV(name))), id: int64(1+number*1000+phase*100+i) << 20}
		leaves := c.leaves && i == c.users-1
		wg.Add(1)
		r.s.Spawn(name, func() {
			defer wg.Done()
			calls := c.calls
			if leaves {
				calls = u.rng.IntN(c.calls)
			}
			for range calls {
				if w.wrong != nil || w.l.closed.Load() {
					return
				}
				u.step()
			}
			if leaves {
				ignore(w.close())
			}
		})
	}
	if c.readOnly {
		wg.Add(1)
		r.s.Spawn(fmt.Sprintf("log%d.%d process", number, phase), func() {
			defer wg.Done()
			w.follower(rand.New(rand.NewPCG(c.seed, uint64(phase))), c.calls)
		})
	}
	wg.Wait()
	sched.Yield("users gone")
	w.close()
	w.gone = true
	return w.wrong == nil
}

// step makes one random call.
func (u *schedUser) step() {
	c := u.w.c
	o := u.w.observe()
	type act struct {
		weight int
		call   func(o Offsets)
	}
	acts := []act{{40, u.append}, {8, u.appendBatch}, {10, u.read}, {4, u.walk}, {3, u.follow}, {4, u.section},
		{6, u.sync}, {4, u.rest}, {4, u.waitDurable}, {3, u.wait}, {2, u.time}, {3, u.pause}}
	if c.transfers {
		acts = append(acts, act{8, u.transfer})
	}
	if c.cuts {
		acts = append(acts, act{10, u.truncate}, act{2, u.reset})
	}
	if c.deletions {
		acts = append(acts, act{6, u.deleteBefore})
	}
	if c.retention {
		acts = append(acts, act{4, u.retain})
	}
	if c.snapshots {
		acts = append(acts, act{5, func(Offsets) { u.w.snapshot(u.w.l, u.name, u.w.asked()) }})
	}
	sum := 0
	for _, a := range acts {
		sum += a.weight
	}
	n := u.rng.IntN(sum)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			a.call(o)
			return
		}
	}
}

func (u *schedUser) between(lo, hi int64) int64 { return lo + u.rng.Int64N(max(0, hi-lo)+1) }

func (u *schedUser) append(Offsets) {
	recs := u.batch()
	c := &histCall{kind: histAppend, recs: recs}
	ignore(u.w.do(c, fmt.Sprintf("%s: append of %d", u.name, len(recs)), func() (err error) {
		c.offset, err = u.w.l.Append(given(recs)...)
		return err
	}))
}

func (u *schedUser) appendBatch(Offsets) {
	recs := u.batch()
	c := &histCall{kind: histAppend, recs: recs}
	ignore(u.w.do(c, fmt.Sprintf("%s: append batch of %d", u.name, len(recs)), func() (err error) {
		c.offset, err = u.w.l.AppendBatch(encoded(recs, 77))
		return err
	}))
}

// transfer sends batches as a leader would. Concurrent appends make some of them fail with ErrNotJoined.
func (u *schedUser) transfer(o Offsets) {
	w := u.w
	var calls []*histCall
	var stream []byte
	var ends []int64
	at := o.End
	for i := range 1 + u.rng.IntN(3) {
		if i > 0 && w.c.gaps && u.rng.IntN(2) == 0 {
			at += 1 + u.rng.Int64N(5)
		}
		recs := u.batch()
		for k := range recs {
			recs[k].Offset = at + int64(k)
		}
		calls = append(calls, &histCall{kind: histAppend, recs: recs, fixed: true, offset: at, policy: w.opts.Flush})
		stream = append(stream, encoded(recs, at)...)
		ends = append(ends, int64(len(stream)))
		at += int64(len(recs))
	}
	w.note(fmt.Sprintf("begin %s: transfer of %d batches at %d to %d", u.name, len(calls), o.End, at), func(h *history) {
		w.cut(1) // an empty log takes the first offset of the stream as its start
		for _, c := range calls {
			h.begin(c)
		}
	})
	n, err := w.l.TransferFrom(bytes.NewReader(stream), int64(len(stream)))
	failed := w.l.failed() != nil || errors.Is(err, ErrClosed)
	w.note(fmt.Sprintf("end %s: transfer of %d bytes, %v", u.name, n, err), func(h *history) {
		for i, c := range calls {
			if ends[i] > n {
				c.err, c.none, c.doubt = err, !failed, failed
				if err == nil {
					w.bad("TransferFrom took %d of %d bytes without an error", n, len(stream))
				}
			}
			h.finish(c)
		}
		w.cut(-1)
	})
	w.fine("transfer", err)
}

// acknowledged returns a random append since the log was opened, and one of its offsets; nil if there is none.
func (u *schedUser) acknowledged() (*histCall, int64) {
	w := u.w
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	var all []*histCall
	for _, c := range w.h.calls {
		switch {
		case c.kind == histOpened:
			all = nil
		case c.kind == histAppend && c.end < histRuns && c.err == nil:
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, 0
	}
	c := all[u.rng.IntN(len(all))]
	return c, c.offset + u.rng.Int64N(int64(len(c.recs)))
}

func (u *schedUser) read(o Offsets) {
	c, offset := u.acknowledged()
	if c == nil {
		offset = u.between(o.Start, o.End)
	}
	asked := u.w.asked()
	r, err := u.w.l.Read(offset)
	if errors.Is(err, ErrOutOfRange) && c != nil {
		u.w.missed(c, offset, err)
	}
	if !u.w.fine("read", err) {
		return
	}
	if r.Offset != offset {
		u.w.bad("read of %d returned %d", offset, r.Offset)
	}
	u.w.saw(&r, asked)
	if c != nil && schedID(&r) != schedID(&c.recs[offset-c.offset]) {
		u.w.missed(c, offset, fmt.Sprintf("another record is there, %x", schedID(&r)))
	}
}

func (u *schedUser) walk(o Offsets) {
	asked := u.w.asked()
	u.seen(u.between(o.Start, o.HighWatermark), u.w.l.start.Load(), 30, asked, u.w.l.Records)
}

// seen checks the records that an iterator yields from offset from on. Those below start may have been deleted.
func (u *schedUser) seen(from, start int64, most int, asked int, seq func(int64) iter.Seq2[Record, error]) {
	next := from
	for r, err := range seq(from) {
		if !u.w.fine("walk", err) {
			return
		}
		if r.Offset < next || r.Offset > next && !u.w.c.gaps {
			u.w.bad("walk: %d after %d", r.Offset, next-1)
		}
		next = r.Offset + 1
		if r.Offset >= start { // the first batch of a section may begin below the start
			u.w.saw(&r, asked)
		}
		if most--; most == 0 || u.w.wrong != nil {
			return
		}
	}
}

func (u *schedUser) follow(o Offsets) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+u.rng.IntN(300))*time.Millisecond)
	defer cancel()
	// Follow may still yield records that a cut removes after this event.
	asked := u.w.asked()
	u.seen(u.between(o.Start, o.HighWatermark), u.w.l.start.Load(), 10, asked, func(from int64) iter.Seq2[Record, error] { return u.w.l.Follow(ctx, from) })
}

func (u *schedUser) section(o Offsets) {
	asked, start := u.w.asked(), u.w.l.start.Load() // a Reset may move the start back before the section is read
	s, err := u.w.l.Section(u.between(o.Start, o.HighWatermark), u.rng.Int64N(9000))
	if !u.w.fine("section", err) {
		return
	}
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	if u.w.fine("section", err) && n != s.Len() {
		u.w.bad("section: %d of %d bytes", n, s.Len())
	}
	if err == nil {
		u.seen(s.Base(), max(start, u.w.l.start.Load()), math.MaxInt, asked, func(int64) iter.Seq2[Record, error] { return Decode(&b) }) // whole batches
	}
	u.w.fine("section", s.Close())
}

func (u *schedUser) sync(Offsets) {
	ignore(u.w.do(&histCall{kind: histMark, offset: math.MaxInt64}, u.name+": sync", u.w.l.Sync))
}

func (u *schedUser) rest(Offsets) {
	if u.rng.IntN(3) > 0 {
		ignore(u.w.l.rest(u.rng.IntN(2) == 0))
	} else if _, awake := u.w.l.appendWarmth(); awake { // as for another log that needs a descriptor
		u.w.l.makeRest()
	}
}

func (u *schedUser) waitDurable(o Offsets) {
	offset := u.between(max(o.Start, o.End-3), o.End+2)
	if !u.w.c.future {
		offset = min(offset, o.End-1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	w := u.w
	c := &histCall{kind: histMark, offset: offset + 1, policy: w.opts.Flush}
	w.note(fmt.Sprintf("begin %s: wait until %d is durable", u.name, offset), func(h *history) { h.begin(c) })
	err := w.l.WaitDurable(ctx, offset)
	end := w.l.Offsets()
	w.note(fmt.Sprintf("end %s: %d is durable, %v", u.name, offset, err), func(h *history) { c.err = err; h.finish(c) })
	w.fine("wait until durable", err, context.DeadlineExceeded)
	if errors.Is(err, context.DeadlineExceeded) && end.End > offset && w.stoodStill(offset, c.begin) {
		w.bad("WaitDurable(%d) waited in vain: %+v", offset, end)
	}
}

// stoodStill reports whether the record at offset was acknowledged more than 3 s ago, and no call since the event from may have
// removed it.
func (w *schedLog) stoodStill(offset int64, from int) bool {
	w.sim.Mu.Lock()
	defer w.sim.Mu.Unlock()
	v := histView{w.h, w.h.events}
	there := false
	for _, c := range w.h.calls {
		if v.removes(c, offset, from) {
			return false
		}
		there = there || c.kind == histAppend && v.ended(c) && c.err == nil && c.offset <= offset && c.offset+int64(len(c.recs)) > offset && time.Since(c.at) > 3*time.Second
	}
	return there
}

func (u *schedUser) wait(o Offsets) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+u.rng.IntN(2000))*time.Millisecond)
	defer cancel()
	u.w.fine("wait", u.w.l.Wait(ctx, u.between(o.Start, o.End+2)), context.DeadlineExceeded)
}

func (u *schedUser) time(Offsets) {
	_, err := u.w.l.OffsetForTime(time.UnixMilli(1_700_000_000_000 + u.rng.Int64N(3000)))
	u.w.fine("offset for time", err)
	u.w.l.Stats()
	segs, err := u.w.l.Segments()
	if u.w.fine("segments", err) {
		u.w.joined(segs)
	}
}

// joined checks that a list of segments is of one moment.
func (w *schedLog) joined(segs []SegmentInfo) {
	for i, s := range segs {
		if last := i+1 == len(segs); last && s.Sealed || !last && s.Next != segs[i+1].Base {
			w.bad("segments of several moments: %+v", segs)
		}
	}
	if len(segs) == 0 {
		w.bad("no segments")
	}
}

func (u *schedUser) pause(Offsets) {
	time.Sleep(time.Duration(u.rng.IntN(1500)) * time.Millisecond)
	sched.Yield("slept")
}

func (u *schedUser) truncate(o Offsets) {
	c := &histCall{kind: histCut, offset: u.between(max(o.Start, o.End-8), o.End)}
	if u.rng.IntN(5) == 0 {
		c.offset = u.between(o.Start, o.End)
	}
	ignore(u.w.do(c, fmt.Sprintf("%s: TruncateTo %d", u.name, c.offset), func() error { return u.w.l.TruncateTo(c.offset) }))
}

func (u *schedUser) reset(o Offsets) {
	c := &histCall{kind: histCut, reset: true, offset: u.between(0, o.End+20)}
	ignore(u.w.do(c, fmt.Sprintf("%s: Reset %d", u.name, c.offset), func() error { return u.w.l.Reset(c.offset) }))
}

func (u *schedUser) deleteBefore(o Offsets) {
	c := &histCall{kind: histDelete, offset: u.between(o.Start, o.HighWatermark)}
	ignore(u.w.do(c, fmt.Sprintf("%s: DeleteBefore %d", u.name, c.offset), func() error { return u.w.l.DeleteBefore(c.offset) }))
}

func (u *schedUser) retain(Offsets) {
	_, err := u.w.l.Retain()
	u.w.fine("retain", err)
}

// follower reads the log as another process would.
func (w *schedLog) follower(rng *rand.Rand, calls int) {
	l, err := openFS(w.fs, sim.Dir, &Options{ReadOnly: true})
	if !w.fine("open read-only", err) {
		return
	}
	defer func() { w.fine("close read-only", l.Close()) }()
	for range calls {
		asked := w.askedLate()
		if w.c.snapshots && rng.IntN(6) == 0 {
			w.snapshot(l, "another process", asked)
			continue
		}
		o := l.Offsets()
		if rng.IntN(10) == 0 {
			segs, err := l.Segments()
			if w.fine("segments in another process", err, ErrBusy) {
				w.joined(segs)
			}
		}
		if rng.IntN(2) == 0 {
			r, err := l.Read(o.Start + rng.Int64N(max(0, o.End-o.Start)+1))
			if errors.Is(err, ErrBusy) {
				continue // a cut, possibly one that failed halfway, hides the record
			}
			if w.fine("read in another process", err) {
				w.saw(&r, asked)
			}
			continue
		}
		n := 0
		for r, err := range l.Records(o.Start + rng.Int64N(max(0, o.End-o.Start)+1)) {
			if !w.fine("walk in another process", err, ErrBusy) { // as above
				break
			}
			w.saw(&r, asked)
			if n++; n > 20 || w.wrong != nil {
				break
			}
		}
	}
}
