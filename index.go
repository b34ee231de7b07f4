package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"sync/atomic"

	"github.com/seglog/seglog/internal/vfs"
)

// The two sparse indexes of a segment, as Kafka writes them. An offset index entry is int32 relative last offset of a
// batch and int32 position of that batch; a time index entry is int64 greatest timestamp so far and int32 relative last
// offset of the first batch that has it. Source: apache/kafka, storage/.../OffsetIndex.java, TimeIndex.java and
// LogSegment.append.
//
// An index depends on the batches alone, so it is rebuilt rather than repaired. It is never trusted: whoever follows an
// entry checks the batch that it points to.
const (
	offsetEntryLen = 8
	timeEntryLen   = 12

	// A full index makes the segment roll. The size is Kafka's default for segment.index.bytes; one time entry is kept free
	// for the final one, as in Kafka.
	maxIndexBytes    = 10 << 20
	maxOffsetEntries = maxIndexBytes / offsetEntryLen
	maxTimeEntries   = maxIndexBytes/timeEntryLen - 1
)

// table is a growing list of entries in their form on disk. One goroutine adds entries while any number read.
type table struct {
	n atomic.Int64 // bytes of complete entries; loaded before b, stored after b
	b atomic.Pointer[[]byte]
}

func newTable(b []byte) *table {
	t := new(table)
	t.b.Store(&b)
	t.n.Store(int64(len(b)))
	return t
}

// bytes returns the entries so far. They never change.
func (t *table) bytes() []byte {
	n := t.n.Load()
	return (*t.b.Load())[:n]
}

func (t *table) add(entry []byte) {
	n := int(t.n.Load())
	b := *t.b.Load()
	if n+len(entry) > len(b) {
		b = t.grow(int64(max(2*len(b), 64*len(entry))))
	}
	copy(b[n:], entry)
	t.n.Store(int64(n + len(entry)))
}

func (t *table) grow(size int64) []byte {
	grown := make([]byte, size)
	copy(grown, t.bytes())
	t.b.Store(&grown)
	return grown
}

// shrink gives back the room for more entries. Nobody adds any meanwhile.
func (t *table) shrink() {
	b := bytes.Clone(t.bytes())
	t.b.Store(&b)
}

// indexes are both indexes of a segment, in memory or mapped.
type indexes struct {
	offsets, times *table
	mapped         []*vfs.Mapping
}

func (x *indexes) close() error {
	var err error
	if x != nil {
		for _, m := range x.mapped {
			err = errors.Join(err, m.Unmap())
		}
	}
	return err
}

// indexBuilder makes the indexes of a segment batch by batch.
type indexBuilder struct {
	interval int64
	indexes
	lastPos  int64  // position of the last batch that has an offset entry; 0 if none has
	maxTime  int64  // greatest timestamp so far
	maxRel   uint32 // relative last offset of the first batch that has it
	lastTime int64  // timestamp of the last time entry
	unsure   bool   // see segment.unsure
	saved    bool   // the index files hold just this
}

func newIndexBuilder(interval int) *indexBuilder {
	return &indexBuilder{
		interval: int64(interval),
		indexes:  indexes{offsets: newTable(nil), times: newTable(nil)},
		maxTime:  noTimestamp,
		lastTime: noTimestamp,
	}
}

// reserve makes room for the entries of a segment of that many bytes, within reason, since growing would cost an append tens
// of microseconds.
func (x *indexBuilder) reserve(segmentBytes int64) {
	n := min(segmentBytes/max(x.interval, 1), 32<<10)
	clear(x.offsets.grow(n * offsetEntryLen)) // touches the memory now: the system provides it only then, which takes long
	clear(x.times.grow(n * timeEntryLen))
}

// resume goes on behind indexes that were read from files. It takes off the time entry that a seal or a Close has added at
// the end, which would not be there if the segment had stayed open.
func (x *indexBuilder) resume(offsets, times []byte) {
	x.offsets, x.times = newTable(offsets), newTable(times)
	lastRel := int64(-1)
	if n := len(offsets); n > 0 {
		rel, pos := offsetEntry(offsets, n/offsetEntryLen-1)
		lastRel, x.lastPos = int64(rel), int64(pos)
	}
	if n := len(times); n > 0 {
		x.maxTime, x.maxRel = timeEntry(times, n/timeEntryLen-1)
		if int64(x.maxRel) > lastRel {
			x.times = newTable(times[:n-timeEntryLen])
		}
	}
	if n := len(x.times.bytes()); n > 0 {
		x.lastTime, _ = timeEntry(x.times.bytes(), n/timeEntryLen-1)
	}
}

// add takes the batch at pos into account. By Kafka's rule it gets an entry if more than an interval of bytes lies between
// the start of the last batch that has an entry and its own start.
func (x *indexBuilder) add(pos int64, lastRel uint32, maxTime int64) {
	x.saved = false
	if maxTime > x.maxTime {
		x.maxTime, x.maxRel = maxTime, lastRel
	}
	if pos-x.lastPos <= x.interval {
		return
	}
	var e [offsetEntryLen]byte
	binary.BigEndian.PutUint32(e[:], lastRel)
	binary.BigEndian.PutUint32(e[4:], uint32(pos))
	x.offsets.add(e[:])
	x.lastPos = pos
	if x.maxTime > x.lastTime {
		e := x.finalTime()
		x.times.add(e[:])
		x.lastTime = x.maxTime
	}
}

// copyBelow starts x with the entries of have for batches below pos. It returns the offset entry from which on x must be told of the
// batches: that of the last time entry, as a rule also the last one. Behind it, the time index may lack entries, if it is older than
// the offset index.
func (x *indexBuilder) copyBelow(have *indexes, pos int64) hint {
	offsets, times := have.offsets.bytes(), have.times.bytes()
	n := seekPos(offsets, pos-1) + 1
	last := hintAt(offsets, n-1)
	k := 0
	for ; k < len(times)/timeEntryLen; k++ {
		ms, rel := timeEntry(times, k)
		if int64(rel) > last.rel {
			break
		}
		x.maxTime, x.maxRel, x.lastTime = ms, rel, ms
	}
	x.offsets = newTable(append([]byte(nil), offsets[:n*offsetEntryLen]...))
	x.times = newTable(append([]byte(nil), times[:k*timeEntryLen]...))
	x.lastPos = last.pos
	if k == 0 {
		return hintAt(offsets, -1)
	}
	return seekOffset(x.offsets.bytes(), x.maxRel)
}

func (x *indexBuilder) finalTime() (e [timeEntryLen]byte) {
	binary.BigEndian.PutUint64(e[:], uint64(x.maxTime))
	binary.BigEndian.PutUint32(e[8:], x.maxRel)
	return e
}

func (x *indexBuilder) full() bool {
	return len(x.offsets.bytes()) >= maxOffsetEntries*offsetEntryLen || len(x.times.bytes()) >= maxTimeEntries*timeEntryLen
}

// files returns the contents of the two files of a segment that is sealed, or whose log is closed: all entries, and a time
// entry for the greatest time if that came after the last entry.
func (x *indexBuilder) files() (offsets, times []byte) {
	times = x.times.bytes()
	if x.maxTime > x.lastTime {
		e := x.finalTime()
		times = append(times[:len(times):len(times)], e[:]...)
	}
	return x.offsets.bytes(), times
}

func offsetEntry(e []byte, i int) (rel, pos uint32) {
	e = e[i*offsetEntryLen:]
	return binary.BigEndian.Uint32(e), binary.BigEndian.Uint32(e[4:])
}

func timeEntry(e []byte, i int) (ms int64, rel uint32) {
	e = e[i*timeEntryLen:]
	return int64(binary.BigEndian.Uint64(e)), binary.BigEndian.Uint32(e[8:])
}

// hint says where a walk through a segment starts: at position pos, where a batch whose relative last offset is rel must
// begin. With rel = -1 any batch that continues next may begin there, as at the start of the file.
type hint struct {
	rel     int64
	pos     int64
	next    int64  // with rel -1: relative offset that the batch at pos continues
	entries []byte // the offset index that it comes from, if any
	entry   int    // number of the entry
}

// seekOffset returns the greatest entry whose offset is at most rel. It looks first where that is if the offsets of the
// entries rise evenly, as they mostly do, then around there in steps that double, and halves what lies between.
func seekOffset(e []byte, rel uint32) hint {
	lo, hi := 0, len(e)/offsetEntryLen // the entries below lo are at most rel, and those from hi on are above
	if hi == 0 {
		return hintAt(e, -1)
	}
	last, _ := offsetEntry(e, hi-1)
	at := int(min(uint64(rel)*uint64(hi)/(uint64(last)+1), uint64(hi-1)))
	for step := 1; lo < hi; step *= 2 {
		if r, _ := offsetEntry(e, at); r <= rel {
			lo, at = at+1, at+step
		} else {
			hi, at = at, at-step
		}
		if at < lo || at >= hi {
			at = lo + (hi-lo)/2
		}
	}
	return hintAt(e, lo-1)
}

// seekPos returns the number of the greatest entry whose position is at most pos, or -1 if there is none.
func seekPos(e []byte, pos int64) int {
	return sort.Search(len(e)/offsetEntryLen, func(i int) bool { _, p := offsetEntry(e, i); return int64(p) > pos }) - 1
}

// hintAt returns entry i as a hint, and the start of the file for -1.
func hintAt(e []byte, i int) hint {
	if i < 0 {
		return hint{rel: -1}
	}
	rel, pos := offsetEntry(e, i)
	return hint{rel: int64(rel), pos: int64(pos), entries: e, entry: i}
}

// behind returns the position that the entry behind h in e leads to, or -1 if h is the last.
func (h hint) behind(e []byte) int64 {
	i := h.entry + 1
	if h.rel < 0 {
		i = 0
	}
	if i*offsetEntryLen == len(e) {
		return -1
	}
	_, pos := offsetEntry(e, i)
	return int64(pos)
}

// seekTime returns the greatest entry whose timestamp is at most ms; ok is false if there is none.
func seekTime(e []byte, ms int64) (entryMS int64, rel uint32, ok bool) {
	i := sort.Search(len(e)/timeEntryLen, func(i int) bool { t, _ := timeEntry(e, i); return t > ms })
	if i == 0 {
		return 0, 0, false
	}
	entryMS, rel = timeEntry(e, i-1)
	return entryMS, rel, true
}

// checkEntries returns why the entries can't be the indexes of a segment of that many bytes and offsets, or "". It does not
// look at batches.
func checkEntries(offsets, times []byte, size, span int64) string {
	if len(offsets)%offsetEntryLen != 0 || len(times)%timeEntryLen != 0 {
		return fmt.Sprintf("%d bytes of offset index, %d of time index: not whole entries", len(offsets), len(times))
	}
	lastRel, lastPos := int64(-1), int64(0)
	for i := range len(offsets) / offsetEntryLen {
		rel, pos := offsetEntry(offsets, i)
		if int64(rel) <= lastRel || int64(pos) <= lastPos || int64(rel) >= span || int64(pos) >= size {
			return fmt.Sprintf("offset index entry %d is (%d, %d), after (%d, %d) and in a segment of %d offsets and %d bytes", i, rel, pos, lastRel, lastPos, span, size)
		}
		lastRel, lastPos = int64(rel), int64(pos)
	}
	lastTime, lastRel := int64(noTimestamp), int64(-1)
	for i := range len(times) / timeEntryLen {
		ms, rel := timeEntry(times, i)
		if ms <= lastTime || int64(rel) <= lastRel || int64(rel) >= span {
			return fmt.Sprintf("time index entry %d is (%d, %d), after (%d, %d) and in a segment of %d offsets", i, ms, rel, lastTime, lastRel, span)
		}
		lastTime, lastRel = ms, int64(rel)
	}
	return ""
}
