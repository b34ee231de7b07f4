package seglog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// encodedAlike encodes records by the description of the format, sharing no code with the log.
func encodedAlike(base int64, records []seglog.Record) []byte {
	field := func(dst, b []byte) []byte {
		if b == nil {
			return binary.AppendVarint(dst, -1)
		}
		return append(binary.AppendVarint(dst, int64(len(b))), b...)
	}
	b := rawBatch{base: base, count: len(records), lastDelta: len(records) - 1, baseTime: records[0].Time.UnixMilli()}
	for i, r := range records {
		ms := r.Time.UnixMilli()
		b.maxTime = max(b.maxTime, ms)
		body := []byte{0}
		body = binary.AppendVarint(body, ms-b.baseTime)
		body = binary.AppendVarint(body, int64(i))
		body = field(field(body, r.Key), r.Value)
		body = binary.AppendVarint(body, int64(len(r.Headers)))
		for _, h := range r.Headers {
			body = field(field(body, []byte(h.Key)), h.Value)
		}
		b.body = append(b.body, binary.AppendVarint(nil, int64(len(body)))...)
		b.body = append(b.body, body...)
	}
	return b.bytes()
}

func randomBytes(rng *rand.Rand) []byte {
	switch rng.IntN(6) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		return make([]byte, 60+rng.IntN(10)) // around the length at which its varint grows by a byte
	case 3:
		return make([]byte, 8185+rng.IntN(14))
	}
	b := make([]byte, rng.IntN(40))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func randomRecords(rng *rand.Rand) (records []seglog.Record) {
	for range 1 + rng.IntN(70) {
		r := seglog.Record{Time: at(rng.Int64N(1 << rng.IntN(45))), Key: randomBytes(rng), Value: randomBytes(rng)}
		for range rng.IntN(4) * rng.IntN(2) {
			r.Headers = append(r.Headers, seglog.Header{Key: fmt.Sprint("h", rng.IntN(200)), Value: randomBytes(rng)})
		}
		records = append(records, r)
	}
	return records
}

// Random records must be stored byte for byte in Kafka's format, and be read back unchanged.
func TestBatchesFollowTheFormat(t *testing.T) {
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 8 << 20})
	for range 150 {
		records := randomRecords(rng)
		base, err := l.Append(records...)
		require.NoError(t, err)
		want := encodedAlike(base, records)
		s, err := l.Section(base, 1)
		require.NoError(t, err)
		var got bytes.Buffer
		_, err = s.WriteTo(&got)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.True(t, bytes.Equal(want, got.Bytes()), "batch at %d", base)
		for i := range records {
			records[i].Offset = base + int64(i)
		}
		back, err := decoded(want)
		require.NoError(t, err)
		require.Equal(t, records, back)
		i := rng.IntN(len(records))
		r, err := l.Read(base + int64(i))
		require.NoError(t, err)
		require.Equal(t, records[i], r)
	}
}

// A record that Read returned belongs to the caller: no later call changes it, and changing it does not change the log.
func TestReadIsTheCallersOwn(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	in := seglog.Record{Time: at(5), Key: []byte("key"), Value: []byte("value"), Headers: []seglog.Header{{Key: "h", Value: []byte("w")}}}
	_, err := l.Append(in)
	require.NoError(t, err)
	r, err := l.Read(0)
	require.NoError(t, err)
	var kept seglog.Record
	for r := range l.Records(0) {
		kept = r.Clone()
	}
	require.NoError(t, l.TruncateTo(0))
	_, err = l.Append(seglog.Record{Key: []byte("KEY"), Value: []byte("VALUE"), Headers: []seglog.Header{{Key: "H", Value: []byte("W")}}})
	require.NoError(t, err)
	require.Equal(t, in, r)
	require.Equal(t, in, kept)
	r.Value[0] = 'X' // must not change the log
	_ = append(r.Key, "spill"...)
	again, err := l.Read(0)
	require.NoError(t, err)
	require.Equal(t, "VALUE", string(again.Value))
	require.Equal(t, "Xalue", string(r.Value))
}

// malformed returns batches with a valid CRC and malformed records.
func malformed() map[string][]byte {
	good := rawRecord(0, 0, []byte("v"))
	batch := func(count, lastDelta int, body ...[]byte) []byte {
		return rawBatch{count: count, lastDelta: lastDelta, body: bytes.Join(body, nil)}.bytes()
	}
	changed := func(at int, b byte) []byte {
		r := bytes.Clone(good)
		r[at] = b
		return r
	}
	return map[string][]byte{
		"no record":              batch(1, 0),
		"fewer records":          batch(2, 1, good),
		"more records":           batch(1, 0, good, rawRecord(1, 0, nil)),
		"bytes after the record": batch(1, 0, good, []byte{0}),
		"cut record":             batch(1, 0, good[:len(good)-1]),
		"length too great":       batch(1, 0, changed(0, 100)),
		"length too small":       batch(1, 0, changed(0, 2)),
		"negative length":        batch(1, 0, changed(0, 1)),
		"value too long":         batch(1, 0, changed(5, 100)),
		"value length -2":        batch(1, 0, changed(5, 3)),
		"key length -2":          batch(1, 0, changed(4, 3)),
		"missing headers":        batch(1, 0, changed(len(good)-1, 2)),
		"negative headers":       batch(1, 0, changed(len(good)-1, 1)),
		"offset delta too big":   batch(1, 0, changed(3, 2)),
		"negative offset delta":  batch(1, 0, changed(3, 1)),
		"an offset twice":        batch(2, 1, good, good),
		"endless varint":         batch(1, 0, bytes.Repeat([]byte{0xff}, 20)),
		"not gzip":               rawBatch{attributes: 1, count: 1, body: []byte("not gzip")}.bytes(),
		"gzip cut short":         rawBatch{attributes: 1, count: 1, body: gzipped(good)[:15]}.bytes(),
		"gzip of fewer":          rawBatch{attributes: 1, count: 2, lastDelta: 1, body: gzipped(good)}.bytes(),
		"codec 5":                rawBatch{attributes: 5, count: 1, body: good}.bytes(),
	}
}

// Malformed batches must be refused by Decode and AppendBatch, even though their CRC is valid.
func TestMalformedRecords(t *testing.T) {
	for name, b := range malformed() {
		l := open(t, t.TempDir(), nil)
		records, err := decoded(b)
		require.Error(t, err, name)
		require.True(t, errors.Is(err, seglog.ErrCorrupt) || errors.Is(err, seglog.ErrCodec), "%s: %v", name, err)
		require.LessOrEqual(t, len(records), 2, name)
		_, err = l.AppendBatch(b)
		require.ErrorIs(t, err, seglog.ErrInvalid, name)
		require.Equal(t, seglog.Offsets{}, l.Offsets())
	}
	short := plainBatch(0, "a")
	l := open(t, t.TempDir(), nil)
	for name, b := range map[string][]byte{
		"a byte less": short[:len(short)-1], "a byte more": append(bytes.Clone(short), 0), "two batches": append(bytes.Clone(short), short...),
	} {
		_, err := l.AppendBatch(b)
		require.ErrorIs(t, err, seglog.ErrInvalid, name)
	}
}

// A small compressed batch must not make the reader use memory without bound.
func TestInflationIsBounded(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	if testing.Short() || race.On {
		t.Skip("inflates 256 MiB")
	}
	bomb := bytes.Repeat(gzipped(make([]byte, 16<<20)), 17)
	_, err := decoded(rawBatch{attributes: 1, count: 1, body: bomb}.bytes())
	require.ErrorIs(t, err, seglog.ErrInflated)
	require.NotErrorIs(t, err, seglog.ErrCorrupt)
	require.Contains(t, err.Error(), "more than")
}

// TruncateTo inside a batch must keep the records below the offset unchanged, whatever the attributes of the batch.
func TestTruncateInsideBatch(t *testing.T) {
	body := func(n int) (b []byte) {
		for i := range n {
			b = append(b, rawRecord(int64(i), int64(i*3), fmt.Appendf(nil, "record %d", i))...)
		}
		return b
	}
	kinds := map[string]rawBatch{
		"plain":          {attributes: 0, body: body(6)},
		"gzip":           {attributes: 1, body: gzipped(body(6))},
		"log append":     {attributes: 8, body: body(6)},
		"gzip, appended": {attributes: 9, body: gzipped(body(6))},
	}
	for name, b := range kinds {
		b.base, b.count, b.lastDelta, b.baseTime, b.maxTime, b.epoch = 10, 6, 5, 1000, 1015, 3
		want, err := decoded(b.bytes())
		require.NoError(t, err)
		require.Len(t, want, 6)
		for cut := int64(11); cut < 16; cut++ {
			dir := t.TempDir()
			l := open(t, dir, &seglog.Options{Flush: seglog.FlushNone})
			_, err := l.TransferFrom(bytes.NewReader(b.bytes()), -1)
			require.NoError(t, err)
			require.NoError(t, l.TruncateTo(cut))
			check := func() {
				t.Helper()
				var got []seglog.Record
				for r, err := range l.Records(10) {
					require.NoError(t, err)
					got = append(got, r.Clone())
				}
				require.Equal(t, want[:cut-10], got, "%s cut at %d", name, cut)
				require.Equal(t, cut, l.Offsets().End)
			}
			check()
			require.NoError(t, l.Close())
			l = open(t, dir, nil)
			check()
			require.NoError(t, l.Close())
		}
	}
}

// TruncateTo inside a compressed batch must compress the remainder again: uncompressed it could exceed the size that followers
// accept.
func TestTruncateInsideBatchCompresses(t *testing.T) {
	t.Parallel()
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	const n, size = 20, 1 << 20
	var body []byte
	for i := range n {
		body = append(body, rawRecord(int64(i), 0, bytes.Repeat([]byte{byte('a' + i)}, size))...)
	}
	b := rawBatch{attributes: 1, count: n, lastDelta: n - 1, body: gzipped(body)}.bytes()
	l := open(t, t.TempDir(), nil)
	_, err := l.AppendBatch(b)
	require.NoError(t, err)
	require.NoError(t, l.TruncateTo(n-1))
	require.Less(t, l.Stats().Bytes, int64(len(b)))
	follower := open(t, t.TempDir(), nil)
	s, err := l.Section(0, math.MaxInt64)
	require.NoError(t, err)
	var stream bytes.Buffer
	_, err = s.WriteTo(&stream)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = follower.TransferFrom(&stream, -1)
	require.NoError(t, err)
	for i := range int64(n - 1) {
		r, err := follower.Read(i)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{byte('a' + i)}, size), r.Value)
	}
	require.EqualValues(t, n-1, follower.Offsets().End)
}
