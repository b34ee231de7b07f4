package sim

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
)

// World and Node are the disk of the simulation: the contents of each file in the page cache and on stable storage, and the
// operations that make up the difference. An FS applies operations to one world while the engine runs; the crasher replays them on
// another world, and cuts the power after any of them.

// The units of the disk.
const (
	PageBytes   = 4096 // the unit of write-back, which the kernel does in any order
	SectorBytes = 512  // the unit that a disk writes atomically
)

// World is the directory and its files.
type World struct {
	Nodes    map[int]*Node
	next     int // number of the next node
	Names    map[string]int
	synced   map[string]int // names at the last syncDir
	unsynced []*Op          // operations on names since the last syncDir
	lockFile bool
	Ext4     bool     // see Node
	Hostile  bool     // after a lost write, a block may show its old contents
	freed    [][]byte // the contents of freed blocks, if hostile
	unnoted  bool     // see inWindow
}

// NotesFailure reports whether an operation notes durably that a write or flush of the engine has failed. The tests of the
// engine set it, since they know its files.
var NotesFailure = func(*Op) bool { return false }

// NewWorld returns an empty disk.
func NewWorld() *World {
	return &World{Nodes: map[int]*Node{}, Names: map[string]int{}, synced: map[string]int{}}
}

// Clone returns an independent copy, which shares what does not change.
func (w *World) Clone() *World {
	c := *w
	c.Nodes = make(map[int]*Node, len(w.Nodes))
	for i, n := range w.Nodes {
		c.Nodes[i] = n.clone()
	}
	c.Names, c.synced = maps.Clone(w.Names), maps.Clone(w.synced)
	c.unsynced = slices.Clip(w.unsynced)
	return &c
}

// Apply carries out one operation.
func (w *World) Apply(op *Op) {
	switch op.Kind {
	case Event:
	case Flush:
		w.Nodes[op.Node].flush(op)
		if !op.Failed {
			for _, n := range w.Nodes {
				n.flushDisk()
			}
		}
	case FlushDisk:
		for _, n := range w.Nodes {
			n.flushDisk()
		}
	case WriteBack:
		w.Nodes[op.Node].writeBack(op)
	case SyncDir:
		w.syncDir(op.Name)
	case Told:
		w.Nodes[op.Node].unseen, w.unnoted = false, true
	case Create, Rename, Link, Remove:
		if n, ok := w.Names[op.To]; ok && op.Kind == Rename && w.links(n) == 1 {
			w.free(w.Nodes[n].Cache, 0)
		} else if op.Kind == Remove && w.links(op.Node) == 1 {
			w.free(w.Nodes[op.Node].Cache, 0)
		}
		if op.Kind == Create {
			w.Nodes[op.Node] = newNode(nil)
			w.Nodes[op.Node].ext4 = w.Ext4
			w.next = max(w.next, op.Node+1)
		}
		rename(w.Names, op)
		w.unsynced = append(w.unsynced, op)
	default:
		if n := w.Nodes[op.Node]; op.Kind == Truncate && op.N < int64(len(n.Cache)) {
			w.free(n.Cache, op.N)
		}
		w.Nodes[op.Node].apply(op)
		w.unnoted = w.unnoted && !NotesFailure(op)
	}
}

// links returns the number of names of a file.
func (w *World) links(node int) (n int) {
	for _, of := range w.Names {
		if of == node {
			n++
		}
	}
	return n
}

// syncDir makes the names in one directory durable.
func (w *World) syncDir(folder string) {
	in := func(name string) bool { _, ok := inFolder(folder, name); return ok }
	synced := maps.Clone(w.synced)
	maps.DeleteFunc(synced, func(name string, _ int) bool { return in(name) })
	for name, n := range w.Names {
		if in(name) {
			synced[name] = n
		}
	}
	w.synced = synced
	w.unsynced = slices.DeleteFunc(slices.Clone(w.unsynced), func(op *Op) bool {
		if op.Kind == Link {
			return in(op.To)
		}
		return in(op.Name)
	})
}

// free keeps the contents of the blocks of a file from a position on, which the file gives up.
func (w *World) free(b []byte, from int64) {
	if !w.Hostile {
		return
	}
	for at := from / PageBytes * PageBytes; at < int64(len(b)); at += PageBytes {
		if page := b[at:min(at+PageBytes, int64(len(b)))]; len(bytes.TrimLeft(page, "\x00")) > 0 {
			w.freed = append(w.freed, slices.Clone(page))
		}
	}
	w.freed = w.freed[max(0, len(w.freed)-32):]
}

// rename applies an operation on names, even if an earlier operation was lost: journals keep the order of operations on one
// file, but not on several.
func rename(names map[string]int, op *Op) {
	switch op.Kind {
	case Create:
		names[op.Name] = op.Node
	case Link:
		names[op.To] = op.Node
	case Rename:
		if n, ok := names[op.Name]; ok && n == op.Node {
			delete(names, op.Name)
		}
		names[op.To] = op.Node
	case Remove:
		if n, ok := names[op.Name]; ok && n == op.Node {
			delete(names, op.Name)
		}
	}
}

// Put adds or replaces a file, which is durable at once.
func (w *World) Put(name string, content []byte) {
	if n, ok := w.Names[name]; ok {
		w.Nodes[n] = newNode(content)
		return
	}
	w.Nodes[w.next] = newNode(content)
	w.Names[name], w.synced[name] = w.next, w.next
	w.next++
}

// Drop removes a file, durably at once.
func (w *World) Drop(name string) {
	delete(w.Names, name)
	delete(w.synced, name)
}

// Get returns the contents of a file as a reader sees them. The caller must not change them.
func (w *World) Get(name string) []byte { return w.Nodes[w.Names[name]].Cache }

// Sorted returns the names of all files in order.
func (w *World) Sorted() []string { return slices.Sorted(maps.Keys(w.Names)) }

var hashSeed = maphash.MakeSeed()

// Hash returns a hash of the names and contents of all files.
func (w *World) Hash() uint64 {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	for _, name := range w.Sorted() {
		b := w.Nodes[w.Names[name]].Cache
		fmt.Fprintf(&h, "%s %d ", name, len(b))
		h.Write(b)
	}
	return h.Sum64()
}

func (w *World) String() string {
	var s strings.Builder
	for _, name := range w.Sorted() {
		n := w.Nodes[w.Names[name]]
		fmt.Fprintf(&s, "  %s #%d: %d bytes, disk %d, %d pending, data to %d\n", name, w.Names[name], len(n.Cache), len(n.disk),
			len(n.pending), len(strings.TrimRight(string(n.Cache), "\x00")))
	}
	return s.String()
}
