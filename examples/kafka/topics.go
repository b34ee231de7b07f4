package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
)

// topics are the topics of the server. Below its directory a partition is a seglog in <topic>-<partition>, Kafka's own
// layout; names without a number at the end, such as __topics, are the server's. What a directory can't say, settings and
// the intent to delete, is in the table. A partition directory that the table does not know was put there by the user,
// say from a Kafka broker, and becomes a topic with default settings.
type topics struct {
	dir      string
	defaults map[string]string
	most     int // partitions, of all topics
	logger   *slog.Logger
	table    *table // topic name to topicRow

	change sync.Mutex // held over each creation, change and deletion; taken before mu
	mu     sync.RWMutex
	byName map[string]*topic
}

// topic is immutable: a change replaces it.
type topic struct {
	name       string
	settings   layers
	partitions []*partition
}

// topicRow is a topic as the table has it, in JSON.
type topicRow struct {
	Partitions int               `json:"partitions"`
	Settings   map[string]string `json:"settings,omitempty"`
	Deleting   bool              `json:"deleting,omitempty"` // directories may be left to remove
}

var (
	topicName    = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	partitionDir = regexp.MustCompile(`^([a-zA-Z0-9._-]{1,249})-([0-9]{1,5})$`)
)

func openTopics(dir string, defaults map[string]string, most int, logger *slog.Logger) (_ *topics, err error) {
	ts := &topics{dir: dir, defaults: defaults, most: most, logger: logger, byName: map[string]*topic{}}
	if ts.table, err = openTable(filepath.Join(dir, "__topics"), seglog.FlushSync, logger); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ts.close())
		}
	}()
	rows := map[string]topicRow{}
	ts.table.each(func(name string, value []byte) bool {
		var r topicRow
		if err = json.Unmarshal(value, &r); err != nil {
			err = fmt.Errorf("topic %s: %w", name, err)
			return false
		}
		rows[name] = r
		return true
	})
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if m := partitionDir.FindStringSubmatch(e.Name()); m != nil && e.IsDir() {
			index, _ := strconv.Atoi(m[2])
			r := rows[m[1]]
			r.Partitions = max(r.Partitions, index+1)
			rows[m[1]] = r
		}
	}
	for name, r := range rows {
		if r.Deleting {
			if err = ts.remove(name, r.Partitions); err != nil {
				return nil, err
			}
			delete(rows, name)
		}
	}
	return ts, ts.open(rows)
}

// open opens or creates the partitions of topics that are not open yet, and publishes the topics. The table knows of them
// already, so that a start after a kill creates what is missing. After an error no further partition is opened.
func (ts *topics) open(rows map[string]topicRow) error {
	var all []*topic
	var opened []*partition
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(opensAtOnce)
	for name, r := range rows {
		t := &topic{name: name, settings: layers{r.Settings, ts.defaults}}
		if old := ts.get(name); old != nil {
			t.partitions = slices.Clone(old.partitions)
		}
		for i := len(t.partitions); i < r.Partitions; i++ {
			p := &partition{dir: ts.partitionDir(name, i), logger: ts.logger}
			opened = append(opened, p)
			t.partitions = append(t.partitions, p)
			g.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return p.open(t.settings)
			})
		}
		all = append(all, t)
	}
	if err := g.Wait(); err != nil {
		return errors.Join(err, each(opened, (*partition).close))
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range all {
		ts.byName[t.name] = t
	}
	return nil
}

func (ts *topics) partitionDir(name string, i int) string {
	return filepath.Join(ts.dir, fmt.Sprintf("%s-%d", name, i))
}

func (ts *topics) get(name string) *topic {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	return ts.byName[name]
}

// partition finds a partition or says that there is none.
func (ts *topics) partition(name string, i int32) (*partition, error) {
	t := ts.get(name)
	if t == nil || i < 0 || int(i) >= len(t.partitions) {
		return nil, kerr.UnknownTopicOrPartition
	}
	return t.partitions[i], nil
}

// all returns every topic, sorted by name.
func (ts *topics) all() []*topic {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	var all []*topic
	for _, name := range slices.Sorted(maps.Keys(ts.byName)) {
		all = append(all, ts.byName[name])
	}
	return all
}

// create makes a topic; with dry it only checks whether it could.
func (ts *topics) create(name string, partitions int, settings map[string]string, dry bool) error {
	if !topicName.MatchString(name) || name == "." || name == ".." {
		return refuse(kerr.InvalidTopicException, "%q: want 1 to 249 of a-z A-Z 0-9 . _ -", name)
	}
	if partitions < 1 {
		return refuse(kerr.InvalidPartitions, "%d: want at least 1", partitions)
	}
	for name, value := range settings {
		if err := checkSetting(name, value); err != nil {
			return err
		}
	}
	ts.change.Lock()
	defer ts.change.Unlock()
	if ts.get(name) != nil {
		return kerr.TopicAlreadyExists
	}
	if err := ts.room(partitions); err != nil || dry {
		return err
	}
	r := topicRow{Partitions: partitions, Settings: settings}
	if err := ts.save(name, r); err != nil {
		return err
	}
	if err := ts.open(map[string]topicRow{name: r}); err != nil {
		ts.logger.Error("topic not created", "topic", name, "err", err)
		return errors.Join(err, ts.remove(name, partitions))
	}
	return nil
}

// room says whether there may be so many partitions more. ts.change is held.
func (ts *topics) room(more int) error {
	n := 0
	for _, t := range ts.all() {
		n += len(t.partitions)
	}
	if more > ts.most-n {
		return refuse(kerr.PolicyViolation, "%d partitions more: there are %d, and may be %d", more, n, ts.most)
	}
	return nil
}

func (ts *topics) save(name string, r topicRow) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return ts.table.put(row{name, value})
}

// grow gives a topic more partitions.
func (ts *topics) grow(name string, partitions int, dry bool) error {
	ts.change.Lock()
	defer ts.change.Unlock()
	t := ts.get(name)
	switch {
	case t == nil:
		return kerr.UnknownTopicOrPartition
	case partitions <= len(t.partitions):
		return refuse(kerr.InvalidPartitions, "%d: the topic has %d, want more", partitions, len(t.partitions))
	}
	if err := ts.room(partitions - len(t.partitions)); err != nil || dry {
		return err
	}
	r := topicRow{Partitions: partitions, Settings: t.settings.topic}
	if err := ts.save(name, r); err != nil {
		return err
	}
	return ts.open(map[string]topicRow{name: r}) // what fails here the next start tries again
}

// alter changes a topic's settings. The logs are closed and opened with the new ones; whoever is using them meanwhile is
// told to retry.
func (ts *topics) alter(name string, dry bool, change func(settings map[string]string) error) error {
	ts.change.Lock()
	defer ts.change.Unlock()
	t := ts.get(name)
	if t == nil {
		return kerr.UnknownTopicOrPartition
	}
	changed := &topic{name: name, partitions: t.partitions, settings: layers{map[string]string{}, ts.defaults}}
	maps.Copy(changed.settings.topic, t.settings.topic)
	if err := change(changed.settings.topic); err != nil || dry {
		return err
	}
	if err := ts.save(name, topicRow{Partitions: len(t.partitions), Settings: changed.settings.topic}); err != nil {
		return err
	}
	ts.mu.Lock()
	ts.byName[name] = changed
	ts.mu.Unlock()
	return each(changed.partitions, func(p *partition) error { return p.reopen(changed.settings) })
}

// delete removes a topic and its records. Cut short, the next start finishes it.
func (ts *topics) delete(name string) error {
	ts.change.Lock()
	defer ts.change.Unlock()
	t := ts.get(name)
	if t == nil {
		return kerr.UnknownTopicOrPartition
	}
	if err := ts.save(name, topicRow{Partitions: len(t.partitions), Deleting: true}); err != nil {
		return err
	}
	ts.mu.Lock()
	delete(ts.byName, name)
	ts.mu.Unlock()
	if err := each(t.partitions, (*partition).close); err != nil {
		ts.logger.Warn("closing a deleted topic", "topic", name, "err", err)
	}
	return ts.remove(name, len(t.partitions))
}

// remove takes away the directories of a topic marked as being deleted, then the mark.
func (ts *topics) remove(name string, partitions int) error {
	for i := range partitions {
		if err := os.RemoveAll(ts.partitionDir(name, i)); err != nil {
			return err
		}
	}
	return ts.table.put(row{name, nil})
}

func (ts *topics) close() error {
	var ps []*partition
	for _, t := range ts.all() {
		ps = append(ps, t.partitions...)
	}
	return errors.Join(each(ps, (*partition).close), ts.table.close())
}
