package sim

import "slices"

// The following models the way in which Linux reports a failed write-back: once to each descriptor that was open at the time or, if
// none was, to the next one that is opened.

// Unseen reports whether there are write-back errors that no descriptor has been told of.
func (w *World) Unseen() bool {
	for _, n := range w.Nodes {
		if n.unseen {
			return true
		}
	}
	return false
}

// Evicted returns the world after the kernel has evicted the clean files with unreported errors from its cache and forgotten the
// errors, after which reads see the disk.
func (w *World) Evicted() *World {
	c := w.Clone()
	for _, n := range c.Nodes {
		if n.unseen && len(n.pending) == 0 {
			n.Cache, n.since, n.owned = n.disk, n.disk, false
			n.sizes = []int64{int64(len(n.disk))}
			n.Barred, n.lied, n.unseen = nil, false, false
		}
	}
	return c
}

// InWindow reports whether w, before ops, lies in the window that docs/recovery.md leaves open: the process was told of a failed
// write-back, and is killed in the microseconds before it notes the failure. The kernel does not report the error again, so the
// next process takes the pages for sound. If it writes them again, they reach the disk on XFS and btrfs, but not on ext4 in
// blocks that were never written before. A process that never notes the failure is outside the window.
func (w *World) InWindow(ops []*Op) bool {
	return w.unnoted && slices.ContainsFunc(ops, NotesFailure)
}

// Excused returns w without the effect that ext4 has in the window.
func (w *World) Excused() *World {
	c := w.Clone()
	for _, n := range c.Nodes {
		n.Barred = nil
	}
	return c
}

// ForgetErrors makes all files forget their write-back errors, so that no later flush reports them.
func (s *FS) ForgetErrors() {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for _, n := range s.World.Nodes {
		n.wbErr, n.unseen = 0, false
	}
	for f := range s.Files {
		f.Told = 0
	}
}
