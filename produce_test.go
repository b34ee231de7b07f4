package seglog_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// withCRC corrects the CRC of a changed batch.
func withCRC(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// timed returns a batch of n records a second apart, with claimed as the greatest timestamp in its header.
func timed(n int, from, claimed int64, compress bool) []byte {
	b := rawBatch{count: n, lastDelta: n - 1, baseTime: from, maxTime: claimed}
	for i := range n {
		b.body = append(b.body, rawRecord(int64(i), int64(i)*1000, fmt.Appendf(nil, "%d", i))...)
	}
	if compress {
		b.attributes, b.body = 1, gzipped(b.body)
	}
	return b.bytes()
}

// AppendBatch must not trust the greatest timestamp in a producer's header.
func TestAppendBatchCorrectsMaxTimestamp(t *testing.T) {
	const from, n = int64(1_700_000_000_000), 10
	for _, compress := range []bool{false, true} {
		for _, claimed := range []int64{-1, from, 0, from + (n-1)*1000, math.MaxInt64, math.MinInt64} {
			dir := t.TempDir()
			l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
			for i := range int64(20) {
				in := timed(n, from+i*n*1000, claimed, compress)
				before := bytes.Clone(in)
				_, err := l.AppendBatch(in)
				require.NoError(t, err)
				require.Equal(t, before, in, "AppendBatch must not change the caller's bytes")
			}
			check := func() {
				for i := range int64(20 * n) {
					offset, err := l.OffsetForTime(time.UnixMilli(from + i*1000))
					require.NoError(t, err)
					require.Equal(t, i, offset, "claimed %d", claimed)
				}
				for b, err := range l.Batches(0) {
					require.NoError(t, err)
					require.Equal(t, from+(b.Next-1)*1000, b.MaxTime.UnixMilli())
				}
			}
			check()
			require.NoError(t, l.Close())
			report, err := seglog.Verify(dir, nil)
			require.NoError(t, err)
			require.Empty(t, report.Problems)
			l = open(t, dir, nil)
			check()
			require.NoError(t, l.Close())
		}
	}
}

// In a batch with LogAppendTime, the time of all records is the greatest timestamp, so AppendBatch must not correct it.
func TestAppendBatchKeepsLogAppendTime(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	b := rawBatch{attributes: 8, count: 1, baseTime: 5, maxTime: 77, body: rawRecord(0, 0, []byte("v"))}
	_, err := l.AppendBatch(b.bytes())
	require.NoError(t, err)
	r, err := l.Read(0)
	require.NoError(t, err)
	require.Equal(t, at(77), r.Time)
}

// AppendBatch must refuse the batches that a Kafka leader refuses from a producer, and use up no offset for them.
func TestAppendBatchRefusesWhatKafkaDoes(t *testing.T) {
	producer := func(attributes int16, id int64, epoch int16, sequence int32) []byte {
		b := rawBatch{attributes: attributes, count: 1, body: rawRecord(0, 0, []byte("v"))}.bytes()
		binary.BigEndian.PutUint64(b[43:], uint64(id))
		binary.BigEndian.PutUint16(b[51:], uint16(epoch))
		binary.BigEndian.PutUint32(b[53:], uint32(sequence))
		return withCRC(b)
	}
	control := func(records int, key []byte) []byte {
		b := rawBatch{attributes: 0x30, count: records, lastDelta: records - 1}
		for i := range records {
			body := binary.AppendVarint([]byte{0, 0}, int64(i))
			body = append(binary.AppendVarint(body, int64(len(key))), key...)
			body = append(body, 1, 0)
			b.body = append(append(b.body, byte(2*len(body))), body...)
		}
		out := b.bytes()
		binary.BigEndian.PutUint64(out[43:], 7)
		binary.BigEndian.PutUint16(out[51:], 1)
		return withCRC(out)
	}
	garbage := rawBatch{attributes: 1, count: 1, body: []byte("no gzip at all")}
	many := rawBatch{attributes: 1, count: math.MaxInt32, lastDelta: math.MaxInt32 - 1, body: gzipped(nil)}
	manySnappy := rawBatch{attributes: 2, count: math.MaxInt32, lastDelta: math.MaxInt32 - 1, body: make([]byte, 14)}
	manyZstd := rawBatch{attributes: 4, count: 100_000_000, lastDelta: 99_999_999, body: make([]byte, 14)}
	l := open(t, t.TempDir(), nil)
	for name, b := range map[string][]byte{
		"not gzip":                         garbage.bytes(),
		"2^31-1 records in a few bytes":    many.bytes(),
		"2^31-1 records, no decompressor":  manySnappy.bytes(),
		"10^8 records, no decompressor":    manyZstd.bytes(),
		"no record":                        rawBatch{count: 0, lastDelta: 0}.bytes(),
		"producer without sequence":        producer(0, 7, 0, -1),
		"producer without epoch":           producer(0, 7, -1, 0),
		"transaction without producer":     producer(0x10, -1, -1, -1),
		"control batch of 3":               control(3, []byte{0, 0, 0, 1}),
		"control record without type":      control(1, []byte{0, 0}),
		"control record of random content": producer(0x30, 7, 0, -1),
	} {
		_, err := l.AppendBatch(b)
		require.ErrorIs(t, err, seglog.ErrInvalid, name)
		require.Zero(t, l.Offsets().End, name)
	}
	for name, b := range map[string][]byte{
		"idempotent": producer(0, 7, 0, 0), "transactional": producer(0x10, 7, 0, 5), "marker": control(1, []byte{0, 0, 0, 1}),
	} {
		_, err := l.AppendBatch(b)
		require.NoError(t, err, name)
	}
}

// A batch that inflates to more than the limit is not damaged. AppendBatch must refuse it, but TransferFrom take it; reads
// must fail with ErrInflated, and succeed with a higher limit.
func TestInflationLimit(t *testing.T) {
	big := rawBatch{attributes: 1, count: 1, maxTime: 5, baseTime: 5, body: gzipped(rawRecord(0, 0, make([]byte, 300_000)))}.bytes()
	o := &seglog.Options{Flush: seglog.FlushNone, MaxInflatedBytes: 200_000}
	dir := t.TempDir()
	l := open(t, dir, o)
	_, err := l.AppendBatch(big)
	require.ErrorIs(t, err, seglog.ErrInflated)
	require.Zero(t, l.Offsets().End)
	_, err = l.TransferFrom(bytes.NewReader(append(bytes.Clone(big), plainBatch(1, "a", "b")...)), -1)
	require.NoError(t, err)
	_, err = l.Read(0)
	require.ErrorIs(t, err, seglog.ErrInflated)
	require.NotErrorIs(t, err, seglog.ErrCorrupt)
	require.Contains(t, err.Error(), filepath.Join(dir, "00000000000000000000.log")+" at position 0, offset 0")
	for _, err := range l.Records(0) {
		require.ErrorIs(t, err, seglog.ErrInflated)
	}
	r, err := l.Read(2)
	require.NoError(t, err)
	require.Equal(t, "b", string(r.Value))
	require.NoError(t, l.Close())
	l = open(t, dir, nil)
	r, err = l.Read(0)
	require.NoError(t, err)
	require.Len(t, r.Value, 300_000)
}

// Verify and Repair must not take a batch for damaged because it inflates to more than their limit.
func TestVerifyAndRepairLeaveLargeBatchesAlone(t *testing.T) {
	big := rawBatch{attributes: 1, count: 1, body: gzipped(rawRecord(0, 0, make([]byte, 300_000)))}.bytes()
	bad := rawBatch{base: 3, attributes: 1, count: 1, body: gzipped(append(rawRecord(0, 0, make([]byte, 300_000)), 0))}.bytes()
	dir := t.TempDir()
	l := open(t, dir, nil)
	_, err := l.TransferFrom(bytes.NewReader(bytes.Join([][]byte{big, plainBatch(1, "a", "b"), bad}, nil)), -1)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	for limit, undecoded := range map[int64]int64{200_000: 2, 0: 0, math.MaxInt64: 0} {
		report, err := seglog.Repair(dir, &seglog.RepairOptions{MaxInflatedBytes: limit})
		require.NoError(t, err)
		require.Equal(t, undecoded == 2, report.Sound())
		verified, err := seglog.Verify(dir, &seglog.VerifyOptions{MaxInflatedBytes: limit})
		require.NoError(t, err)
		require.Equal(t, undecoded, verified.Segments[0].Undecoded)
		require.Equal(t, undecoded == 2, verified.OK())
	}
	_, err = seglog.Repair(dir, &seglog.RepairOptions{MaxInflatedBytes: -1})
	require.ErrorIs(t, err, seglog.ErrInvalid)
	_, err = seglog.Verify(dir, &seglog.VerifyOptions{MaxInflatedBytes: -1})
	require.ErrorIs(t, err, seglog.ErrInvalid)
}

func spent(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// headersOf returns an encoded record with n headers of two bytes each.
func headersOf(n int) []byte {
	body := append([]byte{0, 0, 0, 1, 1}, binary.AppendVarint(nil, int64(n))...)
	body = append(body, bytes.Repeat([]byte{0, 1}, n)...)
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

// Headers take 20 times as much memory as they take in a batch. MaxInflatedBytes must bound that memory too, or a small
// compressed batch could use a great deal.
func TestHeadersAreBounded(t *testing.T) {
	const n = 2 << 20
	plain := rawBatch{count: 1, body: headersOf(n)}.bytes()
	used := spent(func() {
		for r, err := range seglog.Decode(bytes.NewReader(plain)) {
			require.NoError(t, err)
			require.Len(t, r.Headers, n)
		}
	})
	require.Less(t, used, uint64(25*len(plain)))

	claims := rawBatch{count: 1, body: append(append([]byte{}, binary.AppendVarint(nil, int64(5+4+n))...), append(append([]byte{0, 0, 0, 1, 1}, binary.AppendVarint(nil, n/4)...), make([]byte, n)...)...)}.bytes()
	used = spent(func() {
		_, err := decoded(claims)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
	})
	require.Less(t, used, uint64(5*len(claims)), "missing headers must take no memory")

	packed := rawBatch{attributes: 1, count: 1, body: gzipped(headersOf(16 * n))}.bytes()
	require.Less(t, len(packed), 100_000)
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, MaxInflatedBytes: 80 << 20})
	used = spent(func() {
		_, err := l.AppendBatch(packed)
		require.ErrorIs(t, err, seglog.ErrInflated)
		_, err = l.TransferFrom(bytes.NewReader(packed), -1)
		require.NoError(t, err)
		_, err = l.Read(0)
		require.ErrorIs(t, err, seglog.ErrInflated)
	})
	require.Less(t, used, uint64(2*3*80<<20))
}

// Header names that a walk has met must not stay in memory.
func TestHeaderNamesAreNotKept(t *testing.T) {
	var batches []byte
	for i := range 40 {
		name := bytes.Repeat([]byte{byte('a' + i%26), byte('a' + i/26)}, 256<<10)
		body := append([]byte{0, 0, 0, 1, 1, 2}, binary.AppendVarint(nil, int64(len(name)))...)
		body = append(append(body, name...), 1)
		b := rawBatch{base: int64(i), count: 1, body: append(binary.AppendVarint(nil, int64(len(body))), body...)}
		batches = append(batches, b.bytes()...)
	}
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	_, err := l.TransferFrom(bytes.NewReader(batches), -1)
	require.NoError(t, err)
	walk := func() {
		for r, err := range l.Records(0) {
			require.NoError(t, err)
			require.Len(t, r.Headers[0].Key, 512<<10)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	walk()
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(8<<20))
	runtime.KeepAlive(batches)
}

// OffsetForTime must notice a flipped bit in a timestamp that would make it skip the batch.
func TestOffsetForTimeChecksWhatItSkips(t *testing.T) {
	for _, where := range []int64{35, 27} { // greatest timestamp; base timestamp, which records are relative to
		dir := t.TempDir()
		l := open(t, dir, nil)
		var ends []int64
		for i := range int64(5) {
			_, err := l.Append(seglog.Record{Time: time.UnixMilli(1<<40 + i), Value: []byte("v")})
			require.NoError(t, err)
			ends = append(ends, l.Stats().Bytes)
		}
		require.NoError(t, l.Close())
		name := filepath.Join(dir, "00000000000000000000.log")
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		b[ends[2]+where+2] ^= 1 // 2^40 is 2^8 in this byte: the fourth batch is of 1970
		require.NoError(t, os.WriteFile(name, b, 0o644))
		l = open(t, dir, nil)
		_, err = l.OffsetForTime(time.UnixMilli(1<<40 + 3))
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		got, err := l.OffsetForTime(time.UnixMilli(1<<40 + 1))
		require.NoError(t, err)
		require.EqualValues(t, 1, got)
		require.NoError(t, l.Close())
	}
}
