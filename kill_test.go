package seglog_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

var kills = flag.Int("kills", 0, "how often TestKill kills its child under each policy; 0: 200, fewer under the race detector")

func killOptions(policy string) *seglog.Options {
	p, _ := strconv.Atoi(policy)
	o := &seglog.Options{Flush: seglog.FlushPolicy(p), SegmentBytes: 8 << 10, IndexBytes: 512}
	if o.Flush == seglog.FlushAsync {
		o.FlushInterval, o.FlushBytes = 2*time.Millisecond, 64<<10
	}
	return o
}

// killedValue is what the record with that id holds, so that no record can pass for another.
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

// report is one line to the parent, by one write.
func report(format string, args ...any) { os.Stdout.WriteString(fmt.Sprintf(format+"\n", args...)) }

// killedAppender appends from several goroutines until it is killed: what it is about to append, and each acknowledged
// offset.
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

// killedOpener opens the log, to be killed meanwhile or after.
func killedOpener(args []string) error {
	report("opening")
	if _, err := seglog.Open(args[0], killOptions(args[1])); err != nil {
		return err
	}
	report("opened")
	time.Sleep(time.Minute)
	return nil
}

// killModel is what the log of killed processes must hold.
type killModel struct {
	t       *testing.T
	start   int64
	ids     []string         // of the records from start on
	pending map[int][]string // begun and not acknowledged, by worker
	early   map[int64][]string
	change  string // begun and not reported as done
	at      int64
}

func (m *killModel) end() int64 { return m.start + int64(len(m.ids)) }

// note takes a line of the child into account.
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
		m.early[base] = m.pending[w] // others may have got lower offsets and not reported yet
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

// after is the contents after a change.
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

// check opens the log and compares: nothing acknowledged is missing, nothing that was never appended is there, no hole,
// no duplicate, and a change that was cut short has happened or not.
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
	// Behind what is known in order: acknowledged batches at their offsets, and pending ones, whole and once.
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
		require.True(t, whole, "record %s was never appended, or twice", found[min(i, len(found)-1)])
	}
	require.Empty(t, m.early, "an acknowledged record is missing")
	m.pending, m.change = map[int][]string{}, ""
}

// killOne runs a child, kills it at a random point, and then kills some that recover.
func (m *killModel) killOne(dir, policy string, n int, rng *rand.Rand) {
	t := m.t
	role := "append"
	if rng.IntN(2) == 0 {
		role = "change"
	}
	c := startChild(t, role, dir, policy, strconv.Itoa(n), strconv.Itoa(rng.IntN(1<<30)))
	lines := rng.IntN(200)
	if policy == "0" {
		lines /= 4 // each costs a flush
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

// TestKill kills a process that appends, rolls, deletes, truncates, resets or recovers, at random points, again and
// again on the same log.
func TestKill(t *testing.T) {
	each := *kills
	if each == 0 {
		each = 200
		if underRace {
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

// unclean checks the log in place and returns a copy from before, which the next process finds as the kill left it.
func unclean(m *killModel, dir, policy string) string {
	left := copyDir(m.t, dir)
	m.check(dir, policy)
	return left
}
