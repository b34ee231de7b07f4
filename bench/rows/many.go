package rows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

const (
	manyValue = 1 << 10
	// manyCallers is how many callers there are over all logs, where not each log has one.
	manyCallers = 64
	// manyThreads is how many callers may wait in a system call each. Go ends a process with 10,000 threads.
	manyThreads = 8000
	// manyAtOnce is how many logs are opened or closed at the same time.
	manyAtOnce = 64
	// manyDescriptors is how many a log has at work, and manyResting at rest.
	manyDescriptors, manyResting = 4, 2
	// The zeros of all files of the raw process together, and of one at most.
	manyZeros    = 256 << 20
	manyFileMost = 1 << 20
)

// manySet is n logs of a process.
type manySet struct {
	appends []manyAppend
	close   func() error
}

// manyAppend is a way to append to log i of a set.
type manyAppend struct {
	name    string
	call    func(i int, value []byte) error
	threads bool // each caller that waits takes a thread
}

const manyShared = ", a flush for all that wait"

// manyWay is a way in which a process can have n logs.
type manyWay struct {
	name    string
	open    func(dir string, n int) (manySet, error)
	reopens bool // open goes on with what is there already
}

var manyWays = []manyWay{
	{"seglog, a log each", func(dir string, n int) (manySet, error) { return openLogs(dir, n) }, true},
	{"raw files", openRawMany, false},
	{"seglog, one log for all", func(dir string, n int) (manySet, error) { return openLogs(dir, 1) }, true},
	{"bbolt, a bucket each", openBuckets, true},
}

// openLogs opens n logs, over which callers are spread.
func openLogs(dir string, n int) (manySet, error) {
	logs := make([]*seglog.Log, n)
	set := manySet{
		appends: []manyAppend{{call: func(i int, value []byte) error {
			_, err := logs[i%n].Append(seglog.Record{Value: value})
			return err
		}}},
		close: func() error {
			return sideBySide(n, func(i int) error {
				if logs[i] == nil {
					return nil
				}
				return logs[i].Close()
			})
		},
	}
	err := sideBySide(n, func(i int) (err error) {
		logs[i], err = seglog.Open(filepath.Join(dir, fmt.Sprint(i)), &seglog.Options{Flush: seglog.FlushSync})
		return err
	})
	if err != nil {
		return manySet{}, errors.Join(err, set.close())
	}
	return set, nil
}

// sideBySide calls f for 0 to n-1, up to manyAtOnce at a time, until one fails, and returns that error.
func sideBySide(n int, f func(i int) error) error {
	var (
		next   atomic.Int64
		failed atomic.Pointer[error]
		wg     sync.WaitGroup
	)
	for range min(n, manyAtOnce) {
		wg.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func openRawMany(dir string, n int) (manySet, error) {
	limits := make([]int64, n)
	for i := range limits {
		limits[i] = min(manyFileMost, manyZeros/int64(n))
	}
	m, err := raw.OpenMany(dir, limits)
	if err != nil {
		return manySet{}, err
	}
	return manySet{close: m.Close, appends: []manyAppend{
		{name: ", an fdatasync each", call: m.Append, threads: true},
		{name: manyShared, call: m.AppendShared},
	}}, nil
}

func openBuckets(dir string, n int) (manySet, error) {
	path := filepath.Join(dir, "bolt.db")
	_, missing := os.Stat(path)
	db, err := bolt.Open(path, 0o644, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return manySet{}, err
	}
	names := make([][]byte, n)
	for i := range names {
		names[i] = binary.BigEndian.AppendUint32(nil, uint32(i))
	}
	if errors.Is(missing, fs.ErrNotExist) {
		err = db.Update(func(tx *bolt.Tx) error {
			for _, name := range names {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return manySet{}, errors.Join(err, db.Close())
		}
	}
	return manySet{close: db.Close, appends: []manyAppend{{call: func(i int, value []byte) error {
		return db.Batch(func(tx *bolt.Tx) error {
			b := tx.Bucket(names[i])
			b.FillPercent = 0.9
			seq, err := b.NextSequence()
			if err != nil {
				return err
			}
			return b.Put(binary.BigEndian.AppendUint64(nil, seq), value)
		})
	}}}}, nil
}

// manyLogs asks what the logs of a process cost together: durable appends by a caller of each, and by 64 callers over all,
// what those hold that have nothing to do, and how long it takes to close and open them.
func manyLogs(e *Env) (*Result, error) {
	r := &Result{
		XName: "logs", Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record",
		Notes: []string{
			fmt.Sprintf("records of %s, FlushSync; the raw files and the logs stay open over the rounds", BytesName(manyValue)),
			"one flush for all that wait is right only where blocks were written before: the raw files are zeros when the rounds begin",
			"flushes are those of the disk, for whomever",
			fmt.Sprintf("the second table is of all logs together, %v after the last append; %d are opened and closed at a time; to open a state file is to read it, and to close it is to write it, with an fdatasync",
				manyRest, manyAtOnce),
		},
	}
	held := Table{Head: []string{"subject", "logs", "heap", "descriptors", "mappings", "disk", "closed in", "opened in", "only opened, closed in"}}
	last := 0
	for _, n := range pick(e, []int{1, 8, 64, 256}, []int{1, 4, 16, 64, 256, 1000, 4000, 10_000}) {
		began := time.Now()
		n, groups, note, err := manyGroups(n)
		if err != nil {
			return nil, err
		}
		if note != "" {
			e.Log("  %s", note)
			r.Notes = append(r.Notes, note)
		}
		if n <= last {
			continue // as many as there may be were measured
		}
		last = n
		for _, ways := range groups {
			if err := e.many(n, ways, r, &held); err != nil {
				return nil, fmt.Errorf("%d logs: %w", n, err)
			}
		}
		e.Log("  %d logs: %v", n, time.Since(began).Round(100*time.Millisecond))
	}
	r.Checks = append(manyRatios(r.Lines), r.Checks...)
	r.Tables = []Table{held}
	checks, err := e.idleLogs(min(last, pick(e, 200, 1000)))
	r.Checks = append(r.Checks, checks...)
	return r, err
}

// manyGroups are the ways that are measured in turn: all of them if the process may have so many files open, otherwise the logs
// first and then the others. If it may not have all of the logs at work, some have to rest meanwhile, and if it may not even have them at
// rest, there are fewer of them.
func manyGroups(n int) (logs int, groups [][]manyWay, note string, err error) {
	const besides = 4 * manyAtOnce // of those that are being opened, and the process's own
	all := uint64((manyDescriptors+1)*n + besides)
	may, err := measure.AllowFiles(all)
	if may >= all {
		return n, [][]manyWay{manyWays}, "", err
	}
	logs = min(n, (int(may)-besides)/manyResting)
	note = fmt.Sprintf("the process may have %d files open (ulimit -Hn), and %d logs in turn with the other subjects would have %d: ", may, n, all)
	if logs < n {
		note += fmt.Sprintf("only %d logs are measured, ", logs)
	}
	if work := (int(may) - besides) / manyDescriptors; work < logs {
		note += fmt.Sprintf("of which at most %d at work at a time, ", work)
	}
	return logs, [][]manyWay{manyWays[:1], manyWays[1:]}, note + "before the other subjects", err
}

// manyRatios hold the logs against raw files with a flush for all that wait.
func manyRatios(lines []Line) (checks []Check) {
	of := func(like Line, from, to string) (Line, bool) {
		name, found := strings.CutPrefix(like.Name, from)
		i := slices.IndexFunc(lines, func(l Line) bool { return l.X == like.X && l.Name == to+name })
		if !found || i < 0 {
			return Line{}, false
		}
		return lines[i], true
	}
	for _, l := range lines {
		shared, found := of(l, manyWays[0].name, manyWays[1].name+manyShared)
		if found && l.X >= 64 {
			checks = append(checks, atLeast(fmt.Sprintf("seglog / raw%s, %s logs", strings.TrimPrefix(shared.Name, manyWays[1].name), figure(l.X)), 0.8, ratio(l, shared)))
		}
	}
	return checks
}

// manyRest is how long logs have nothing to do before it is looked at what they hold. They come to rest within four seconds.
const manyRest = 5 * time.Second

// many measures n logs in some ways.
func (e *Env) many(n int, ways []manyWay, r *Result, held *Table) (err error) {
	sets, dirs := make([]manySet, len(ways)), make([]string, len(ways))
	defer func() {
		for i := range sets {
			if sets[i].close != nil {
				err = errors.Join(err, sets[i].close())
			}
		}
	}()
	for i, way := range ways {
		dir, remove, err := measure.Fresh(e.Dir)
		if err != nil {
			return err
		}
		defer remove()
		dirs[i] = dir
		if sets[i], err = way.open(dir, n); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	e.appendMany(n, true, ways, sets, r)
	if n > 1 {
		e.appendMany(n, false, ways, sets, r)
	}
	time.Sleep(manyRest)

	rows := make([][]string, len(ways))
	for i, way := range ways {
		before := measure.ProcessHolds()
		start := time.Now()
		err := sets[i].close()
		closed := time.Since(start)
		sets[i] = manySet{} // which holds the logs
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		h := before.Minus(measure.ProcessHolds())
		disk, err := measure.DiskBytes(dirs[i])
		if err != nil {
			return err
		}
		rows[i] = []string{way.name, figure(float64(n)), figure(float64(h.Heap)), figure(float64(h.Descriptors)), figure(float64(h.Mappings)),
			figure(float64(disk)), short(closed)}
	}
	opened, closed, err := e.reopen(n, ways, dirs)
	if err != nil {
		return err
	}
	logs := ways[0].name == manyWays[0].name
	if logs {
		rows = append(rows, []string{"state files read and written", figure(float64(n)), "", "", "", "", ""})
	}
	for i, cells := range rows {
		if len(opened[i]) > 0 {
			cells = append(cells, short(seconds(measure.Median(opened[i]))), short(seconds(measure.Median(closed[i]))))
		} else {
			cells = append(cells, "", "")
		}
		held.Rows = append(held.Rows, cells)
	}
	if logs && n >= 1000 {
		last := len(rows) - 1
		r.Checks = append(r.Checks,
			atMost(fmt.Sprintf("open %d logs / their state files", n), 20, measure.MedianRatio(opened[0], opened[last])),
			atMost(fmt.Sprintf("close %d logs / their state files", n), 5, measure.MedianRatio(closed[0], closed[last])))
	}
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// appendMany appends to the sets by callers that each have a log of their own, or that take any log each time.
func (e *Env) appendMany(n int, own bool, ways []manyWay, sets []manySet, r *Result) {
	callers, who := n, "a caller each"
	if !own {
		callers, who = manyCallers, fmt.Sprintf("%d callers over all", manyCallers)
	}
	load := measure.Load{Callers: callers, Duration: pick(e, 100*time.Millisecond, time.Second), Latency: true}
	var lines []Line
	var subjects []measure.Subject
	for i, set := range sets {
		for _, a := range set.appends {
			name := ways[i].name + a.name + ", " + who
			if a.threads && callers > manyThreads {
				r.Notes = append(r.Notes, fmt.Sprintf("%s, is left out with %d: they would take as many threads", name, callers))
				continue
			}
			lines = append(lines, Line{Name: name, X: float64(n)})
			subjects = append(subjects, measure.Subject{Name: name, Round: func() (measure.Sample, error) {
				flushes := measure.StartFlushes(e.Dir)
				s, err := measure.Drive(load, func(caller int) func() error {
					value, rng := payload(int64(caller), manyValue), rand.New(rand.NewPCG(uint64(caller), 16))
					return func() error {
						at := caller
						if !own {
							at = rng.IntN(n)
						}
						return a.call(at, value)
					}
				})
				s.Flushes = flushes()
				return s, err
			}})
		}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range lines {
		lines[i] = fill(lines[i], &series[i], series[i].Rates())
	}
	r.Lines = append(r.Lines, lines...)
}

// manyReopens is how many times they are opened and closed again.
const manyReopens = 3

// reopen returns the seconds that it took to open and to close what is in dirs, by the way in which it was made, and as many
// state files, the last.
func (e *Env) reopen(n int, ways []manyWay, dirs []string) (opened, closed [][]float64, err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, nil, err
	}
	defer remove()
	states, err := raw.MakeStates(dir, n)
	if err != nil {
		return nil, nil, err
	}
	if err := measure.Settle(dir); err != nil {
		return nil, nil, err
	}
	all := len(dirs) + 1
	opened, closed = make([][]float64, all), make([][]float64, all)
	for round := range min(e.Rounds, manyReopens) {
		for k := range all {
			i := (k + round) % all
			if i < len(dirs) && !ways[i].reopens {
				continue
			}
			start := time.Now()
			end := func() error { return sideBySide(n, states.Close) }
			if i < len(dirs) {
				var set manySet
				set, err = ways[i].open(dirs[i], n)
				end = set.close
			} else {
				err = sideBySide(n, states.Open)
			}
			between := time.Now()
			if err == nil {
				err = end()
			}
			if err != nil {
				return nil, nil, err
			}
			opened[i] = append(opened[i], between.Sub(start).Seconds())
			closed[i] = append(closed[i], time.Since(between).Seconds())
		}
	}
	return opened, closed, nil
}

// idleLogs says what a log holds that got one small record and then nothing for some seconds, and how long n take to close.
func (e *Env) idleLogs(n int) (checks []Check, err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	before := measure.ProcessHolds()
	set, err := openLogs(dir, n)
	if err != nil {
		return nil, err
	}
	for i := range n {
		if err := set.appends[0].call(i, payload(0, 10)); err != nil {
			return nil, errors.Join(err, set.close())
		}
	}
	time.Sleep(manyRest)
	held := measure.ProcessHolds().Minus(before)
	disk, err := measure.DiskBytes(dir)
	start := time.Now()
	err = errors.Join(err, set.close())
	closed := time.Since(start)
	per := func(all int64) float64 { return float64(all) / float64(n) }
	what := fmt.Sprintf(" per idle log, of %d", n)
	return []Check{
		atMost("goroutines"+what, 0, per(held.Goroutines)),
		atMost("descriptors"+what, 2, per(held.Descriptors)),
		atMost("mappings"+what, 1, per(held.Mappings)),
		atMost("bytes of heap"+what, 8<<10, per(held.Heap)),
		atMost("bytes of disk"+what, 64<<10, per(disk)),
		atMost(fmt.Sprintf("milliseconds to close %d logs", n), float64(n), float64(closed.Milliseconds())),
	}, err
}
