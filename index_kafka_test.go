package seglog

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Kafka before 4.0 gave an append of several batches, as a follower makes them, one offset entry: the position of the first
// and the offset of the last. Its time entry may name the record with the greatest time rather than the last of the batch.
// Such indexes serve as they are.
func TestIndexesOfOlderKafka(t *testing.T) {
	dir := t.TempDir()
	const perAppend, appends = 7, 30
	var log, offsets, times []byte
	be := binary.BigEndian
	at := int64(0)
	millis := func(offset int64) int64 { return 1_700_000_000_000 + offset }
	for a := range appends {
		pos := len(log)
		for range perAppend {
			var records []Record
			for k := range int64(3) {
				records = append(records, Record{Time: time.UnixMilli(millis(at + k)), Value: fmt.Appendf(nil, "record %d of a log of before", at+k)})
			}
			log = append(log, encoded(records, at)...)
			at += 3
		}
		if a > 0 {
			offsets = be.AppendUint32(be.AppendUint32(offsets, uint32(at-1)), uint32(pos))
			times = be.AppendUint32(be.AppendUint64(times, uint64(millis(at-1))), uint32(at-1))
		}
	}
	next := encoded([]Record{{Time: time.UnixMilli(millis(at)), Value: []byte("the next segment")}}, at)
	for name, content := range map[string][]byte{
		fileName(0, logSuffix): log, fileName(0, indexSuffix): offsets, fileName(0, timeSuffix): times,
		fileName(at, logSuffix): next, fileName(at, indexSuffix): nil, fileName(at, timeSuffix): nil,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	}
	for _, readOnly := range []bool{true, false} {
		var warned strings.Builder
		l, err := Open(dir, &Options{ReadOnly: readOnly, IndexBytes: 200, Logger: slog.New(slog.NewTextHandler(&warned, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		require.NoError(t, err)
		for offset := int64(0); offset < at; offset++ {
			r, err := l.Read(offset)
			require.NoError(t, err)
			require.Equal(t, offset, r.Offset)
			got, err := l.OffsetForTime(time.UnixMilli(millis(offset)))
			require.NoError(t, err)
			require.Equal(t, offset, got)
		}
		require.Zero(t, l.Stats().IndexRebuilds, warned.String())
		require.Empty(t, warned.String())
		require.NoError(t, l.Close())
	}
	got, err := os.ReadFile(filepath.Join(dir, fileName(0, indexSuffix)))
	require.NoError(t, err)
	require.Equal(t, offsets, got)
}
