package codecs_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math/rand"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	_ "github.com/seglog/seglog/codecs"
)

const headerLen = 61

// vectors returns batches that Kafka, sarama and kafkajs wrote. The file has one per line, as "name hex".
func vectors(t testing.TB) map[string][]byte {
	text, err := os.ReadFile("testdata/recordbatch-v2.hex")
	require.NoError(t, err)
	vs := map[string][]byte{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		name, digits, ok := strings.Cut(line, " ")
		require.True(t, ok, line)
		vs[name], err = hex.DecodeString(digits)
		require.NoError(t, err)
	}
	return vs
}

// withBody returns a batch of the given codec around compressed records, with the right length and CRC.
func withBody(template []byte, codec seglog.Codec, count int, body []byte) []byte {
	b := append(bytes.Clone(template[:headerLen]), body...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint16(b[21:], uint16(codec))
	binary.BigEndian.PutUint32(b[23:], uint32(count-1))
	binary.BigEndian.PutUint32(b[57:], uint32(count))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func decode(b []byte) ([]seglog.Record, error) {
	var out []seglog.Record
	for r, err := range seglog.Decode(bytes.NewReader(b)) {
		if err != nil {
			return out, err
		}
		out = append(out, r.Clone())
	}
	return out, nil
}

func ms(n int64) time.Time { return time.UnixMilli(n) }

func requireRecords(t *testing.T, want []seglog.Record, batch []byte) {
	t.Helper()
	got, err := decode(batch)
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for i, w := range want {
		require.Equal(t, w.Time.UnixMilli(), got[i].Time.UnixMilli(), "record %d", i)
		got[i].Time = w.Time
		if len(w.Headers) == 0 {
			require.Empty(t, got[i].Headers)
			got[i].Headers = w.Headers
		}
		require.Equal(t, w, got[i], "record %d", i)
	}
}

// kafkaRecords are the records in every k- vector: with a time out of order, null and empty keys and values, and a null header.
var kafkaRecords = []seglog.Record{
	{Offset: 42, Time: ms(1700000000000), Key: []byte("k0"), Value: []byte("hello hello hello hello")},
	{Offset: 43, Time: ms(1699999999990), Value: []byte{}, Headers: []seglog.Header{{Key: "h", Value: []byte("v")}, {Key: "n"}}},
	{Offset: 44, Time: ms(1700000000123), Key: []byte{}},
}

func TestDecodeBatchesOfOtherWriters(t *testing.T) {
	vs := vectors(t)
	sarama := []seglog.Record{{
		Time: ms(1479847795005), Key: []byte{1, 2, 3, 4}, Value: []byte{5, 6, 7},
		Headers: []seglog.Header{{Key: "\x08\x09\x0a", Value: []byte{0x0b, 0x0c}}},
	}}
	for _, test := range []struct {
		name string
		want []seglog.Record
	}{
		{"k-none", kafkaRecords},
		{"k-gzip", kafkaRecords},
		{"k-snappy", kafkaRecords},
		{"k-lz4", kafkaRecords},
		{"k-zstd", kafkaRecords},
		{"sarama-gzip", sarama},
		{"sarama-lz4", sarama},
	} {
		t.Run(test.name, func(t *testing.T) { requireRecords(t, test.want, vs[test.name]) })
	}
}

// compressors returns functions that compress the records of a batch, one for each form that writers use.
var compressors = []struct {
	name     string
	codec    seglog.Codec
	compress func(t testing.TB, plain []byte) []byte
}{
	{"snappy raw", seglog.CodecSnappy, func(_ testing.TB, p []byte) []byte { return snappy.Encode(nil, p) }},
	{"snappy xerial", seglog.CodecSnappy, func(_ testing.TB, p []byte) []byte { return xerial(p, 32<<10) }},
	{"snappy xerial, two streams", seglog.CodecSnappy, func(_ testing.TB, p []byte) []byte {
		return append(xerial(p[:len(p)/2], 1000), xerial(p[len(p)/2:], 1000)...)
	}},
	{"lz4 64 KiB blocks", seglog.CodecLZ4, func(t testing.TB, p []byte) []byte {
		return lz4Frame(t, p, lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))
	}},
	{"lz4 4 MiB blocks, checksums, size", seglog.CodecLZ4, func(t testing.TB, p []byte) []byte {
		return lz4Frame(t, p, lz4.BlockSizeOption(lz4.Block4Mb), lz4.BlockChecksumOption(true), lz4.ChecksumOption(true), lz4.SizeOption(uint64(len(p))))
	}},
	{"zstd stream", seglog.CodecZstd, func(t testing.TB, p []byte) []byte { return zstdStream(t, p) }},
	{"zstd stream, 128 MiB window", seglog.CodecZstd, func(t testing.TB, p []byte) []byte {
		return zstdStream(t, p, zstd.WithWindowSize(128<<20))
	}},
	{"zstd in one piece, size", seglog.CodecZstd, func(t testing.TB, p []byte) []byte {
		e, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		return e.EncodeAll(p, nil)
	}},
}

func xerial(p []byte, block int) []byte {
	out := append([]byte("\x82SNAPPY\x00"), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(p) > 0 {
		b := snappy.Encode(nil, p[:min(block, len(p))])
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(b))), b...)
		p = p[min(block, len(p)):]
	}
	return out
}

func lz4Frame(t testing.TB, p []byte, opts ...lz4.Option) []byte {
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	require.NoError(t, w.Apply(opts...))
	_, err := w.Write(p)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstdStream(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, opts...)
	require.NoError(t, err)
	// Write in two parts, so that the frame begins before its size is known.
	_, err = w.Write(p[:len(p)/2])
	require.NoError(t, err)
	require.NoError(t, w.Flush())
	_, err = w.Write(p[len(p)/2:])
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

// plainRecords encodes n records with values of the given size, half of which is noise.
func plainRecords(n, size int) (plain []byte, want []seglog.Record) {
	rnd := rand.New(rand.NewSource(int64(n)))
	for i := range n {
		value := make([]byte, size)
		rnd.Read(value[:size/2])
		r := []byte{0}
		r = binary.AppendVarint(r, 0)
		r = binary.AppendVarint(r, int64(i))
		r = binary.AppendVarint(r, -1)
		r = binary.AppendVarint(r, int64(size))
		r = append(r, value...)
		r = binary.AppendVarint(r, 0)
		plain = append(binary.AppendVarint(plain, int64(len(r))), r...)
		want = append(want, seglog.Record{Offset: 42 + int64(i), Time: ms(1700000000000), Value: value})
	}
	return plain, want
}

func TestDecodeEveryForm(t *testing.T) {
	template := vectors(t)["k-none"]
	for _, shape := range []struct{ n, size int }{{1, 0}, {1, 10}, {300, 100}, {40, 10_000}, {2, 3_000_000}} {
		plain, want := plainRecords(shape.n, shape.size)
		for _, c := range compressors {
			t.Run(c.name, func(t *testing.T) {
				requireRecords(t, want, withBody(template, c.codec, shape.n, c.compress(t, plain)))
			})
		}
	}
}

func TestDecodeAtOnce(t *testing.T) {
	template := vectors(t)["k-none"]
	plain, want := plainRecords(300, 100)
	for _, c := range compressors {
		batch := withBody(template, c.codec, 300, c.compress(t, plain))
		t.Run(c.name, func(t *testing.T) {
			done := make(chan error)
			for range 8 {
				go func() {
					for range 20 {
						got, err := decode(batch)
						if err == nil && len(got) != len(want) {
							err = os.ErrInvalid
						}
						if err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range 8 {
				require.NoError(t, <-done)
			}
		})
	}
}

// The damage here has a corrected CRC. The decoders must notice it or return other records, without a panic, and without
// allocating memory for lengths that are only claimed.
func TestDecodeDamaged(t *testing.T) {
	template := vectors(t)["k-none"]
	plain, _ := plainRecords(20, 40)
	for _, c := range compressors {
		t.Run(c.name, func(t *testing.T) {
			body := c.compress(t, plain)
			refused := 0
			for cut := range len(body) {
				if _, err := decode(withBody(template, c.codec, 20, body[:cut])); err != nil {
					refused++
				}
			}
			require.Equal(t, len(body), refused, "a truncated body must be refused at every length")
			for at := range body {
				for _, flip := range []byte{0x01, 0x80, 0xff} {
					bad := bytes.Clone(body)
					bad[at] ^= flip
					batch := withBody(template, c.codec, 20, bad)
					require.Less(t, allocated(func() { _, _ = decode(batch) }), uint64(32<<20), "byte %d ^ %#x", at, flip)
				}
			}
		})
	}
}

func TestClaimsAreNotBelieved(t *testing.T) {
	template := vectors(t)["k-none"]
	for _, test := range []struct {
		name  string
		codec seglog.Codec
		body  []byte
	}{
		{"snappy raw: 4 GiB in 8 bytes", seglog.CodecSnappy, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0}},
		{"snappy raw: 200 MiB in 8 bytes", seglog.CodecSnappy, append(binary.AppendUvarint(nil, 200<<20), 0, 0, 0, 0)},
		{"snappy xerial: block of 4 GiB", seglog.CodecSnappy, append(xerial(nil, 1), 0xff, 0xff, 0xff, 0xff, 0, 0)},
		{"snappy xerial: block holds 200 MiB", seglog.CodecSnappy, append(xerial(nil, 1), append([]byte{0, 0, 0, 6}, append(binary.AppendUvarint(nil, 200<<20), 0, 0)...)...)},
		{"snappy xerial: version 2", seglog.CodecSnappy, append([]byte("\x82SNAPPY\x00"), 0, 0, 0, 2, 0, 0, 0, 2)},
		{"snappy xerial: header cut", seglog.CodecSnappy, []byte("\x82SNAPPY\x00\x00")},
		{"zstd: frame of 200 MiB in 14 bytes", seglog.CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x80, 0x0c, 1, 0, 0, 0, 0}},
		{"zstd: a second frame of 127 MiB in 20 bytes", seglog.CodecZstd, append(zstdEmpty(t), 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0xf0, 0x07, 0x02, 0, 0x10, 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x')},
		{"zstd: block header cut", seglog.CodecZstd, append(zstdEmpty(t), 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0xf0, 0x07, 0x02)},
		{"zstd: skippable frame of 4 GiB", seglog.CodecZstd, append(zstdEmpty(t), 0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff)},
		{"zstd: window of 1 TiB", seglog.CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf0, 1, 0, 0}},
		{"zstd: window of 128 MiB, block cut", seglog.CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 0x05, 0, 2}},
		{"lz4: 4 MiB block that is not there", seglog.CodecLZ4, []byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73, 0, 0, 0x40, 0}},
		{"none of a codec's magic", seglog.CodecLZ4, []byte("hello hello")},
		{"nothing at all", seglog.CodecZstd, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			batch := withBody(template, test.codec, 1, test.body)
			var err error
			require.Less(t, allocated(func() { _, err = decode(batch) }), uint64(12<<20))
			require.ErrorIs(t, err, seglog.ErrCorrupt)
		})
	}
}

// A small batch that inflates to a huge size must cause an error, not use up the memory.
func TestBomb(t *testing.T) {
	if testing.Short() {
		t.Skip("inflates 256 MiB")
	}
	batch := withBody(vectors(t)["k-none"], seglog.CodecZstd, 1, zstdStream(t, make([]byte, 300<<20)))
	require.Less(t, len(batch), 1<<20)
	_, err := decode(batch)
	require.ErrorIs(t, err, seglog.ErrInflated)
	require.NotErrorIs(t, err, seglog.ErrCorrupt)
}

func zstdEmpty(t testing.TB) []byte {
	e, err := zstd.NewWriter(nil, zstd.WithZeroFrames(true))
	require.NoError(t, err)
	return e.EncodeAll(nil, nil)
}

// AppendBatch must refuse a batch that inflates to more than Options.MaxInflatedBytes. Once stored, it is not damage, and the
// decoders must stop at the limit of the log.
func TestInflationLimit(t *testing.T) {
	template := vectors(t)["k-none"]
	plain, want := plainRecords(4, 1_000_000)
	const limit = 3 << 20
	for _, c := range compressors {
		t.Run(c.name, func(t *testing.T) {
			batch := withBody(template, c.codec, 4, c.compress(t, plain))
			l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, MaxInflatedBytes: limit})
			require.NoError(t, err)
			defer l.Close()
			spent := allocated(func() { _, err = l.AppendBatch(batch) })
			require.ErrorIs(t, err, seglog.ErrInflated)
			require.Less(t, spent, uint64(12<<20+4*limit))
			require.Zero(t, l.Offsets().End)
			_, err = l.TransferFrom(bytes.NewReader(batch), -1)
			require.NoError(t, err)
			_, err = l.Read(42)
			require.ErrorIs(t, err, seglog.ErrInflated)
			require.NotErrorIs(t, err, seglog.ErrCorrupt)
			require.Contains(t, err.Error(), "00000000000000000042.log at position 0, offset 42")
			requireRecords(t, want, batch)
		})
	}
}

// A body of many frames must cost no more than one of a single frame.
func TestZstdFrames(t *testing.T) {
	template := vectors(t)["k-none"]
	plain, want := plainRecords(300, 1000)
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	var body []byte
	for p := plain; len(p) > 0; p = p[min(len(p), 77):] {
		body = e.EncodeAll(p[:min(len(p), 77)], body)
		body = append(body, 0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c') // skipped
	}
	batch := withBody(template, seglog.CodecZstd, 300, body)
	require.Less(t, allocated(func() { requireRecords(t, want, batch) }), uint64(24*len(plain)+12<<20))
}

// TruncateTo inside a batch must leave a batch of the same codec that is no larger than before.
func TestTruncateInsideBatch(t *testing.T) {
	template := vectors(t)["k-none"]
	plain, want := plainRecords(100, 10_000)
	for _, c := range compressors {
		t.Run(c.name, func(t *testing.T) {
			batch := withBody(template, c.codec, 100, c.compress(t, plain))
			l, err := seglog.Open(t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
			require.NoError(t, err)
			defer l.Close()
			_, err = l.TransferFrom(bytes.NewReader(batch), -1)
			require.NoError(t, err)
			require.NoError(t, l.TruncateTo(141))
			s, err := l.Section(42, 1)
			require.NoError(t, err)
			defer s.Close()
			var cut bytes.Buffer
			_, err = s.WriteTo(&cut)
			require.NoError(t, err)
			require.Equal(t, byte(c.codec), cut.Bytes()[22]&7)
			require.Less(t, cut.Len(), len(batch)+len(batch)/10)
			requireRecords(t, want[:99], cut.Bytes())
		})
	}
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
