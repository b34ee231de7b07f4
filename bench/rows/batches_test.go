package rows

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/peers"
	"github.com/seglog/seglog/bench/raw"
)

// tiny returns an environment in which a row runs as quickly as possible, to show only that it works.
func tiny(t *testing.T, only ...string) *Env {
	return &Env{Dir: t.TempDir(), Quick: true, Rounds: 2, Only: only, Log: t.Logf}
}

// requireMeasured checks that every line has a figure and every check a result.
func requireMeasured(t *testing.T, r *Result) {
	t.Helper()
	require.NotEmpty(t, r.Lines)
	for _, l := range r.Lines {
		require.Empty(t, l.Note, l.Name)
		require.Len(t, l.Rounds, 2, l.Name)
		require.Positive(t, l.Value, l.Name)
	}
	for _, c := range r.Checks {
		require.NotZero(t, c.Result, c.What)
	}
	var b strings.Builder
	r.Print(&b)
	for _, l := range r.Lines {
		require.Contains(t, b.String(), "| "+l.Name+" |")
	}
}

func TestReadOutOfBatchesMeasuresEverySubject(t *testing.T) {
	for _, c := range []struct {
		perBatch, subjects int
		mixed              bool
	}{{1, 5, false}, {100, 6, false}, {100, 6, true}} {
		e, r := tiny(t, "hashicorp/raft-wal", boltName), &Result{}
		s := batchShape{bytes: 300 << 10, value: 1 << 10, mixed: c.mixed, perBatch: c.perBatch, duration: time.Millisecond}
		require.NoError(t, e.readShape(r, s))
		requireMeasured(t, r)
		require.Len(t, r.Lines, c.subjects)
		require.Len(t, r.Checks, 3)
		for _, l := range r.Lines {
			require.NotNil(t, l.Latency, l.Name)
		}
	}
}

func TestAbsentPeersHaveOneLine(t *testing.T) {
	absent := ""
	for _, p := range peers.All() {
		if p.Absent != "" {
			absent = p.Name
		}
	}
	require.NotEmpty(t, absent)
	e, r := tiny(t, absent), &Result{}
	s := batchShape{bytes: 1, value: 128, perBatch: 2, duration: time.Millisecond}
	require.NoError(t, e.readShape(r, s))
	require.NoError(t, e.readShape(r, s))
	lines := 0
	for _, l := range r.Lines {
		if l.Name == absent {
			lines++
			require.NotEmpty(t, l.Note)
		}
	}
	require.Equal(t, 1, lines)
}

func TestReadOutOfBatchesNoticesAWrongRecord(t *testing.T) {
	e := tiny(t)
	s := batchShape{value: 128, perBatch: 1, duration: time.Millisecond}
	lines, err := e.randomReads([]readingPeer{{Line{Name: "wrong"}, func(i int64) ([]byte, error) { return payload(i^1, 128), nil }}}, 10, s)
	require.NoError(t, err)
	require.Contains(t, lines[0].Note, errWrongRecord.Error())
}

func TestNeighboursArePlainAndCompressed(t *testing.T) {
	e, r := tiny(t), &Result{}
	s := batchShape{bytes: 100 << 10, value: 128, perBatch: 100, duration: time.Millisecond}
	require.NoError(t, e.neighbourShape(r, s, "plain", s.records(), func(log *peers.SeglogLog) error {
		return fillRecords(log, s.records(), s.perBatch, s.value)
	}))
	compressors, err := raw.Compressors()
	require.NoError(t, err)
	require.Len(t, compressors, 2)
	for _, c := range compressors {
		require.NoError(t, e.neighbourShape(r, s, c.Name, 200, func(log *peers.SeglogLog) error {
			share, err := appendCompressed(log, c, 200, s)
			require.Less(t, share, 0.9, "%s must compress the records", c.Name)
			require.Greater(t, share, 0.2, "the records must compress like text, not like zeros")
			return err
		}))
	}
	requireMeasured(t, r)
	require.Len(t, r.Lines, 9)
	require.Len(t, r.Checks, 6)
}

func TestStepThroughGoesRound(t *testing.T) {
	log, err := peers.Seglog.Open(t.TempDir(), peers.Setup{})
	require.NoError(t, err)
	defer log.Close()
	require.NoError(t, fillRecords(log, 10, 3, 128))
	steps, err := stepThrough(log.(*peers.SeglogLog), 7, time.Hour, 25, 128, true)
	require.NoError(t, err)
	require.Equal(t, int64(25), steps)
	_, err = stepThrough(log.(*peers.SeglogLog), 0, time.Hour, 25, 127, false)
	require.ErrorIs(t, err, errWrongRecord)
}

func TestCutsMeasureEverySubject(t *testing.T) {
	e, r := tiny(t), &Result{XName: "bytes"}
	require.NoError(t, e.cutSize(r, cutWork{bytes: 100 << 10, laps: 3, duration: time.Minute, flushes: 4}))
	var lines []Line
	for _, l := range r.Lines {
		if len(l.Rounds) > 0 {
			require.Equal(t, uint64(6), l.Latency.Count, l.Name)
			lines = append(lines, l)
		}
	}
	r.Lines = lines
	requireMeasured(t, r)
	require.Len(t, r.Lines, 3+3+3+6, "seglog in three ways, three raw limits, three peers, and the appends after cuts of six subjects")
	require.Len(t, r.Checks, 1)
}

func TestIndexDistanceIsMeasured(t *testing.T) {
	e, r := tiny(t), &Result{XName: "IndexBytes"}
	require.NoError(t, e.indexShape(r, batchShape{bytes: 1 << 20, value: 128, perBatch: 1, duration: time.Millisecond}))
	require.Len(t, r.Lines, 2*len(indexDistances))
	last := 1e9
	for i := range indexDistances {
		l := &r.Lines[i]
		var mib float64
		n, err := fmt.Sscanf(l.Note, "%g MiB of index", &mib)
		require.NoError(t, err, l.Note)
		require.Equal(t, 1, n)
		require.Less(t, mib, last, "a larger distance must make a smaller index")
		last = mib
		l.Note = ""
	}
	requireMeasured(t, r)
}

func TestMediansAreOfEachRound(t *testing.T) {
	var s measure.Series
	for _, d := range []time.Duration{time.Millisecond, 3 * time.Millisecond} {
		h := new(measure.Histogram)
		h.Record(d)
		h.Record(d)
		h.Record(time.Second)
		s.Samples = append(s.Samples, measure.Sample{Latency: h})
	}
	got := medians(s)
	require.InEpsilon(t, 0.001, got[0], 0.01)
	require.InEpsilon(t, 0.003, got[1], 0.01)
}
