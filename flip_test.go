package seglog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// A flipped bit in any byte of a batch's header, or bytes after the last batch, must cost the records of that batch alone. A
// reader that continues at CorruptError.NextOffset must make progress and get every other record; so must Read of each offset,
// and Section must begin with the batch of its offset.
func TestDamageCostsItsBatchAlone(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	const perBatch = 3
	sound := t.TempDir()
	l := open(t, sound, &seglog.Options{SegmentBytes: 4096})
	for i := int64(0); l.Stats().Segments < 3; i += perBatch {
		var records []seglog.Record
		for k := range int64(perBatch) {
			records = append(records, seglog.Record{Value: fmt.Appendf(nil, "record %d of a log with one damaged batch", i+k)})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	var hit, other seglog.BatchInfo // hit, the third batch, is to be damaged
	for b, err := range l.Batches(perBatch) {
		require.NoError(t, err)
		if hit, other = other, b; hit.Base == 2*perBatch {
			break
		}
	}
	end := l.Offsets().End
	require.NoError(t, l.Close())
	name := filepath.Base(hit.Path)
	whole, err := os.ReadFile(filepath.Join(sound, name))
	require.NoError(t, err)

	check := func(what string, content []byte, lost func(offset int64) bool) {
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(sound)))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
		l := open(t, dir, &seglog.Options{ReadOnly: true})
		defer l.Close()
		seen := map[int64]bool{}
		for from := int64(0); from < end; {
			var bad *seglog.CorruptError
			for r, err := range l.Records(from) {
				if err != nil {
					require.ErrorAs(t, err, &bad, what)
					break
				}
				seen[r.Offset] = true
			}
			if bad == nil {
				break
			}
			require.Greater(t, bad.NextOffset, from, "%s: from %d: %v", what, from, bad)
			from = bad.NextOffset
		}
		for offset := range end {
			require.True(t, seen[offset] || lost(offset), "%s: offset %d", what, offset)
		}
		for offset := range 6 * int64(perBatch) {
			_, err := l.Read(offset)
			if lost(offset) {
				require.ErrorIs(t, err, seglog.ErrCorrupt, what)
				continue
			}
			require.NoError(t, err, "%s: offset %d", what, offset)
			s, err := l.Section(offset, 1)
			require.NoError(t, err, what)
			require.Equal(t, offset/perBatch*perBatch, s.Base(), what)
			require.NoError(t, s.Close())
		}
	}
	for at := hit.Pos; at < hit.Pos+61; at++ {
		if k := at - hit.Pos; k >= 12 && k < 16 {
			continue // the leader epoch, which no check covers
		}
		for _, bit := range []int64{at % 8, (at + 3) % 8} {
			content := append([]byte(nil), whole...)
			content[at] ^= 1 << bit
			check(fmt.Sprintf("bit %d of byte %d", bit, at-hit.Pos), content, func(offset int64) bool {
				return offset/perBatch == hit.Base/perBatch
			})
		}
	}
	for name, junk := range map[string][]byte{"a byte": {0xff}, "zeros": make([]byte, 5000), "the segment again": whole} {
		check(name+" after the end", append(append([]byte(nil), whole...), junk...), func(int64) bool { return false })
	}
}

// No CRC covers the base offset and the length of a batch. A bit that flips there between two reads must be reported as damage
// like any other, even though Read may continue from the batch that it found last.
func TestHeaderFlipsBetweenReads(t *testing.T) {
	const perBatch = 8
	for name, every := range map[string]bool{"by the last check": false, "by a check each time": true} {
		t.Run(name, func(t *testing.T) {
			l := open(t, t.TempDir(), &seglog.Options{CheckEveryRead: every})
			defer l.Close()
			value := func(offset int64) []byte {
				return bytes.Repeat(fmt.Appendf(nil, "record %d;", offset), 1+int(offset/20)*100) // the last batches are kept by the cache
			}
			for base := int64(0); base < 5*perBatch; base += perBatch {
				var records []seglog.Record
				for i := range int64(perBatch) {
					records = append(records, seglog.Record{Value: value(base + i)})
				}
				_, err := l.Append(records...)
				require.NoError(t, err)
			}
			for b, err := range l.Batches(perBatch) {
				require.NoError(t, err)
				if b.Next == l.Offsets().End {
					break // no batch follows the last one to show where that ends
				}
				f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
				require.NoError(t, err)
				for bit := range 12 * 8 {
					offset := b.Base + int64(bit%perBatch)
					got, err := l.Read(offset)
					require.NoError(t, err)
					require.Equal(t, value(offset), got.Value)
					flipBit(t, f, b.Pos, bit)
					for _, o := range []int64{offset, b.Base, b.Next - 1, b.Next} {
						got, err := l.Read(o)
						if err != nil {
							require.ErrorIs(t, err, seglog.ErrCorrupt, "bit %d, offset %d", bit, o)
							require.Less(t, o, b.Next, "bit %d", bit)
							continue
						}
						require.Equal(t, value(o), got.Value, "bit %d, offset %d", bit, o)
					}
					flipBit(t, f, b.Pos, bit)
				}
				require.NoError(t, f.Close())
			}
		})
	}
}

// flipBit flips one bit, counted from the byte at pos.
func flipBit(t *testing.T, f *os.File, pos int64, bit int) {
	var c [1]byte
	_, err := f.ReadAt(c[:], pos+int64(bit/8))
	require.NoError(t, err)
	c[0] ^= 1 << (bit % 8)
	_, err = f.WriteAt(c[:], pos+int64(bit/8))
	require.NoError(t, err)
}

// No CRC covers the leader epoch of a batch. An epoch higher than that of the next batch makes followers refuse all later
// batches: Verify must warn of it, and Repair correct it.
func TestFlippedLeaderEpoch(t *testing.T) {
	for name, flip := range map[string]struct{ from, to int32 }{"raised": {4, 6}, "lowered": {4, 0}} {
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{SegmentBytes: 4096})
		for i := range int64(60) {
			b := plainBatch(i, fmt.Sprintf("record %d of a log that was led by three", i))
			binary.BigEndian.PutUint32(b[12:], uint32(3+i/20))
			_, err := l.TransferFrom(bytes.NewReader(b), -1)
			require.NoError(t, err)
		}
		var at seglog.BatchInfo
		for b, err := range l.Batches(30) {
			require.NoError(t, err)
			at = b
			break
		}
		require.EqualValues(t, flip.from, at.LeaderEpoch)
		require.NoError(t, l.Close())
		content, err := os.ReadFile(at.Path)
		require.NoError(t, err)
		binary.BigEndian.PutUint32(content[at.Pos+12:], uint32(flip.to))
		require.NoError(t, os.WriteFile(at.Path, content, 0o644))

		report, err := seglog.Verify(dir, nil)
		require.NoError(t, err)
		require.True(t, report.OK(), name)
		require.Len(t, report.Problems, 1)
		require.Equal(t, seglog.SeverityWarning, report.Problems[0].Severity)
		require.Equal(t, at.Pos, report.Problems[0].Pos)
		require.Equal(t, at.Base, report.Problems[0].Offset)
		plan, err := seglog.Repair(dir, nil)
		require.NoError(t, err)
		require.Len(t, plan.Changes, 1, name)
		require.Empty(t, plan.Removed)
		_, err = seglog.Repair(dir, &seglog.RepairOptions{Apply: true})
		require.NoError(t, err)
		report, err = seglog.Verify(dir, nil)
		require.NoError(t, err)
		require.True(t, report.OK(), "%v", report.Problems)
		plan, err = seglog.Repair(dir, nil)
		require.NoError(t, err)
		require.True(t, plan.Sound())
		l = open(t, dir, nil)
		require.EqualValues(t, 60, l.Offsets().End)
		follower := open(t, t.TempDir(), nil)
		var stream bytes.Buffer
		for offset := int64(0); offset < 60; {
			s, err := l.Section(offset, 1<<20)
			require.NoError(t, err)
			_, err = s.WriteTo(&stream)
			require.NoError(t, err)
			offset = s.Next()
			require.NoError(t, s.Close())
		}
		_, err = follower.TransferFrom(&stream, -1)
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
}

// No CRC covers the base offset either. If that of the last batch is raised, the batch seems to follow a gap. Repair must
// remove the batch.
func TestRepairOfARaisedOffset(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	for i := range 20 {
		_, err := l.Append(seglog.Record{Value: fmt.Appendf(nil, "record %d", i)})
		require.NoError(t, err)
	}
	var last seglog.BatchInfo
	for b, err := range l.Batches(19) {
		require.NoError(t, err)
		last = b
	}
	killed := copyDir(t, dir)
	require.NoError(t, l.Close())
	path := filepath.Join(killed, filepath.Base(last.Path))
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	content[last.Pos+4] ^= 1 << 6
	require.NoError(t, os.WriteFile(path, content, 0o644))
	verified, err := seglog.Verify(killed, nil)
	require.NoError(t, err)
	report, err := seglog.Repair(killed, &seglog.RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.Len(t, report.Removed, 1)
	require.Equal(t, last.Pos, report.Removed[0].Pos)
	l = open(t, killed, nil)
	require.Equal(t, max(19, verified.Recovery), l.Offsets().End)
	_, err = l.Read(19)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	require.NoError(t, l.Close())
}

// If damage in the last batch of a segment makes it seem to end at a lower offset, reads of the offsets that it covered must
// report the batch as damaged. They must not report the offsets as missing, even in a log with gaps, nor damage at the start
// of the file.
func TestLastBatchThatSeemsToEndEarlier(t *testing.T) {
	for name, gaps := range map[string]bool{"with gaps": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			l := open(t, t.TempDir(), &seglog.Options{SegmentBytes: 4096})
			defer l.Close()
			if gaps {
				_, err := l.TransferFrom(bytes.NewReader(append(plainBatch(0, "first"), plainBatch(5, "after a gap")...)), -1)
				require.NoError(t, err)
			}
			for l.Stats().Segments < 3 {
				_, err := l.Append(seglog.Record{Value: []byte("a")}, seglog.Record{Value: []byte("b")}, seglog.Record{Value: bytes.Repeat([]byte("c"), 300)})
				require.NoError(t, err)
			}
			last := map[string]seglog.BatchInfo{}
			for b, err := range l.Batches(seglog.Oldest) {
				require.NoError(t, err)
				last[b.Path] = b
			}
			require.Len(t, last, 3)
			for _, b := range last {
				f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
				require.NoError(t, err)
				flipBit(t, f, b.Pos+26, 1) // the last byte of lastOffsetDelta: 2 becomes 0
				for offset := b.Base; offset < b.Next; offset++ {
					_, err = l.Read(offset)
					require.ErrorIs(t, err, seglog.ErrCorrupt, "offset %d of %d to %d", offset, b.Base, b.Next)
					var damage *seglog.CorruptError
					require.True(t, errors.As(err, &damage))
					require.Equal(t, b.Path, damage.Path)
					require.Equal(t, b.Pos, damage.Pos, "offset %d: %v", offset, err)
				}
				flipBit(t, f, b.Pos+26, 1)
				require.NoError(t, f.Close())
			}
		})
	}
}

// If the header of a batch is damaged for a moment, the read cache must not keep the damaged header after that.
func TestHeaderThatIsWholeAgain(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{IndexBytes: 1 << 20}) // so that a batch is found by the headers of the batches before it
	defer l.Close()
	defer seglog.SetReadCacheBytes(16 << 20)
	for range 4 {
		var records []seglog.Record
		for range 40 {
			records = append(records, seglog.Record{Value: make([]byte, 200)})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	for b, err := range l.Batches(40) {
		require.NoError(t, err)
		if b.Next == l.Offsets().End {
			break
		}
		f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
		require.NoError(t, err)
		for bit := range 12 * 8 {
			for _, offset := range []int64{b.Base, b.Base + 1, b.Next} {
				_, err = l.Read(offset)
				require.NoError(t, err)
			}
			flipBit(t, f, b.Pos, bit)
			_, _ = l.Read(b.Base) // trusts the last check, so it may succeed
			flipBit(t, f, b.Pos, bit)
			seglog.SetReadCacheBytes(16 << 20) // empties the cache, as if a minute had passed
			_, err = l.Read(b.Base + 1)
			require.NoError(t, err, "bit %d", bit)
		}
		require.NoError(t, f.Close())
	}
}

// In a log with gaps, a flipped bit in a base offset shows where the next batch begins below the end of this one. A Section must not end
// behind such a batch: whoever goes on at its Next would get neither the records between the two ends nor an error.
func TestSectionsEndBeforeABaseThatGrew(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, nil)
	b := plainBatch(0, "value")
	for o := int64(100); o < 120; o++ {
		b = append(b, plainBatch(o, "value")...)
	}
	_, err := l.TransferFrom(bytes.NewReader(b), -1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	size := len(b) / 21
	name := files(t, dir, "*.log")[0]
	b[6*size+7] ^= 2 // 105 becomes 107
	require.NoError(t, os.WriteFile(name, b, 0o644))
	l = open(t, dir, nil)
	for n := 1; n <= len(b); n += size / 2 {
		s, err := l.Section(100, int64(n))
		require.NoError(t, err)
		next := s.Next()
		require.NoError(t, s.Close())
		if next <= 110 { // the end of a longer one says nothing about what is in it, which the receiver sees
			require.LessOrEqual(t, next, int64(105), "%d bytes", n)
		}
	}
	s, err := l.Section(104, int64(2*size))
	require.NoError(t, err)
	require.EqualValues(t, 105, s.Next())
	require.NoError(t, s.Close())
	_, err = l.Section(105, 1)
	require.ErrorIs(t, err, seglog.ErrCorrupt)
	require.NoError(t, l.Close())
}

// A damaged batch without records, as compaction leaves them, must not hide the sound one behind it if the header after that is lost.
func TestSoundBatchBehindADamagedOneWithoutRecords(t *testing.T) {
	empty := rawBatch{base: 0, lastDelta: 3, baseTime: -1, maxTime: -1}.bytes()
	sound, lost, last := plainBatch(4, "a", "b"), plainBatch(6, "c", "d"), plainBatch(8, "e")
	dir := t.TempDir()
	l := open(t, dir, nil)
	_, err := l.TransferFrom(bytes.NewReader(slices.Concat(empty, sound, lost, last)), -1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	name := files(t, dir, "*.log")[0]
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	b[26] ^= 1                                   // lastOffsetDelta
	clear(b[len(empty)+len(sound):][:len(lost)]) // the batch after the sound one
	require.NoError(t, os.WriteFile(name, b, 0o644))
	l = open(t, dir, nil)
	var got []int64
	for from := int64(0); from < 9; {
		next := int64(9)
		for r, err := range l.Records(from) {
			var corrupt *seglog.CorruptError
			if errors.As(err, &corrupt) {
				next = corrupt.NextOffset
				break
			}
			require.NoError(t, err)
			got = append(got, r.Offset)
		}
		require.Greater(t, next, from)
		from = next
	}
	require.Equal(t, []int64{4, 5, 8}, got)
	require.NoError(t, l.Close())
}

// Two bad blocks far apart in a segment without an index must not take what lies between them along, whoever reads it.
func TestSoundBatchesBetweenTwoBadBlocks(t *testing.T) {
	for _, between := range []int{800 << 10, 40 << 20} {
		value := make([]byte, 300)
		n := (between + 2<<20) / 3000
		dir := t.TempDir()
		l := open(t, dir, &seglog.Options{Flush: seglog.FlushAsync, FlushInterval: time.Hour, FlushBytes: 1 << 30})
		for range n {
			batch := make([]seglog.Record, 10)
			for i := range batch {
				batch[i].Value = value
			}
			_, err := l.Append(batch...)
			require.NoError(t, err)
		}
		require.NoError(t, l.Sync())
		require.NoError(t, l.Close())
		for _, index := range []string{"*.index", "*.timeindex"} {
			for _, name := range files(t, dir, index) {
				require.NoError(t, os.Remove(name))
			}
		}
		name := files(t, dir, "*.log")[0]
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		clear(b[100<<10:][:4096])
		clear(b[100<<10+between:][:4096])
		require.NoError(t, os.WriteFile(name, b, 0o644))
		report, err := seglog.Repair(dir, &seglog.RepairOptions{Apply: true, KeepAfter: true})
		require.NoError(t, err)
		require.Greater(t, report.Records, int64(10*n-100))
		l = open(t, dir, nil)
		got := int64(0)
		for _, err := range l.Records(seglog.Oldest) {
			require.NoError(t, err)
			got++
		}
		require.Equal(t, report.Records, got)
		require.NoError(t, l.Close())
	}
}
