package seglog

import (
	"errors"
	"slices"
	"syscall"
)

// What the kernel remembers of a write-back that failed: it tells each descriptor that was open once, and one that is opened
// later if nobody was told before.

// unseen reports whether there are errors that nobody was told of.
func (w *simWorld) unseen() bool {
	for _, n := range w.nodes {
		if n.unseen {
			return true
		}
	}
	return false
}

// evicted is what is left once the kernel has thrown the files out of its cache whose errors nobody was told of, and the
// errors with them: reads see the disk. It keeps dirty pages.
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

// inWindow reports whether w, before ops, lies in the one window that docs/recovery.md leaves open: the process was told of
// a write-back that failed, and is killed within the microseconds until it has noted that. The kernel tells nobody else,
// so the next process takes the pages for good ones. What it stores in them again reaches the disk on XFS and btrfs, and not
// on ext4 in blocks that were never written before. A process that notes nothing at all is in no window.
func (w *simWorld) inWindow(ops []*simOp) bool {
	return w.unnoted && slices.ContainsFunc(ops, notesFailure)
}

// excused is w without what ext4 does in the window.
func (w *simWorld) excused() *simWorld {
	c := w.clone()
	for _, n := range c.nodes {
		n.barred = nil
	}
	return c
}

// openToldOf opens a log whose files have errors that nobody was told of. The first to flush such a file is told, notes it,
// and has failed; the Open after it copies what it keeps.
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

// forgetErrors: those of files that hold nothing in doubt, which a later flush would tell of.
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
