package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"

	"github.com/seglog/seglog/internal/vfs"
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
	// clean: the log was closed. It holds [start, end), its last segment has endPos bytes, and all indexes are written, but for those of a tiny segment.
	clean bool
	// gaps: offsets may be left out (see env.gaps).
	gaps          bool
	start         int64 // the first offset that is kept
	recoveryPoint int64
	manifest
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

	// What an unfinished TruncateTo keeps: the segment at cutBase up to position cutPos, followed by cutLen bytes that are
	// stored at restPos of this file. cutPos is -1 in the intent of a version 1 log, which has to be planned first.
	cutBase, cutPos, cutLen int64
	// The fence: offsets from fenceOffset on were given out before, under leader epochs below fenceEpoch. What a disk
	// still holds of those batches must not come back, so recovery takes none of them there. An epoch of 0 is no fence.
	fenceOffset, fenceEpoch int64 // see also fenceLifted
	// told: OnSeal was called for all sealed segments that end at or below it.
	told int64
	// gapTo is the base offset of the last segment that begins after a gap; 0 if there is none. If another segment above the
	// recovery point does not join its predecessor, the end of the predecessor was lost.
	gapTo int64
	// failed: a write or flush failed, so that the page cache may hold bytes which the disk does not have and the kernel
	// will not write again. An Open that finds it moves what it keeps to new files.
	failed bool
}

// untrackedGaps is state.gapTo of a log whose gaps version 1 of the state file did not note, or in which Repair left several.
const untrackedGaps = -1

// knowsGap reports whether a segment may begin at next although the one before it ends earlier. Where nothing is promised,
// any segment may. Otherwise a durable one may, and the one whose gap the writer noted (noteGap). If any other segment
// does not join, its name reached the disk before the end of the segment in front of it, and that end is lost.
func (s *state) knowsGap(next int64, promised bool) bool {
	return !promised || next <= s.recoveryPoint || next == s.gapTo || s.gapTo == untrackedGaps
}

// endOffset returns the offset at which the next segment or append begins, given that the batches of this segment end at position
// pos and offset next. The two differ if the segment ends in a gap, as after a TruncateTo into one, which only the state file
// records.
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

// flushedEnd returns the boundary of two batches in the segment at base up to which recovery need not check.
func (s *state) flushedEnd(base int64) batchEnd {
	if base != s.scanBase || s.scanPos == 0 {
		return batchEnd{}
	}
	return batchEnd{pos: s.scanPos, offset: s.scanOffset}
}

// endsAtMark reports whether batches that end in the segment at base at position pos and offset next are those up to which recovery need not check.
func (s *state) endsAtMark(base, pos, next int64) bool {
	return base == s.scanBase && pos == s.scanPos && (next == s.scanOffset || s.endOffset(base, pos, next) == s.scanOffset)
}

// isSettled reports whether no cut changes the bytes of the segment at base that the log keeps. A TruncateTo leaves those below its
// position as they are, in the file or in the one that takes its place.
func (s *state) isSettled(base int64) bool { return s.cut < 0 || s.truncating() && base <= s.cutBase }

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

// sameSegments reports whether no segment was deleted, and nothing cut, between the two states.
func (s *state) sameSegments(other *state) bool {
	return s.cuts == other.cuts && s.cut == other.cut && s.first == other.first
}

// cutSince reports whether a cut began since s was read, or one that was under way then has ended, in the state now.
func (s *state) cutSince(now *state) bool { return s.cuts != now.cuts || s.cut >= 0 && now.cut < 0 }

// stale reports whether a batch with this offset and leader epoch is older than the fence: a cut or the removal of a torn tail
// took it away, and the disk still has it.
func (s *state) stale(offset int64, epoch int32) bool {
	return s.fenceEpoch > 0 && offset >= s.fenceOffset && int64(epoch) < s.fenceEpoch
}

func (s *state) staleReason(b batch) string {
	return fmt.Sprintf("batch with offset %d and leader epoch %d is left from before a cut at offset %d", b.base(), b.epoch(), s.fenceOffset)
}

// fenceLifted is the offset of a fence that was lifted for batches of a leader, who counts epochs of its own. Batches of the
// log's own still get the epoch of the fence or a greater one, so the next Open puts the fence back at the end of the log.
const fenceLifted = math.MaxInt64

// raiseFence notes that offsets from offset on will be given out again. epoch is the greatest leader epoch that is known of the
// batches so far.
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
		start: w[0], recoveryPoint: w[2],
		manifest: manifest{first: w[1], scanBase: w[3], scanPos: w[4], scanOffset: w[5], segments: w[6], baseSum: w[7]}, end: w[8], endPos: w[9], cut: w[10], cuts: w[11], lastCut: w[12], epoch: w[13],
		cutBase: w[14], cutPos: w[15], cutLen: w[16], fenceOffset: w[17], fenceEpoch: w[18], told: w[19], gapTo: w[20],
	}
	if words == stateWords1 {
		s.cutPos, s.told, s.gapTo = -1, s.first, untrackedGaps
	}
	return true
}

// readState returns the newer good slot. It returns false if there is none: nothing is promised then.
func readState(fsys vfs.FS, path string) (state, bool, error) {
	f, err := fsys.Open(path, vfs.OpenRead)
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
func readSlots(f vfs.File) (best state, ok bool, err error) {
	best, ok, err = readEachSlot(f)
	if ok {
		err = nil
	}
	return best, ok, err
}

// readEachSlot returns the newest state, and also the errors of slots that could not be read.
func readEachSlot(f vfs.File) (best state, ok bool, err error) {
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

// isRest reports whether rest is the batch of the noted length in which a cut ends the log.
func (s *state) isRest(rest batch) bool {
	return len(rest) >= headerLen && parseHeader(rest) == "" && rest.size() == s.cutLen && rest.checkCRC() == "" && rest.last() == s.cut-1
}

// truncating reports whether a TruncateTo is under way, or was interrupted, and its segment and position are known.
func (s *state) truncating() bool { return s.cut >= 0 && !s.reset && s.cutPos >= 0 }
