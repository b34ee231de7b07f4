package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Kind is a kind of operation.
type Kind uint8

const (
	Write    Kind = iota // data at pos
	Store                // data at pos, through a mapping
	Zero                 // n zeros at pos
	Reserve              // the file becomes at least pos+n bytes long
	Truncate             // the file becomes n bytes long
	Flush
	WriteBack // data of [pos, pos+n) is sent to the disk
	FlushDisk // what was sent to the disk becomes durable
	Create
	Rename
	Link
	Remove
	SyncDir
	Told  // a call returned a write-back error of the file
	Event // a call or observation of the engine's user; not a file system operation

	// The following change nothing that a power cut could lose, but they are counted and can fail.
	Open
	Read
	Stat
	List
	Map
	Lock
	Mkdir
	Kinds
)

func (k Kind) String() string {
	return [Kinds]string{"write", "store", "zero", "reserve", "truncate", "flush", "write back", "flush disk", "create", "rename", "link", "remove",
		"syncdir", "told", "event", "open", "read", "stat", "list", "mmap", "lock", "mkdir"}[k]
}

// Op is one executed operation. It is immutable once recorded.
type Op struct {
	Kind     Kind
	Node     int
	Name, To string
	Pos, N   int64
	Data     []byte
	Failed   bool   // Flush: the write-back failed; a Told follows when a call returns the error
	Keep     uint64 // if failed: the seed that decides which pages reached the disk all the same; 0: none
	Event    any    // of a Event: tells whoever goes through the operations later
}

func (op *Op) String() string {
	s := fmt.Sprintf("%v #%d %s", op.Kind, op.Node, op.Name)
	switch op.Kind {
	case Write, Store:
		s += fmt.Sprintf(" [%d, %d)", op.Pos, op.Pos+int64(len(op.Data)))
	case Zero, Reserve, WriteBack:
		s += fmt.Sprintf(" [%d, %d)", op.Pos, op.Pos+op.N)
	case Truncate:
		s += fmt.Sprintf(" to %d", op.N)
	case Rename, Link:
		s += " to " + op.To
	case Event:
		s = "---- " + op.Name
	}
	if op.Failed {
		s += " failed"
	}
	return s
}

// Node is a file, independent of its names.
type Node struct {
	Cache []byte // the contents in the page cache, which reads see
	owned bool   // cache is not shared; if false, it is copied before it changes
	disk  []byte // the contents that are certain to be on stable storage; never changed in place

	// The state since the last flush, failed or not. A page that has changed since may be old, new or a mixture on the disk.
	since   []byte  // the cache at the time of that flush
	pending []*Op   // the operations since
	sizes   []int64 // sizes[i] is the size after pending[:i]
	dirty   []bool  // by page
	// sent are the pages that write-back has sent to the disk since, as they were, with the number of operations before. The next
	// flush of any file makes those durable that have been on the disk before.
	sent map[int]sentPage
	// floor is, by page, the number of operations that its durable contents include, if these were made durable by the flush of another
	// file.
	floor map[int]int

	// On ext4, a page that was never on the disk and whose write-back failed loses all later writes, until the file is truncated
	// below it. On other file systems, such a page is like any other once it is written again (observed on Linux 6.18).
	ext4   bool
	once   []bool // by page: it has been on the disk
	Barred []bool // by page: it loses all later writes
	// wbErr counts the write-back errors, each of which is reported once to each descriptor; unseen says that the last has not been
	// reported to any.
	wbErr  int
	unseen bool

	stale [][]byte // for a power cut: old contents of freed blocks

	// lied says that a flush failed, after which cache and disk differ in pages that the kernel considers clean.
	lied bool
}

type sentPage struct {
	content []byte
	after   int
}

func newNode(content []byte) *Node {
	n := &Node{Cache: content, disk: content, since: content, sizes: []int64{int64(len(content))}}
	n.once = marked(nil, 0, int64(len(content)))
	return n
}

// marked sets the elements of pages that the bytes [from, to) touch.
func marked(pages []bool, from, to int64) []bool {
	for p := from / PageBytes; p*PageBytes < to; p++ {
		if need := int(p) + 1 - len(pages); need > 0 {
			pages = append(pages, make([]bool, need)...)
		}
		pages[p] = true
	}
	return pages
}

func isMarked(pages []bool, p int) bool { return p < len(pages) && pages[p] }

func (n *Node) clone() *Node {
	n.owned = false
	c := *n
	c.pending = slices.Clip(n.pending)
	c.sizes = slices.Clip(n.sizes)
	c.sent, c.floor = maps.Clone(n.sent), maps.Clone(n.floor)
	c.dirty, c.once, c.Barred = slices.Clone(n.dirty), slices.Clone(n.once), slices.Clone(n.Barred)
	return &c
}

// patch applies one operation to the contents of a file, which it may change in place.
func patch(b []byte, op *Op) []byte {
	switch op.Kind {
	case Truncate:
		return resize(b, op.N)
	case Reserve:
		return resize(b, max(int64(len(b)), op.Pos+op.N))
	case Zero:
		b = resize(b, max(int64(len(b)), op.Pos+op.N))
		clear(b[op.Pos : op.Pos+op.N])
		return b
	}
	b = resize(b, max(int64(len(b)), op.Pos+int64(len(op.Data))))
	copy(b[op.Pos:], op.Data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	old := len(b)
	b = slices.Grow(b, int(size)-old)[:size]
	clear(b[old:])
	return b
}

func (n *Node) apply(op *Op) {
	if !n.owned {
		n.Cache, n.owned = slices.Clone(n.Cache), true
	}
	from, to := op.Pos, op.Pos+max(op.N, int64(len(op.Data)))
	switch op.Kind {
	case Truncate:
		// A truncation removes everything after the new end from the cache, and later from the disk.
		from, to = op.N, max(int64(len(n.Cache)), int64(len(n.disk)))
		if op.N >= int64(len(n.Cache)) {
			to = from
		}
		// If the file grows again, it gets new blocks there.
		keep := int((op.N + PageBytes - 1) / PageBytes)
		maps.DeleteFunc(n.sent, func(p int, _ sentPage) bool { return int64(p+1)*PageBytes > op.N })
		n.once, n.Barred = n.once[:min(keep, len(n.once))], n.Barred[:min(keep, len(n.Barred))]
	case Reserve:
		to = from // reserving dirties no page: the blocks read as zeros
	}
	n.Cache = patch(n.Cache, op)
	n.dirty = marked(n.dirty, from, to)
	n.pending = append(n.pending, op)
	n.sizes = append(n.sizes, int64(len(n.Cache)))
}

// flush writes the dirty pages to the disk. A failed flush writes only the pages that keep selects, at the new size: the cache
// still holds the others, clean, but the disk does not.
func (n *Node) flush(op *Op) {
	switch {
	case op.Failed:
		rng := rand.New(rand.NewPCG(op.Keep, 1))
		kept := make([]bool, len(n.dirty))
		for p := range kept {
			kept[p] = op.Keep != 0 && rng.IntN(2) == 0
		}
		n.disk = n.image(len(n.pending), func(p int) version {
			if kept[p] {
				return versionNew
			}
			return versionOld
		}, nil, 0)
		n.lied = true
		n.wbErr, n.unseen = n.wbErr+1, true
		for p := range n.dirty {
			at := int64(p) * PageBytes
			if n.ext4 && n.dirty[p] && !kept[p] && !isMarked(n.once, p) && at < int64(len(n.Cache)) {
				n.Barred = marked(n.Barred, at, at+1)
			}
		}
	case n.lied:
		n.disk = n.image(len(n.pending), func(int) version { return versionNew }, nil, 0)
	default:
		n.disk, n.owned = n.Cache, false
	}
	for p, dirty := range n.dirty {
		if dirty && !op.Failed && !isMarked(n.Barred, p) {
			n.once = marked(n.once, int64(p)*PageBytes, int64(p)*PageBytes+1)
		}
	}
	n.since, n.owned = n.Cache, false
	n.pending, n.dirty, n.sent, n.floor = nil, nil, nil, nil
	n.sizes = []int64{int64(len(n.disk))}
}

// writeBack sends the dirty pages of a range to the disk, where they are not durable yet.
func (n *Node) writeBack(op *Op) {
	for p := int(op.Pos / PageBytes); int64(p)*PageBytes < op.Pos+op.N; p++ {
		at := int64(p) * PageBytes
		if !isMarked(n.dirty, p) || isMarked(n.Barred, p) || at >= int64(len(n.Cache)) {
			continue
		}
		if n.sent == nil {
			n.sent = map[int]sentPage{}
		}
		n.sent[p] = sentPage{slices.Clone(n.Cache[at:min(at+PageBytes, int64(len(n.Cache)))]), len(n.pending)}
	}
}

// flushDisk makes what was sent to the disk durable, as the flush of any file does, in blocks that belonged to the file before.
func (n *Node) flushDisk() {
	for p, page := range n.sent {
		at := p * PageBytes
		if isMarked(n.once, p) && at < len(n.disk) {
			n.disk = slices.Clone(n.disk)
			copy(n.disk[at:], page.content) // up to the end of the file that is durable
			if n.floor == nil {
				n.floor = map[int]int{}
			}
			n.floor[p] = page.after
		}
	}
	n.sent = nil
}

// version is the version of a dirty page that is on the disk after a power cut.
type version uint8

const (
	versionOld   version = iota
	versionNew           // the contents in the cache
	versionTorn          // some sectors old, some new
	versionMid           // the contents after some of the pending operations
	versionStale         // what the block held before it belonged to this file, if the page was never on the disk; otherwise versionOld
)

// image returns the contents that a power cut leaves. The file has the size that it had after pending[:size], and each dirty
// page the version that pick returns, where versionMid is the version after pending[:mid]. A truncation that reached the disk also
// removed the bytes after its end.
func (n *Node) image(size int, pick func(page int) version, rng *rand.Rand, mid int) []byte {
	if len(n.pending) == 0 {
		return n.disk
	}
	out := make([]byte, n.sizes[size])
	copy(out, n.disk[:min(int64(len(n.disk)), slices.Min(n.sizes[:size+1]))])
	var middle []byte
	for p := range n.dirty {
		at := p * PageBytes
		if !n.dirty[p] || at >= len(out) {
			continue
		}
		page := out[at:min(at+PageBytes, len(out))]
		if isMarked(n.Barred, p) {
			continue
		}
		v := pick(p)
		if v == versionMid && mid < n.floor[p] {
			v = versionOld
		}
		switch v {
		case versionNew:
			overlay(page, n.Cache, at, int64(len(n.Cache)))
		case versionTorn:
			for s := 0; s < len(page); s += SectorBytes {
				if rng.IntN(2) == 0 {
					overlay(page[s:min(s+SectorBytes, len(page))], n.Cache, at+s, int64(len(n.Cache)))
				}
			}
		case versionStale:
			if len(n.stale) > 0 && !isMarked(n.once, p) {
				copy(page, n.stale[rng.IntN(len(n.stale))])
			}
		case versionMid:
			if middle == nil {
				middle = slices.Clone(n.since)
				for _, op := range n.pending[:mid] {
					middle = patch(middle, op)
				}
			}
			limit := int64(len(middle))
			if mid < size {
				limit = slices.Min(n.sizes[mid : size+1])
			}
			overlay(page, middle, at, limit)
		}
	}
	return out
}

// overlay fills dst with the bytes of src from position at on, up to limit, and with zeros after that.
func overlay(dst, src []byte, at int, limit int64) {
	clear(dst)
	if limit = min(limit, int64(len(src))); int64(at) < limit {
		copy(dst, src[at:limit])
	}
}
