package seglog

import (
	"errors"
	"io"
	"io/fs"

	"github.com/seglog/seglog/internal/sched"
)

func (l *Log) info(s *segment, next, size int64) SegmentInfo {
	return SegmentInfo{Path: l.path(s.base, logSuffix), Base: s.base, Next: next, Bytes: size, MaxTime: timeOf(s.maxTime.Load()), Sealed: s.final()}
}

// trueInfo is info with the greatest time looked up. It leaves the time out if the segment is missing, or too damaged to
// tell: retention and OnSeal must not stop at damage, which is reported when it is read.
func (l *Log) trueInfo(s *segment, next int64) (SegmentInfo, error) {
	size, err := l.size(s)
	if err != nil {
		return SegmentInfo{}, err
	}
	ms, err := l.maxTime(s)
	if errors.Is(err, ErrCorrupt) {
		if !s.reported.Swap(true) {
			l.backgroundError("times of a damaged segment are not known, the time of its last change is used instead", err)
		}
		ms, err = noTimestamp, nil
	}
	if err != nil {
		return SegmentInfo{}, err
	}
	info := l.info(s, next, size)
	info.MaxTime = timeOf(ms)
	return info, nil
}

// maxTime returns the greatest timestamp of a segment. It is that of the last entry of the time index, unless a batch behind
// the one that this points to has a greater one: then the file has lost entries at its end, and is rebuilt.
func (l *Log) maxTime(s *segment) (int64, error) {
	if ms := s.maxTime.Load(); ms != unknownTime {
		return ms, nil
	}
	h, err := s.pin(&l.env)
	if err != nil {
		return 0, err
	}
	defer h.unref()
	limit := s.stored.load() // an append to a log that was closed may move it from here on
	ms, end, ok, err := s.lastTime(&l.env, h)
	if err == nil && !ok || err == errIndex {
		if err = s.rebuild(&l.env, h, "time index ends early"); err == nil {
			ms, end, _, err = s.lastTime(&l.env, h)
		}
	}
	if err != nil {
		return 0, err
	}
	if end < s.base+limit.rel() && (!l.gaps.Load() || l.lostEnd(h)) {
		return 0, &CorruptError{Path: h.path, Pos: limit.pos(), Offset: end, NextOffset: s.base + limit.rel(), Reason: "the segment ends before this offset", cause: io.ErrUnexpectedEOF}
	}
	s.maxTime.CompareAndSwap(unknownTime, ms) // else the segment is written again, and an append was first
	return ms, nil
}

// size returns the size of a segment's batches. It does not open the segment, and remembers the answer.
func (l *Log) size(s *segment) (int64, error) {
	if pos := s.stored.load().pos(); pos != sizeUnknown {
		return pos, nil
	}
	st, err := l.fs.Stat(l.path(s.base, logSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // deleted meanwhile
	}
	if err == nil && st.Size <= maxSegmentBytes {
		m := s.stored.load()
		known := markAt(m.rel(), st.Size)
		s.stored.v.CompareAndSwap(uint64(m), uint64(known))
		s.flushed.v.CompareAndSwap(uint64(m), uint64(known))
	}
	return st.Size, err
}

// sizes holds the summed sizes of the first n segments of a view, which are sealed and no longer change size.
type sizes struct {
	mu  sched.Mutex
	of  *view
	n   int
	sum int64
}

// bytes returns the size of all segments of v. It keeps the sum of the sealed ones until the view changes, because looking at
// thousands of segments touches as many cache lines.
func (l *Log) bytes(v *view) int64 {
	c := &l.sized
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of != v {
		c.of, c.n, c.sum = v, 0, 0
	}
	sum, sealed := c.sum, true
	for _, s := range v.segs[c.n:] {
		sealed = sealed && s.final() // asked before the size, which then no longer changes
		size, err := l.size(s)
		if err != nil {
			size, sealed = 0, false // the file can't be looked at; the next call tries again
		}
		sum += size
		if sealed {
			c.n, c.sum = c.n+1, sum
		}
	}
	return sum
}
