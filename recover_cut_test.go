package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// These tests are for cuts that the state file notes and the next Open has to finish.

// changeNote changes the state file of a log in sim.Dir that is not open. version1 writes it as builds before version 2 did,
// which noted the offset of a cut alone.
func changeNote(t *testing.T, fsys vfs.FS, version1 bool, change func(*state)) {
	t.Helper()
	path := filepath.Join(sim.Dir, stateName)
	st, ok, err := readState(fsys, path)
	require.NoError(t, err)
	require.True(t, ok)
	st.clean = false
	change(&st)
	f, err := fsys.Open(path, vfs.OpenWrite)
	require.NoError(t, err)
	for range 2 {
		st.seq++
		b := make([]byte, stateLen)
		st.encode(b)
		if version1 {
			binary.BigEndian.PutUint64(b, stateMagic1)
			binary.BigEndian.PutUint32(b[8:], crc32.Checksum(b[12:stateLen1], castagnoli))
			clear(b[stateLen1:])
		}
		_, err := f.WriteAt(b, int64(st.seq%2)*stateSlotGap)
		require.NoError(t, err)
	}
	require.NoError(t, f.Flush())
	require.NoError(t, f.Close())
}

// toBeCut returns the files of a closed log, and its batches. There are three to a segment of three records each, but for a gap
// of 10 offsets before the last two batches, which hold one record each.
func toBeCut(t *testing.T) (*sim.World, []found) {
	t.Helper()
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for l.Stats().Segments < 3 {
		one := Record{Value: make([]byte, 400)}
		_, err := l.Append(one, one, one)
		require.NoError(t, err)
	}
	end := l.Offsets().End
	_, err = l.TransferFrom(bytes.NewReader(append(spaced(end, 1, 1), spaced(end+11, 2, 1)...)), -1)
	require.NoError(t, err)
	all := batchesOf(t, l)
	require.NoError(t, l.Close())
	return s.World, all
}

// requireCut opens a log of toBeCut and checks that it ends at an offset, has all records below it, and goes on.
func requireCut(t *testing.T, s *sim.FS, all []found, end int64) {
	t.Helper()
	l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	require.Equal(t, Offsets{RecoveryPoint: end, HighWatermark: end, End: end}, l.Offsets())
	var want []int64
	for _, b := range all {
		for offset := b.base; offset <= b.last && offset < end; offset++ {
			want = append(want, offset)
		}
	}
	requireOffsets(t, l, 0, want...)
	base, err := l.Append(Record{Value: []byte("after the cut")})
	require.NoError(t, err)
	require.Equal(t, end, base)
	require.Positive(t, lastEpoch(t, l), "those that the cut removed had 0")
	requireOffsets(t, l, 0, append(want, end)...)
	require.NoError(t, l.Close())
	report := verifyWorld(t, s.World, nil)
	require.Empty(t, report.Problems)
	require.Equal(t, end+1, report.End)
}

// lastEpoch returns the leader epoch of the last batch.
func lastEpoch(t *testing.T, l *Log) (epoch int32) {
	t.Helper()
	for b, err := range l.Batches(l.Offsets().End - 1) {
		require.NoError(t, err)
		epoch = b.LeaderEpoch
	}
	return epoch
}

// Version 1 of the state file notes only the offset of a cut, so Open looks for the place. The plan that it makes must stay the
// same if it is killed at any point.
func TestInterruptedCutOfVersion1(t *testing.T) {
	w, all := toBeCut(t)
	first := slices.IndexFunc(all[1:], func(b found) bool { return b.pos == 0 }) + 1 // the first batch of the second segment
	gap := all[len(all)-2].base - 5
	cuts := map[string]int64{
		"nothing is kept":               0,
		"inside the first batch":        1,
		"between two batches":           all[1].base,
		"inside a batch":                all[1].last,
		"where a segment begins":        all[first].base,
		"in the first batch of another": all[first].base + 1,
		"where a gap begins":            all[len(all)-3].last + 1,
		"in a gap":                      gap,
		"where a gap ends":              all[len(all)-2].base,
		"before the last batch":         all[len(all)-1].base,
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			for step := 1; ; step++ {
				s := sim.NewFS(w.Clone(), true)
				changeNote(t, s, true, func(s *state) { s.cut = cut })
				n := 0
				s.SetFault(func(kind sim.Kind, _ int, path string) *sim.Fault {
					if kind == sim.Read {
						return nil
					}
					if n++; n == step {
						s.Dead = true
						return &sim.Fault{Err: sim.ErrDead}
					}
					return nil
				})
				l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
				if l != nil {
					ignore(l.Close())
				}
				killed := s.Kill()
				requireCut(t, sim.NewFS(killed, true), all, cut)
				if err == nil {
					require.Greater(t, step, 10)
					return
				}
			}
		})
	}
	// The cut had changed the files already, or the blocks behind the end were made ready.
	for name, size := range map[string]int64{"zeros behind a gap": all[len(all)-3].end() + 1000, "end behind a gap": all[len(all)-3].end()} {
		t.Run(name, func(t *testing.T) {
			s := sim.NewFS(w.Clone(), true)
			l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
			require.NoError(t, err)
			require.NoError(t, l.TruncateTo(gap))
			path := l.path(l.writer.tail.seg.base, logSuffix)
			require.NoError(t, l.Close())
			f, err := s.Open(path, vfs.OpenWrite)
			require.NoError(t, err)
			require.NoError(t, f.Truncate(size))
			require.NoError(t, f.Close())
			changeNote(t, s, true, func(s *state) { s.cut = gap })
			requireCut(t, s, all, gap)
		})
	}
}

// An Open that can't finish a cut of version 1 must say why.
func TestInterruptedCutOfVersion1ThatCannotBePlanned(t *testing.T) {
	w, all := toBeCut(t)
	last := all[len(all)-1]
	refused := func(t *testing.T, s *sim.FS) *CorruptError {
		changeNote(t, s, true, func(s *state) { s.cut = last.base })
		_, err := openFS(s, sim.Dir, nil)
		var damage *CorruptError
		require.ErrorAs(t, err, &damage)
		require.Empty(t, s.Left())
		return damage
	}
	t.Run("no segment is left", func(t *testing.T) {
		s := sim.NewFS(w.Clone(), true)
		maps.DeleteFunc(s.World.Names, func(name string, _ int) bool { return filepath.Ext(name) == logSuffix })
		require.Contains(t, refused(t, s).Reason, "no segment is left")
	})
	t.Run("a bad batch", func(t *testing.T) {
		s := sim.NewFS(w.Clone(), true)
		bases := []int64{}
		for _, b := range all {
			if b.pos == 0 {
				bases = append(bases, b.base)
			}
		}
		path := filepath.Join(sim.Dir, fileName(bases[len(bases)-1], logSuffix))
		f, err := s.Open(path, vfs.OpenWrite)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("damage"), headerLen)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		damage := refused(t, s)
		require.Equal(t, [3]any{filepath.Base(path), int64(0), bases[len(bases)-1]}, [3]any{filepath.Base(damage.Path), damage.Pos, damage.Offset})
	})
}

// The file that a cut has to shorten may be shorter already, or be gone: what is missing was not part of the cut, so Open must not
// go on without it.
func TestInterruptedCutOfALostFile(t *testing.T) {
	w, all := toBeCut(t)
	cut := all[1]
	note := func(s *state) { s.cut, s.cutBase, s.cutPos, s.cutLen = cut.base, 0, cut.pos, 0 }
	path := filepath.Join(sim.Dir, fileName(0, logSuffix))
	for _, size := range []int64{0, cut.pos - 1, -1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := sim.NewFS(w.Clone(), true)
			changeNote(t, s, false, note)
			if size < 0 {
				delete(s.World.Names, sim.Name(path))
			} else {
				f, err := s.Open(path, vfs.OpenWrite)
				require.NoError(t, err)
				require.NoError(t, f.Truncate(size))
				require.NoError(t, f.Close())
			}
			for range 2 {
				_, err := openFS(s, sim.Dir, nil)
				var damage *CorruptError
				require.ErrorAs(t, err, &damage)
				require.Equal(t, [3]any{filepath.Base(path), max(0, size), int64(0)}, [3]any{filepath.Base(damage.Path), damage.Pos, damage.Offset})
				require.Contains(t, damage.Reason, fmt.Sprintf("cut at offset %d", cut.base))
				require.Empty(t, s.Left())
			}
		})
	}
	s := sim.NewFS(w.Clone(), true)
	changeNote(t, s, false, note)
	requireCut(t, s, all, cut.base)
}

// A log whose cut was interrupted and that was damaged as well must open after Repair, with what the report says, and with all
// batches that were neither damaged nor to be cut.
func TestRepairBesideAnInterruptedCut(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	w, all := toBeCut(t)
	segmentOf := func(i int) (base int64) {
		for _, b := range all[:i+1] {
			if b.pos == 0 {
				base = b.base
			}
		}
		return base
	}
	for at, b := range all { // the cut is behind this batch, or inside it
		var rest batch
		whole := b
		if b.last > b.base && at%2 == 0 {
			f, err := sim.NewFS(w.Clone(), true).Open(filepath.Join(sim.Dir, fileName(segmentOf(at), logSuffix)), vfs.OpenRead)
			require.NoError(t, err)
			divided := make(batch, b.size)
			require.NoError(t, vfs.ReadFull(f, divided, b.pos))
			rest, err = cutBatch(divided, b.base+1, 1<<20)
			require.NoError(t, err)
			whole = found{base: b.base, last: b.base, pos: b.pos}
		}
		note := func(s *state) {
			s.cut, s.cutBase, s.cutPos, s.cutLen = whole.last+1, segmentOf(at), whole.end(), int64(len(rest))
		}
		for hit := range all {
			for _, keep := range []bool{false, true} {
				for _, how := range []string{"flip", "shorten", "remove"} {
					t.Run(fmt.Sprintf("cut at %d, batch %d, %s, keep %v", whole.last+1, hit, how, keep), func(t *testing.T) {
						s := sim.NewFS(w.Clone(), true)
						changeNote(t, s, false, note)
						f, err := s.Open(filepath.Join(sim.Dir, stateName), vfs.OpenWrite)
						require.NoError(t, err)
						_, err = f.WriteAt(rest, restPos)
						require.NoError(t, err)
						require.NoError(t, f.Close())
						path := filepath.Join(sim.Dir, fileName(segmentOf(hit), logSuffix))
						lost := func(i int) bool { return i == hit }
						switch how {
						case "flip":
							f, err := s.Open(path, vfs.OpenWrite)
							require.NoError(t, err)
							_, err = f.WriteAt([]byte{'!'}, all[hit].end()-1)
							require.NoError(t, err)
							require.NoError(t, f.Close())
						case "shorten":
							f, err := s.Open(path, vfs.OpenWrite)
							require.NoError(t, err)
							require.NoError(t, f.Truncate(all[hit].pos+5))
							require.NoError(t, f.Close())
							lost = func(i int) bool { return i >= hit && segmentOf(i) == segmentOf(hit) }
						case "remove":
							delete(s.World.Names, sim.Name(path))
							lost = func(i int) bool { return segmentOf(i) == segmentOf(hit) }
						}
						o := RepairOptions{Apply: true, KeepAfter: keep}
						check := func(r *RepairReport, after *sim.World) {
							s := sim.NewFS(after, true)
							l, err := openFS(s, sim.Dir, &Options{SegmentBytes: minSegmentBytes})
							require.NoError(t, err)
							o := l.Offsets()
							require.Equal(t, [2]int64{r.Start, r.End}, [2]int64{o.Start, o.End})
							require.LessOrEqual(t, o.End, whole.last+1, "what was cut must not come back")
							for i, b := range all[:at+1] {
								if i < hit && !lost(i) || keep && !lost(i) {
									_, err := l.Read(b.base)
									require.NoError(t, err, "batch %d", i)
								}
							}
							_, err = l.Append(Record{Value: []byte("after the repair")})
							require.NoError(t, err)
							require.NoError(t, l.Close())
							for _, p := range verifyWorld(t, s.World, nil).Problems { // of indexes that readers make anew
								require.Equal(t, SeverityWarning, p.Severity, "%v", p)
							}
						}
						r, after := repaired(t, s.World, o)
						if how == "remove" && segmentOf(hit) < segmentOf(at) {
							require.False(t, r.Sound())
							// Behind another segment the one that is gone may be a gap, which this log may have.
							require.Equal(t, segmentOf(hit) == 0, len(r.Removed) > 0, "%v", r.Removed)
						}
						check(r, after)
						for k := 1 + (at+hit)%5; ; k += 5 { // killed at an operation, and run again
							s := sim.NewFS(s.World.Clone(), true)
							n := 0
							s.SetFault(func(sim.Kind, int, string) *sim.Fault {
								if n++; n == k {
									s.Dead = true
									return &sim.Fault{Err: sim.ErrDead}
								}
								return nil
							})
							if _, err := repairFS(s, sim.Dir, &o); err == nil {
								break
							}
							killed := s.Kill()
							if l, err := openFS(sim.NewFS(killed.Clone(), true), sim.Dir, &Options{SegmentBytes: minSegmentBytes}); err != nil {
								require.ErrorIs(t, err, ErrCorrupt)
							} else {
								require.LessOrEqual(t, l.Offsets().End, whole.last+1, "killed at operation %d", k)
								require.NoError(t, l.Close())
							}
							check(repaired(t, killed, o))
						}
					})
				}
			}
		}
	}
}

// cutInHalf returns the files of a log without gaps whose cut behind batch 7 of 12 was interrupted before it changed a file, its batches of
// two records each, and the first part of the batch that the cut divides.
func cutInHalf(t *testing.T, divides bool) (*sim.World, []found, batch) {
	t.Helper()
	s := sim.NewFS(sim.NewWorld(), true)
	l, err := openFS(s, sim.Dir, nil)
	require.NoError(t, err)
	for i := range 12 {
		_, err := l.Append(Record{Value: halfValue(2 * i)}, Record{Value: halfValue(2*i + 1)})
		require.NoError(t, err)
	}
	all := batchesOf(t, l)
	require.NoError(t, l.Close())
	at := all[7]
	end := at.base
	var rest batch
	if divides {
		end++
		rest, err = cutBatch(batch(bytes.Clone(s.World.Get(fileName(0, logSuffix))[at.pos:at.end()])), end, 1<<20)
		require.NoError(t, err)
	}
	changeNote(t, s, false, func(s *state) { s.cut, s.cutBase, s.cutPos, s.cutLen = end, 0, at.pos, int64(len(rest)) })
	f, err := s.Open(filepath.Join(sim.Dir, stateName), vfs.OpenWrite)
	require.NoError(t, err)
	_, err = f.WriteAt(rest, restPos)
	require.NoError(t, errors.Join(err, f.Close()))
	return s.World, all, rest
}

func halfValue(offset int) []byte { return bytes.Repeat([]byte{byte('a' + offset)}, 400/(1+offset/2)) }

// A batch from above an interrupted cut lies over one below it, as after a misdirected write. Repair must take out that one alone, and
// keep what it takes out beside the log, however far the cut has come.
func TestRepairOfABatchFromAboveAnInterruptedCut(t *testing.T) {
	const over, from = 1, 10
	for _, divides := range []bool{false, true} {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("divides a batch %v, file is cut %v", divides, done), func(t *testing.T) {
				w, all, rest := cutInHalf(t, divides)
				name := fileName(0, logSuffix)
				b := bytes.Clone(w.Get(name))
				end := all[7].base
				if divides {
					end++
				}
				moved := bytes.Clone(b[all[from].pos:all[from].end()])
				if done {
					b = append(b[:all[7].pos], rest...)
				}
				copy(b[all[over].pos:], moved)
				w.Put(name, b)
				r, after := repaired(t, w, RepairOptions{Apply: true, KeepAfter: true})
				require.Len(t, r.Removed, 1)
				require.Equal(t, [3]int64{all[over].pos, all[over].size, end}, [3]int64{r.Removed[0].Pos, r.Removed[0].Bytes, r.End})
				require.Equal(t, b[all[over].pos:all[over].end()], after.Get(filepath.Base(r.Removed[0].Saved)))
				l, err := openFS(sim.NewFS(after, true), sim.Dir, nil)
				require.NoError(t, err)
				require.Equal(t, end, l.Offsets().End)
				for offset := range end {
					rec, err := l.Read(offset)
					if offset/2 != over {
						require.NoError(t, err, "offset %d", offset)
						require.Equal(t, halfValue(int(offset)), rec.Value)
					}
				}
				require.NoError(t, l.Close())
			})
		}
	}
}

// Beside an interrupted cut, Verify reports an error where Open refuses the log or readers find damage, and only there. What the
// cut removes, and the batch that it replaces by its first part, may be damaged.
func TestVerifyBesideAnInterruptedCut(t *testing.T) {
	t.Parallel()
	for _, divides := range []bool{false, true} {
		w, all, _ := cutInHalf(t, divides)
		for _, hit := range []int{6, 7, 8} { // Verify waits for half a second in case the cut goes on
			for _, how := range []string{"flip", "shorten"} {
				t.Run(fmt.Sprintf("divides a batch %v, batch %d, %s", divides, hit, how), func(t *testing.T) {
					w := w.Clone()
					t.Parallel()
					b := bytes.Clone(w.Get(fileName(0, logSuffix)))
					if how == "shorten" {
						b = b[:all[hit].pos+5]
					} else {
						b[all[hit].end()-1] ^= 1
					}
					w.Put(fileName(0, logSuffix), b)
					report := verifyWorld(t, w, nil)
					sound, _ := repaired(t, w, RepairOptions{KeepAfter: true})
					opts := Options{SegmentBytes: 1 << 20}
					l, err := openFS(sim.NewFS(w.Clone(), true), sim.Dir, &opts)
					if err == nil {
						_, err = readLog(l)
						require.NoError(t, l.Close())
					}
					require.Equal(t, errors.Is(err, ErrCorrupt), !report.OK(), "Open %v, Verify %v", err, report.Problems)
					require.Equal(t, sound.Sound(), report.OK(), "Repair %+v, Verify %v", sound, report.Problems)
					if report.OK() {
						require.Equal(t, sound.End, report.End)
						require.Equal(t, sound.Records, report.Records)
					}
				})
			}
		}
	}
}

// Damage just below an interrupted cut must not move the start of the log down, which lies in what is damaged.
func TestRepairKeepsTheStartBesideAnInterruptedCut(t *testing.T) {
	w, all, _ := cutInHalf(t, true)
	s := sim.NewFS(w, true)
	changeNote(t, s, false, func(s *state) { s.start = all[6].base })
	b := bytes.Clone(w.Get(fileName(0, logSuffix)))
	b[all[5].end()-1] ^= 1
	b[all[6].end()-1] ^= 1
	s.World.Put(fileName(0, logSuffix), b)
	r, after := repaired(t, s.World, RepairOptions{Apply: true, KeepAfter: true})
	require.Equal(t, [2]int64{all[6].base, all[7].base + 1}, [2]int64{r.Start, r.End})
	l, err := openFS(sim.NewFS(after, true), sim.Dir, nil)
	require.NoError(t, err)
	require.Equal(t, [2]int64{r.Start, r.End}, [2]int64{l.Offsets().Start, l.Offsets().End})
	requireOffsets(t, l, Oldest, all[7].base)
	require.NoError(t, l.Close())
}

// Repair has nothing to do where a TruncateTo was interrupted and nothing is damaged: the next Open finishes it.
func TestRepairOfAnInterruptedCutAlone(t *testing.T) {
	w, all := toBeCut(t)
	base := int64(0)
	for _, b := range all {
		if b.pos == 0 {
			base = b.base
		}
		s := sim.NewFS(w.Clone(), true)
		changeNote(t, s, false, func(s *state) { s.cut, s.cutBase, s.cutPos, s.cutLen = b.last+1, base, b.end(), 0 })
		for _, keep := range []bool{false, true} {
			r, _ := repaired(t, s.World, RepairOptions{KeepAfter: keep})
			require.True(t, r.Sound(), "%+v", r)
			require.Equal(t, b.last+1, r.End)
			_, after := repaired(t, s.World, RepairOptions{Apply: true, KeepAfter: keep})
			requireCut(t, sim.NewFS(after, true), all, b.last+1)
		}
	}
}

// After a cut, times are looked up among the records that are left, and SegmentAge counts from the first of them, also when the
// log was opened again, whether it was closed or killed.
func TestTimesAfterACut(t *testing.T) {
	const hour = int64(3_600_000)
	at := func(offset int64) time.Time { return time.UnixMilli(1_700_000_000_000 + offset*1000) }
	for _, cut := range []int64{0, 1, 4, 5, 60} {
		for _, how := range []string{"at once", "closed", "killed"} {
			t.Run(fmt.Sprint(cut, " ", how), func(t *testing.T) {
				s := sim.NewFS(sim.NewWorld(), true)
				o := Options{SegmentAge: time.Hour, SegmentBytes: 64 << 10}
				l, err := openFS(s, sim.Dir, &o)
				require.NoError(t, err)
				for offset := int64(0); offset < 100; offset += 2 { // two to a batch, so that a cut may divide one
					_, err := l.Append(Record{Time: at(offset)}, Record{Time: at(offset + 1)})
					require.NoError(t, err)
				}
				require.NoError(t, l.TruncateTo(cut))
				if how == "closed" {
					require.NoError(t, l.Close())
				}
				if how != "at once" {
					w := s.Kill()
					ignore(l.Close())
					s = sim.NewFS(w, true)
					l, err = openFS(s, sim.Dir, &o)
					require.NoError(t, err)
				}
				for offset := range cut {
					got, err := l.OffsetForTime(at(offset))
					require.NoError(t, err)
					require.Equal(t, offset, got)
				}
				got, err := l.OffsetForTime(at(cut))
				require.NoError(t, err)
				require.Equal(t, cut, got, "the end, as no record is so late")
				// The age counts from the greatest time of the first batch.
				first := at(min(cut-1, 1)).UnixMilli()
				_, err = l.Append(Record{Time: time.UnixMilli(first + hour)})
				require.NoError(t, err)
				require.Equal(t, 1, l.Stats().Segments)
				_, err = l.Append(Record{Time: time.UnixMilli(first + hour + 1)})
				require.NoError(t, err)
				if cut > 0 {
					require.Equal(t, 2, l.Stats().Segments)
				}
				require.NoError(t, l.Close())
			})
		}
	}
}

// batchesOf returns where the batches of a log lie in its segment.
func batchesOf(t *testing.T, l *Log) (all []found) {
	t.Helper()
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		all = append(all, found{pos: b.Pos, size: b.Bytes, base: b.Base, last: b.Next - 1})
	}
	return all
}

// Repair beside an interrupted cut notes that offsets are missing where a segment below the cut has lost its end.
func TestRepairOfALostEndBelowAnInterruptedCut(t *testing.T) {
	disk := new(uncut)
	dir := t.TempDir()
	l, err := openFS(disk, dir, &Options{SegmentBytes: minSegmentBytes})
	require.NoError(t, err)
	for l.Stats().Segments < 3 {
		_, err := l.Append(Record{Value: make([]byte, 100)})
		require.NoError(t, err)
	}
	segs := l.view.Load().segs
	disk.stubborn.Store(true)
	require.ErrorIs(t, l.TruncateTo(segs[1].base+5), syscall.EIO)
	require.ErrorIs(t, l.Close(), ErrFailed)
	path := filepath.Join(dir, fileName(0, logSuffix))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	kept := batch(b).size() * 10
	require.NoError(t, os.Truncate(path, kept))
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.True(t, report.Gaps)
	require.NotEmpty(t, report.Removed)
	verified, err := Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, verified.OK(), "%v", verified.Problems)
	again, err := Repair(dir, &RepairOptions{KeepAfter: true})
	require.NoError(t, err)
	require.True(t, again.Sound(), "%+v", again)
	l, err = Open(dir, nil)
	require.NoError(t, err)
	got, damages := readPast(t, "repaired", l)
	require.Zero(t, damages)
	require.Len(t, got, 10+5)
	require.NoError(t, l.Close())
}

// With KeepAfter, a log whose last batch below an interrupted cut is lost still ends where the cut does, at a durable offset.
func TestRepairKeepsTheEndOfAnInterruptedCut(t *testing.T) {
	const cut = 29
	disk := new(uncut)
	dir := t.TempDir()
	l, err := openFS(disk, dir, nil)
	require.NoError(t, err)
	for _, n := range []int{25, 4, 1} {
		_, err := l.Append(make([]Record, n)...)
		require.NoError(t, err)
	}
	var lost BatchInfo
	for b, err := range l.Batches(25) {
		require.NoError(t, err)
		lost = b
		break
	}
	disk.stubborn.Store(true)
	require.ErrorIs(t, l.TruncateTo(cut), syscall.EIO)
	require.ErrorIs(t, l.Close(), ErrFailed)
	b, err := os.ReadFile(lost.Path)
	require.NoError(t, err)
	b[lost.Pos+headerLen] ^= 1
	require.NoError(t, os.WriteFile(lost.Path, b, 0o644))
	report, err := Repair(dir, &RepairOptions{Apply: true, KeepAfter: true})
	require.NoError(t, err)
	require.EqualValues(t, cut, report.End)
	again, err := Repair(dir, &RepairOptions{KeepAfter: true})
	require.NoError(t, err)
	require.True(t, again.Sound(), "%+v", again)
	l, err = Open(dir, nil)
	require.NoError(t, err)
	require.EqualValues(t, cut, l.Offsets().End)
	got, damages := readPast(t, "repaired", l)
	require.Zero(t, damages)
	require.Len(t, got, 25)
	require.NoError(t, l.Close())
}
