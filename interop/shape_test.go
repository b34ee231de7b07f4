package interop

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	_ "github.com/seglog/seglog/codecs"
)

var (
	shapes = flag.Int("shapes", 18, "number of random shapes of a log to compare")
	seed   = flag.Int64("seed", 1, "seed of the first shape; each later shape adds 1")
)

// shape describes a log to write: the settings, and one batch for each append.
type shape struct {
	name    string
	options seglog.Options
	batches []batch
}

func (s *shape) kafka() kafkaOpts {
	return kafkaOpts{
		SegmentBytes: s.options.SegmentBytes,
		IndexBytes:   s.options.IndexBytes,
		SegmentMs:    s.options.SegmentAge.Milliseconds(),
	}
}

// randomShape chooses every dimension at random: sizes of batches, records, keys and values, null and empty ones, headers,
// times in and out of order, segments of a few batches or of all, and dense and sparse indexes.
func randomShape(seed int64) *shape {
	rnd := rand.New(rand.NewSource(seed))
	s := &shape{options: seglog.Options{
		SegmentBytes: []int64{4096, 10_000, 64 << 10, 300 << 10, 16 << 20}[rnd.Intn(5)],
		IndexBytes:   []int{1, 50, 500, 4096, 4096, 4096, 20_000}[rnd.Intn(7)],
	}}
	if rnd.Intn(4) == 0 {
		s.options.SegmentAge = time.Duration(1+rnd.Intn(100)) * time.Second
	}
	times := []string{"ordered", "jitter", "backwards", "constant", "jumps", "early"}[rnd.Intn(6)]
	perBatch := []int{1, 1, 5, 100}[rnd.Intn(4)]
	maxValue := []int{0, 10, 120, 130, 3000, 200_000}[rnd.Intn(6)]
	maxValue = min(maxValue, int(s.options.SegmentBytes)/4) // so that at least one record fits
	appends := []int{1, 2, 30, 400, 3000}[rnd.Intn(5)]
	// The flush policy determines the way in which bytes are written, but must not change the files.
	s.options.Flush = seglog.FlushPolicy(rnd.Intn(3))
	if appends > 400 && s.options.Flush == seglog.FlushSync {
		s.options.Flush = seglog.FlushNone
	}
	s.name = fmt.Sprintf("seed=%d/flush=%s/segment=%d/index=%d/age=%s/times=%s/records=%d/value=%d/appends=%d",
		seed, s.options.Flush, s.options.SegmentBytes, s.options.IndexBytes, s.options.SegmentAge, times, perBatch, maxValue, appends)
	ms := int64(1_700_000_000_000)
	left := min(6<<20, 100*int(s.options.SegmentBytes))
	for i := 0; i < appends && left > 0; i++ {
		var b batch
		room := int(s.options.SegmentBytes) - 61
		for range 1 + rnd.Intn(perBatch) {
			ms = nextTime(rnd, times, ms)
			r := randomRecord(rnd, ms, maxValue)
			size := 40 + len(r.K) + len(r.V)
			for _, h := range r.H {
				size += 10 + len(h.Key) + len(h.Value)
			}
			if room -= size; room < 0 {
				break
			}
			left -= size
			b.Records = append(b.Records, r)
		}
		if len(b.Records) > 0 {
			s.batches = append(s.batches, b)
		}
	}
	return s
}

func nextTime(rnd *rand.Rand, mode string, ms int64) int64 {
	switch mode {
	case "ordered":
		return ms + int64(rnd.Intn(1000))
	case "jitter":
		return ms + int64(rnd.Intn(1000)) - 450
	case "backwards":
		return ms - int64(rnd.Intn(1000))
	case "jumps":
		return 1_600_000_000_000 + rnd.Int63n(200_000_000_000)
	case "early":
		return int64(rnd.Intn(50))
	}
	return ms
}

func randomRecord(rnd *rand.Rand, ms int64, maxValue int) record {
	r := record{T: ms, V: noise(rnd, rnd.Intn(maxValue+1))}
	switch rnd.Intn(4) {
	case 0:
		r.K = []byte{}
	case 1, 2:
		r.K = noise(rnd, rnd.Intn(70))
	}
	switch rnd.Intn(15) {
	case 0:
		r.V = nil
	case 1:
		r.V = []byte{}
	}
	if rnd.Intn(3) == 0 {
		for range rnd.Intn(4) {
			h := header{Key: []string{"", "k", "trace-id", "ключ"}[rnd.Intn(4)]}
			switch rnd.Intn(3) {
			case 0:
				h.Value = []byte{}
			case 1:
				h.Value = noise(rnd, rnd.Intn(80))
			}
			r.H = append(r.H, h)
		}
	}
	return r
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	rnd.Read(b)
	return b
}

// toSeglog returns the arguments of Append for a described batch.
func toSeglog(b batch) []seglog.Record {
	out := make([]seglog.Record, len(b.Records))
	for i, r := range b.Records {
		out[i] = seglog.Record{Time: time.UnixMilli(r.T), Key: r.K, Value: r.V}
		for _, h := range r.H {
			out[i].Headers = append(out[i].Headers, seglog.Header{Key: h.Key, Value: h.Value})
		}
	}
	return out
}

// seglogAppend opens a directory, appends the batches, one call each, and closes it.
func seglogAppend(t testing.TB, dir string, options seglog.Options, batches []batch) {
	t.Helper()
	l, err := seglog.Open(dir, &options)
	require.NoError(t, err)
	for _, b := range batches {
		_, err := l.Append(toSeglog(b)...)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
}

// kafkaAppend does the same with Kafka's UnifiedLog.
func kafkaAppend(t testing.TB, dir string, opts kafkaOpts, batches []batch) {
	t.Helper()
	ask(t, request{Cmd: "write", Dir: dir, Opts: opts, Batches: batches}, nil)
}

// requireSameFiles compares all segment files, and reports the first byte that differs.
func requireSameFiles(t testing.TB, kafka, ours string) {
	t.Helper()
	requireFiles(t, segmentFiles(t, kafka), segmentFiles(t, ours))
}

func requireFiles(t testing.TB, want, got map[string][]byte) {
	t.Helper()
	require.NotEmpty(t, want)
	for name, g := range got {
		require.True(t, want[name] != nil || leftOut(got, name), "seglog wrote %s of %d bytes, Kafka no such file", name, len(g))
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok && leftOut(want, name) {
			continue
		}
		require.True(t, ok, "Kafka wrote %s of %d bytes, seglog no such file", name, len(w))
		if bytes.Equal(w, g) {
			continue
		}
		at := 0
		for at < len(w) && at < len(g) && w[at] == g[at] {
			at++
		}
		require.Failf(t, "files differ", "%s: byte %d of %d (Kafka) and %d (seglog): % x | % x",
			name, at, len(w), len(g), around(w, at), around(g, at))
	}
}

// leftOut reports whether name is an index file that seglog leaves out when it closes a log: of the last segment, if that is tiny. Either
// side of a comparison may be what seglog closed.
func leftOut(files map[string][]byte, name string) bool {
	base, ext, _ := strings.Cut(name, ".")
	for other := range files {
		if strings.HasSuffix(other, ".log") && other > base+".log" {
			return false
		}
	}
	return (ext == "index" || ext == "timeindex") && len(files[base+".log"]) <= 4096
}

func around(b []byte, at int) []byte { return b[max(0, min(at-8, len(b))):min(at+16, len(b))] }

// requireRecords compares what seglog reads from a directory with what Kafka's decoder read.
func requireRecords(t testing.TB, dir string, want []dumped) {
	t.Helper()
	var records []record
	for _, b := range want {
		require.True(t, b.Valid)
		if !b.Control {
			records = append(records, b.Records...)
		}
	}
	l, err := seglog.Open(dir, &seglog.Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	i := 0
	for r, err := range l.Records(l.Offsets().Start) {
		require.NoError(t, err)
		require.Less(t, i, len(records), "seglog reads a record at %d that Kafka does not", r.Offset)
		requireRecord(t, records[i], r)
		i++
	}
	require.Equal(t, len(records), i, "seglog must read as many records as Kafka")
	if n := len(want); n > 0 {
		require.Equal(t, want[n-1].Last+1, l.Offsets().End)
	}
}

func requireRecord(t testing.TB, want record, got seglog.Record) {
	t.Helper()
	require.Equal(t, *want.O, got.Offset)
	if want.T == -1 {
		require.True(t, got.Time.IsZero(), "record %d has no time", got.Offset)
	} else {
		require.Equal(t, want.T, got.Time.UnixMilli(), "record %d", got.Offset)
	}
	require.Equal(t, want.K == nil, got.Key == nil, "record %d: null key", got.Offset)
	require.Equal(t, want.V == nil, got.Value == nil, "record %d: null value", got.Offset)
	require.True(t, bytes.Equal(want.K, got.Key) && bytes.Equal(want.V, got.Value), "record %d", got.Offset)
	require.Len(t, got.Headers, len(want.H), "record %d", got.Offset)
	for i, h := range want.H {
		require.Equal(t, h.Key, got.Headers[i].Key)
		require.Equal(t, h.Value == nil, got.Headers[i].Value == nil, "record %d: null header value", got.Offset)
		require.True(t, bytes.Equal(h.Value, got.Headers[i].Value), "record %d", got.Offset)
	}
}

// requireSound checks a directory with seglog's Verify, with Kafka, and with Kafka's tool. The indexes must equal rebuilt ones.
func requireSound(t testing.TB, dir string, opts kafkaOpts, gaps bool) {
	t.Helper()
	report, err := seglog.Verify(dir, &seglog.VerifyOptions{IndexBytes: opts.IndexBytes})
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Empty(t, kafkaVerify(t, dir, opts))
	kafkaDumpLog(t, dir, gaps)
}

// requireGood is requireSound for a directory to which Kafka has appended, whose indexes are right but sparser.
func requireGood(t testing.TB, dir string, opts kafkaOpts, gaps bool) {
	t.Helper()
	report, err := seglog.Verify(dir, nil)
	require.NoError(t, err)
	require.True(t, report.OK(), "%v", report.Problems)
	kafkaVerify(t, dir, opts)
	kafkaDumpLog(t, dir, gaps)
}

// offsetsAndTimes returns a sample of offsets and times to look up, including the ends and times just beyond those that occur.
func offsetsAndTimes(rnd *rand.Rand, batches []dumped) (offsets, times []int64) {
	end := batches[len(batches)-1].Last + 1
	for range 40 {
		b := batches[rnd.Intn(len(batches))]
		offsets = append(offsets, b.Base+rnd.Int63n(b.Last-b.Base+1))
		if len(b.Records) > 0 {
			t := b.Records[rnd.Intn(len(b.Records))].T
			times = append(times, t, t+1, max(t-1, 0))
		}
	}
	return append(offsets, batches[0].Base, end-1), append(times, 0, math.MaxInt64/2)
}
