package seglog

import (
	"bytes"
	"sort"
	"sync/atomic"
	"time"

	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// readCache is what Read remembers of batches that it has checked: where every k-th of their records begins, and the
// records of compressed ones. There is one for all logs of the process, and its memory is bounded.
//
// A look-up takes no lock: the table has sets of eight places, and the key of a batch says which set it is in. The ring is a
// clock, as that of openSegments: the hand drops what nobody used since it last came by.
type readCache struct {
	from  int64        // the size of the smallest batch that is kept: checking a smaller one costs little more than a look-up
	limit atomic.Int64 // of bytes
	bytes atomic.Int64 // of the batches and the table
	table atomic.Pointer[[]cacheSet]

	mu   sched.Mutex // held to change any of it
	ring []*cachedBatch
	hand int
}

// cacheSet has one or two batches on average. A look-up compares the keys, and touches no other batch than its own. Of eight
// places one is free for all but one batch in some thousands; of four, for nineteen in twenty. Half a set is a line of the
// processor's cache.
type cacheSet [8]struct {
	key   atomic.Uint64
	batch atomic.Pointer[cachedBatch]
}

const (
	// defaultReadCacheBytes holds what is kept of 1 GiB of log in batches of 14 KiB or more: 22 MiB.
	defaultReadCacheBytes = 32 << 20
	minCachedBatch        = 4 << 10
	// cachedStep is about how many bytes of records share one position in the cache. Those take 1/256 of what they point to.
	cachedStep = 1 << 10
	// trustedFor is how long Read goes by a check. What a disk or the memory does to the bytes meanwhile may go unseen.
	trustedFor = time.Minute

	cacheSetBytes    = 128
	cachedBatchBytes = 168 // of the struct, with its place in the ring
	// largestShare: a batch that would take more than this part of the cache is not kept.
	largestShare = 4
)

// processReads is the cache of the logs on the operating system's files.
var processReads = readCache{from: minCachedBatch}

func init() { processReads.limit.Store(defaultReadCacheBytes) }

// SetReadCacheBytes bounds the memory in which Read keeps what it learned about batches of many records, for all logs of the
// process together: of each batch of 4 KiB or more that was read, the positions of its records, which take 1/256 of its size
// and up to 300 bytes; of a compressed one its records as well, unless they take more than a quarter of the bound. With
// that, reading a record costs about the same whatever the size of its batch. Without it, Read checks and inflates the
// whole batch for each record.
//
// The default is 32 MiB; 0 keeps nothing. Memory is taken as it is needed, and Stats.ReadCacheBytes tells how much.
// The call drops all that is kept, and any goroutine may make it at any time. Otherwise a batch is dropped when there is no
// room, and in the course of time when it was checked more than a minute ago.
func SetReadCacheBytes(n int64) { processReads.setLimit(max(0, n)) }

// readCacheOf returns the cache of a log that is opened on fsys. A log on another file system than the system's own, which
// only tests have, has a cache to itself, so that what it does never depends on others, and keeps batches of any size.
func readCacheOf(fsys vfs.FS) *readCache {
	if _, real := fsys.(osFS); real {
		return &processReads
	}
	c := new(readCache)
	c.limit.Store(1 << 20)
	return c
}

// cachedBatch is a batch that was checked. But for used, it never changes.
type cachedBatch struct {
	handle  uint64        // handle.id of the file that was open
	checked time.Duration // when, since processBegan
	pos     uint32        // of the batch in the file
	size    uint32        // of the encoded records
	every   uint32        // starts has each every-th record
	used    atomic.Bool
	slot    uint32          // in the ring; guarded by readCache.mu
	dense   bool            // the batch leaves out no offset
	head    [headerLen]byte // its header
	starts  []uint32        // where those records begin in the encoded ones
	body    []byte          // the encoded records of a compressed batch; those of others are in the file
}

// begin returns what is to be filled and put for a batch that was checked, the encoded records of which are body; nil if it
// is not to be kept.
func (c *readCache) begin(handle uint64, pos int64, h batch, body []byte) *cachedBatch {
	count, size := h.count(), int64(len(body))
	inflated := int64(0)
	if h.codec() != CodecNone {
		inflated = size
	}
	if count < 2 || count > size/minRecord || !c.keeps(h.size(), inflated) {
		return nil
	}
	b := &cachedBatch{handle: handle, pos: uint32(pos), head: [headerLen]byte(h), size: uint32(size), checked: time.Since(processBegan)}
	b.every = uint32(max(1, count*cachedStep/size))
	b.dense = h.lastDelta() == count-1
	n := (count + int64(b.every) - 1) / int64(b.every)
	if !b.dense {
		n *= 2
	}
	b.starts = make([]uint32, 0, n)
	if inflated > 0 {
		b.body = bytes.Clone(body)
	}
	return b
}

// found is what a walk would find.
func (b *cachedBatch) found() found {
	h := batch(b.head[:])
	return found{pos: int64(b.pos), size: h.size(), base: h.base(), last: h.last()}
}

// add notes where the next record of d begins and, if offsets are left out, the least offset delta that it may have.
func (b *cachedBatch) add(d *recordReader) {
	if b == nil || d.left == 0 || (d.count-d.left)%int64(b.every) != 0 {
		return
	}
	b.starts = append(b.starts, uint32(d.at))
	if !b.dense {
		b.starts = append(b.starts, uint32(d.lastDelta+1))
	}
}

// recordStep is a part of a batch that is searched for a record, bytes [lo, hi) of the encoded records.
type recordStep struct {
	lo, hi  int64
	records int64
	skip    int64 // how many of them are passed over
	least   int64 // offset delta that the next may have
}

// stepOf returns the part that has the record with an offset delta, which the batch covers, if any has.
func (b *cachedBatch) stepOf(delta int64) recordStep {
	every, width := int64(b.every), 1
	i := int(delta / every)
	s := recordStep{skip: delta % every, least: delta}
	if !b.dense {
		width = 2
		i = sort.Search(len(b.starts)/2, func(i int) bool { return int64(b.starts[2*i+1]) > delta }) - 1
		s.skip, s.least = 0, int64(b.starts[2*i+1])
	}
	s.lo, s.hi = int64(b.starts[i*width]), int64(b.size)
	s.records = batch(b.head[:]).count() - int64(i)*every
	if (i+1)*width < len(b.starts) {
		s.hi, s.records = int64(b.starts[(i+1)*width]), every
	}
	return s
}

// processBegan is the origin of times that no change of the clock moves.
var processBegan = time.Now()

func (b *cachedBatch) bytes() int64 {
	return cachedBatchBytes + 4*int64(cap(b.starts)) + int64(cap(b.body))
}

// cacheKey is not 0, the key of an empty place, since no handle has the id 0.
func cacheKey(handle uint64, pos uint32) uint64 { return handle<<31 | uint64(pos) }

func (b *cachedBatch) key() uint64 { return cacheKey(b.handle, b.pos) }

// cacheSetOf spreads the keys by the finalizer of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number
// Generators, 2014). One multiplication is not enough: batches of one size have keys at even distances, and for some sizes
// those would share a few of the sets.
func cacheSetOf(table []cacheSet, key uint64) *cacheSet {
	key = (key ^ key>>30) * 0xbf58476d1ce4e5b9
	key = (key ^ key>>27) * 0x94d049bb133111eb
	hash := (key ^ key>>31) >> 32
	return &table[hash*uint64(len(table))>>32]
}

// get returns what is known of the batch at pos of an open file, or nil.
func (c *readCache) get(handle uint64, pos int64) *cachedBatch {
	table := c.table.Load()
	if table == nil {
		return nil
	}
	key := cacheKey(handle, uint32(pos))
	set := cacheSetOf(*table, key)
	for i := range set {
		if set[i].key.Load() != key {
			continue
		}
		b := set[i].batch.Load()
		if b == nil || b.handle != handle || int64(b.pos) != pos || time.Since(processBegan)-b.checked > trustedFor {
			return nil
		}
		if !b.used.Load() {
			b.used.Store(true)
		}
		return b
	}
	return nil
}

// keeps reports whether put would keep a batch of size bytes, whose records inflate to inflated bytes if it is compressed.
func (c *readCache) keeps(size, inflated int64) bool {
	return size >= c.from && cachedBatchBytes+inflated+max(size, inflated)/(cachedStep/4) <= c.limit.Load()/largestShare
}

// put keeps a batch that was checked, in the place of what was known of it.
func (c *readCache) put(b *cachedBatch) {
	if b == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := c.limit.Load()
	if b.bytes() > limit/largestShare {
		return
	}
	table := c.table.Load()
	if table == nil || len(c.ring) >= 2*len(*table) { // a quarter of the places is taken
		table = c.grow(limit)
	}
	key := b.key()
	set := cacheSetOf(*table, key)
	at := 0
	for i := range set {
		old := set[i].batch.Load()
		if old == nil || old.key() == key {
			at = i
			break
		}
		if !old.used.Load() {
			at = i
		}
	}
	if old := set[at].batch.Load(); old != nil {
		c.drop(old)
	}
	set[at].batch.Store(b)
	set[at].key.Store(key)
	b.slot = uint32(len(c.ring))
	c.ring = append(c.ring, b)
	c.bytes.Add(b.bytes())
	c.expire(b.checked)
	for c.bytes.Load() > limit && len(c.ring) > 1 {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		if next := c.ring[c.hand]; next == b || next.used.Swap(false) {
			c.hand++
		} else {
			c.drop(next)
		}
	}
}

// minCacheSets is the size of the first table.
const minCacheSets = 16

// grow makes a table of twice the size and returns it, or the present one if that has all sets that the limit is worth: an
// eighth of the memory, room for batches of 128 bytes. c.mu is held.
func (c *readCache) grow(limit int64) *[]cacheSet {
	old, n, had := c.table.Load(), int64(minCacheSets), int64(0)
	if old != nil {
		had = int64(len(*old))
		n = 2 * had
	}
	if n = min(n, limit/(8*cacheSetBytes)+1); n <= had {
		return old
	}
	table := make([]cacheSet, n)
	var over []*cachedBatch // of sets that were fuller than others
	for _, b := range c.ring {
		set, key := cacheSetOf(table, b.key()), b.key()
		i := 0
		for i < len(set) && set[i].batch.Load() != nil {
			i++
		}
		if i == len(set) {
			over = append(over, b)
			continue
		}
		set[i].batch.Store(b)
		set[i].key.Store(key)
	}
	c.table.Store(&table)
	c.bytes.Add((n - had) * cacheSetBytes)
	for _, b := range over {
		c.drop(b)
	}
	return &table
}

// expire lets the hand pass two batches and drops those that get would not return any more, so that what is known of files
// that were closed goes in time, and the cache is as large as what a minute of reads comes across. c.mu is held.
func (c *readCache) expire(now time.Duration) {
	for range min(2, len(c.ring)) {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		if b := c.ring[c.hand]; now-b.checked > trustedFor {
			c.drop(b)
		} else {
			c.hand++
		}
	}
}

// drop forgets a batch. c.mu is held.
func (c *readCache) drop(b *cachedBatch) {
	set := cacheSetOf(*c.table.Load(), b.key())
	for i := range set {
		if set[i].batch.Load() == b {
			set[i].key.Store(0)
			set[i].batch.Store(nil)
		}
	}
	last := len(c.ring) - 1
	c.ring[b.slot] = c.ring[last]
	c.ring[b.slot].slot = b.slot
	c.ring[last] = nil
	c.ring = c.ring[:last]
	c.bytes.Add(-b.bytes())
}

// forget drops a batch that does not agree with what was found in the file.
func (c *readCache) forget(b *cachedBatch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(b.slot) < len(c.ring) && c.ring[b.slot] == b {
		c.drop(b)
	}
}

func (c *readCache) setLimit(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit.Store(n)
	c.table.Store(nil)
	c.ring, c.hand = nil, 0
	c.bytes.Store(0)
}
