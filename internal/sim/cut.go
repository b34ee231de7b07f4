package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Cut is a power cut: it decides which effects of the unflushed operations are on the disk.
type Cut struct {
	What  string
	size  func(n *Node) int               // the number of pending operations after which a file has its size
	page  func(n *Node, page int) version // the version of a dirty page
	mid   func(n *Node) int               // the number of pending operations that versionMid includes
	name  func(i int) bool                // whether unsynced operation i on names is on the disk
	world *rand.Rand                      // decides how pages are torn
}

// Apply returns the disk that the power cut leaves of w.
func (c *Cut) Apply(w *World) *World {
	out := &World{Nodes: map[int]*Node{}, next: w.next, Names: maps.Clone(w.synced), lockFile: w.lockFile, Ext4: w.Ext4, Hostile: w.Hostile, freed: w.freed}
	for i, op := range w.unsynced {
		if c.name(i) {
			rename(out.Names, op)
		}
	}
	for _, name := range out.Sorted() {
		i := out.Names[name]
		if out.Nodes[i] != nil {
			continue
		}
		n := w.Nodes[i]
		mid := 0
		if c.mid != nil {
			mid = c.mid(n)
		}
		n.stale = w.freed
		out.Nodes[i] = newNode(n.image(c.size(n), func(p int) version { return c.page(n, p) }, c.world, mid))
		out.Nodes[i].ext4 = w.Ext4
	}
	out.synced = maps.Clone(out.Names)
	return out
}

func allNames(int) bool          { return true }
func noNames(int) bool           { return false }
func oldSize(*Node) int          { return 0 }
func newSize(n *Node) int        { return len(n.pending) }
func oldPage(*Node, int) version { return versionOld }
func newPage(*Node, int) version { return versionNew }

// WholeCuts are the cuts that treat all files alike.
func WholeCuts() []Cut {
	return []Cut{
		{What: "nothing", size: oldSize, page: oldPage, name: noNames},
		{What: "everything", size: newSize, page: newPage, name: allNames},
		{What: "names only", size: oldSize, page: oldPage, name: allNames},
		{What: "names and sizes", size: newSize, page: oldPage, name: allNames},
		{What: "data only", size: newSize, page: newPage, name: noNames},
	}
}

// SingleCuts returns the cuts in which one item differs from all others: a page that alone is on the disk, is missing or is
// torn, a size, a name, or a truncation of which only the first page is on the disk.
func SingleCuts(w *World, rng *rand.Rand) []Cut {
	var cuts []Cut
	add := func(c Cut) { c.world = rng; cuts = append(cuts, c) }
	seen := map[*Node]bool{}
	for _, i := range slices.Sorted(maps.Keys(w.Nodes)) { // sorted, so that the cuts are the same in each run
		n := w.Nodes[i]
		if seen[n] || len(n.pending) == 0 {
			continue
		}
		seen[n] = true
		for p := range n.dirty {
			if !n.dirty[p] {
				continue
			}
			pick := func(this, others version) func(*Node, int) version {
				return func(m *Node, q int) version {
					if m == n && q == p {
						return this
					}
					return others
				}
			}
			add(Cut{What: fmt.Sprint("page ", p, " alone"), size: newSize, page: pick(versionNew, versionOld), name: allNames})
			add(Cut{What: fmt.Sprint("page ", p, " missing"), size: newSize, page: pick(versionOld, versionNew), name: allNames})
			add(Cut{What: fmt.Sprint("page ", p, " torn"), size: newSize, page: pick(versionTorn, versionNew), name: allNames})
		}
		for i := range n.pending {
			if n.sizes[i+1] < n.sizes[i] {
				add(gapCut(n, i))
			}
		}
		if n.sizes[0] != n.sizes[len(n.pending)] {
			add(Cut{What: "one size missing", page: newPage, name: allNames, size: func(m *Node) int {
				if m == n {
					return 0
				}
				return len(m.pending)
			}})
		}
	}
	for i := range w.unsynced {
		for _, others := range []bool{false, true} {
			name := func(j int) bool { return others != (j == i) }
			add(Cut{What: fmt.Sprint("name ", i, " unlike the others, ", others), size: newSize, page: newPage, name: name})
		}
	}
	return cuts
}

// gapCut returns a cut after which, of a truncation, only the zeros in the rest of the last page are on the disk: the file has
// its old size, with a gap of zeros and the old bytes after it. ext4 and XFS leave such files.
func gapCut(n *Node, i int) Cut {
	at := int(n.sizes[i+1] / PageBytes)
	return Cut{
		What: fmt.Sprint("truncation to ", n.sizes[i+1], " in part"), name: allNames,
		size: func(m *Node) int {
			if m == n {
				return i
			}
			return len(m.pending)
		},
		page: func(m *Node, p int) version {
			switch {
			case m != n:
				return versionNew
			case p == at:
				return versionMid
			}
			return versionOld
		},
		mid: func(*Node) int { return i + 1 },
	}
}

// RandomCut returns a cut that decides about each page, name and size independently, with odds that differ from cut to cut.
func RandomCut(rng *rand.Rand) Cut {
	odds := [...]int{1, 10, 50, 90, 99}
	chance := func(percent int) bool { return rng.IntN(100) < percent }
	pages, names, sizes := odds[rng.IntN(len(odds))], odds[rng.IntN(len(odds))], odds[rng.IntN(len(odds))]
	torn := rng.IntN(2) * rng.IntN(60)
	middle := rng.IntN(2) * rng.IntN(60)
	stale := rng.IntN(2) * rng.IntN(100)
	return Cut{
		What: fmt.Sprintf("random: %d%% of pages, %d%% of names, %d%% of sizes, %d%% torn, %d%% halfway", pages, names, sizes, torn, middle),
		size: func(n *Node) int {
			switch {
			case chance(sizes):
				return len(n.pending)
			case chance(50):
				return 0
			}
			return rng.IntN(len(n.pending) + 1)
		},
		page: func(*Node, int) version {
			switch {
			case chance(torn):
				return versionTorn
			case chance(middle):
				return versionMid
			case chance(pages):
				return versionNew
			case chance(stale):
				return versionStale
			}
			return versionOld
		},
		mid:   func(n *Node) int { return rng.IntN(len(n.pending) + 1) },
		name:  func(int) bool { return chance(names) },
		world: rng,
	}
}
