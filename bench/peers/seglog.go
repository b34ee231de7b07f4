package peers

import "github.com/seglog/seglog"

// Seglog is this project's log behind the peers' interface.
var Seglog = Peer{
	Name: "seglog", Module: "github.com/seglog/seglog",
	Setup: "defaults (128 MiB segments); FlushNone where no flush is asked for, FlushSync where one is",
	Kill:  "all", Power: "all", CRC: "yes",
	SurvivesKill: true, NonDurable: true, Durable: true, Groups: true,
	Open: func(dir string, s Setup) (Log, error) {
		opts := seglog.Options{Flush: seglog.FlushNone}
		if s.Durable {
			opts.Flush = seglog.FlushSync
		}
		return OpenSeglog(dir, opts)
	},
}

// OpenSeglog opens it with other options than the defaults.
func OpenSeglog(dir string, opts seglog.Options) (*SeglogLog, error) {
	log, err := seglog.Open(dir, &opts)
	if err != nil {
		return nil, err
	}
	return &SeglogLog{Log: log}, nil
}

// SeglogLog is the adapter; the log itself is there for what the peers cannot do.
type SeglogLog struct{ *seglog.Log }

// Appender hands the values over as the records of one batch.
func (l *SeglogLog) Appender() Append {
	var records []seglog.Record
	return func(values [][]byte) error {
		for len(records) < len(values) {
			records = append(records, seglog.Record{})
		}
		for i, v := range values {
			records[i].Value = v
		}
		_, err := l.Log.Append(records[:len(values)]...)
		return err
	}
}

// Read returns the value of record i.
func (l *SeglogLog) Read(i int64) ([]byte, error) {
	r, err := l.Log.Read(i)
	return r.Value, err
}

// Truncate makes n the end of the log.
func (l *SeglogLog) Truncate(n int64) error { return l.TruncateTo(n) }

// Scan runs over all records.
func (l *SeglogLog) Scan(each func([]byte) error) error {
	for r, err := range l.Records(0) {
		if err != nil {
			return err
		}
		if err := each(r.Value); err != nil {
			return err
		}
	}
	return nil
}
