package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seglog/seglog"
)

var lsCommand = &command{
	name: "ls", short: "the segments: offsets, times, sizes, batches",
	flags: "[-q] ",
	long: `Lists the segments of a log, oldest first. To count batches and records it reads all of them and checks their CRCs;
-q spares that.

INDEX is "yes" if both index files are there, which the active segment's need not be.

  inspect ls /var/lib/orders
  inspect ls -q /var/lib/kafka/orders-0`,
	run: (*tool).ls,
}

func (t *tool) ls(args []string) error {
	quick := t.flags.Bool("q", false, "")
	dir, err := t.directory(args)
	if err != nil {
		return err
	}
	l, err := t.open(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	segments, err := l.Segments()
	if err != nil {
		return err
	}
	o := l.Offsets()
	list := table{head: []string{"BASE", "NEXT", "BATCHES", "RECORDS", "SIZE", "FROM", "TO", "CODEC", "INDEX", "STATE"},
		left: map[int]bool{5: true, 6: true, 7: true, 8: true, 9: true}}
	var bytes int64
	var damage []error
	for i, s := range segments {
		state := "sealed"
		if i+1 == len(segments) {
			state = "active"
		}
		count, err := counted{batches: "-", records: "-", codec: "-", to: s.MaxTime}, error(nil)
		if !*quick {
			count, err = t.count(l, max(s.Base, o.Start), s)
		}
		if t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		if err != nil {
			state = "DAMAGED"
			damage = append(damage, err)
		}
		bytes += s.Bytes
		list.add(number(s.Base), number(s.Next), count.batches, count.records, size(s.Bytes), when(count.from), when(count.to), count.codec, indexed(s.Path), state)
	}
	list.print(t.out)
	fmt.Fprintf(t.out, "\noffsets %s to %s; %s in %d segments; %s\n",
		number(o.Start), number(o.HighWatermark), size(bytes), len(segments), noted(dir, o))
	for _, err := range damage {
		fmt.Fprintln(t.err, err)
	}
	if len(damage) > 0 {
		return errFound
	}
	return nil
}

// counted is what a walk through the batches of a segment comes to.
type counted struct {
	batches, records, codec string
	from, to                time.Time
}

// count looks at the batches of a segment that can be read.
func (t *tool) count(l *seglog.Log, from int64, s seglog.SegmentInfo) (counted, error) {
	c := counted{to: s.MaxTime}
	var batches, records int64
	var codecs []string
	seen := map[seglog.Codec]bool{}
	var failed error
	if from < s.Next {
		for b, err := range l.Batches(from) {
			if err != nil {
				failed = err
				break
			}
			if b.Base >= s.Next || t.ctx.Err() != nil {
				break
			}
			batches++
			records += b.Records
			if !seen[b.Codec] {
				seen[b.Codec] = true
				codecs = append(codecs, b.Codec.String())
			}
			if !b.BaseTime.IsZero() && (c.from.IsZero() || b.BaseTime.Before(c.from)) {
				c.from = b.BaseTime
			}
		}
	}
	c.batches, c.records, c.codec = number(batches), number(records), strings.Join(codecs, ",")
	return c, failed
}

func indexed(log string) string {
	stem := strings.TrimSuffix(log, filepath.Ext(log))
	for _, suffix := range []string{".index", ".timeindex"} {
		if _, err := os.Stat(stem + suffix); err != nil {
			return "no"
		}
	}
	return "yes"
}

// noted says what is known of durability.
func noted(dir string, o seglog.Offsets) string {
	if _, err := os.Stat(filepath.Join(dir, "seglog.state")); err != nil {
		return "no seglog.state (Kafka's?)"
	}
	if o.RecoveryPoint >= o.HighWatermark {
		return "all of it durable"
	}
	return fmt.Sprintf("durable up to offset %s at least", number(o.RecoveryPoint))
}
