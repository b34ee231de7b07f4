package seglog_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

var kills = flag.Int("kills", 0, "number of children that TestKill kills under each flush policy; 0: 200, or 40 under the race detector")

func killOptions(policy string) *seglog.Options {
	p, _ := strconv.Atoi(policy)
	o := &seglog.Options{Flush: seglog.FlushPolicy(p), SegmentBytes: 8 << 10, IndexBytes: 512}
	if o.Flush == seglog.FlushAsync {
		o.FlushInterval, o.FlushBytes = 2*time.Millisecond, 64<<10
	}
	return o
}

// killedValue returns the value of the record with an id. It contains the id, so that no record can pass for another.
func killedValue(id string) []byte {
	n, _ := strconv.Atoi(id[strings.LastIndexByte(id, '-')+1:])
	return []byte(id + " " + strings.Repeat("x", n*37%300))
}

func killedRecords(run string, worker, seq, n int) (records []seglog.Record, ids []string) {
	for i := range n {
		id := fmt.Sprintf("%s-%d-%d", run, worker, seq+i)
		ids = append(ids, id)
		records = append(records, seglog.Record{Key: []byte(id), Value: killedValue(id)})
	}
	return records, ids
}

// report sends a line to the parent, in a single write so that a kill can't tear it.
func report(format string, args ...any) { os.Stdout.WriteString(fmt.Sprintf(format+"\n", args...)) }

// killedAppender appends from several goroutines until it is killed. It reports each batch before its append, and the offset
// after it.
func killedAppender(args []string) error {
	dir, run, workers := args[0], args[2], 3
	l, err := seglog.Open(dir, killOptions(args[1]))
	if err != nil {
		return err
	}
	errs := make(chan error)
	for w := range workers {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(w), uint64(len(run))))
			for seq := 0; ; {
				n := 1 + rng.IntN(4)
				records, ids := killedRecords(run, w, seq, n)
				report("begin %d %s", w, strings.Join(ids, " "))
				base, err := l.Append(records...)
				if err != nil {
					errs <- err
					return
				}
				report("acked %d %d", w, base)
				seq += n
			}
		}()
	}
	return <-errs
}

// killedChanger appends, deletes, truncates and resets from one goroutine until it is killed.
func killedChanger(args []string) error {
	l, err := seglog.Open(args[0], killOptions(args[1]))
	if err != nil {
		return err
	}
	seed, _ := strconv.Atoi(args[3])
	rng := rand.New(rand.NewPCG(uint64(seed), 7))
	for seq := 0; ; {
		if n := rng.IntN(12); n > 0 {
			records, ids := killedRecords(args[2], 0, seq, n)
			report("begin 0 %s", strings.Join(ids, " "))
			base, err := l.Append(records...)
			if err != nil {
				return err
			}
			report("acked 0 %d", base)
			seq += n
			continue
		}
		o := l.Offsets()
		at := o.Start + rng.Int64N(o.End-o.Start+1)
		var err error
		switch op := rng.IntN(5); op {
		case 0, 1:
			report("begin delete %d", at)
			err = l.DeleteBefore(at)
		case 2, 3:
			report("begin truncate %d", at)
			err = l.TruncateTo(at)
		default:
			report("begin reset %d", at+1000)
			err = l.Reset(at + 1000)
		}
		if err != nil {
			return err
		}
		report("changed")
	}
}

// killedOpener opens the log, and is killed while it does or afterwards.
func killedOpener(args []string) error {
	report("opening")
	if _, err := seglog.Open(args[0], killOptions(args[1])); err != nil {
		return err
	}
	report("opened")
	time.Sleep(time.Minute)
	return nil
}

// killModel knows the records that the log of killed processes must hold.
type killModel struct {
	t       *testing.T
	start   int64
	ids     []string           // the ids of the records from start on
	pending map[int][]string   // the batches begun and not acknowledged, by worker
	early   map[int64][]string // acknowledged batches by offset, while a lower offset is not acknowledged yet
	change  string             // the change begun and not reported as done
	at      int64              // the offset of change
}

func (m *killModel) end() int64 { return m.start + int64(len(m.ids)) }

// note updates the model for a line of the child.
func (m *killModel) note(line string) {
	f := strings.Fields(line)
	switch {
	case f[0] == "changed":
		m.ids, m.start = m.after(m.change, m.at)
		m.change = ""
	case f[0] == "acked":
		w, _ := strconv.Atoi(f[1])
		base, err := strconv.ParseInt(f[2], 10, 64)
		require.NoError(m.t, err)
		m.early[base] = m.pending[w] // workers that got lower offsets may not have reported them yet
		delete(m.pending, w)
		for m.early[m.end()] != nil {
			ids := m.early[m.end()]
			delete(m.early, m.end())
			m.ids = append(m.ids, ids...)
		}
	case f[1] == "delete" || f[1] == "truncate" || f[1] == "reset":
		m.change = f[1]
		m.at, _ = strconv.ParseInt(f[2], 10, 64)
	default:
		w, _ := strconv.Atoi(f[1])
		m.pending[w] = f[2:]
	}
}

// after returns the ids and the start after a change.
func (m *killModel) after(change string, at int64) ([]string, int64) {
	switch change {
	case "delete":
		return m.ids[at-m.start:], at
	case "truncate":
		return m.ids[:at-m.start], m.start
	case "reset":
		return nil, at
	}
	return m.ids, m.start
}

// check opens the log and compares it with the model: no acknowledged record is missing, each record was appended and occurs
// once, no offset is left out, and an interrupted change took effect as a whole or not at all.
func (m *killModel) check(dir, policy string) {
	t := m.t
	l, err := seglog.Open(dir, killOptions(policy))
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	o := l.Offsets()
	if m.change != "" {
		if ids, start := m.after(m.change, m.at); o.Start == start && (m.change == "delete" || o.End == start+int64(len(ids))) {
			m.ids, m.start = ids, start
		}
	}
	require.Equal(t, m.start, o.Start)
	at := o.Start
	var found []string
	for r, err := range l.Records(o.Start) {
		require.NoError(t, err)
		require.Equal(t, at, r.Offset)
		id := string(r.Key)
		require.Equal(t, string(killedValue(id)), string(r.Value))
		if i := at - m.start; i < int64(len(m.ids)) {
			require.Equal(t, m.ids[i], id, "offset %d", at)
		} else {
			found = append(found, id)
		}
		at++
	}
	require.Equal(t, o.End, at)
	require.GreaterOrEqual(t, at, m.end(), "an acknowledged record is missing")
	// After the records known in order may come acknowledged batches, at their offsets, and pending batches, whole and once.
	for i := 0; i < len(found); {
		if ids := m.early[m.end()]; ids != nil {
			require.GreaterOrEqual(t, len(found)-i, len(ids))
			require.Equal(t, ids, found[i:i+len(ids)])
			delete(m.early, m.end())
			m.ids, i = append(m.ids, ids...), i+len(ids)
			continue
		}
		whole := false
		for w, ids := range m.pending {
			if len(ids) > 0 && ids[0] == found[i] {
				require.GreaterOrEqual(t, len(found)-i, len(ids), "half a batch")
				require.Equal(t, ids, found[i:i+len(ids)])
				delete(m.pending, w)
				m.ids, i, whole = append(m.ids, ids...), i+len(ids), true
				break
			}
		}
		require.True(t, whole, "record %s was never appended, or occurs twice", found[min(i, len(found)-1)])
	}
	require.Empty(t, m.early, "an acknowledged record is missing")
	m.pending, m.change = map[int][]string{}, ""
}

// killOne runs a child and kills it at a random point, and then possibly further children that recover the log.
func (m *killModel) killOne(dir, policy string, n int, rng *rand.Rand) {
	t := m.t
	role := "append"
	if rng.IntN(2) == 0 {
		role = "change"
	}
	c := startChild(t, role, dir, policy, strconv.Itoa(n), strconv.Itoa(rng.IntN(1<<30)))
	lines := rng.IntN(200)
	if policy == "0" {
		lines /= 4 // each line costs a flush
	}
	for range lines {
		require.True(t, c.lines.Scan(), "the child died")
		m.note(c.lines.Text())
	}
	time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
	for _, line := range c.kill(t) {
		m.note(line)
	}
	for rng.IntN(3) == 0 {
		c := startChild(t, "open", dir, policy)
		require.True(t, c.lines.Scan(), "the child died")
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
		c.kill(t)
	}
}

// TestKill kills processes at random points while they append, roll, delete, truncate, reset or recover, many times on the same
// log. It tests a real kernel and file system, which TestCrash only simulates.
func TestKill(t *testing.T) {
	each := *kills
	if each == 0 {
		each = 200
		if race.On {
			each = 40
		}
	}
	for i, p := range policies {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			var m *killModel
			var dir string
			for n := range each {
				if n%25 == 0 {
					m, dir = &killModel{t: t, pending: map[int][]string{}, early: map[int64][]string{}}, t.TempDir()
				}
				m.killOne(dir, strconv.Itoa(int(p)), n, rng)
				if rng.IntN(2) == 0 {
					dir = unclean(m, dir, strconv.Itoa(int(p)))
					continue
				}
				m.check(dir, strconv.Itoa(int(p)))
			}
		})
	}
}

// unclean checks the log, and returns a copy that it made first, so that the next process finds the log as the kill left it.
func unclean(m *killModel, dir, policy string) string {
	left := copyDir(m.t, dir)
	m.check(dir, policy)
	return left
}

// killedLogs is how many logs the process has that TestKillManyLogs kills: enough for most flushes to be shared.
const killedLogs = 100

func killedDir(dir string, i int) string { return filepath.Join(dir, strconv.Itoa(i)) }

// killedMany appends to many logs, a goroutine each, until it is killed. It reports each acknowledged offset.
func killedMany(args []string) error {
	errs := make(chan error)
	for i := range killedLogs {
		l, err := seglog.Open(killedDir(args[0], i), killOptions(args[1]))
		if err != nil {
			return err
		}
		go func() {
			for {
				next := l.Offsets().End
				_, err := l.Append(seglog.Record{Value: killedValue(fmt.Sprintf("%d-%d", i, next))})
				if err != nil {
					errs <- err
					return
				}
				report("%d %d", i, next)
			}
		}()
	}
	return <-errs
}

// A process with many logs under load is killed: each log has all that was acknowledged.
func TestKillManyLogs(t *testing.T) {
	dir := t.TempDir()
	acked := make([]int64, killedLogs)
	for range 5 {
		c := startChild(t, "many", dir, "0")
		note := func(line string) {
			var i int
			var offset int64
			_, err := fmt.Sscan(line, &i, &offset)
			require.NoError(t, err)
			acked[i] = offset + 1
		}
		for range 1500 {
			require.True(t, c.lines.Scan(), "the child died")
			note(c.lines.Text())
		}
		for _, line := range c.kill(t) {
			note(line)
		}
		for i := range killedLogs {
			l, err := seglog.Open(killedDir(dir, i), killOptions("0"))
			require.NoError(t, err)
			require.GreaterOrEqual(t, l.Offsets().End, acked[i], "log %d", i)
			for r, err := range l.Records(seglog.Oldest) {
				require.NoError(t, err)
				require.Equal(t, string(killedValue(fmt.Sprintf("%d-%d", i, r.Offset))), string(r.Value))
			}
			require.NoError(t, l.Close())
		}
	}
}
