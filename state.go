package seglog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
)

// The file seglog.state: what the batches can't say. Two slots are written in turn, so that one survives whatever
// happens to the other. It is only ever a lower bound of what is on the disk; a log opens without it, by checking
// every byte.
const (
	stateName    = "seglog.state"
	stateMagic   = 0x7365676c6f670001 // "seglog", version 1
	stateLen     = 8 + 4 + 2*8 + 14*8
	stateSlotGap = 4096 // slots on pages of their own: a page that can't be read takes one slot with it

	// A slot is written by one sector, which disks do not tear.
	_ = uint(512 - stateLen)
)

// state is the contents of a slot.
type state struct {
	seq    uint64
	policy FlushPolicy
	// clean: the log was closed: [start, end) in segments that end with endPos bytes in the last, indexes written.
	clean bool
	// gaps: offsets may be left out (see env.gaps).
	gaps bool
	// start is the first offset that is kept; first the base offset of the first segment that is kept. What lies below
	// is left from a deletion that was cut short.
	start, first  int64
	recoveryPoint int64
	// All segments before scanBase are flushed, trimmed and indexed. scanPos in that segment, where the batch with
	// scanOffset begins, is flushed too: this is where recovery starts to check.
	scanBase, scanPos, scanOffset int64
	// segments from first up to and with scanBase, and the sum of their base offsets: a missing, doubled or foreign
	// file shows without opening any.
	segments int64
	baseSum  int64
	end      int64
	endPos   int64
	// cut is a running TruncateTo(cut) or, with reset, Reset(cut); -1 if there is none. cuts counts them, so that
	// read-only logs in other processes notice.
	cut   int64
	reset bool
	cuts  int64
	// epoch is the leader epoch of the last batch, as far as it was noted.
	epoch int64
	// lastCut is where the last of them cut; -1 for a Reset.
	lastCut int64
}

const (
	stateClean = 1 << iota
	stateReset
	stateGaps
	statePolicyShift = 8
)

// words is the fields in the order they are written.
func (s *state) words() [14]int64 {
	return [...]int64{s.start, s.first, s.recoveryPoint, s.scanBase, s.scanPos, s.scanOffset,
		s.segments, s.baseSum, s.end, s.endPos, s.cut, s.cuts, s.lastCut, s.epoch}
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
	be.PutUint64(b[20:], flags)
	for i, v := range s.words() {
		be.PutUint64(b[28+8*i:], uint64(v))
	}
	be.PutUint32(b[8:], crc32.Checksum(b[12:stateLen], castagnoli))
}

// decode returns false for anything that encode did not write.
func (s *state) decode(b []byte) bool {
	be := binary.BigEndian
	if len(b) < stateLen || be.Uint64(b) != stateMagic || be.Uint32(b[8:]) != crc32.Checksum(b[12:stateLen], castagnoli) {
		return false
	}
	flags := be.Uint64(b[20:])
	word := func(i int) int64 { return int64(be.Uint64(b[28+8*i:])) }
	*s = state{
		seq: be.Uint64(b[12:]), policy: FlushPolicy(flags >> statePolicyShift),
		clean: flags&stateClean != 0, reset: flags&stateReset != 0, gaps: flags&stateGaps != 0,
		start: word(0), first: word(1), recoveryPoint: word(2), scanBase: word(3), scanPos: word(4), scanOffset: word(5),
		segments: word(6), baseSum: word(7), end: word(8), endPos: word(9), cut: word(10), cuts: word(11), lastCut: word(12), epoch: word(13),
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

func readSlots(f file) (best state, ok bool, err error) {
	for i := range int64(2) {
		var b [stateLen]byte
		if n, err := f.ReadAt(b[:], i*stateSlotGap); err != nil && err != io.EOF {
			return state{}, false, err
		} else if n < stateLen {
			continue
		}
		var s state
		if s.decode(b[:]) && (!ok || s.seq > best.seq) {
			best, ok = s, true
		}
	}
	return best, ok, nil
}

// stateFile keeps seglog.state.
type stateFile struct {
	f  file
	mu mutex
	// Guarded by mu:
	cur   state
	dirty bool // written since the last flush
	buf   [stateLen]byte
}

func openState(fsys fileSystem, path string, cur state) (*stateFile, error) {
	f, err := fsys.open(path, openWrite)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = fsys.open(path, openCreate)
	}
	if err != nil {
		return nil, err
	}
	return &stateFile{f: f, cur: cur}, nil
}

// stage makes a change that the next write takes along: for what may be lost, such as a higher recovery point, and where
// appends would wait for the write.
func (s *stateFile) stage(change func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cur)
}

// note writes what was staged to one slot, without a flush.
func (s *stateFile) note() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(func(*state) {})
}

// noteFlushed notes that everything below durable is flushed, and the segment at base up to m.
func (s *stateFile) noteFlushed(durable, base int64, m mark) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.cur
	next.recoveryPoint = max(next.recoveryPoint, durable)
	if next.scanBase == base && m.pos() > next.scanPos {
		next.scanPos, next.scanOffset = m.pos(), base+m.rel()
	}
	return s.put(next)
}

// commit makes a change durable in both slots, so that no older slot can be read again: for what other steps rely on.
func (s *stateFile) commit(change func(*state)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.cur
	err := s.write(change)
	if err == nil {
		err = s.write(func(*state) {})
	}
	if err == nil {
		err = s.f.flush()
	}
	if err != nil {
		// What the caller did not do must not be noted as done, neither here nor in the file, where the slots that hold
		// the change are overwritten at once if they can be.
		old.seq = s.cur.seq
		s.cur = old
		_ = s.put(old)
		_ = s.put(s.cur)
		return err
	}
	s.dirty = false
	return nil
}

// flush makes what was noted durable.
func (s *stateFile) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil
	}
	if err := s.f.flush(); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

func (s *stateFile) write(change func(*state)) error {
	next := s.cur
	change(&next)
	return s.put(next)
}

func (s *stateFile) put(next state) error {
	next.seq++
	next.encode(s.buf[:])
	if _, err := s.f.WriteAt(s.buf[:], int64(next.seq%2)*stateSlotGap); err != nil {
		return err
	}
	s.cur, s.dirty = next, true
	return nil
}
