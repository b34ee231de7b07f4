package seglog

import (
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"time"

	"github.com/seglog/seglog/internal/sched"
)

// Segments returns the segments of the log as they are at one moment, oldest first. The last is the active one, as far as it
// may be read; its Bytes and MaxTime may be those of a later moment. To learn their times, Segments opens segments that were
// not opened yet; if the log is cut or segments are deleted meanwhile, it starts over.
func (l *Log) Segments() ([]SegmentInfo, error) {
	for {
		infos, err := l.segments()
		if err != errGone {
			return infos, err
		}
		sched.Spin("segments", 0)
	}
}

// segments makes an attempt at Segments. The error is errGone if the segments have changed meanwhile, so that the caller tries
// again.
func (l *Log) segments() ([]SegmentInfo, error) {
	if l.closed.Load() {
		return nil, ErrClosed
	}
	sealed := int64(math.MaxInt64) // segments below this base offset are sealed
	if l.readOnly != nil {
		if err := l.readOnly.refresh(); err != nil {
			return nil, err
		}
	}
	cuts := l.settledCuts()
	v := l.view.Load()
	if l.readOnly != nil {
		sealed = l.readOnly.sealedByWriter()
	}
	sched.Yield("segments")
	end := l.highWatermark()
	if l.view.Load() != v { // end may belong to a segment that v does not have
		return nil, errGone
	}
	infos := make([]SegmentInfo, 0, len(v.segs))
	for i, s := range v.segs {
		last := i+1 == len(v.segs)
		next := max(end, s.base)
		if !last {
			next = v.segs[i+1].base
		}
		size, err := l.size(s)
		if err != nil {
			return nil, err
		}
		info := l.info(s, next, size)
		info.Sealed = info.Sealed && !last && s.base < sealed
		ms, err := l.maxTime(s)
		switch {
		case err == errGone:
			if failed := l.failed(); failed != nil && l.view.Load() == v {
				return nil, failed // a cut that failed half-way took the segment, and no other view will come
			}
			return nil, errGone
		case errors.Is(err, ErrCorrupt): // its times are not known; Batches tells where it is damaged
		case err != nil:
			return nil, err
		default:
			info.MaxTime = timeOf(ms)
		}
		infos = append(infos, info)
	}
	if l.cuts.Load() != cuts {
		return nil, errGone
	}
	return infos, nil
}

// BatchInfo is the header of a batch, and where it is stored.
type BatchInfo struct {
	Path          string // the .log file
	Pos           int64  // position where the batch begins
	Bytes         int64  // its size
	Base          int64  // its first offset
	Next          int64  // offset after its last
	Records       int64
	Codec         Codec
	BaseTime      time.Time // of its first record; zero if it has none
	MaxTime       time.Time // its greatest record time; zero if it has none
	LogAppendTime bool      // MaxTime is the time of all its records
	Transactional bool
	Control       bool  // it holds the marker of a transaction rather than records
	LeaderEpoch   int32 // Kafka's partitionLeaderEpoch, which never goes back in a log; a cut raises that of later appends
	ProducerID    int64 // -1: none
	ProducerEpoch int16
	BaseSequence  int32
	CRC           uint32
}

// Batches walks the batches, from the one that holds offset from up to the high watermark at the moment when the walk
// starts, and does not decode their records: it is for looking at a log rather than for reading it. CRCs are checked. The
// sequence ends after the first error; the errors are those of Records.
func (l *Log) Batches(from int64) iter.Seq2[BatchInfo, error] {
	first := l.newest(from)
	return func(yield func(BatchInfo, error) bool) {
		if err := l.catchUp(); err != nil {
			yield(BatchInfo{}, err)
			return
		}
		end := l.highWatermark()
		cuts := l.settledCuts()
		var s scanner
		for next := first; next < end || next == first; {
			var sec Section
			err := l.section(&sec, next, scanChunk, false)
			if l.cuts.Load() != cuts { // the section may be of before the cut or of after it
				if e := l.cutSince(&cuts, next, next-first); e != nil {
					err = e
				} else if err == nil {
					_ = sec.Close() // of a file that was only read
					continue
				}
			}
			if err != nil {
				_ = sec.Close()
				yield(BatchInfo{}, err)
				return
			}
			if more := sec.each(&s, yield); !more || sec.next == next {
				return
			}
			next = sec.next
		}
	}
}

// each yields the batches of a section and closes it.
func (s *Section) each(c *scanner, yield func(BatchInfo, error) bool) (more bool) {
	defer s.Close() // of a file that was only read
	c.init(&fileRange{s.h.f, s.pos, s.end}, s.h.path, s.pos, s.base, s.next)
	c.gaps = s.l.gaps.Load()
	for {
		if c.next >= s.next && s.next > s.base {
			return true // bytes behind the section's last offset do not belong to it
		}
		pos := c.pos
		b, err := c.scan()
		if err == io.EOF {
			return true
		}
		if err != nil {
			yield(BatchInfo{}, s.seg.behindDamage(&s.l.env, s.h, err, s.l.limit(s.seg)))
			return false
		}
		if !yield(batchInfo(b, s.h.path, pos), nil) {
			return false
		}
	}
}

func batchInfo(b batch, path string, pos int64) BatchInfo {
	be := binary.BigEndian
	return BatchInfo{
		Path: path, Pos: pos, Bytes: b.size(), Base: b.base(), Next: b.last() + 1, Records: b.count(), Codec: b.codec(),
		BaseTime: timeOf(b.baseTimestamp()), MaxTime: timeOf(b.maxTimestamp()),
		LogAppendTime: b.attributes()&attrLogAppendTime != 0, Transactional: b.attributes()&attrTransactional != 0, Control: b.control(),
		LeaderEpoch: int32(be.Uint32(b[atLeaderEpoch:])), ProducerID: int64(be.Uint64(b[atProducerID:])),
		ProducerEpoch: int16(be.Uint16(b[atProducerEpoch:])), BaseSequence: int32(be.Uint32(b[atBaseSequence:])), CRC: b.crc(),
	}
}
