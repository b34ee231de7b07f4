package seglog

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// This is the disk of the simulation: the contents of each file in the page cache and on stable storage, and the operations
// that make up the difference. A simFS applies operations to one world while the engine runs; the crasher replays them on
// another world, and cuts the power after any of them.

const (
	simPageBytes   = 4096 // the unit of write-back, which the kernel does in any order
	simSectorBytes = 512  // the unit that a disk writes atomically
)

type simKind uint8

const (
	simWrite    simKind = iota // data at pos
	simStore                   // data at pos, through a mapping
	simZero                    // n zeros at pos
	simReserve                 // the file becomes at least pos+n bytes long
	simTruncate                // the file becomes n bytes long
	simFlush
	simCreate
	simRename
	simLink
	simRemove
	simSyncDir
	simTold  // a call returned a write-back error of the file
	simEvent // a call or observation of the engine's user; not a file system operation

	// The following change nothing that a power cut could lose, but they are counted and can fail.
	simOpen
	simRead
	simStat
	simList
	simMap
	simLock
	simMkdir
	simKinds
)

func (k simKind) String() string {
	return [simKinds]string{"write", "store", "zero", "reserve", "truncate", "flush", "create", "rename", "link", "remove",
		"syncdir", "told", "event", "open", "read", "stat", "list", "mmap", "lock", "mkdir"}[k]
}

// simOp is one executed operation. It is immutable once recorded.
type simOp struct {
	kind     simKind
	node     int
	name, to string
	pos, n   int64
	data     []byte
	failed   bool   // simFlush: the write-back failed; a simTold follows when a call returns the error
	keep     uint64 // if failed: the seed that decides which pages reached the disk all the same; 0: none
	event    func(*oracle)
}

func (op *simOp) String() string {
	s := fmt.Sprintf("%v #%d %s", op.kind, op.node, op.name)
	switch op.kind {
	case simWrite, simStore:
		s += fmt.Sprintf(" [%d, %d)", op.pos, op.pos+int64(len(op.data)))
	case simZero, simReserve:
		s += fmt.Sprintf(" [%d, %d)", op.pos, op.pos+op.n)
	case simTruncate:
		s += fmt.Sprintf(" to %d", op.n)
	case simRename, simLink:
		s += " to " + op.to
	case simEvent:
		s = "---- " + op.name
	}
	if op.failed {
		s += " failed"
	}
	return s
}

// simNode is a file, independent of its names.
type simNode struct {
	cache []byte // the contents in the page cache, which reads see
	owned bool   // cache is not shared; if false, it is copied before it changes
	disk  []byte // the contents that are certain to be on stable storage; never changed in place

	// The state since the last flush, failed or not. A page that has changed since may be old, new or a mixture on the disk.
	since   []byte   // the cache at the time of that flush
	pending []*simOp // the operations since
	sizes   []int64  // sizes[i] is the size after pending[:i]
	dirty   []bool   // by page

	// On ext4, a page that was never on the disk and whose write-back failed loses all later writes, until the file is truncated
	// below it. On other file systems, such a page is like any other once it is written again (observed on Linux 6.18).
	ext4   bool
	once   []bool // by page: it has been on the disk
	barred []bool // by page: it loses all later writes
	// wbErr counts the write-back errors, each of which is reported once to each descriptor; unseen says that the last has not been
	// reported to any.
	wbErr  int
	unseen bool

	stale [][]byte // for a power cut: old contents of freed blocks

	// lied says that a flush failed, after which cache and disk differ in pages that the kernel considers clean.
	lied bool
}

func newSimNode(content []byte) *simNode {
	n := &simNode{cache: content, disk: content, since: content, sizes: []int64{int64(len(content))}}
	n.once = marked(nil, 0, int64(len(content)))
	return n
}

// marked sets the elements of pages that the bytes [from, to) touch.
func marked(pages []bool, from, to int64) []bool {
	for p := from / simPageBytes; p*simPageBytes < to; p++ {
		if need := int(p) + 1 - len(pages); need > 0 {
			pages = append(pages, make([]bool, need)...)
		}
		pages[p] = true
	}
	return pages
}

func isMarked(pages []bool, p int) bool { return p < len(pages) && pages[p] }

func (n *simNode) clone() *simNode {
	n.owned = false
	c := *n
	c.pending = slices.Clip(n.pending)
	c.sizes = slices.Clip(n.sizes)
	c.dirty, c.once, c.barred = slices.Clone(n.dirty), slices.Clone(n.once), slices.Clone(n.barred)
	return &c
}

// patch applies one operation to the contents of a file, which it may change in place.
func patch(b []byte, op *simOp) []byte {
	switch op.kind {
	case simTruncate:
		return resize(b, op.n)
	case simReserve:
		return resize(b, max(int64(len(b)), op.pos+op.n))
	case simZero:
		b = resize(b, max(int64(len(b)), op.pos+op.n))
		clear(b[op.pos : op.pos+op.n])
		return b
	}
	b = resize(b, max(int64(len(b)), op.pos+int64(len(op.data))))
	copy(b[op.pos:], op.data)
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

func (n *simNode) apply(op *simOp) {
	if !n.owned {
		n.cache, n.owned = slices.Clone(n.cache), true
	}
	from, to := op.pos, op.pos+max(op.n, int64(len(op.data)))
	switch op.kind {
	case simTruncate:
		// A truncation removes everything after the new end from the cache, and later from the disk.
		from, to = op.n, max(int64(len(n.cache)), int64(len(n.disk)))
		if op.n >= int64(len(n.cache)) {
			to = from
		}
		// If the file grows again, it gets new blocks there.
		keep := int((op.n + simPageBytes - 1) / simPageBytes)
		n.once, n.barred = n.once[:min(keep, len(n.once))], n.barred[:min(keep, len(n.barred))]
	case simReserve:
		to = from // reserving dirties no page: the blocks read as zeros
	}
	n.cache = patch(n.cache, op)
	n.dirty = marked(n.dirty, from, to)
	n.pending = append(n.pending, op)
	n.sizes = append(n.sizes, int64(len(n.cache)))
}

// flush writes the dirty pages to the disk. A failed flush writes only the pages that keep selects, at the new size: the cache
// still holds the others, clean, but the disk does not.
func (n *simNode) flush(op *simOp) {
	switch {
	case op.failed:
		rng := rand.New(rand.NewPCG(op.keep, 1))
		kept := make([]bool, len(n.dirty))
		for p := range kept {
			kept[p] = op.keep != 0 && rng.IntN(2) == 0
		}
		n.disk = n.image(len(n.pending), func(p int) simVersion {
			if kept[p] {
				return simNew
			}
			return simOld
		}, nil, 0)
		n.lied = true
		n.wbErr, n.unseen = n.wbErr+1, true
		for p := range n.dirty {
			at := int64(p) * simPageBytes
			if n.ext4 && n.dirty[p] && !kept[p] && !isMarked(n.once, p) && at < int64(len(n.cache)) {
				n.barred = marked(n.barred, at, at+1)
			}
		}
	case n.lied:
		n.disk = n.image(len(n.pending), func(int) simVersion { return simNew }, nil, 0)
	default:
		n.disk, n.owned = n.cache, false
	}
	for p, dirty := range n.dirty {
		if dirty && !op.failed && !isMarked(n.barred, p) {
			n.once = marked(n.once, int64(p)*simPageBytes, int64(p)*simPageBytes+1)
		}
	}
	n.since, n.owned = n.cache, false
	n.pending, n.dirty = nil, nil
	n.sizes = []int64{int64(len(n.disk))}
}

// simVersion is the version of a dirty page that is on the disk after a power cut.
type simVersion uint8

const (
	simOld   simVersion = iota
	simNew              // the contents in the cache
	simTorn             // some sectors old, some new
	simMid              // the contents after some of the pending operations
	simStale            // what the block held before it belonged to this file, if the page was never on the disk; otherwise simOld
)

// image returns the contents that a power cut leaves. The file has the size that it had after pending[:size], and each dirty
// page the version that pick returns, where simMid is the version after pending[:mid]. A truncation that reached the disk also
// removed the bytes after its end.
func (n *simNode) image(size int, pick func(page int) simVersion, rng *rand.Rand, mid int) []byte {
	if len(n.pending) == 0 {
		return n.disk
	}
	out := make([]byte, n.sizes[size])
	copy(out, n.disk[:min(int64(len(n.disk)), slices.Min(n.sizes[:size+1]))])
	var middle []byte
	for p := range n.dirty {
		at := p * simPageBytes
		if !n.dirty[p] || at >= len(out) {
			continue
		}
		page := out[at:min(at+simPageBytes, len(out))]
		if isMarked(n.barred, p) {
			continue
		}
		switch pick(p) {
		case simNew:
			overlay(page, n.cache, at, int64(len(n.cache)))
		case simTorn:
			for s := 0; s < len(page); s += simSectorBytes {
				if rng.IntN(2) == 0 {
					overlay(page[s:min(s+simSectorBytes, len(page))], n.cache, at+s, int64(len(n.cache)))
				}
			}
		case simStale:
			if len(n.stale) > 0 && !isMarked(n.once, p) {
				copy(page, n.stale[rng.IntN(len(n.stale))])
			}
		case simMid:
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

// simWorld is the directory and its files.
type simWorld struct {
	nodes    map[int]*simNode
	next     int // number of the next node
	names    map[string]int
	synced   map[string]int // names at the last syncDir
	unsynced []*simOp       // operations on names since the last syncDir
	lockFile bool
	ext4     bool     // see simNode
	hostile  bool     // after a lost write, a block may show its old contents
	freed    [][]byte // the contents of freed blocks, if hostile
	unnoted  bool     // see inWindow
}

func newSimWorld() *simWorld {
	return &simWorld{nodes: map[int]*simNode{}, names: map[string]int{}, synced: map[string]int{}}
}

func (w *simWorld) clone() *simWorld {
	c := *w
	c.nodes = make(map[int]*simNode, len(w.nodes))
	for i, n := range w.nodes {
		c.nodes[i] = n.clone()
	}
	c.names, c.synced = maps.Clone(w.names), maps.Clone(w.synced)
	c.unsynced = slices.Clip(w.unsynced)
	return &c
}

func (w *simWorld) apply(op *simOp) {
	switch op.kind {
	case simEvent:
	case simFlush:
		w.nodes[op.node].flush(op)
	case simSyncDir:
		w.syncDir(op.name)
	case simTold:
		w.nodes[op.node].unseen, w.unnoted = false, true
	case simCreate, simRename, simLink, simRemove:
		if n, ok := w.names[op.to]; ok && op.kind == simRename && w.links(n) == 1 {
			w.free(w.nodes[n].cache, 0)
		} else if op.kind == simRemove && w.links(op.node) == 1 {
			w.free(w.nodes[op.node].cache, 0)
		}
		if op.kind == simCreate {
			w.nodes[op.node] = newSimNode(nil)
			w.nodes[op.node].ext4 = w.ext4
			w.next = max(w.next, op.node+1)
		}
		rename(w.names, op)
		w.unsynced = append(w.unsynced, op)
	default:
		if n := w.nodes[op.node]; op.kind == simTruncate && op.n < int64(len(n.cache)) {
			w.free(n.cache, op.n)
		}
		w.nodes[op.node].apply(op)
		w.unnoted = w.unnoted && !notesFailure(op)
	}
}

// links returns the number of names of a file.
func (w *simWorld) links(node int) (n int) {
	for _, of := range w.names {
		if of == node {
			n++
		}
	}
	return n
}

// syncDir makes the names in one directory durable.
func (w *simWorld) syncDir(folder string) {
	in := func(name string) bool { _, ok := inFolder(folder, name); return ok }
	synced := maps.Clone(w.synced)
	maps.DeleteFunc(synced, func(name string, _ int) bool { return in(name) })
	for name, n := range w.names {
		if in(name) {
			synced[name] = n
		}
	}
	w.synced = synced
	w.unsynced = slices.DeleteFunc(slices.Clone(w.unsynced), func(op *simOp) bool {
		if op.kind == simLink {
			return in(op.to)
		}
		return in(op.name)
	})
}

// free keeps the contents of the blocks of a file from a position on, which the file gives up.
func (w *simWorld) free(b []byte, from int64) {
	if !w.hostile {
		return
	}
	for at := from / simPageBytes * simPageBytes; at < int64(len(b)); at += simPageBytes {
		if page := b[at:min(at+simPageBytes, int64(len(b)))]; !isZero(page) {
			w.freed = append(w.freed, slices.Clone(page))
		}
	}
	w.freed = w.freed[max(0, len(w.freed)-32):]
}

// rename applies an operation on names, even if an earlier operation was lost: journals keep the order of operations on one
// file, but not on several.
func rename(names map[string]int, op *simOp) {
	switch op.kind {
	case simCreate:
		names[op.name] = op.node
	case simLink:
		names[op.to] = op.node
	case simRename:
		if n, ok := names[op.name]; ok && n == op.node {
			delete(names, op.name)
		}
		names[op.to] = op.node
	case simRemove:
		if n, ok := names[op.name]; ok && n == op.node {
			delete(names, op.name)
		}
	}
}

// put adds or replaces a file, which is durable at once.
func (w *simWorld) put(name string, content []byte) {
	if n, ok := w.names[name]; ok {
		w.nodes[n] = newSimNode(content)
		return
	}
	w.nodes[w.next] = newSimNode(content)
	w.names[name], w.synced[name] = w.next, w.next
	w.next++
}

func (w *simWorld) drop(name string) {
	delete(w.names, name)
	delete(w.synced, name)
}

// get returns the contents of a file as a reader sees them. The caller must not change them.
func (w *simWorld) get(name string) []byte { return w.nodes[w.names[name]].cache }

func (w *simWorld) sorted() []string { return slices.Sorted(maps.Keys(w.names)) }

var simSeed = maphash.MakeSeed()

// hash returns a hash of the names and contents of all files.
func (w *simWorld) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(simSeed)
	for _, name := range w.sorted() {
		b := w.nodes[w.names[name]].cache
		fmt.Fprintf(&h, "%s %d ", name, len(b))
		h.Write(b)
	}
	return h.Sum64()
}

func (w *simWorld) String() string {
	var s strings.Builder
	for _, name := range w.sorted() {
		n := w.nodes[w.names[name]]
		fmt.Fprintf(&s, "  %s #%d: %d bytes, disk %d, %d pending, data to %d\n", name, w.names[name], len(n.cache), len(n.disk),
			len(n.pending), len(strings.TrimRight(string(n.cache), "\x00")))
	}
	return s.String()
}
