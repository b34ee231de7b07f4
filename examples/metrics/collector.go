package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seglog/seglog"
)

// collector asks the log for its Stats at each scrape: nothing is counted twice, and nothing runs between scrapes.
type collector struct {
	log     *seglog.Log
	metrics []metric
}

// metric is one value of Stats.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*seglog.Stats) float64
}

// newCollector makes the metrics of a log, labelled with its directory so that a process may have several.
func newCollector(l *seglog.Log, dir string) *collector {
	c := &collector{log: l}
	add := func(kind prometheus.ValueType, name, help string, value func(*seglog.Stats) float64) {
		desc := prometheus.NewDesc("seglog_"+name, help, nil, prometheus.Labels{"dir": dir})
		c.metrics = append(c.metrics, metric{desc, kind, value})
	}
	counter := func(name, help string, value func(*seglog.Stats) int64) {
		add(prometheus.CounterValue, name+"_total", help, func(s *seglog.Stats) float64 { return float64(value(s)) })
	}
	gauge := func(name, help string, value func(*seglog.Stats) int64) {
		add(prometheus.GaugeValue, name, help, func(s *seglog.Stats) float64 { return float64(value(s)) })
	}

	counter("appends", "Batches appended.", func(s *seglog.Stats) int64 { return s.Appends })
	counter("appended_records", "Records appended.", func(s *seglog.Stats) int64 { return s.AppendedRecords })
	counter("appended_bytes", "Encoded bytes appended.", func(s *seglog.Stats) int64 { return s.AppendedBytes })
	counter("received_bytes", "Bytes stored from a leader.", func(s *seglog.Stats) int64 { return s.Received })
	counter("reads", "Records read by offset.", func(s *seglog.Stats) int64 { return s.Reads })
	counter("sent_zero_copy_bytes", "Bytes sent from the page cache.", func(s *seglog.Stats) int64 { return s.SentZeroCopy })
	counter("sent_copied_bytes", "Bytes sent through a buffer.", func(s *seglog.Stats) int64 { return s.SentCopied })

	// rate(flush_seconds_total) / rate(flushes_total) is the mean latency, rate(appends_total) / rate(flushes_total) how
	// many appends share a flush.
	counter("flushes", "Flushes of segment files.", func(s *seglog.Stats) int64 { return s.Flushes })
	counter("flushed_bytes", "Bytes flushed.", func(s *seglog.Stats) int64 { return s.FlushedBytes })
	add(prometheus.CounterValue, "flush_seconds_total", "Time spent in flushes.", func(s *seglog.Stats) float64 { return s.FlushTime.Seconds() })
	add(prometheus.GaugeValue, "flush_max_seconds", "The longest flush since the log was opened.", func(s *seglog.Stats) float64 { return s.FlushMax.Seconds() })
	gauge("unflushed_bytes", "Bytes appended and not flushed yet.", func(s *seglog.Stats) int64 { return s.UnflushedBytes })

	counter("rolls", "New active segments.", func(s *seglog.Stats) int64 { return s.Rolls })
	counter("seals", "Segments sealed.", func(s *seglog.Stats) int64 { return s.Seals })
	counter("index_rebuilds", "Indexes that were missing or wrong.", func(s *seglog.Stats) int64 { return s.IndexRebuilds })
	counter("deleted_segments", "Segments deleted.", func(s *seglog.Stats) int64 { return s.DeletedSegments })
	counter("truncations", "Cuts by TruncateTo and Reset.", func(s *seglog.Stats) int64 { return s.Truncations })
	counter("errors", "Failed operations, background work included.", func(s *seglog.Stats) int64 { return s.Errors })

	gauge("segments", "Segments.", func(s *seglog.Stats) int64 { return int64(s.Segments) })
	gauge("open_segments", "Sealed segments with an open file.", func(s *seglog.Stats) int64 { return int64(s.OpenSegments) })
	gauge("bytes", "Size of all segments.", func(s *seglog.Stats) int64 { return s.Bytes })
	gauge("start_offset", "First offset that is kept.", func(s *seglog.Stats) int64 { return s.Offsets.Start })
	gauge("recovery_point_offset", "Everything below is on stable storage.", func(s *seglog.Stats) int64 { return s.Offsets.RecoveryPoint })
	gauge("high_watermark_offset", "Everything below may be read.", func(s *seglog.Stats) int64 { return s.Offsets.HighWatermark })
	gauge("end_offset", "Offset of the next record.", func(s *seglog.Stats) int64 { return s.Offsets.End })
	gauge("reserved_bytes", "Bytes set aside for appends to come.", func(s *seglog.Stats) int64 { return s.ReservedBytes })
	gauge("pinned_bytes", "Bytes of deleted segments that readers and sections still hold.", func(s *seglog.Stats) int64 { return s.PinnedBytes })
	gauge("read_cache_bytes", "Memory of the read cache, which all logs of the process share.", func(s *seglog.Stats) int64 { return s.ReadCacheBytes })
	gauge("descriptors", "Descriptors of all logs of the process.", func(s *seglog.Stats) int64 { return s.Descriptors })
	gauge("mappings", "Mappings of all logs of the process.", func(s *seglog.Stats) int64 { return s.Mappings })
	return c
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		out <- m.desc
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.log.Stats()
	for _, m := range c.metrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s))
	}
}
