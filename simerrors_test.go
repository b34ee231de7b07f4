package seglog

import (
	"errors"
	"slices"
	"syscall"
)

// How the kernel reports a failed write-back: once to each descriptor that was open, and if there was none, to the next one that
// is opened.

// unseen reports whether there are errors that were not reported to anybody.
func (w *simWorld) unseen() bool {
	for _, n := range w.nodes {
		if n.unseen {
			return true
		}
	}
	return false
}

// evicted returns the world after the kernel has evicted the files with unreported errors from its cache, and has forgotten
// these errors: reads then see the disk. Dirty pages stay.
func (w *simWorld) evicted() *simWorld {
	c := w.clone()
	for _, n := range c.nodes {
		if n.unseen && len(n.pending) == 0 {
			n.cache, n.since, n.owned = n.disk, n.disk, false
			n.sizes = []int64{int64(len(n.disk))}
			n.barred, n.lied, n.unseen = nil, false, false
		}
	}
	return c
}

// notesFailure reports whether op writes to seglog.state that a write or flush has failed.
func notesFailure(op *simOp) bool {
	var st state
	return op.kind == simWrite && op.name == stateName && st.decode(op.data) && st.failed
}

// inWindow reports whether w, before ops, lies in the window that docs/recovery.md leaves open: a failed write-back was reported
// to the process, which is killed in the microseconds before it has noted that. The kernel does not report it again, so the
// next process takes the pages for good. If it stores them again, they reach the disk on XFS and btrfs, but not on ext4 in
// blocks that were never written before. A process that never notes the failure is not in the window.
func (w *simWorld) inWindow(ops []*simOp) bool {
	return w.unnoted && slices.ContainsFunc(ops, notesFailure)
}

// excused returns w without the effect that ext4 has in the window.
func (w *simWorld) excused() *simWorld {
	c := w.clone()
	for _, n := range c.nodes {
		n.barred = nil
	}
	return c
}

// openToldOf opens a log whose files have unreported errors. The first flush of such a file gets the error, which is noted, and
// fails; the next Open copies what it keeps.
func openToldOf(fsys fileSystem, s *simFS, opts *Options) (*Log, error) {
	l, err := openFS(fsys, simDir, opts)
	if err == nil {
		if err = l.Sync(); err == nil {
			s.forgetErrors()
			return l, nil
		}
		err = errors.Join(err, l.Close())
	}
	if !errors.Is(err, syscall.EIO) {
		return nil, err
	}
	l, err = openFS(fsys, simDir, opts)
	s.forgetErrors()
	return l, err
}

// forgetErrors removes the errors of files that have no bytes in doubt, which a later flush would report.
func (s *simFS) forgetErrors() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.w.nodes {
		n.wbErr, n.unseen = 0, false
	}
	for f := range s.files {
		f.told = 0
	}
}
