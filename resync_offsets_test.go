package seglog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
)

// offsetDamage is damage to batch hurt of a log without gaps and behind it to the base offset of batch flipped.
type offsetDamage struct {
	per     int    // records of a batch
	index   int    // Options.IndexBytes
	hurt    int    // the batch that is damaged
	how     string // how it is damaged
	flipped int    // the batch whose base offset is damaged
	bit     int    // the bit of it
	lost    string // further damage, behind the flipped batch
	killed  bool   // the log was not closed
}

const offsetBatches = 9

// hit returns the batches that damage touches.
func (d *offsetDamage) hit() map[int]bool {
	hit := map[int]bool{d.hurt: true, d.flipped: true}
	if d.lost != "" {
		hit[d.flipped+1] = true
	}
	return hit
}

func (d *offsetDamage) value(offset int) []byte {
	return bytes.Repeat([]byte{byte('a' + offset)}, 90)
}

// make returns the directory of a log with the damage, or "" if the bit makes no difference.
func (d *offsetDamage) make(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(dir, &Options{Flush: FlushNone, IndexBytes: d.index})
	require.NoError(t, err)
	for i := range offsetBatches {
		var records []Record
		for k := range d.per {
			records = append(records, Record{Time: time.UnixMilli(1), Value: d.value(i*d.per + k)})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	files := dir
	if d.killed {
		files = copyFiles(t, dir)
	}
	require.NoError(t, l.Close())
	path := filepath.Join(files, fileName(0, logSuffix))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var at []int
	for pos, i := 0, 0; i < offsetBatches; pos, i = pos+int(batch(b[pos:]).size()), i+1 {
		at = append(at, pos)
	}
	switch h := b[at[d.hurt]:]; d.how {
	case "value":
		h[headerLen+20] ^= 1
	case "magic":
		h[atMagic] ^= 1
	case "length":
		h[atBatchLength+3] ^= 2
	case "offset":
		h[atBaseOffset+7] ^= 64
	case "header":
		clear(h[:headerLen])
	}
	b[at[d.flipped]+7-d.bit/8] ^= 1 << (d.bit % 8)
	switch d.lost {
	case "value behind":
		b[at[d.flipped+1]+headerLen+20] ^= 1
	case "header behind":
		clear(b[at[d.flipped+1]:][:headerLen])
	}
	require.NoError(t, os.WriteFile(path, b, 0o644))
	return files
}

// between reports whether two damages cut batch i off from both sides: a destroyed header before it, and behind it a header that
// does not join. Then it is not always found.
func (d *offsetDamage) between(i int) bool {
	return d.how == "header" && i > d.hurt && i < d.flipped
}

// least returns the number of batches that must be found.
func (d *offsetDamage) least() int {
	n := offsetBatches - len(d.hit())
	for i := range offsetBatches {
		if d.between(i) {
			n--
		}
	}
	return n
}

// check reads the log in every way. No record may have the offset of another one. Batches that the damage did not touch
// must be found.
func (d *offsetDamage) check(t *testing.T, l *Log, repaired bool, what string) {
	t.Helper()
	hit := d.hit()
	for o := range offsetBatches * d.per {
		r, err := l.Read(int64(o))
		if err == nil {
			require.Equal(t, d.value(o), r.Value, "%s: Read(%d)", what, o)
		}
		switch {
		case d.between(o / d.per):
		case hit[o/d.per]:
			require.Error(t, err, "%s: Read(%d)", what, o)
		default:
			require.NoError(t, err, "%s: Read(%d)", what, o)
		}
		s, err := l.Section(int64(o), 1)
		if err != nil {
			require.True(t, hit[o/d.per] || d.between(o/d.per), "%s: Section(%d): %v", what, o, err)
			continue
		}
		var sent bytes.Buffer
		_, err = s.WriteTo(&sent)
		require.NoError(t, err, what)
		require.NoError(t, s.Close())
		for r, err := range Decode(&sent) {
			if err == nil {
				require.Equal(t, d.value(int(r.Offset)), r.Value, "%s: Section(%d)", what, o)
			}
		}
	}
	if !repaired {
		got, _ := readPast(t, what, l)
		require.GreaterOrEqual(t, len(got), d.least()*d.per, what)
		require.LessOrEqual(t, len(got), (offsetBatches-len(hit))*d.per, what)
	}
	for r, err := range l.Records(l.Offsets().Start) {
		if err != nil {
			require.False(t, repaired, "%s: %v", what, err)
			break
		}
		require.Equal(t, d.value(int(r.Offset)), r.Value, what)
	}
}

// A damaged batch and, behind it, one with a flipped bit in its base offset, which no CRC covers, must not give records the
// offsets of others, in a log in which no offsets are missing: not to readers, and not to Repair, which would make it last.
func TestOffsetsBehindDamage(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	const last = offsetBatches - 1
	var all []offsetDamage
	for _, per := range []int{1, 3} {
		for _, index := range []int{1, 500, defaultIndexBytes} {
			for _, how := range []string{"value", "magic", "length", "offset", "header"} {
				for _, bit := range []int{0, 1, 2, 3, 4, 40} {
					for _, hurt := range []int{0, 3, last - 1} {
						all = append(all, offsetDamage{per, index, hurt, how, hurt + 1, bit, "", bit%2 == 1 && (hurt < last-1 || how != "header")})
					}
					all = append(all, offsetDamage{per, index, 3, how, 5, bit, "", bit%2 == 0})
					if how != "header" && how != "length" {
						all = append(all, offsetDamage{per, index, 3, how, 4, bit, "value behind", false}, offsetDamage{per, index, 3, how, 4, bit, "header behind", false})
					}
				}
			}
		}
	}
	for i, d := range all {
		if i%23 > 0 && *tortureStates == 0 {
			continue // the bits differ in little else
		}
		what := fmt.Sprintf("%+v", d)
		dir := d.make(t)
		for _, readOnly := range []bool{true, false} {
			l, err := Open(copyFiles(t, dir), &Options{Flush: FlushNone, IndexBytes: d.index, ReadOnly: readOnly})
			if d.killed && !readOnly && err != nil {
				require.ErrorIs(t, err, ErrCorrupt, what) // recovery refuses damage below the recovery point
				continue
			}
			require.NoError(t, err, what)
			d.check(t, l, false, what)
			require.NoError(t, l.Close())
		}
		report, err := Verify(dir, nil)
		require.NoError(t, err)
		require.False(t, report.OK(), what)
		require.GreaterOrEqual(t, report.Batches, int64(d.least()), "%s: %v", what, report.Problems)
		require.LessOrEqual(t, report.Batches, int64(offsetBatches-len(d.hit())), "%s: %v", what, report.Problems)
		_, err = Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
		require.NoError(t, err, what)
		l, err := Open(dir, nil)
		require.NoError(t, err, what)
		d.check(t, l, true, what)
		require.NoError(t, l.Close())
	}
}

// A torn batch at the end of a file vouches for the batch before it as a whole one would, so that Repair keeps that one behind a
// header that is destroyed, and no Open without a state file cuts it off.
func TestResyncBeforeATornTail(t *testing.T) {
	t.Parallel()
	const n = 4
	dir := damagedLog(t, n, func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 500) }, func(b []byte, at []int) { clear(b[at[1]:][:headerLen]) })
	path := filepath.Join(dir, fileName(0, logSuffix))
	info, err := os.Stat(path)
	require.NoError(t, err)
	batchSize := info.Size() / n
	for _, cut := range []int64{batchSize - 1, 300, headerLen, headerLen - 1, atMagic + 1, 11, 8} {
		for _, promised := range []bool{true, false} {
			what := fmt.Sprintf("%d bytes of the last batch, with a state file: %v", cut, promised)
			torn := copyFiles(t, dir)
			if !promised {
				require.NoError(t, os.Remove(filepath.Join(torn, stateName)))
			}
			require.NoError(t, os.Truncate(filepath.Join(torn, fileName(0, logSuffix)), (n-1)*batchSize+cut))
			_, err := Open(copyFiles(t, torn), nil)
			require.ErrorIs(t, err, ErrCorrupt, what)
			_, err = Repair(torn, &RepairOptions{Apply: true, KeepAfter: true})
			require.NoError(t, err, what)
			l, err := Open(torn, nil)
			require.NoError(t, err, what)
			r, err := l.Read(2)
			require.NoError(t, err, what)
			require.Equal(t, bytes.Repeat([]byte{'c'}, 500), r.Value)
			require.NoError(t, l.Close())
		}
	}
}

// Batches in the value of a record are none of the log, whether the record is torn in one of them or not.
func TestResyncInATornBatch(t *testing.T) {
	dir := damagedLog(t, 3, func(i int) []byte { return embedded(int64(i + 1))[:300] }, func([]byte, []int) {})
	require.NoError(t, os.Remove(filepath.Join(dir, stateName)))
	path := filepath.Join(dir, fileName(0, logSuffix))
	info, err := os.Stat(path)
	require.NoError(t, err)
	one := int64(len(embedded(1))) / 10
	require.NoError(t, os.Truncate(path, info.Size()/3*2+headerLen+8+one*3/2)) // one batch of the value, and half of the next one
	l, err := Open(dir, nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, l.Offsets().End)
	require.NoError(t, l.Close())
}

// Where the end of a segment is known, from the state file of a log that was closed or flushed or from the name of the next segment,
// no shifted base offset of the last batch passes behind a header that is destroyed: its records must not get the offsets of others.
func TestOffsetsBeforeAKnownEnd(t *testing.T) {
	t.Parallel()
	sizes := []int{5, 5, 4, 5}
	for _, known := range []string{"closed", "flushed", "sealed"} {
		sealed := known == "sealed"
		whole := t.TempDir()
		l, err := Open(whole, &Options{Flush: FlushNone, SegmentBytes: minSegmentBytes})
		require.NoError(t, err)
		value := func(offset int64) []byte { return fmt.Appendf(nil, "record %d", offset) }
		next := int64(0)
		add := func(n, size int) {
			var records []Record
			for range n {
				records = append(records, Record{Value: append(value(next), make([]byte, size)...)})
				next++
			}
			_, err := l.Append(records...)
			require.NoError(t, err)
		}
		for _, n := range sizes {
			add(n, 0)
		}
		for sealed && l.Stats().Segments < 2 {
			add(1, minSegmentBytes-200)
		}
		end := next
		require.NoError(t, l.Close())
		path := filepath.Join(whole, fileName(0, logSuffix))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		var at []int
		for pos := 0; pos < len(b); pos += int(batch(b[pos:]).size()) {
			at = append(at, pos)
		}
		require.Len(t, at, len(sizes))
		if known == "flushed" {
			changeState(t, whole, func(s *state) {
				require.EqualValues(t, len(b), s.scanPos)
				s.clean, s.end, s.endPos = false, 0, 0
			})
		}
		for _, shift := range []int64{-4, -3, -2, -1, 1, 2, 3, 4, 8} {
			what := fmt.Sprintf("%s, shift %d", known, shift)
			c := bytes.Clone(b)
			for i := range headerLen - 8 {
				c[at[2]+8+i] = byte(0xa5 + i*7)
			}
			binary.BigEndian.PutUint64(c[at[3]:], uint64(14+shift))
			dir := copyFiles(t, whole)
			require.NoError(t, os.WriteFile(filepath.Join(dir, fileName(0, logSuffix)), c, 0o644))
			for _, repaired := range []bool{false, true} {
				if repaired {
					report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
					require.NoError(t, err)
					require.Equal(t, end, report.End, what)
				}
				l, err := Open(dir, nil)
				if known == "flushed" && !repaired {
					require.ErrorIs(t, err, ErrCorrupt)
					continue
				}
				require.NoError(t, err, what)
				require.Equal(t, end, l.Offsets().End, what)
				got, _ := readPast(t, what, l)
				for offset := range end {
					r, err := l.Read(offset)
					require.Equal(t, slices.Contains(got, offset), err == nil, "%s: offset %d", what, offset)
					require.Equal(t, offset < 10 || offset >= 19, err == nil, "%s: offset %d", what, offset)
					if err == nil {
						require.True(t, bytes.HasPrefix(r.Value, value(offset)), "%s: offset %d: %.20s", what, offset, r.Value)
					}
				}
				require.NoError(t, l.Close())
			}
		}
	}
}

// Batches in the value of a record, joined and with offsets of the batch that holds them, are none of the log if the header of that
// batch is destroyed: an entry of the index leads to a batch behind it, and they do not lead there.
func TestResyncOfBatchesInAValue(t *testing.T) {
	t.Parallel()
	const batches, per, holds = 60, 10, 7
	for i := range 8 {
		joined, gaps := i/2, i%2 == 1
		dir := t.TempDir()
		l, err := Open(dir, &Options{Flush: FlushNone})
		require.NoError(t, err)
		for i := range batches {
			records := make([]Record, per)
			for k := range records {
				records[k].Value = []byte("of this log")
			}
			if i == holds {
				records[0].Value = embedded(holds*per + 2)[:joined*len(embedded(0))/10]
			}
			_, err := l.Append(records...)
			require.NoError(t, err)
		}
		if gaps {
			_, err := l.TransferFrom(bytes.NewReader(spaced(batches*per, 2, 5)), -1)
			require.NoError(t, err)
		}
		want := (batches-1)*per + 2*(i%2)
		var at BatchInfo
		for b, err := range l.Batches(holds * per) {
			require.NoError(t, err)
			at = b
			break
		}
		require.NoError(t, l.Close())
		f, err := os.OpenFile(at.Path, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(make([]byte, headerLen), at.Pos)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		what := fmt.Sprintf("%d in the value, gaps: %v", joined, gaps)
		l, err = Open(dir, &Options{ReadOnly: true})
		require.NoError(t, err)
		got, _ := readPast(t, what, l)
		require.Len(t, got, want, what)
		require.NoError(t, l.Close())
		report, err := Repair(dir, &RepairOptions{KeepAfter: true})
		require.NoError(t, err)
		require.EqualValues(t, want, report.Records, what)
		verified, err := Verify(dir, nil)
		require.NoError(t, err)
		require.Equal(t, report.Records, verified.Records, what)
	}
}

// Where so much is left out of a batch that its length leads to the end of the file, the batches behind it are found by the offset at which
// they are known to end. Batches of its value don't end there.
func TestBatchesBeforeAClaimedEnd(t *testing.T) {
	t.Parallel()
	check := func(what string, values [][]byte, want []int64, spoil func(b []byte) []byte) {
		dir := damagedLog(t, len(values), func(i int) []byte { return values[i] }, func([]byte, []int) {})
		path := filepath.Join(dir, fileName(0, logSuffix))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, spoil(b), 0o644))
		report, err := Verify(dir, nil)
		require.NoError(t, err)
		require.EqualValues(t, len(want), report.Records, what)
		repair, err := Repair(dir, &RepairOptions{KeepAfter: true})
		require.NoError(t, err)
		require.EqualValues(t, len(want), repair.Records, what)
		require.EqualValues(t, len(values), repair.End, what)
		if len(want) > 0 { // a log of which nothing is left is refused
			l, err := Open(dir, &Options{ReadOnly: true})
			require.NoError(t, err, what)
			got, _ := readPast(t, what, l)
			require.Equal(t, want, got, what)
			require.NoError(t, l.Close())
		}
	}
	const behind = headerLen + 8 + 50 // the size of the last batch
	for n := behind - 2; n < behind+maxSlack+8; n += 3 {
		values := [][]byte{bytes.Repeat([]byte("v"), 1000), make([]byte, 50)}
		for i := range values[1] {
			values[1][i] = byte(i)
		}
		check(fmt.Sprintf("%d bytes left out", n), values, []int64{1}, func(b []byte) []byte { return slices.Delete(b, 300, 300+n) })
	}
	check("joined batches in a value", [][]byte{embedded(0)[:len(embedded(0))/5]}, nil, func(b []byte) []byte {
		b[headerLen+3] ^= 1
		return b
	})
}
