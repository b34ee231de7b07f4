package seglog_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// The segments that Repair with KeepAfter keeps after a gap must stay when the log is opened, and when it is opened again
// after a kill. The state file of the log has an early recovery point, so Open might take a gap for the torn tail of a power
// cut, and drop the segments after it.
func TestRepairKeepsSegmentsBehindItsGaps(t *testing.T) {
	damage := map[string]func(t *testing.T, segs []seglog.SegmentInfo){
		"a missing segment": func(t *testing.T, segs []seglog.SegmentInfo) { require.NoError(t, os.Remove(segs[1].Path)) },
		"the last batch of a segment": func(t *testing.T, segs []seglog.SegmentInfo) {
			damageAt(t, segs[1].Path, segs[1].Bytes-10)
		},
		"the last batches of two segments": func(t *testing.T, segs []seglog.SegmentInfo) {
			damageAt(t, segs[1].Path, segs[1].Bytes-10)
			damageAt(t, segs[3].Path, segs[3].Bytes-10)
		},
		"all of the last segment, and another": func(t *testing.T, segs []seglog.SegmentInfo) {
			require.NoError(t, os.Remove(segs[2].Path))
			last := segs[len(segs)-1]
			require.NoError(t, os.WriteFile(last.Path, make([]byte, last.Bytes), 0o644))
		},
	}
	for name, do := range damage {
		for _, keep := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				o := &seglog.Options{SegmentBytes: 4096, Flush: seglog.FlushNone}
				l := open(t, dir, o)
				early, err := os.ReadFile(filepath.Join(dir, "seglog.state"))
				require.NoError(t, err)
				for range 110 {
					_, err := l.Append(seglog.Record{Value: make([]byte, 100)})
					require.NoError(t, err)
				}
				segs, err := l.Segments()
				require.NoError(t, err)
				require.Greater(t, len(segs), 4)
				require.NoError(t, l.Close())
				require.NoError(t, os.WriteFile(filepath.Join(dir, "seglog.state"), early, 0o644))
				do(t, segs)

				report, err := seglog.Repair(dir, &seglog.RepairOptions{Apply: true, KeepAfter: keep})
				require.NoError(t, err)
				again, err := seglog.Repair(dir, &seglog.RepairOptions{KeepAfter: keep})
				require.NoError(t, err)
				require.True(t, again.Sound(), "%+v", again)
				for range 2 { // each log is copied while it is open, as a kill would leave it
					files := t.TempDir()
					require.NoError(t, os.CopyFS(files, os.DirFS(dir)))
					l := open(t, files, o)
					require.Equal(t, report.Start, l.Offsets().Start)
					require.Equal(t, report.End, l.Offsets().End)
					records := int64(0)
					for _, err := range l.Records(seglog.Oldest) {
						require.NoError(t, err)
						records++
					}
					require.Equal(t, report.Records, records)
					dir = copyDir(t, files)
					require.NoError(t, l.Close())
				}
			})
		}
	}
}

func damageAt(t *testing.T, path string, pos int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	flipBit(t, f, pos, 0)
	require.NoError(t, f.Close())
}
