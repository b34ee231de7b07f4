package seglog

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// simCut is a power cut: it decides which effects of the unflushed operations are on the disk.
type simCut struct {
	what  string
	size  func(n *simNode) int                  // the number of pending operations after which a file has its size
	page  func(n *simNode, page int) simVersion // the version of a dirty page
	mid   func(n *simNode) int                  // the number of pending operations that simMid includes
	name  func(i int) bool                      // whether unsynced operation i on names is on the disk
	world *rand.Rand                            // decides how pages are torn
}

func (c *simCut) apply(w *simWorld) *simWorld {
	out := &simWorld{nodes: map[int]*simNode{}, next: w.next, names: maps.Clone(w.synced), lockFile: w.lockFile, ext4: w.ext4, hostile: w.hostile, freed: w.freed}
	for i, op := range w.unsynced {
		if c.name(i) {
			rename(out.names, op)
		}
	}
	for _, name := range out.sorted() {
		i := out.names[name]
		if out.nodes[i] != nil {
			continue
		}
		n := w.nodes[i]
		mid := 0
		if c.mid != nil {
			mid = c.mid(n)
		}
		n.stale = w.freed
		out.nodes[i] = newSimNode(n.image(c.size(n), func(p int) simVersion { return c.page(n, p) }, c.world, mid))
		out.nodes[i].ext4 = w.ext4
	}
	out.synced = maps.Clone(out.names)
	return out
}

func allNames(int) bool                { return true }
func noNames(int) bool                 { return false }
func oldSize(*simNode) int             { return 0 }
func newSize(n *simNode) int           { return len(n.pending) }
func oldPage(*simNode, int) simVersion { return simOld }
func newPage(*simNode, int) simVersion { return simNew }

// wholeCuts are the cuts that treat all files alike.
func wholeCuts() []simCut {
	return []simCut{
		{what: "nothing", size: oldSize, page: oldPage, name: noNames},
		{what: "everything", size: newSize, page: newPage, name: allNames},
		{what: "names only", size: oldSize, page: oldPage, name: allNames},
		{what: "names and sizes", size: newSize, page: oldPage, name: allNames},
		{what: "data only", size: newSize, page: newPage, name: noNames},
	}
}

// singleCuts returns the cuts in which one item differs from all others: a page that alone is on the disk, is missing or is
// torn, a size, a name, or a truncation of which only the first page is on the disk.
func singleCuts(w *simWorld, rng *rand.Rand) []simCut {
	var cuts []simCut
	add := func(c simCut) { c.world = rng; cuts = append(cuts, c) }
	seen := map[*simNode]bool{}
	for _, i := range slices.Sorted(maps.Keys(w.nodes)) { // sorted, so that the cuts are the same in each run
		n := w.nodes[i]
		if seen[n] || len(n.pending) == 0 {
			continue
		}
		seen[n] = true
		for p := range n.dirty {
			if !n.dirty[p] {
				continue
			}
			pick := func(this, others simVersion) func(*simNode, int) simVersion {
				return func(m *simNode, q int) simVersion {
					if m == n && q == p {
						return this
					}
					return others
				}
			}
			add(simCut{what: fmt.Sprint("page ", p, " alone"), size: newSize, page: pick(simNew, simOld), name: allNames})
			add(simCut{what: fmt.Sprint("page ", p, " missing"), size: newSize, page: pick(simOld, simNew), name: allNames})
			add(simCut{what: fmt.Sprint("page ", p, " torn"), size: newSize, page: pick(simTorn, simNew), name: allNames})
		}
		for i := range n.pending {
			if n.sizes[i+1] < n.sizes[i] {
				add(gapCut(n, i))
			}
		}
		if n.sizes[0] != n.sizes[len(n.pending)] {
			add(simCut{what: "one size missing", page: newPage, name: allNames, size: func(m *simNode) int {
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
			add(simCut{what: fmt.Sprint("name ", i, " unlike the others, ", others), size: newSize, page: newPage, name: name})
		}
	}
	return cuts
}

// gapCut returns a cut after which, of a truncation, only the zeros in the rest of the last page are on the disk: the file has
// its old size, with a gap of zeros and the old bytes after it. ext4 and XFS leave such files.
func gapCut(n *simNode, i int) simCut {
	at := int(n.sizes[i+1] / simPageBytes)
	return simCut{
		what: fmt.Sprint("truncation to ", n.sizes[i+1], " in part"), name: allNames,
		size: func(m *simNode) int {
			if m == n {
				return i
			}
			return len(m.pending)
		},
		page: func(m *simNode, p int) simVersion {
			switch {
			case m != n:
				return simNew
			case p == at:
				return simMid
			}
			return simOld
		},
		mid: func(*simNode) int { return i + 1 },
	}
}

// randomCut returns a cut that decides about each page, name and size independently, with odds that differ from cut to cut.
func randomCut(rng *rand.Rand) simCut {
	odds := [...]int{1, 10, 50, 90, 99}
	chance := func(percent int) bool { return rng.IntN(100) < percent }
	pages, names, sizes := odds[rng.IntN(len(odds))], odds[rng.IntN(len(odds))], odds[rng.IntN(len(odds))]
	torn := rng.IntN(2) * rng.IntN(60)
	middle := rng.IntN(2) * rng.IntN(60)
	stale := rng.IntN(2) * rng.IntN(100)
	return simCut{
		what: fmt.Sprintf("random: %d%% of pages, %d%% of names, %d%% of sizes, %d%% torn, %d%% halfway", pages, names, sizes, torn, middle),
		size: func(n *simNode) int {
			switch {
			case chance(sizes):
				return len(n.pending)
			case chance(50):
				return 0
			}
			return rng.IntN(len(n.pending) + 1)
		},
		page: func(*simNode, int) simVersion {
			switch {
			case chance(torn):
				return simTorn
			case chance(middle):
				return simMid
			case chance(pages):
				return simNew
			case chance(stale):
				return simStale
			}
			return simOld
		},
		mid:   func(n *simNode) int { return rng.IntN(len(n.pending) + 1) },
		name:  func(int) bool { return chance(names) },
		world: rng,
	}
}
