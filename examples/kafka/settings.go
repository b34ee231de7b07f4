package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/seglog/seglog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// setting is a topic setting under Kafka's name for it.
type setting struct {
	value string // default
	// apply sets the option of the log that the setting stands for. nil: only the default value is supported, and is
	// listed so that tools which ask for it, or set it to what it is anyway, are content.
	apply func(o *seglog.Options, n int64)
	min   int64
}

const day = int64(24 * time.Hour / time.Millisecond)

// defaultSettings are Kafka's but for segment.bytes (Kafka: 1 GiB), which is the library's.
var defaultSettings = map[string]setting{
	"retention.ms":         {strconv.FormatInt(7*day, 10), func(o *seglog.Options, n int64) { o.RetentionAge = keepFor(n) }, -1},
	"retention.bytes":      {"-1", func(o *seglog.Options, n int64) { o.RetentionBytes = max(n, 0) }, -1},
	"segment.bytes":        {strconv.Itoa(128 << 20), func(o *seglog.Options, n int64) { o.SegmentBytes = n }, 4 << 10},
	"segment.ms":           {strconv.FormatInt(7*day, 10), func(o *seglog.Options, n int64) { o.SegmentAge = milliseconds(n) }, 1},
	"index.interval.bytes": {"4096", func(o *seglog.Options, n int64) { o.IndexBytes = int(n) }, 1},
	"max.message.bytes":    {strconv.Itoa(1<<20 + 12), func(o *seglog.Options, n int64) { o.MaxBatchBytes = int(n) }, batchHeaderLen},
	// By default the operating system decides when data reaches the disk, as in Kafka, where replicas make up for it.
	// There are none here: flush.messages=1 has every produce request wait for its flush, and the log groups the
	// requests that wait; flush.ms bounds what a power cut may take.
	"flush.messages": {strconv.FormatInt(math.MaxInt64, 10), func(o *seglog.Options, n int64) {
		if n == 1 {
			o.Flush = seglog.FlushSync
		}
	}, 1},
	"flush.ms": {strconv.FormatInt(math.MaxInt64, 10), func(o *seglog.Options, n int64) {
		if n != math.MaxInt64 && o.Flush == seglog.FlushNone {
			o.Flush, o.FlushInterval = seglog.FlushAsync, milliseconds(n)
		}
	}, 1},

	"cleanup.policy":                 {value: "delete"},
	"compression.type":               {value: "producer"},
	"message.timestamp.type":         {value: "CreateTime"},
	"min.insync.replicas":            {value: "1"},
	"unclean.leader.election.enable": {value: "false"},
}

// settingNames in the order in which apply must see them: flush.messages decides before flush.ms does.
var settingNames = slices.Sorted(maps.Keys(defaultSettings))

func milliseconds(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
}

// keepFor is a retention time: Kafka's -1 keeps all, which the library spells 0; Kafka's 0 keeps nothing.
func keepFor(n int64) time.Duration {
	if n < 0 {
		return 0
	}
	return max(milliseconds(n), time.Millisecond)
}

// checkSetting says whether a topic can have the setting.
func checkSetting(name, value string) error {
	s, ok := defaultSettings[name]
	if !ok {
		return refuse(kerr.InvalidConfig, "%s is not a setting of this server, which has %v", name, settingNames)
	}
	if s.apply == nil {
		if value != s.value {
			return refuse(kerr.InvalidConfig, "%s can only be %s on this server", name, s.value)
		}
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < s.min {
		return refuse(kerr.InvalidConfig, "%s=%s: want a number of at least %d", name, value, s.min)
	}
	if limit := int64(math.MaxInt32); n > limit && (name == "segment.bytes" || name == "max.message.bytes" || name == "index.interval.bytes") {
		return refuse(kerr.InvalidConfig, "%s=%s: want at most %d", name, value, limit)
	}
	return nil
}

// layers are a topic's settings, its own before the server's.
type layers struct{ topic, server map[string]string }

// get is the value in force and where it comes from.
func (l layers) get(name string) (string, kmsg.ConfigSource) {
	if v, ok := l.topic[name]; ok {
		return v, kmsg.ConfigSourceDynamicTopicConfig
	}
	if v, ok := l.server[name]; ok {
		return v, kmsg.ConfigSourceStaticBrokerConfig
	}
	return defaultSettings[name].value, kmsg.ConfigSourceDefaultConfig
}

// leastInflated is what a batch may always inflate to.
const leastInflated = 16 << 20

// options are those of a partition's log.
func (l layers) options() (*seglog.Options, error) {
	o := &seglog.Options{Flush: seglog.FlushNone}
	for _, name := range settingNames {
		s := defaultSettings[name]
		if s.apply == nil {
			continue
		}
		value, _ := l.get(name)
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("setting %s: %w", name, err)
		}
		s.apply(o, n)
	}
	// A batch has to fit a segment. Kafka finds that out batch by batch, the library wants to be told.
	o.MaxBatchBytes = int(min(int64(o.MaxBatchBytes), o.SegmentBytes))
	// Producers count their records before they compress them: what inflates to many times the limit is no batch of theirs.
	o.MaxInflatedBytes = max(leastInflated, 16*int64(o.MaxBatchBytes))
	return o, nil
}
