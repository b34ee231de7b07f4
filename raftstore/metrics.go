package raftstore

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"
)

// counters are counted on their way and emitted by RunMetrics, since a call of go-metrics costs as much as a GetLog.
type counters struct {
	gets atomic.Int64
}

func (s *Store) measureStore(start time.Time, entries, bytes int) {
	took := time.Since(start)
	metrics.AddSample([]string{"raft", "seglog", "storeLogs"}, milliseconds(took))
	metrics.AddSample([]string{"raft", "seglog", "logsPerBatch"}, float32(entries))
	metrics.AddSample([]string{"raft", "seglog", "logBatchSize"}, float32(bytes))
	if took > 0 {
		metrics.AddSample([]string{"raft", "seglog", "writeCapacity"}, float32(float64(entries)/took.Seconds()))
	}
}

func (s *Store) measureDelete(start time.Time) {
	metrics.AddSample([]string{"raft", "seglog", "deleteRange"}, milliseconds(time.Since(start)))
}

func measureSet(start time.Time) {
	metrics.AddSample([]string{"raft", "seglog", "set"}, milliseconds(time.Since(start)))
}

func milliseconds(d time.Duration) float32 { return float32(d.Seconds() * 1e3) }

// RunMetrics emits counters and gauges of the store to the global sink of go-metrics every interval, until ctx ends or the
// store is closed. The names begin with raft.seglog; README.md lists them. What takes as long as a flush (StoreLogs,
// DeleteRange, Set) is measured at each call, whether RunMetrics runs or not.
func (s *Store) RunMetrics(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last emitted
	for {
		last = s.emit(last)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.closed.Load() {
			return
		}
	}
}

// emitted are the counters at the last tick.
type emitted struct {
	gets, entries, bytes, flushes, truncations, deleted, errors int64
	flushTime                                                   time.Duration
}

func (s *Store) emit(last emitted) emitted {
	st := s.Stats()
	now := emitted{
		gets: s.counted.gets.Load(), entries: st.AppendedRecords, bytes: st.AppendedBytes, flushes: st.Flushes,
		truncations: st.Truncations, deleted: st.DeletedSegments, errors: st.Errors, flushTime: st.FlushTime,
	}
	count := func(name string, now, last int64) {
		metrics.IncrCounter([]string{"raft", "seglog", name}, float32(now-last))
	}
	count("getLog", now.gets, last.gets)
	count("entriesWritten", now.entries, last.entries)
	count("bytesWritten", now.bytes, last.bytes)
	count("flushes", now.flushes, last.flushes)
	count("truncations", now.truncations, last.truncations)
	count("segmentsDeleted", now.deleted, last.deleted)
	count("errors", now.errors, last.errors)
	if n := now.flushes - last.flushes; n > 0 {
		metrics.SetGauge([]string{"raft", "seglog", "flushTime"}, milliseconds((now.flushTime-last.flushTime)/time.Duration(n)))
	}
	metrics.SetGauge([]string{"raft", "seglog", "bytes"}, float32(st.Bytes))
	metrics.SetGauge([]string{"raft", "seglog", "segments"}, float32(st.Segments))
	metrics.SetGauge([]string{"raft", "seglog", "entries"}, float32(st.Offsets.HighWatermark-st.Offsets.Start))
	return now
}
