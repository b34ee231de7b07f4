package interop

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

const ms0 = 1_700_000_000_000

// specials are batches that seglog never writes itself but must keep, read and index: of every codec, with times by the
// broker, of an idempotent producer whose sequence wraps, of committed and aborted transactions, with gaps inside, around and
// at the end of batches, without records, as the cleaner leaves them, with records without time, with growing leader epochs,
// and a jump of more than 31 bits.
func specials() []batch {
	records := func(n int, t int64) []record {
		out := make([]record, n)
		for i := range out {
			out[i] = record{T: t + int64(i%3), K: []byte("key"), V: bytes.Repeat([]byte("value "), 50), H: []header{{Key: "n"}}}
		}
		return out
	}
	gapped := records(3, ms0+50)
	gapped[0].O, gapped[1].O, gapped[2].O = ptr(int64(1002)), ptr(int64(1003)), ptr(int64(1030))
	bs := []batch{
		{Offset: ptr(int64(5)), Records: records(3, ms0)},
		{Offset: ptr(int64(8)), Codec: "gzip", Records: records(40, ms0+1)},
		{Offset: ptr(int64(48)), Codec: "snappy", Records: records(40, ms0+2)},
		{Offset: ptr(int64(88)), Codec: "lz4", Records: records(40, ms0+3), Epoch: 1},
		{Offset: ptr(int64(128)), Codec: "zstd", Records: records(40, ms0+4), Epoch: 1},
		{Offset: ptr(int64(168)), Epoch: 1, LogAppendTime: ptr(int64(ms0 + 7)), Records: records(2, ms0)},
		{Offset: ptr(int64(170)), Epoch: 1, Codec: "lz4", LogAppendTime: ptr(int64(ms0 + 7)), Records: records(9, ms0)},
		{Offset: ptr(int64(200)), Epoch: 1, PID: ptr(int64(7)), PEpoch: ptr(int16(0)), Seq: ptr(int32(math.MaxInt32 - 1)), Records: records(4, ms0+9)},
		{Offset: ptr(int64(204)), Epoch: 1, PID: ptr(int64(4711)), PEpoch: ptr(int16(3)), Seq: ptr(int32(0)), Txn: true, Codec: "zstd", Records: records(4, ms0+9)},
		{Offset: ptr(int64(208)), Epoch: 1, PID: ptr(int64(4711)), PEpoch: ptr(int16(3)), Control: "COMMIT", T: ptr(int64(ms0 + 9))},
		{Offset: ptr(int64(209)), Epoch: 1, PID: ptr(int64(4711)), PEpoch: ptr(int16(3)), Seq: ptr(int32(4)), Txn: true, Records: records(4, ms0+10)},
		{Offset: ptr(int64(213)), Epoch: 1, PID: ptr(int64(4711)), PEpoch: ptr(int16(3)), Control: "ABORT", T: ptr(int64(ms0 + 12))},
		{Offset: ptr(int64(1000)), Epoch: 1, Last: ptr(int64(1039)), Records: gapped},
		{Offset: ptr(int64(1040)), Epoch: 1, Empty: true, Last: ptr(int64(1099)), PID: ptr(int64(7)), PEpoch: ptr(int16(0)), Seq: ptr(int32(5)), T: ptr(int64(ms0 + 12))},
		{Offset: ptr(int64(1100)), Epoch: 1, Records: []record{{T: -1, V: []byte("no time")}, {T: -1}}},
	}
	for i := range int64(200) {
		bs = append(bs, batch{Offset: ptr(2000 + i*10), Epoch: 2, Records: records(1+int(i%4), ms0+100+i*5)})
	}
	return append(bs, batch{Offset: ptr(int64(1 << 33)), Epoch: 5, Codec: "snappy", Records: records(8, ms0+9999)},
		batch{Offset: ptr(int64(1<<33 + 8)), Epoch: 5, Records: records(1, ms0+9999)})
}

var specialOptions = seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 20_000, IndexBytes: 700}

var specialKafka = kafkaOpts{SegmentBytes: 20_000, IndexBytes: 700, Start: 5}

// TransferFrom must store and index batches of other writers as a Kafka follower does.
func TestSpecialBatchesSameBytes(t *testing.T) {
	needKafka(t)
	kafka, ours := topicDir(t), topicDir(t)
	kafkaAppend(t, kafka, specialKafka, specials())
	l, err := seglog.Open(ours, &specialOptions)
	require.NoError(t, err)
	var last []byte
	for _, b := range specials() {
		// Send each batch after its predecessor, which the log already has, so that a gap is not taken for a stream that does not
		// join.
		encoded := kafkaEncode(t, b)
		stream := append(last, encoded...)
		n, err := l.TransferFrom(bytes.NewReader(stream), int64(len(stream)))
		require.NoError(t, err)
		require.Equal(t, int64(len(stream)), n)
		last = encoded
	}
	require.NoError(t, l.Close())
	requireSameFiles(t, kafka, ours)
	requireSound(t, ours, specialKafka, true)
	requireRecords(t, ours, kafkaDump(t, kafka))
}

// A single stream of all batches must give the same files as one stream per batch.
func TestSpecialBatchesInOneStream(t *testing.T) {
	needKafka(t)
	kafka, ours, again := topicDir(t), topicDir(t), topicDir(t)
	kafkaAppend(t, kafka, specialKafka, specials())
	var stream bytes.Buffer
	for _, b := range specials() {
		stream.Write(kafkaEncode(t, b))
	}
	want := bytes.Clone(stream.Bytes())
	l, err := seglog.Open(ours, &specialOptions)
	require.NoError(t, err)
	_, err = l.TransferFrom(&stream, -1)
	require.NoError(t, err)
	requireSections(t, l, want)
	require.NoError(t, l.Close())
	requireSameFiles(t, kafka, ours)

	// The same holds for AppendBatch, which assigns offsets and, like Kafka, accepts no batch with gaps from a producer.
	l, err = seglog.Open(again, &specialOptions)
	require.NoError(t, err)
	for _, b := range specials() {
		_, err := l.AppendBatch(kafkaEncode(t, b))
		if b.Empty || b.Last != nil {
			require.ErrorIs(t, err, seglog.ErrInvalid)
		} else {
			require.NoError(t, err)
		}
	}
	require.NoError(t, l.Close())
	requireSound(t, again, specialKafka, false)
	requireRecords(t, again, kafkaDump(t, again))
}

// Both programs must give a producer's batch, in every codec, the same offsets and leader epoch, and leave the rest unchanged.
func TestProducerBatchesSameBytes(t *testing.T) {
	needKafka(t)
	for i := range int64(4) {
		s := randomShape(*seed + 5000 + i)
		s.options.SegmentBytes = 64 << 10
		s.batches = s.batches[:min(len(s.batches), 300)]
		kafka, ours := topicDir(t), topicDir(t)
		for j := range s.batches {
			b := &s.batches[j]
			b.Codec = []string{"none", "gzip", "snappy", "lz4", "zstd"}[j%5]
			b.PID, b.PEpoch, b.Seq = ptr(int64(1000+j)), ptr(int16(1)), ptr(int32(0))
		}
		kafkaAppend(t, kafka, s.kafka(), s.batches)
		l, err := seglog.Open(ours, &s.options)
		require.NoError(t, err)
		for _, b := range s.batches {
			b.Epoch = -1 // a producer does not know it
			_, err := l.AppendBatch(kafkaEncode(t, b))
			require.NoError(t, err)
		}
		require.NoError(t, l.Close())
		requireSameFiles(t, kafka, ours)
		requireSound(t, ours, s.kafka(), false)
		requireRecords(t, ours, kafkaDump(t, kafka))
	}
}

// requireSections reads the whole log by sections and compares the bytes.
func requireSections(t *testing.T, l *seglog.Log, want []byte) {
	t.Helper()
	var got bytes.Buffer
	for offset := l.Offsets().Start; offset < l.Offsets().End; {
		s, err := l.Section(offset, 9000)
		require.NoError(t, err)
		_, err = s.WriteTo(&got)
		require.NoError(t, err)
		require.Greater(t, s.Next(), offset)
		offset = s.Next()
		require.NoError(t, s.Close())
	}
	require.Equal(t, want, got.Bytes())
}

// Seglog must read, verify and continue a directory that Kafka wrote with all of these batches, and Kafka must then continue
// it in turn.
func TestSeglogContinuesKafkaSpecials(t *testing.T) {
	needKafka(t)
	for _, lost := range []string{"", ".index", ".timeindex", "both"} {
		t.Run("lost="+lost, func(t *testing.T) {
			dir := topicDir(t)
			kafkaAppend(t, dir, specialKafka, specials())
			before := segmentFiles(t, dir)
			dump := kafkaDump(t, dir)
			for name := range before {
				if ext := filepath.Ext(name); ext == lost || lost == "both" && ext != ".log" {
					require.NoError(t, os.Remove(filepath.Join(dir, name)))
				}
			}
			requireRecords(t, dir, dump)
			readEverySegment(t, dir)
			requireFiles(t, before, segmentFiles(t, dir))

			end := dump[len(dump)-1].Last + 1
			seglogAppend(t, dir, specialOptions, []batch{{Records: []record{{T: ms0, V: []byte("by seglog")}}}})
			requireGood(t, dir, specialKafka, true)
			kafkaAppend(t, dir, specialKafka, []batch{{Epoch: 6, Records: []record{{T: ms0 + 1, V: []byte("by Kafka")}}}})
			ask(t, request{Cmd: "recover", Dir: dir, Opts: specialKafka}, nil)
			requireGood(t, dir, specialKafka, true)
			dump = kafkaDump(t, dir)
			requireRecords(t, dir, dump)
			require.Equal(t, end+1, dump[len(dump)-1].Last)
			// A follower of a log whose leader epochs go back would lose track of them.
			for i := 1; i < len(dump); i++ {
				require.GreaterOrEqual(t, dump[i].Epoch, dump[i-1].Epoch, "leader epoch of the batch at %d", dump[i].Base)
			}
		})
	}
}

// readEverySegment looks up an offset and a time in each segment, which rebuilds missing indexes.
func readEverySegment(t *testing.T, dir string) {
	t.Helper()
	l, err := seglog.Open(dir, &specialOptions)
	require.NoError(t, err)
	for r, err := range l.Records(l.Offsets().Start) {
		require.NoError(t, err)
		_, err = l.Read(r.Offset)
		require.NoError(t, err)
		_, err = l.OffsetForTime(r.Time)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
}

// Seglog must read a log that Kafka's log cleaner has left, with gaps, smaller batches, batches without records, and merged
// segments.
func TestCompactedByKafka(t *testing.T) {
	needKafka(t)
	dir := topicDir(t)
	opts := kafkaOpts{SegmentBytes: 8000, IndexBytes: 500}
	options := seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 8000, IndexBytes: 500}
	now := time.Now().UnixMilli() // Kafka forgets producers that were idle for weeks
	var batches []batch
	for i := range int64(400) {
		b := batch{PID: ptr(i % 3), PEpoch: ptr(int16(0)), Seq: ptr(int32(i / 3 * 4)), Codec: []string{"", "lz4", "zstd"}[i%3]}
		if i == 5 {
			// Every key of the producer's only batch is written again later, so the cleaner leaves a batch without records.
			b.PID, b.Seq = ptr(int64(99)), ptr(int32(0))
		}
		for j := range int64(4) {
			r := record{T: now + i*10 + j, K: []byte{byte('a' + (i*i+j)%23)}, V: bytes.Repeat([]byte("v"), 60)}
			if i%7 == 0 && j == 2 {
				r.V = nil
			}
			b.Records = append(b.Records, r)
		}
		b.Offset = ptr(i * 4)
		batches = append(batches, b)
	}
	kafkaAppend(t, dir, opts, batches)
	before := kafkaDump(t, dir)
	ask(t, request{Cmd: "compact", Dir: dir, Opts: opts}, nil)
	// The cleaner renames the segments that it replaces to .deleted, and a broker would remove them later.
	after := kafkaDump(t, dir)
	require.Less(t, len(after), len(before)/2)
	husks := 0
	for _, b := range after {
		if b.Count == 0 {
			husks++
		}
	}
	require.NotZero(t, husks, "the cleaner left no empty batch to read over")

	requireRecords(t, dir, after)
	seglogAppend(t, dir, options, []batch{{Records: []record{{T: now + 9999, V: []byte("by seglog")}}}})
	requireGood(t, dir, opts, true)
	requireRecords(t, dir, kafkaDump(t, dir))

	l, err := seglog.Open(dir, &options)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	// A read from any old offset must yield the next record that is left.
	kept := map[int64]bool{}
	for _, b := range after {
		for _, r := range b.Records {
			kept[*r.O] = true
		}
	}
	for offset := range int64(1600) {
		for r, err := range l.Records(offset) {
			require.NoError(t, err)
			want := offset
			for want < 1600 && !kept[want] {
				want++
			}
			require.Equal(t, want, r.Offset, "the first record from %d", offset)
			break
		}
	}
	at, err := l.OffsetForTime(time.UnixMilli(now + 9999))
	require.NoError(t, err)
	require.Equal(t, int64(1600), at)
}

// Both programs must notice damage, and report it as such.
func TestDamageIsSeenByBoth(t *testing.T) {
	needKafka(t)
	s := randomShape(7)
	s.options.SegmentBytes = 16 << 20
	s.batches = nil
	for i := range int64(200) {
		s.batches = append(s.batches, batch{Records: []record{{T: ms0 + i, V: bytes.Repeat([]byte("x"), 300)}}})
	}
	dir := topicDir(t)
	seglogAppend(t, dir, s.options, s.batches)
	path := filepath.Join(dir, "00000000000000000000.log")
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, at := range []int{17, 21, 60, len(whole) / 2, len(whole) - 1} {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x10
		require.NoError(t, os.WriteFile(path, bad, 0o644))
		var answer struct{ Problems []string }
		ask(t, request{Cmd: "verify", Dir: dir, Opts: s.kafka()}, &answer)
		require.NotEmpty(t, answer.Problems, "Kafka sees no damage at %d", at)
		report, err := seglog.Verify(dir, nil)
		require.NoError(t, err)
		require.False(t, report.OK(), "seglog sees no damage at %d", at)
	}
}
