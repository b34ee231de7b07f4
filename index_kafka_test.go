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

// Kafka before 4.0 made a single offset entry for an append of several batches, such as a follower's: the position of the
// first batch with the offset of the last. A time entry may name the record with the greatest time in place of the last record
// of the batch. Open must use such indexes unchanged.
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
				records = append(records, Record{Time: time.UnixMilli(millis(at + k)), Value: fmt.Appendf(nil, "record %d of an old log", at+k)})
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
