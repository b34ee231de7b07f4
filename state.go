package seglog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"sync/atomic"
)

// The file seglog.state holds what the batches can't tell. It has two slots, which are written in turn, so that one survives
// whatever happens to the other. It never promises more than is on the disk; without it, a log opens by checking every
// byte.
const (
	stateMagic1  = 0x7365676c6f670001 // "seglog", version 1: the first stateWords1 words
	stateMagic   = 0x7365676c6f670002 // version 2
	stateWords1  = 14
	stateWords   = stateWords1 + 7
	stateLen1    = 8 + 4 + 2*8 + stateWords1*8
	stateLen     = 8 + 4 + 2*8 + stateWords*8
	stateSlotGap = 4096 // slots on pages of their own: a page that can't be read takes one slot with it

	// A slot fits one sector, which disks do not tear.
	_ = uint(512 - stateLen)
)

// state is the contents of a slot.
type state struct {
	seq    uint64
	policy FlushPolicy
	// clean: the log was closed. It holds [start, end), its last segment has endPos bytes, and all indexes are written.
	clean bool
	// gaps: offsets may be left out (see env.gaps).
	gaps bool
	// start is the first offset that is kept, first the base offset of the first segment that is kept. Files of segments
	// below are left from a deletion that was interrupted.
	start, first  int64
	recoveryPoint int64
	// Recovery starts to check at position scanPos of the segment at scanBase, where the batch with scanOffset begins.
	// Everything before is flushed, and the segments before scanBase are trimmed and have their indexes.
	scanBase, scanPos, scanOffset int64
	// The number of segments from first to scanBase, both included, and the sum of their base offsets. They show a missing,
	// doubled or foreign file without opening any.
	segments int64
	baseSum  int64
	// The end of the log, and the position where its last batch ended, when it was last closed, opened or cut.
	end    int64
	endPos int64
	// cut is a running TruncateTo(cut) or, with reset, Reset(cut); -1 if there is none. cuts counts them, so that
	// read-only logs in other processes notice.
	cut   int64
	reset bool
	cuts  int64
	// epoch is the leader epoch of the last batch, as far as it was noted.
	epoch int64
	// lastCut is the offset of the last TruncateTo; -1 if a Reset came last.
	lastCut int64

	// What the running TruncateTo leaves: the segment at cutBase up to position cutPos, and behind it cutLen bytes, which
	// stand at restPos of this file. cutPos is -1 in the intent of a version 1 log, which has to be planned first.
	cutBase, cutPos, cutLen int64
	// The fence: offsets from fenceOffset on were given out before, under leader epochs below fenceEpoch. What a disk
	// still holds of those batches must not come back, so recovery takes none of them there. An epoch of 0 is no fence.
	fenceOffset, fenceEpoch int64 // see also fenceLifted
	// told: OnSeal was called for all sealed segments that end at or below it.
	told int64
	// gapTo is the base offset of the last segment that begins behind a gap; 0 if there is none. If any other segment above
	// the recovery point does not join the one before it, the end of that one was lost.
	gapTo int64
	// failed: a write or flush failed, so that the page cache may hold bytes which the disk does not have and the kernel
	// will not write again. An Open that finds it moves what it keeps to new files.
	failed bool
}

// untrackedGaps is state.gapTo of a log whose gaps version 1 of the state file did not note.
const untrackedGaps = -1

// endOffset returns the offset at which a segment ends whose batches end at position pos and offset next. It is greater than
// next where offsets are left out at the end, as after a TruncateTo into a gap; only the state file knows of these.
func (s *state) endOffset(base, pos, next int64) int64 {
	if !s.gaps {
		return next
	}
	if base == s.scanBase && pos == s.scanPos {
		next = max(next, s.scanOffset)
	}
	if base <= s.end && pos == s.endPos {
		next = max(next, s.end)
	}
	return next
}

const (
	stateClean = 1 << iota
	stateReset
	stateGaps
	stateFailed
	statePolicyShift = 8
)

// words returns the fields in the order in which they are written.
func (s *state) words() [stateWords]int64 {
	return [...]int64{s.start, s.first, s.recoveryPoint, s.scanBase, s.scanPos, s.scanOffset,
		s.segments, s.baseSum, s.end, s.endPos, s.cut, s.cuts, s.lastCut, s.epoch,
		s.cutBase, s.cutPos, s.cutLen, s.fenceOffset, s.fenceEpoch, s.told, s.gapTo}
}

// tally counts the segments with these base offsets up to scanBase, which is included, and adds up the base offsets.
func tally(bases []int64, scanBase int64) (n, sum int64) {
	for _, base := range bases {
		if base <= scanBase {
			n++
			sum += base
		}
	}
	return n, sum
}

// count makes the state promise these segments, as far as scanBase reaches.
func (s *state) count(bases []int64) { s.segments, s.baseSum = tally(bases, s.scanBase) }

// misses reports whether the segments with these base offsets are not those that the state promises.
func (s *state) misses(bases []int64) bool {
	n, sum := tally(bases, s.scanBase)
	return n != s.segments || sum != s.baseSum
}

// scanFrom moves the point where recovery starts to check to the mark m in the segment at base.
func (s *state) scanFrom(base int64, m mark) {
	s.scanBase, s.scanPos, s.scanOffset = base, m.pos(), base+m.rel()
}

// stale reports whether a batch at offset with that leader epoch was removed by a cut, and came back from the disk.
func (s *state) stale(offset int64, epoch int32) bool {
	return s.fenceEpoch > 0 && offset >= s.fenceOffset && int64(epoch) < s.fenceEpoch
}

// fenceLifted is the offset of a fence that was lifted for batches of a leader, who counts epochs of its own. Batches of the
// log's own still get the epoch of the fence or a greater one, so the next Open puts the fence back at the end of the log.
const fenceLifted = math.MaxInt64

// raiseFence notes that the offsets from offset on are given out again; everything below is durable. epoch is the
// greatest leader epoch that any batch up to now may have.
func (s *state) raiseFence(offset int64, epoch int32) {
	s.fenceOffset = offset
	s.fenceEpoch = min(max(s.fenceEpoch, int64(epoch))+1, math.MaxInt32)
}

func (s *state) encode(b []byte) {
	be := binary.BigEndian
	be.PutUint64(b[0:], stateMagic)
	be.PutUint64(b[12:], s.seq)
	flags := uint64(s.policy) << statePolicyShift
	if s.clean {
		flags |= stateClean
	}
	if s.reset {
		flags |= stateReset
	}
	if s.gaps {
		flags |= stateGaps
	}
	if s.failed {
		flags |= stateFailed
	}
	be.PutUint64(b[20:], flags)
	for i, v := range s.words() {
		be.PutUint64(b[28+8*i:], uint64(v))
	}
	be.PutUint32(b[8:], crc32.Checksum(b[12:stateLen], castagnoli))
}

// decode returns false for anything but the output of encode, of this version or the one before.
func (s *state) decode(b []byte) bool {
	be := binary.BigEndian
	size, words := stateLen, stateWords
	if len(b) >= 8 && be.Uint64(b) == stateMagic1 {
		size, words = stateLen1, stateWords1
	} else if len(b) < 8 || be.Uint64(b) != stateMagic {
		return false
	}
	if len(b) < size || be.Uint32(b[8:]) != crc32.Checksum(b[12:size], castagnoli) {
		return false
	}
	flags := be.Uint64(b[20:])
	var w [stateWords]int64
	for i := range words {
		w[i] = int64(be.Uint64(b[28+8*i:]))
	}
	*s = state{
		seq: be.Uint64(b[12:]), policy: FlushPolicy(flags >> statePolicyShift),
		clean: flags&stateClean != 0, gaps: flags&stateGaps != 0, reset: flags&stateReset != 0, failed: flags&stateFailed != 0,
		start: w[0], first: w[1], recoveryPoint: w[2], scanBase: w[3], scanPos: w[4], scanOffset: w[5],
		segments: w[6], baseSum: w[7], end: w[8], endPos: w[9], cut: w[10], cuts: w[11], lastCut: w[12], epoch: w[13],
		cutBase: w[14], cutPos: w[15], cutLen: w[16], fenceOffset: w[17], fenceEpoch: w[18], told: w[19], gapTo: w[20],
	}
	if words == stateWords1 {
		s.cutPos, s.told, s.gapTo = -1, s.first, untrackedGaps
	}
	return true
}

// readState returns the newer good slot. It returns false if there is none: nothing is promised then.
func readState(fsys fileSystem, path string) (state, bool, error) {
	f, err := fsys.open(path, openRead)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, false, nil
	}
	if err != nil {
		return state{}, false, err
	}
	defer f.Close()
	return readSlots(f)
}

// readSlots reads both slots and returns the newer good one. A slot that can't be read is an error only if no slot is good.
func readSlots(f file) (best state, ok bool, err error) {
	best, ok, err = readEachSlot(f)
	if ok {
		err = nil
	}
	return best, ok, err
}

// readEachSlot returns the newest state, and also the errors of slots that could not be read.
func readEachSlot(f file) (best state, ok bool, err error) {
	var failures []error
	for i := range int64(2) {
		var b [stateLen]byte
		n, err := f.ReadAt(b[:], i*stateSlotGap)
		if err != nil && err != io.EOF {
			failures = append(failures, err)
			continue
		}
		var s state
		if s.decode(b[:n]) && (!ok || s.seq > best.seq) {
			best, ok = s, true
		}
	}
	return best, ok, errors.Join(failures...)
}

// stateFile keeps seglog.state.
type stateFile struct {
	f  file
	mu mutex
	// Guarded by mu:
	cur   state
	dirty bool // written since the last flush
	buf   [stateLen]byte
	// missed is a note that met somebody else who held mu. Whoever holds mu writes it afterwards: a reader in another process
	// sees durable records only once they are noted, and the next flush may be hours away.
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
		if n := s.missed.Swap(nil); n != nil {
			_ = s.put(s.cur.flushed(*n)) // a failure only makes the next recovery check more
		}
		s.mu.Unlock()
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
func openState(fsys fileSystem, path string, cur state) (*stateFile, error) {
	f, err := fsys.open(path, openWrite)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = fsys.open(path, openCreate)
	}
	if err == nil {
		if err = f.lock(); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	return &stateFile{f: f, cur: cur}, nil
}

func (s *stateFile) close() error { return errors.Join(s.f.unlock(), s.f.Close()) }

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
	size, err := old.size()
	if err == nil && size > restPos {
		err = copyRange(f, restPos, old, restPos, size-restPos)
	}
	if err == nil {
		err = f.lock()
	}
	s.f = f
	for range 2 {
		if err == nil {
			err = s.put(s.cur)
		}
	}
	if err == nil {
		err = f.flush()
	}
	if err == nil {
		err = e.fs.rename(tmp, filepath.Join(e.dir, stateName))
	}
	if err != nil {
		s.f, s.cur = old, cur
		return errors.Join(err, f.Close(), e.fs.remove(tmp))
	}
	s.dirty = false
	return errors.Join(old.unlock(), old.Close(), e.syncDir())
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
		err := s.put(s.cur.flushed(n))
		s.unlock()
		return err
	}
	missed := n // on the heap
	s.missed.Store(&missed)
	s.catchUp()
	return nil
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
		if err = s.f.flush(); err != nil {
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
			undo = s.f.flush()
		}
		if undo != nil && begun {
			err = &writeBackError{err} // a power cut may bring the change back
		}
		return err
	}
	s.dirty = false
	return nil
}

// The part that a cut leaves of a batch stands behind the slots, at restPos, until the cut is done. The flush that makes the
// intent durable makes it durable too.
const restPos = 2 * stateSlotGap

func (s *stateFile) putRest(rest []byte) error {
	if len(rest) == 0 {
		return nil
	}
	_, err := s.f.WriteAt(rest, restPos)
	return err
}

// rest reads n bytes that putRest wrote, or fewer if they are not there.
func (s *stateFile) rest(n int64) (batch, error) {
	size, err := s.f.size()
	if err != nil {
		return nil, err
	}
	rest := make(batch, max(0, min(n, size-restPos)))
	k, err := s.f.ReadAt(rest, restPos)
	if err == io.EOF {
		err = nil
	}
	return rest[:k], err
}

// dropRest frees the space of the rest. It does not matter if it fails, or if a crash undoes it, since nobody looks there.
func (s *stateFile) dropRest() {
	if size, err := s.f.size(); err == nil && size > restPos {
		_ = s.f.truncate(restPos)
	}
}

// flush makes what was noted durable. Notes go on meanwhile.
func (s *stateFile) flush() error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = false
	s.unlock()
	if !dirty {
		return nil
	}
	err := s.f.flush()
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.unlock()
	}
	return err
}

// put writes next to the slot whose turn it is. s.mu is held.
func (s *stateFile) put(next state) error {
	next.seq++
	next.encode(s.buf[:])
	if _, err := s.f.WriteAt(s.buf[:], int64(next.seq%2)*stateSlotGap); err != nil {
		return err
	}
	s.cur, s.dirty = next, true
	return nil
}

// truncating reports whether a TruncateTo is under way, or was interrupted, and its segment and position are known.
func (s *state) truncating() bool { return s.cut >= 0 && !s.reset && s.cutPos >= 0 }
