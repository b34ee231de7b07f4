package rows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
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
	// The zeros of all files of the raw process together, and of one at most.
	manyZeros    = 256 << 20
	manyFileMost = 1 << 20
)

// manySet is n logs of a process.
type manySet struct {
	append func(i int, value []byte) error
	close  func() error
}

// manySubjects are the ways in which a process can have n logs.
func manySubjects(n int) (lines []Line, opens []func(dir string) (manySet, error)) {
	add := func(name string, open func(dir string) (manySet, error)) {
		lines, opens = append(lines, Line{Name: name}), append(opens, open)
	}
	add("seglog, a log each", func(dir string) (manySet, error) { return openLogs(dir, n, n) })
	add("raw files, an fdatasync each", func(dir string) (manySet, error) { return openRawMany(dir, n, false) })
	add("raw files, a flush for all that wait", func(dir string) (manySet, error) { return openRawMany(dir, n, true) })
	add("seglog, one log for all", func(dir string) (manySet, error) { return openLogs(dir, n, 1) })
	add("bbolt, a bucket each", func(dir string) (manySet, error) { return openBuckets(dir, n) })
	return lines, opens
}

// openLogs opens files logs, over which n are spread.
func openLogs(dir string, n, files int) (manySet, error) {
	logs := make([]*seglog.Log, files)
	set := manySet{
		append: func(i int, value []byte) error {
			_, err := logs[i%files].Append(seglog.Record{Value: value})
			return err
		},
		close: func() error {
			errs := make([]error, files)
			var wg sync.WaitGroup
			for i, l := range logs {
				if l != nil {
					wg.Go(func() { errs[i] = l.Close() })
				}
			}
			wg.Wait()
			return errors.Join(errs...)
		},
	}
	for i := range logs {
		var err error
		if logs[i], err = seglog.Open(filepath.Join(dir, fmt.Sprint(i)), &seglog.Options{Flush: seglog.FlushSync}); err != nil {
			return manySet{}, errors.Join(err, set.close())
		}
	}
	return set, nil
}

func openRawMany(dir string, n int, shared bool) (manySet, error) {
	m, err := raw.OpenMany(dir, n, min(manyFileMost, manyZeros/int64(n)), shared)
	if err != nil {
		return manySet{}, err
	}
	return manySet{append: m.Append, close: m.Close}, nil
}

func openBuckets(dir string, n int) (manySet, error) {
	db, err := bolt.Open(filepath.Join(dir, "bolt.db"), 0o644, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return manySet{}, err
	}
	names := make([][]byte, n)
	err = db.Update(func(tx *bolt.Tx) error {
		for i := range names {
			names[i] = binary.BigEndian.AppendUint32(nil, uint32(i))
			if _, err := tx.CreateBucket(names[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return manySet{}, errors.Join(err, db.Close())
	}
	return manySet{close: db.Close, append: func(i int, value []byte) error {
		return db.Batch(func(tx *bolt.Tx) error {
			b := tx.Bucket(names[i])
			b.FillPercent = 0.9
			seq, err := b.NextSequence()
			if err != nil {
				return err
			}
			return b.Put(binary.BigEndian.AppendUint64(nil, seq), value)
		})
	}}, nil
}

// manyLogs asks what the logs of a process cost together: durable appends by a caller of each, and by 64 callers over all,
// and what those hold that have nothing to do.
func manyLogs(e *Env) (*Result, error) {
	r := &Result{
		XName: "logs", Guarantee: durableGuarantee, Unit: "records/s", CPUUnit: "ns/record",
		Notes: []string{
			fmt.Sprintf("records of %s, FlushSync; the raw files and the logs stay open over the rounds", BytesName(manyValue)),
			"one flush for all that wait is right only where blocks were written before: the raw files are zeros when the rounds begin",
		},
	}
	for _, n := range pick(e, []int{1, 8, 64, 256}, []int{1, 8, 64, 256, 1000, 10_000}) {
		for _, own := range []bool{true, false} {
			callers, who := n, "a caller each"
			if !own {
				callers, who = manyCallers, fmt.Sprintf("%d callers over all", manyCallers)
			}
			if own && n > 4096 || !own && n == 1 {
				continue
			}
			lines, err := e.many(n, callers, own, who)
			if err != nil {
				return nil, fmt.Errorf("%d logs: %w", n, err)
			}
			if n >= 64 {
				what := fmt.Sprintf(", %d logs, %s", n, who)
				r.Checks = append(r.Checks, atLeast("seglog / raw, a flush for all that wait"+what, 0.8, ratio(lines[0], lines[2])))
			}
			r.Lines = append(r.Lines, lines...)
		}
	}
	checks, err := e.idleLogs(pick(e, 200, 1000))
	r.Checks = append(r.Checks, checks...)
	return r, err
}

// many measures n logs under callers, each of which has a log of its own, or takes any log each time.
func (e *Env) many(n, callers int, own bool, who string) (lines []Line, err error) {
	lines, opens := manySubjects(n)
	subjects := make([]measure.Subject, len(lines))
	for i, open := range opens {
		dir, remove, err := measure.Fresh(e.Dir)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		set, err := open(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", lines[i].Name, err)
		}
		defer func() { err = errors.Join(err, set.close()) }()
		lines[i].Name += ", " + who
		lines[i].X = float64(n)
		load := measure.Load{Callers: callers, Duration: pick(e, 100*time.Millisecond, 2*time.Second), Latency: true}
		subjects[i] = measure.Subject{Name: lines[i].Name, Round: func() (measure.Sample, error) {
			return measure.Drive(load, func(caller int) func() error {
				value, rng := payload(int64(caller), manyValue), rand.New(rand.NewPCG(uint64(caller), 16))
				return func() error {
					at := caller
					if !own {
						at = rng.IntN(n)
					}
					return set.append(at, value)
				}
			})
		}}
	}
	series := measure.Interleave(e.Rounds, subjects)
	for i := range lines {
		lines[i] = fill(lines[i], &series[i], series[i].Rates())
	}
	return lines, nil
}

// idleLogs says what a log holds that got one small record and then nothing for a second, and how long n take to close.
func (e *Env) idleLogs(n int) (checks []Check, err error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	before := processHolds()
	set, err := openLogs(dir, n, n)
	if err != nil {
		return nil, err
	}
	for i := range n {
		if err := set.append(i, payload(0, 10)); err != nil {
			return nil, errors.Join(err, set.close())
		}
	}
	time.Sleep(time.Second)
	held, disk := processHolds(), int64(0)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st syscall.Stat_t
		if err = syscall.Stat(path, &st); err == nil {
			disk += st.Blocks * 512
		}
		return err
	})
	start := time.Now()
	err = errors.Join(err, set.close())
	closed := time.Since(start)
	per := func(after, before int64) float64 { return float64(after-before) / float64(n) }
	what := fmt.Sprintf(" per idle log, of %d", n)
	return []Check{
		atMost("goroutines"+what, 0, per(held.goroutines, before.goroutines)),
		atMost("descriptors"+what, 2, per(held.descriptors, before.descriptors)),
		atMost("bytes of heap"+what, 8<<10, per(held.heap, before.heap)),
		atMost("bytes of disk"+what, 64<<10, per(disk, 0)),
		atMost(fmt.Sprintf("milliseconds to close %d logs", n), float64(n), float64(closed.Milliseconds())),
	}, err
}

type holds struct{ goroutines, descriptors, heap int64 }

func processHolds() holds {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	open, _ := os.ReadDir("/proc/self/fd") // none where there is no such directory
	return holds{int64(runtime.NumGoroutine()), int64(len(open)), int64(m.HeapAlloc)}
}
