package seglog_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// vector holds the records that Kafka's own classes read from a batch of testdata/vectors.
type vector struct {
	last    int64
	records []seglog.Record
	codec   seglog.Codec // if not 0, a codec for which the package has no decompressor
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// generated returns the three records that Kafka's code wrote into each of its vectors.
func generated(base int64, times ...int64) []seglog.Record {
	return []seglog.Record{
		{Offset: base, Time: at(times[0]), Key: []byte("k0"), Value: []byte("hello hello hello hello")},
		{Offset: base + 1, Time: at(times[1]), Value: []byte{}, Headers: []seglog.Header{{Key: "h", Value: []byte("v")}, {Key: "n"}}},
		{Offset: base + 2, Time: at(times[2]), Key: []byte{}},
	}
}

var (
	createTimes = []int64{1700000000000, 1699999999990, 1700000000123}
	sarama      = []seglog.Record{{Time: at(1479847795005), Key: []byte{1, 2, 3, 4}, Value: []byte{5, 6, 7},
		Headers: []seglog.Header{{Key: "\x08\x09\x0a", Value: []byte{0x0b, 0x0c}}}}}
)

var vectors = map[string]vector{
	"kpy-1": {0, []seglog.Record{{Time: at(1503229838908), Value: []byte("123")}}, 0},
	"kpy-2": {2, []seglog.Record{
		{Offset: 1, Time: at(1503229959532), Value: []byte{}},
		{Offset: 2, Time: at(1503229959700), Value: []byte{}},
	}, 0},
	"kpy-4-header": {0, []seglog.Record{{Time: at(1535546684353), Value: []byte("hdr"),
		Headers: []seglog.Header{{Key: "hkey", Value: []byte("hval")}}}}, 0},
	"sarama-empty": {0, nil, 0},
	"sarama-none":  {0, sarama, 0},
	"sarama-gzip":  {0, sarama, 0},
	"sarama-lz4":   {0, nil, seglog.CodecLZ4},
	"kafkajs-gzip-logappend": {0, []seglog.Record{{Time: at(1597425188809), Key: []byte("key-0"),
		Value: []byte("value-0-2020-08-14T17:13:08.682Z")}}, 0},
	"k-none":                  {44, generated(42, createTimes...), 0},
	"k-gzip":                  {44, generated(42, createTimes...), 0},
	"k-lz4":                   {44, nil, seglog.CodecLZ4},
	"k-zstd":                  {44, nil, seglog.CodecZstd},
	"k-logappendtime":         {2, generated(0, 1700000005000, 1700000005000, 1700000005000), 0},
	"k-transactional-seqwrap": {102, generated(100, createTimes...), 0},
	"k-control-commit":        {103, nil, 0},
	"k-empty-retained":        {209, nil, 0},
}

func readVectors(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors/recordbatch-v2.hex")
	require.NoError(t, err)
	all := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		b, err := hex.DecodeString(digits)
		require.NoError(t, err, name)
		all[name] = b
	}
	return all
}

func decoded(b []byte) (records []seglog.Record, err error) {
	for r, e := range seglog.Decode(bytes.NewReader(b)) {
		if e != nil {
			return records, e
		}
		records = append(records, r.Clone())
	}
	return records, nil
}

// Every vector must be read as Kafka reads it, from a stream and from a log, which must store it unchanged.
func TestVectors(t *testing.T) {
	all := readVectors(t)
	for name, b := range all {
		t.Run(name, func(t *testing.T) {
			want, ok := vectors[name]
			require.True(t, ok, "vectors has no entry for this vector")
			records, err := decoded(b)
			if want.codec != seglog.CodecNone {
				require.ErrorIs(t, err, seglog.ErrCodec)
				require.Contains(t, err.Error(), want.codec.String())
				require.Regexp(t, `offset (0|42)\b`, err.Error())
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, want.records, records)
			l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
			n, err := l.TransferFrom(bytes.NewReader(b), -1)
			require.NoError(t, err)
			require.EqualValues(t, len(b), n)
			require.Equal(t, want.last+1, l.Offsets().End)
			s, err := l.Section(l.Offsets().Start, 1)
			require.NoError(t, err)
			var out bytes.Buffer
			_, err = s.WriteTo(&out)
			require.NoError(t, err)
			require.NoError(t, s.Close())
			require.True(t, bytes.Equal(b, out.Bytes()), "the log must store the batch unchanged")
			for _, r := range want.records {
				got, err := l.Read(r.Offset)
				require.NoError(t, err)
				require.Equal(t, r, got)
			}
			if want.codec != seglog.CodecNone {
				_, err := l.Read(want.last)
				require.ErrorIs(t, err, seglog.ErrCodec)
			} else if len(want.records) == 0 {
				_, err := l.Read(want.last)
				require.ErrorIs(t, err, seglog.ErrOutOfRange, "no record has this offset")
				for range l.Records(l.Offsets().Start) {
					require.Fail(t, "the batch has no records")
				}
			}
		})
	}
	require.Len(t, all, len(vectors))
}

// Append of the same records must make the same bytes, except for the leader epoch, which depends on the writer.
func TestVectorsAreWrittenAsKafkaDoes(t *testing.T) {
	all := readVectors(t)
	for _, name := range []string{"kpy-1", "kpy-2", "kpy-4-header", "k-none"} {
		l := open(t, t.TempDir(), nil)
		want := bytes.Clone(all[name])
		require.NoError(t, l.Reset(int64(binary.BigEndian.Uint64(want))))
		base, err := l.Append(vectors[name].records...)
		require.NoError(t, err)
		s, err := l.Section(base, 1)
		require.NoError(t, err)
		var got bytes.Buffer
		_, err = s.WriteTo(&got)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		clear(want[12:16])
		clear(got.Bytes()[12:16])
		require.Equal(t, hex.EncodeToString(want), hex.EncodeToString(got.Bytes()), name)
	}
}

// AppendBatch must set the offset of a producer's batch, correct the greatest timestamp, and change nothing else.
func TestVectorsByAppendBatch(t *testing.T) {
	all := readVectors(t)
	// The batches from sarama's tests have 0 as the greatest timestamp, and without a decompressor the right one is unknown.
	noMaxTime := map[string]int64{"sarama-none": 1479847795005, "sarama-gzip": 1479847795005}
	refused := map[string]bool{"sarama-empty": true, "k-empty-retained": true} // a producer's batch must have one record per offset
	l := open(t, t.TempDir(), nil)
	require.NoError(t, l.Reset(1000))
	for name, b := range all {
		before := bytes.Clone(b)
		end := l.Offsets().End
		base, err := l.AppendBatch(b)
		require.Equal(t, before, b, "AppendBatch must not change the caller's bytes")
		if refused[name] {
			require.ErrorIs(t, err, seglog.ErrInvalid, name)
			require.Equal(t, end, l.Offsets().End)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, end, base)
		s, err := l.Section(base, 1)
		require.NoError(t, err)
		var got bytes.Buffer
		_, err = s.WriteTo(&got)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.Equal(t, uint64(base), binary.BigEndian.Uint64(got.Bytes()))
		if want, ok := noMaxTime[name]; ok {
			b = bytes.Clone(b)
			binary.BigEndian.PutUint64(b[35:], uint64(want))
			binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
		}
		require.Equal(t, b[16:], got.Bytes()[16:], name)
	}
}

// Damaged batches must be refused: the negative cases of testdata/vectors, and batches with a flipped bit.
func TestDamagedVectors(t *testing.T) {
	good := readVectors(t)["k-none"]
	want, err := decoded(good)
	require.NoError(t, err)
	for _, magic := range []byte{0, 1, 3, 255} {
		b := bytes.Clone(good)
		b[16] = magic
		_, err := decoded(b)
		require.ErrorIs(t, err, seglog.ErrCorrupt)
		require.Contains(t, err.Error(), "magic")
	}
	_, err = decoded(append(bytes.Clone(good), make([]byte, 100)...))
	require.ErrorIs(t, err, seglog.ErrCorrupt, "zeros are not a batch")
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			got, err := decoded(b)
			switch {
			case i >= 16, i >= 8 && i < 12:
				var c *seglog.CorruptError
				require.True(t, errors.As(err, &c), "byte %d, bit %d: %v", i, bit, err)
				require.Zero(t, c.Pos)
				require.Empty(t, got)
			case i < 8: // the base offset: only a negative one can be noticed
				if err == nil {
					require.Equal(t, want[0].Value, got[0].Value)
					require.NotEqual(t, want[0].Offset, got[0].Offset)
				} else {
					require.ErrorIs(t, err, seglog.ErrCorrupt)
				}
			default: // the leader epoch, which nothing covers
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		}
	}
}

// kafkaIndexes returns both index files of each segment as Kafka writes them, by the rule in docs/format.md: a batch gets an
// entry if more than interval bytes were written since the last entry.
func kafkaIndexes(all []stored, interval int) map[string][2][]byte {
	be := binary.BigEndian
	indexes := map[string][2][]byte{}
	for i := 0; i < len(all); {
		segment, base := all[i].segment, all[i].base
		var offsets, times []byte
		pos, since := 0, 0
		greatest, greatestAt, entered := int64(-1), int64(0), int64(-1)
		for ; i < len(all) && all[i].segment == segment; i++ {
			b := all[i]
			if ms := int64(be.Uint64(b.bytes[35:])); ms > greatest {
				greatest, greatestAt = ms, b.last-base
			}
			if since > interval {
				offsets = be.AppendUint32(be.AppendUint32(offsets, uint32(b.last-base)), uint32(pos))
				if greatest > entered {
					times = be.AppendUint32(be.AppendUint64(times, uint64(greatest)), uint32(greatestAt))
					entered = greatest
				}
				since = 0
			}
			since += len(b.bytes)
			pos += len(b.bytes)
		}
		if greatest > entered {
			times = be.AppendUint32(be.AppendUint64(times, uint64(greatest)), uint32(greatestAt))
		}
		indexes[segment] = [2][]byte{offsets, times}
	}
	return indexes
}

// The index files must be those that Kafka would write, byte for byte, also across restarts.
func TestIndexesAreKafkas(t *testing.T) {
	for _, interval := range []int{1, 300, 4096} {
		for _, restarts := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(uint64(interval), 6))
			dir := t.TempDir()
			o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 32 << 10, IndexBytes: interval}
			l := open(t, dir, o)
			for i := range 600 {
				ms := 1700000000000 + int64(i-rng.IntN(40))
				n := 1 + rng.IntN(3)
				b := rawBatch{base: l.Offsets().End, count: n, lastDelta: n - 1, baseTime: ms, maxTime: ms}
				if i%7 == 0 {
					b.baseTime, b.maxTime = -1, -1 // such a batch never enters the time index
				}
				for k := range n {
					b.body = append(b.body, rawRecord(int64(k), 0, make([]byte, rng.IntN(300)))...)
				}
				whole := b.bytes()
				if i < 60 { // batches of which the interval is an exact multiple, to check that an entry takes more than the interval
					whole = sizedBatch(t, b.base, 100)
				}
				_, err := l.TransferFrom(bytes.NewReader(whole), -1)
				require.NoError(t, err)
				if restarts && i%50 == 49 {
					require.NoError(t, l.Close())
					l = open(t, dir, o)
				}
			}
			require.NoError(t, l.Close())
			want := kafkaIndexes(storedBatches(t, dir), interval)
			require.Greater(t, len(want), 3)
			for segment, files := range want {
				for k, suffix := range []string{".index", ".timeindex"} {
					got, err := os.ReadFile(strings.TrimSuffix(segment, ".log") + suffix)
					require.NoError(t, err)
					require.True(t, bytes.Equal(files[k], got), "%s%s, interval %d, restarts %v: %d and %d bytes", segment, suffix, interval, restarts, len(files[k]), len(got))
				}
			}
		}
	}
}
