package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/sched"
	"github.com/seglog/seglog/internal/vfs"
)

// stateFile keeps seglog.state.
type stateFile struct {
	// open opens and locks the file again after rest. With atOnce it does not wait for a descriptor. nil: the file stays open.
	open func(atOnce bool) (vfs.File, error)
	mu   sched.Mutex
	// Guarded by mu:
	f        vfs.File // nil while the log is at rest, if nothing was noted since
	cur      state
	dirty    bool // written since the last flush
	flushing bool
	// device is where flushes of f may be shared with those of other files (gather.device), once a flush of f itself has made both
	// slots durable, so that nothing but their contents changes from then on. It is nil before.
	device *commit.Device
	buf    [stateLen]byte
	// missed is a note that met somebody else who held mu, or found no descriptor. Whoever holds mu writes it afterwards: a reader in
	// another process sees durable records only once they are noted, and the next flush may be hours away.
	missed atomic.Pointer[flushedNote]
}

// flushedNote says that everything below durable is flushed, and the segment at base up to m.
type flushedNote struct {
	durable, base int64
	m             mark
}

// unlock ends what s.mu.Lock began.
func (s *stateFile) unlock() {
	s.mu.Unlock()
	s.catchUp()
}

// catchUp writes a note that was missed, unless somebody holds mu, who will.
func (s *stateFile) catchUp() {
	for s.missed.Load() != nil && s.mu.TryLock() {
		again := false
		if n := s.missed.Swap(nil); n != nil {
			again = noDescriptor(s.putFlushed(*n)) && s.missed.CompareAndSwap(nil, n) // another failure only makes the next recovery check more
		}
		s.mu.Unlock()
		if again {
			return // the keeper flushes the file in a while
		}
	}
}

// flushed returns the state with a note of what was flushed.
func (s state) flushed(n flushedNote) state {
	s.recoveryPoint = max(s.recoveryPoint, n.durable)
	if s.scanBase == n.base && n.m.pos() > s.scanPos {
		s.scanFrom(n.base, n.m)
	}
	return s
}

// openState opens the state file for writing and locks it: should somebody remove the file LOCK, a second writer is still
// kept out.
func openState(fsys vfs.FS, path string, cur state) (*stateFile, error) {
	f, err := lockState(fsys, path, vfs.OpenWrite)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = lockState(fsys, path, vfs.OpenCreate)
	}
	if err != nil {
		return nil, err
	}
	return &stateFile{f: f, cur: cur}, nil
}

func lockState(fsys vfs.FS, path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := fsys.Open(path, mode)
	if err == nil {
		if err = f.Lock(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, err
}

// close closes the file, if it is open. s.mu is held.
func (s *stateFile) close() error {
	f := s.f
	if f == nil {
		return nil
	}
	s.f, s.device = nil, nil
	return errors.Join(f.Unlock(), f.Close())
}

// end closes the file for good.
func (s *stateFile) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = nil
	return s.close()
}

// rest closes the file until something is to be noted, unless it is in use. The file LOCK keeps other writers out meanwhile. Notes that
// are not flushed keep it open, unless the process is short of descriptors: if a power cut takes a note, recovery only has more to check.
func (s *stateFile) rest(short bool) error {
	if !s.mu.TryLock() {
		return nil
	}
	defer s.unlock()
	if s.dirty && !short || s.flushing || s.missed.Load() != nil {
		return nil
	}
	s.dirty = false
	return s.close()
}

func (s *stateFile) isOpen() bool {
	s.mu.Lock()
	defer s.unlock()
	return s.f != nil
}

// mayBeOpen is isOpen without waiting for whoever uses the file.
func (s *stateFile) mayBeOpen() bool {
	if !s.mu.TryLock() {
		return true
	}
	defer s.unlock()
	return s.f != nil
}

// file returns the file, and opens it if the log was at rest. The name may lead to another file by now, which must not be written
// to. s.mu is held.
func (s *stateFile) file(atOnce bool) (vfs.File, error) {
	if s.f != nil {
		return s.f, nil
	}
	if s.open == nil {
		return nil, fs.ErrClosed
	}
	f, err := s.open(atOnce)
	if err != nil {
		return nil, err
	}
	// One slot may be damaged, or not readable, and a write that failed may have taken effect.
	found, ok, _ := readEachSlot(f)
	if ok && (found.seq+1 < s.cur.seq || found.seq > s.cur.seq+1) {
		err = fmt.Errorf("%w: another writer has changed %s", errNotOurs, stateName)
		return nil, errors.Join(err, f.Unlock(), f.Close())
	}
	s.f = f
	return f, nil
}

// renew replaces the file, whose pages a failed flush may have spoilt, by a new one with the same contents.
func (s *stateFile) renew(e *env) error {
	s.mu.Lock()
	defer s.unlock()
	tmp := filepath.Join(e.dir, stateTemp)
	f, err := e.create(tmp)
	if err != nil {
		return err
	}
	old, cur := s.f, s.cur
	size, err := old.Size()
	if err == nil && size > restPos {
		err = vfs.CopyRange(f, restPos, old, restPos, size-restPos)
	}
	if err == nil {
		err = f.Lock()
	}
	s.f, s.device = f, nil
	for range 2 {
		if err == nil {
			err = s.put(s.cur)
		}
	}
	if err == nil {
		err = f.Flush()
	}
	if err == nil {
		err = e.fs.Rename(tmp, filepath.Join(e.dir, stateName))
	}
	if err != nil {
		s.f, s.cur = old, cur
		return errors.Join(err, f.Close(), e.fs.Remove(tmp))
	}
	s.dirty = false
	return errors.Join(old.Unlock(), old.Close(), e.syncDir())
}

// stage makes a change that only the next write takes to the file. It is for changes that may be lost, such as a higher
// recovery point, where the caller holds a lock that appends wait for.
func (s *stateFile) stage(change func(*state)) {
	s.mu.Lock()
	defer s.unlock()
	change(&s.cur)
}

// note writes what was staged to one slot, without a flush.
func (s *stateFile) note() error {
	s.mu.Lock()
	defer s.unlock()
	return s.put(s.cur)
}

// noteFlushed notes that everything below durable is flushed, and the segment at base up to m. Only the owner of
// Log.flushes calls it. The next flush waits for it, so it does not wait for a commit that holds the file.
func (s *stateFile) noteFlushed(durable, base int64, m mark) error {
	n := flushedNote{durable, base, m}
	if s.mu.TryLock() {
		err := s.putFlushed(n)
		if noDescriptor(err) {
			missed := n // on the heap
			s.missed.Store(&missed)
			s.mu.Unlock()
			return nil
		}
		s.unlock()
		return err
	}
	missed := n // on the heap
	s.missed.Store(&missed)
	s.catchUp()
	return nil
}

// putFlushed writes a note. It does not wait for a descriptor, as logs that are to give up theirs make notes first. s.mu is held.
func (s *stateFile) putFlushed(n flushedNote) error {
	if _, err := s.file(true); err != nil {
		return err
	}
	return s.put(s.cur.flushed(n))
}

// noteFailed notes that the page cache may hold bytes that the disk does not have. Only an Open before the next reboot needs
// to know, and that reads the note from the page cache, so it is not flushed.
func (s *stateFile) noteFailed() error {
	s.mu.Lock()
	defer s.unlock()
	next := s.cur
	next.failed = true
	return errors.Join(s.put(next), s.put(next)) // in both slots: one of them may be the one that can't be written
}

// commit makes a change durable in both slots, so that no older slot can come back. It is for changes on which later steps
// rely. If it fails, the change is undone; a writeBackError says that undoing it may have failed, too.
func (s *stateFile) commit(change func(*state)) error {
	s.mu.Lock()
	defer s.unlock()
	if n := s.missed.Swap(nil); n != nil {
		s.cur = s.cur.flushed(*n) // before a cut, which the note must not follow
	}
	old, next := s.cur, s.cur
	change(&next)
	err := s.put(next)
	if err == nil {
		err = s.put(s.cur)
	}
	if err == nil {
		if err = flushSlots(s.f, s.device); err != nil {
			err = &writeBackError{err}
		}
	}
	if err != nil {
		// What the caller did not do must not be noted as done, neither here nor in the file, where the slots that hold
		// the change are overwritten at once if they can be.
		begun := s.cur.seq != old.seq
		old.seq = s.cur.seq
		s.cur = old
		undo := errors.Join(s.put(old), s.put(s.cur))
		if undo == nil && begun {
			undo = s.f.Flush()
		}
		if undo != nil && begun {
			err = &writeBackError{err} // a power cut may bring the change back
		}
		return err
	}
	s.dirty = false
	if s.device == nil {
		s.device = s.f.Device()
	}
	return nil
}

// flushSlots makes both slots of f durable, together with other files if device is not nil.
func flushSlots(f vfs.File, device *commit.Device) error {
	if device == nil {
		return f.Flush()
	}
	return device.Flush(f, nil, 0, stateSlotGap+stateLen)
}

// The part that a cut leaves of a batch stands behind the slots, at restPos, until the cut is done. The flush that makes the
// intent durable makes it durable too.
const restPos = 2 * stateSlotGap

func (s *stateFile) putRest(rest []byte) error {
	if len(rest) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.unlock()
	f, err := s.file(false)
	if err == nil {
		s.device = nil // the file grows
		_, err = f.WriteAt(rest, restPos)
	}
	return err
}

// readRest reads n bytes that putRest wrote, or fewer if they are not there.
func readRest(f vfs.File, n int64) (batch, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	rest := make(batch, max(0, min(n, size-restPos)))
	k, err := f.ReadAt(rest, restPos)
	if err == io.EOF {
		err = nil
	}
	return rest[:k], err
}

// dropRest frees the space of the rest. It does not matter if it fails, or if a crash undoes it, since nobody looks there.
func (s *stateFile) dropRest() {
	if size, err := s.f.Size(); err == nil && size > restPos {
		_ = s.f.Truncate(restPos)
	}
}

// flush makes what was noted durable. Notes go on meanwhile.
func (s *stateFile) flush() error {
	s.mu.Lock()
	if !s.dirty {
		s.unlock()
		return nil
	}
	f, device := s.f, s.device
	s.dirty, s.flushing = false, true
	s.unlock()
	err := flushSlots(f, device)
	s.mu.Lock()
	s.flushing = false
	if err != nil {
		s.dirty = true
	}
	s.unlock()
	return err
}

// put writes next to the slot whose turn it is. s.mu is held.
func (s *stateFile) put(next state) error {
	f, err := s.file(false)
	if err != nil {
		return err
	}
	next.seq++
	next.encode(s.buf[:])
	if _, err := f.WriteAt(s.buf[:], int64(next.seq%2)*stateSlotGap); err != nil {
		return err
	}
	s.cur, s.dirty = next, true
	return nil
}
