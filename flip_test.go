package seglog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// Some bits of each byte of a batch's header, and some bytes behind the last batch: a reader that goes on at CorruptError.NextOffset
// gets on, and has every record of the other batches; so has one who asks for each by its offset, and a section from there
// begins with it.
func TestDamageCostsItsBatchAlone(t *testing.T) {
	const perBatch = 3
	sound := t.TempDir()
	l := open(t, sound, &seglog.Options{SegmentBytes: 4096})
	for i := int64(0); l.Stats().Segments < 3; i += perBatch {
		var records []seglog.Record
		for k := range int64(perBatch) {
			records = append(records, seglog.Record{Value: fmt.Appendf(nil, "record %d of those that are all to be had", i+k)})
		}
		_, err := l.Append(records...)
		require.NoError(t, err)
	}
	var hit, other seglog.BatchInfo // damaged is the third batch
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
		check(name+" behind the end", append(append([]byte(nil), whole...), junk...), func(int64) bool { return false })
	}
}

