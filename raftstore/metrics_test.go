package raftstore

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-metrics"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

func TestMetrics(t *testing.T) {
	sink := metrics.NewInmemSink(time.Hour, time.Hour)
	config := metrics.DefaultConfig("")
	config.EnableHostname, config.EnableRuntimeMetrics, config.EnableHostnameLabel = false, false, false
	_, err := metrics.NewGlobal(config, sink)
	require.NoError(t, err)
	defer metrics.NewGlobal(config, &metrics.BlackholeSink{})

	s := openStore(t, t.TempDir(), small)
	require.NoError(t, s.StoreLogs(entries(1, 8, 1)))
	require.NoError(t, s.DeleteRange(7, 8))
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 1))
	for i := range uint64(6) {
		require.NoError(t, s.GetLog(1+i, new(raft.Log)))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.RunMetrics(ctx, time.Hour) // publishes once

	data := sink.Data()
	require.Len(t, data, 1)
	for _, name := range []string{"storeLogs", "logsPerBatch", "logBatchSize", "writeCapacity", "deleteRange", "set"} {
		require.Contains(t, data[0].Samples, "raft.seglog."+name)
	}
	require.Equal(t, 8.0, data[0].Samples["raft.seglog.logsPerBatch"].Max)
	for name, want := range map[string]float64{"getLog": 6, "entriesWritten": 8, "truncations": 2, "errors": 0} {
		require.Contains(t, data[0].Counters, "raft.seglog."+name)
		require.Equal(t, want, data[0].Counters["raft.seglog."+name].Sum, name)
	}
	require.Equal(t, float32(6), data[0].Gauges["raft.seglog.entries"].Value)
	require.Equal(t, float32(1), data[0].Gauges["raft.seglog.segments"].Value)
	require.Positive(t, data[0].Gauges["raft.seglog.bytes"].Value)
	require.NoError(t, s.Close())
	s.RunMetrics(context.Background(), time.Millisecond) // returns because the store is closed
}
