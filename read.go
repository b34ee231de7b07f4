package seglog

import (
	"bytes"
	"runtime/debug"
	"sync"

	"github.com/seglog/seglog/internal/sched"
)

// reader is what one walk through the log needs; pooled, since it holds the buffers.
type reader struct {
	w   window
	d   recordReader
	s   scanner
	src fileRange
	// head is the header that AppendBatch stores.
	head [headerLen]byte
	seg  *segment
	h    *handle // pinned, nil if none
	// cuts is Log.cuts at the start, to notice a TruncateTo or Reset beside the walk.
	cuts    int64
	durable bool // read nothing that is not on stable storage
	yielded bool // a record of this walk
	batched bool // they are yielded by the batch
	// last is the batch that Read found last, of whichever log: who reads one record mostly reads the next one too.
	last place
}

// place is a batch in a file that is, or was, open.
type place struct {
	handle uint64 // handle.id
	f      found
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// maxPooled is the largest buffer that goes back to the pool.
const maxPooled = 4 << 20

func (r *reader) release() {
	r.unpin()
	r.d.trim(maxPooled)
	if cap(r.w.buf) > maxPooled {
		r.w.buf = nil
	}
	r.w.h, r.w.unmapped, r.src.f = nil, false, nil
	r.durable, r.yielded, r.batched = false, false, false
	if max(len(r.s.buf), len(r.w.buf)) <= maxPooled && sched.Simulation == nil { // a schedule that is repeated finds the same buffers
		readers.Put(r)
	}
}

func (r *reader) unpin() {
	if r.h != nil {
		_ = r.h.unref() // of a file that was only read
		r.h, r.seg = nil, nil
	}
}

// pin finds and pins the segment of a readable offset.
func (l *Log) pin(r *reader, offset int64) error {
	l.hooks.start()
	for {
		if l.closed.Load() {
			return ErrClosed
		}
		if ro := l.readOnly; ro != nil {
			if err := ro.refreshFor(offset); err != nil {
				return err
			}
			if err := ro.awaitCut(offset); err != nil {
				return err
			}
		}
		cuts := l.cuts.Load()
		if offset < l.start.Load() || offset >= l.readable(r.durable) {
			if cuts%2 == 1 || l.cuts.Load() != cuts {
				l.settledCuts() // the bounds are moving
				continue
			}
			return &OffsetError{Offset: offset, Offsets: l.Offsets()}
		}
		v := l.view.Load()
		if i := v.find(offset); i >= 0 {
			h, err := v.segs[i].pin(&l.env)
			if err == nil && l.readOnly != nil && !h.trusted.Load() {
				// Its file may be one that the writer made since, under the same name, or have been cut before it was opened.
				if err = l.readOnly.refresh(); err != nil || l.view.Load() != v && l.cuts.Load() != cuts {
					_ = h.unref() // of a file that was only read
					if err != nil {
						return err
					}
					continue
				}
				h.trusted.Store(true)
			}
			if err == nil {
				r.unpin()
				r.seg, r.h = v.segs[i], h
				r.d.limit = l.o.MaxInflatedBytes
				return nil
			}
			if err != errGone {
				return err
			}
			if err := l.failed(); err != nil && l.view.Load() == v {
				return err // a cut that failed half-way took the segment, and no other view will come
			}
		}
		l.settledCuts()      // a cut took the segment, and tells when it is done
		sched.Spin("pin", 0) // or a deletion did, just before it publishes the next view
	}
}

// limit is how far a segment may be read.
func (l *Log) limit(s *segment) mark {
	if l.o.Flush == FlushSync {
		return s.flushed.load()
	}
	return s.stored.load()
}

// limit is how far the pinned segment may be read.
func (r *reader) limit(l *Log) mark {
	if r.durable {
		return r.seg.flushed.load()
	}
	return l.limit(r.seg)
}

// readable is the offset up to which a reader goes.
func (l *Log) readable(durable bool) int64 {
	if durable {
		return l.durable.Load()
	}
	return l.highWatermark()
}

// Read returns the record at offset; the caller owns it.
//
// The CRC covers the batch as a whole. Read checks it, and goes by that for a minute where the batch has 4 KiB or more and
// several records: it then reads a few records of it, wherever in the batch they are (SetReadCacheBytes). Bytes that are
// damaged within that minute give an error or, at worst, a wrong key, value, header or time of the record that was asked
// for. With Options.CheckEveryRead each Read checks the whole batch.
//
// Errors: an *OffsetError for an
// offset that is not readable, or that a compaction or a control batch took; a *CorruptError; ErrCodec; the operating
// system's; ErrClosed.
func (l *Log) Read(offset int64) (Record, error) { return l.readAgain(offset, false) }

// readAgain reads, and once more where the writer of a read-only log was in between.
func (l *Log) readAgain(offset int64, durable bool) (Record, error) {
	for a := (attempt{}); ; {
		l.try(&a)
		rec, err := l.read(offset, durable)
		if err == nil || !l.readOnly.overtaken(&a, &err) {
			return rec, err
		}
	}
}

func (l *Log) read(offset int64, durable bool) (Record, error) {
	r := readers.Get().(*reader)
	defer r.release()
	r.durable = durable
	if err := l.pin(r, offset); err != nil {
		return Record{}, err
	}
	f, b, ok, err := l.find(r, offset)
	for err == nil {
		if !ok || f.base > offset {
			if !l.gaps.Load() || !ok && l.lostEnd(r.h) {
				if !ok {
					f.pos, f.base = r.limit(l).pos(), r.seg.base+r.limit(l).rel()
				}
				return Record{}, &CorruptError{Path: r.h.path, Pos: f.pos, Offset: offset, NextOffset: f.base, Reason: "the segment ends before this offset"}
			}
			return Record{}, &OffsetError{Offset: offset, Offsets: l.Offsets()}
		}
		rec, there, bad := l.record(r, f, b, offset)
		switch {
		case bad != nil:
			b = nil
			f, ok, err = r.seg.locateBehind(&l.env, r.h, &r.w, bad, offset, r.limit(l))
		case !there:
			return Record{}, &OffsetError{Offset: offset, Offsets: l.Offsets()}
		default:
			r.last = place{r.h.id, f}
			l.stats.reads.Add(1)
			return rec, nil
		}
	}
	return Record{}, err
}

// lostEnd reports whether the file of a segment has lost batches at its end, in a log with gaps. Of a directory without a state file,
// nothing tells: a broker may have cut the file off.
func (l *Log) lostEnd(h *handle) bool {
	return h.short.Load() && (l.readOnly == nil || l.readOnly.promised)
}

// find is locate, but for the batch of the record that was read last, and the one behind it. It also returns the batch as it
// is known, if it came across that.
func (l *Log) find(r *reader, offset int64) (f found, b *cachedBatch, ok bool, err error) {
	limit := r.limit(l)
	if f = r.last.f; r.last.handle == r.h.id && offset >= f.base && f.end() <= limit.pos() {
		r.w.reset(r.h, limit.pos())
		if offset <= f.last {
			return f, nil, true, nil
		}
		if from := (hint{rel: -1, pos: f.end(), next: offset - r.seg.base}); offset == f.last+1 {
			f, ok, err = r.seg.guardedLookUp(r.h, func(*indexes) (found, bool, error) {
				return r.seg.walk(&l.env, &r.w, from, limit, func(found) bool { return true })
			})
			if err == nil && ok && f.base == offset {
				return f, nil, true, nil
			}
		}
	}
	var known *readCache
	if !l.o.CheckEveryRead {
		known = l.reads
	}
	return r.seg.locateKnown(&l.env, r.h, &r.w, offset, limit, known)
}

// record copies the record at offset out of the batch f. It checks the batch, or goes by the last check, which is known if
// that is not nil.
func (l *Log) record(r *reader, f found, known *cachedBatch, offset int64) (rec Record, ok bool, err error) {
	defer r.h.catch(debug.SetPanicOnFault(true), &err)
	if known == nil && !l.o.CheckEveryRead {
		if known = l.reads.get(r.h.id, f.pos); known != nil && known.found() != f {
			l.reads.forget(known) // its header is not as it was: a check tells
			known = nil
		}
	}
	if known != nil {
		if rec, ok, err = l.known(r, known, f, offset); ok || err != nil {
			return rec, ok, err
		}
		l.reads.forget(known) // the bytes are not as they were, or there is no such record: a check tells
	}
	p, err := r.w.at(f.pos, f.size)
	if err != nil {
		return Record{}, false, err
	}
	b := batch(p)
	why := parseHeader(p)
	if why == "" {
		why = f.changed(b) // no CRC covers the offset, and f may have been found long ago
	}
	if why == "" {
		why = b.checkCRC()
	}
	if why != "" {
		return Record{}, false, &CorruptError{Path: r.h.path, Pos: f.pos, Offset: f.base, Reason: why}
	}
	if b.control() {
		return Record{}, false, nil
	}
	if err := r.d.reset(b); err != nil {
		return Record{}, false, wrapBatchError(err, r.h.path, f.pos, f.base)
	}
	var keep *cachedBatch
	if !l.o.CheckEveryRead {
		keep = l.reads.begin(r.h.id, f.pos, b, r.d.body)
	}
	var next Record
	for keep.add(&r.d); r.d.next(&next); keep.add(&r.d) {
		if next.Offset == offset {
			rec, ok = next.own(), true
		}
		if next.Offset >= offset && keep == nil {
			return rec, ok, nil
		}
	}
	if r.d.why == "" {
		l.reads.put(keep)
	} else if !ok { // else others will meet what is wrong behind it
		err = wrapBatchError(r.d.err(), r.h.path, f.pos, f.base)
	}
	return rec, ok, err
}

// known copies the record at offset out of a batch that was checked a moment ago, of which it reads a few records. ok is
// false if they do not fit what was known of them, or none of them has the offset.
func (l *Log) known(r *reader, b *cachedBatch, f found, offset int64) (rec Record, ok bool, err error) {
	if l.readOnly != nil {
		// A cut by the writer, in another process, changes bytes of a file that is open here only if the system can't tell it so.
		if p, err := r.w.at(f.pos, headerLen); err != nil || !bytes.Equal(p, b.head[:]) {
			return Record{}, false, err
		}
	}
	h := batch(b.head[:])
	delta := offset - h.base()
	if delta < 0 || b.dense && delta >= h.count() {
		return Record{}, false, nil
	}
	if b.body == nil {
		// Records of a batch are mostly of like size: the memory of the record, or what is near it, comes while the directory does.
		r.w.prefetch(f.pos + headerLen + int64(b.size)*min(delta, h.lastDelta())/(h.lastDelta()+1))
	}
	r.d.resetTo(h, nil)
	s := b.stepOf(delta)
	if b.body != nil {
		r.d.body, r.d.room = b.body[s.lo:s.hi], max(0, l.o.MaxInflatedBytes-int64(len(b.body)))
	} else if r.d.body, err = r.w.at(f.pos+headerLen+s.lo, s.hi-s.lo); err != nil {
		return Record{}, false, err
	}
	if !r.d.skip(s.skip) {
		return Record{}, false, nil
	}
	r.d.lastDelta, r.d.left = s.least-1, s.records-s.skip
	for r.d.next(&rec) && rec.Offset <= offset {
		if rec.Offset == offset {
			return rec.own(), true, nil
		}
	}
	return Record{}, false, nil
}

// own is Clone with one allocation for key and value.
func (r Record) own() Record {
	if r.Headers != nil {
		return r.Clone()
	}
	buf := make([]byte, len(r.Key)+len(r.Value))
	n := copy(buf, r.Key)
	copy(buf[n:], r.Value)
	if r.Key != nil {
		r.Key = buf[:n:n]
	}
	if r.Value != nil {
		r.Value = buf[n:]
	}
	return r
}
