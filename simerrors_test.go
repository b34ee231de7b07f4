package seglog

import (
	"errors"
	"slices"
	"syscall"

	"github.com/seglog/seglog/internal/vfs"
)

// This file models the way in which Linux reports a failed write-back: once to each descriptor that was open at the time or, if
// none was, to the next one that is opened.

// unseen reports whether there are write-back errors that no descriptor has been told of.
func (w *simWorld) unseen() bool {
	for _, n := range w.nodes {
		if n.unseen {
			return true
		}
	}
	return false
}

// evicted returns the world after the kernel has evicted the clean files with unreported errors from its cache and forgotten the
// errors, after which reads see the disk.
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

// notesFailure reports whether op notes in seglog.state that a write or flush has failed.
func notesFailure(op *simOp) bool {
	var st state
	return op.kind == simWrite && op.name == stateName && st.decode(op.data) && st.failed
}

// inWindow reports whether w, before ops, lies in the window that docs/recovery.md leaves open: the process was told of a failed
// write-back, and is killed in the microseconds before it notes the failure. The kernel does not report the error again, so the
// next process takes the pages for sound. If it writes them again, they reach the disk on XFS and btrfs, but not on ext4 in
// blocks that were never written before. A process that never notes the failure is outside the window.
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

// openToldOf opens a log whose files have unreported errors. The first flush of such a file returns the error and fails the log,
// which notes the failure; the next Open then rewrites the records that it keeps.
func openToldOf(fsys vfs.FS, s *simFS, opts *Options) (*Log, error) {
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

// forgetErrors makes all files forget their write-back errors, so that no later flush reports them.
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
