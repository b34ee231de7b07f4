package seglog_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// Times at and beyond the ends of the range of a timestamp must not wrap around.
func TestTimesAtTheEnds(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	last := time.UnixMilli(math.MaxInt64)
	for _, at := range []time.Time{time.UnixMilli(0), last} {
		_, err := l.Append(seglog.Record{Time: at})
		require.NoError(t, err)
	}
	far := []time.Time{last.Add(time.Millisecond), time.Date(292278995, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2e9, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, at := range far {
		_, err := l.Append(seglog.Record{Time: at})
		require.ErrorIs(t, err, seglog.ErrInvalid)
		require.Contains(t, err.Error(), "is after 292278994-08-17")
		offset, err := l.OffsetForTime(at)
		require.NoError(t, err)
		require.EqualValues(t, 2, offset, "no record has such a late time")
	}
	for _, at := range []time.Time{{}, time.Date(-292275056, 1, 1, 0, 0, 0, 0, time.UTC), time.UnixMilli(math.MinInt64), time.Date(-2e9, 1, 1, 0, 0, 0, 0, time.UTC)} {
		offset, err := l.OffsetForTime(at)
		require.NoError(t, err)
		require.Zero(t, offset)
		if at.IsZero() {
			continue // Append would use the current time
		}
		_, err = l.Append(seglog.Record{Time: at})
		require.ErrorIs(t, err, seglog.ErrInvalid)
		require.Contains(t, err.Error(), "before 1970")
	}
	for at, want := range map[time.Time]int64{last: 1, last.Add(-time.Nanosecond): 1, last.Add(time.Nanosecond): 2, time.Unix(0, 1): 1, time.Unix(0, 0): 0} {
		offset, err := l.OffsetForTime(at)
		require.NoError(t, err)
		require.Equal(t, want, offset, at)
	}
	require.EqualValues(t, 2, l.Offsets().End)
}

// Times after the year 9999, as a producer makes that confuses microseconds with milliseconds, must not break the JSON encoding.
func TestJSONOfFarTimes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
	for _, at := range []time.Time{time.UnixMilli(1700000000000), time.UnixMilli(1700000000000000),
		time.UnixMilli(math.MaxInt64), time.Date(12000, 2, 29, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999000000, time.UTC)} {
		_, err := l.Append(seglog.Record{Time: at, Key: []byte("k"), Headers: []seglog.Header{{Key: "h"}}})
		require.NoError(t, err)
	}
	round := func(in, out any) string {
		t.Helper()
		b, err := json.Marshal(in)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, out))
		return string(b)
	}
	for r, err := range l.Records(0) {
		require.NoError(t, err)
		var got seglog.Record
		text := round(r, &got)
		require.Equal(t, r.Clone(), got)
		if r.Offset == 1 {
			require.Contains(t, text, `"Time":"+55840-11-08T22:13:20Z"`)
		}
		if r.Time.Year() <= 9999 { // the default encoding must not change
			type plain seglog.Record
			want, err := json.Marshal(plain(r))
			require.NoError(t, err)
			require.JSONEq(t, string(want), text)
		}
	}
	for b, err := range l.Batches(0) {
		require.NoError(t, err)
		var got seglog.BatchInfo
		round(b, &got)
		require.Equal(t, b, got)
	}
	segments, err := l.Segments()
	require.NoError(t, err)
	var back []seglog.SegmentInfo
	round(segments, &back)
	require.Equal(t, segments, back)
	require.NoError(t, l.Close())
	report, err := seglog.Verify(dir, nil)
	require.NoError(t, err)
	var got seglog.Report
	text := round(report, &got)
	require.Equal(t, *report, got)
	require.Contains(t, text, `"maxTime":"+292278994-08-17T07:12:55.807Z"`)
	require.NotContains(t, round(seglog.SegmentReport{}, new(seglog.SegmentReport)), "Time\"", "a zero time is omitted")
	for _, bad := range []string{`{"Time":"+x-01-01T00:00:00Z"}`, `{"Time":"+12000"}`, `{"Time":"+12000-13-01T00:00:00Z"}`} {
		require.ErrorIs(t, json.Unmarshal([]byte(bad), new(seglog.Record)), seglog.ErrInvalid, bad)
	}
}

// With the greatest possible FlushBytes, appends must never flush; an overflow would make each of them flush.
func TestFlushBytesAtTheEnd(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushAsync, FlushBytes: math.MaxInt64, FlushInterval: math.MaxInt64})
	before := l.Stats().Flushes
	appendN(t, l, 0, 100)
	require.Equal(t, before, l.Stats().Flushes)
}

func TestMaxInflatedBytesAtTheEnd(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, MaxInflatedBytes: math.MaxInt64})
	_, err := l.AppendBatch(rawBatch{attributes: 1, count: 1, body: gzipped(rawRecord(0, 0, make([]byte, 1<<20)))}.bytes())
	require.NoError(t, err)
	r, err := l.Read(0)
	require.NoError(t, err)
	require.Len(t, r.Value, 1<<20)
}

// Open must refuse ages shorter than a millisecond, the precision of a record's time: they are probably given in a wrong unit.
func TestAgesBelowAMillisecond(t *testing.T) {
	for _, o := range []*seglog.Options{{SegmentAge: 500}, {SegmentAge: time.Millisecond - 1}, {RetentionAge: 7}} {
		_, err := seglog.Open(t.TempDir(), o)
		require.ErrorIs(t, err, seglog.ErrInvalid)
		require.Contains(t, err.Error(), "1ms")
	}
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentAge: time.Millisecond})
	for _, ms := range []int64{5, 6, 7, 3} {
		_, err := l.Append(seglog.Record{Time: time.UnixMilli(ms)})
		require.NoError(t, err)
	}
	// A batch with the lowest possible time is no reason to roll.
	_, err := l.TransferFrom(bytes.NewReader(rawBatch{base: 4, count: 1, maxTime: math.MinInt64, body: rawRecord(0, 0, nil)}.bytes()), -1)
	require.NoError(t, err)
	segments, err := l.Segments()
	require.NoError(t, err)
	require.Len(t, segments, 2)
	require.EqualValues(t, 2, segments[1].Base)
}

// SegmentAge counts from the time of the first batch, which may be that of 1970. A batch without a time is none to count from.
func TestSegmentAgeOfTheFirstTime(t *testing.T) {
	for first, want := range map[int64]int{0: 2, -1: 1} {
		l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentAge: time.Hour})
		_, err := l.AppendBatch(rawBatch{count: 1, baseTime: first, maxTime: first, body: rawRecord(0, 0, nil)}.bytes())
		require.NoError(t, err)
		_, err = l.Append(seglog.Record{Time: time.UnixMilli(0).Add(time.Hour + time.Millisecond)})
		require.NoError(t, err)
		require.Equal(t, want, l.Stats().Segments, "first time %d", first)
	}
}

// Open must accept as names of segments only those that Kafka accepts.
func TestNamesOfSegments(t *testing.T) {
	dir := t.TempDir()
	names := []string{"-0000000000000000000.log", "+0000000000000000007.log", "0000000000000000_007.log", "00000000000000000 7.log", "99999999999999999999.log"}
	for _, name := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644))
	}
	l := open(t, dir, nil)
	appendN(t, l, 0, 1)
	require.NoError(t, l.Close())
	l = open(t, dir, nil)
	requireN(t, l, 0, 1)
	segments, err := l.Segments()
	require.NoError(t, err)
	require.Len(t, segments, 1)
	for _, name := range names {
		require.FileExists(t, filepath.Join(dir, name))
	}
}

// A read-only log, too, must report as damage a batch with an offset that its segment can't hold, even if the CRC is valid.
func TestReadOnlyRelativeOffset(t *testing.T) {
	for _, base := range []int64{1 << 60, 1 << 31} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "00000000000000000000.log"), append(plainBatch(0, "a"), plainBatch(base, "b")...), 0o644))
		l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
		if err == nil {
			for _, e := range l.Records(0) {
				if err = e; err != nil {
					break
				}
			}
			require.NoError(t, l.Close())
		}
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		require.Contains(t, err.Error(), "in a segment with base 0")
	}
}
