package peers

import (
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"
)

// Prometheus is the one peer that offers a scan over everything with its CRCs checked.
var Prometheus = Peer{
	Name: "Prometheus wlog", Module: "github.com/prometheus/prometheus",
	Setup: "128 MB segments, no compression; Log, then Sync where a flush is asked for (Prometheus itself flushes at a roll only)",
	Kill:  "all", Power: "all if Sync is called", CRC: "yes (a full replay; no random read)",
	SurvivesKill: true, NonDurable: true, Durable: true,
	Open: openPrometheus,
}

type prometheusLog struct {
	dir     string
	log     *wlog.WL
	durable bool
}

func openPrometheus(dir string, s Setup) (Log, error) {
	log, err := wlog.New(nil, nil, dir, compression.None)
	if err != nil {
		return nil, err
	}
	return &prometheusLog{dir: dir, log: log, durable: s.Durable}, nil
}

func (l *prometheusLog) Appender() Append {
	return func(values [][]byte) error {
		if err := l.log.Log(values...); err != nil {
			return err
		}
		if l.durable {
			return l.log.Sync()
		}
		return nil
	}
}

func (l *prometheusLog) Scan(each func([]byte) error) error {
	segments, err := wlog.NewSegmentsReader(l.dir)
	if err != nil {
		return err
	}
	defer segments.Close()
	r := wlog.NewReader(segments)
	for r.Next() {
		if err := each(r.Record()); err != nil {
			return err
		}
	}
	return r.Err()
}

func (l *prometheusLog) Close() error { return l.log.Close() }
