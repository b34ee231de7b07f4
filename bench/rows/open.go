package rows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog"

	"github.com/seglog/seglog/bench/child"
	"github.com/seglog/seglog/bench/measure"
	"github.com/seglog/seglog/bench/raw"
)

// segmentedLog makes a cleanly closed log of the given number of segments in dir. The files are laid down as another writer of
// the format would have left them; the log takes them over at its first Open and makes their indexes.
func segmentedLog(dir string, segments int) error {
	next, err := raw.SmallSegments(dir, segments, payload(0, 1<<10))
	if err != nil {
		return err
	}
	log, err := seglog.Open(dir, &seglog.Options{Flush: seglog.FlushNone})
	if err != nil {
		return err
	}
	if end := log.Offsets().End; end != next {
		err = fmt.Errorf("the log ends at %d, want %d", end, next)
	}
	return errors.Join(err, log.Close())
}

func countLogs(dir string) (int, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	return len(names), err
}

func openClean(e *Env) (*Result, error) {
	dir, remove, err := measure.Fresh(e.Dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	const segments = 10_000
	began := time.Now()
	if err := segmentedLog(dir, segments); err != nil {
		return nil, err
	}
	have, err := countLogs(dir)
	if err != nil {
		return nil, err
	}
	if have < segments {
		return nil, fmt.Errorf("%d segments, want %d", have, segments)
	}
	built := time.Since(began)
	sealedOpened, others, err := opensDuring(dir, func() error {
		log, err := seglog.Open(dir, &seglog.Options{})
		if err != nil {
			return err
		}
		return log.Close()
	})
	if err != nil {
		return nil, err
	}
	timed := func(f func() (func() error, error)) func() (measure.Sample, error) {
		return func() (measure.Sample, error) {
			stop := measure.StartUsage()
			end, err := f()
			s := measure.Sample{Usage: stop(), Ops: 1}
			if err != nil {
				return s, err
			}
			return s, end()
		}
	}
	list := func() (func() error, error) {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) < 3*have {
			err = fmt.Errorf("%d entries", len(entries))
		}
		return func() error { return nil }, err
	}
	open := func() (func() error, error) {
		log, err := seglog.Open(dir, &seglog.Options{})
		if err != nil {
			return nil, err
		}
		return log.Close, nil
	}
	series := measure.Interleave(e.Rounds, []measure.Subject{
		{Name: "seglog Open", Round: timed(open)}, {Name: "directory listing (os.ReadDir)", Round: timed(list)},
	})
	r := &Result{
		Guarantee: "the log is complete and ready to append and read", Unit: "s", CPUUnit: "ns/open",
		Notes: []string{
			fmt.Sprintf("%d segments, built in %v", have, built.Round(time.Millisecond)),
			"files opened by Open besides those of sealed segments: " + strings.Join(others, ", "),
		},
	}
	for i := range series {
		r.Lines = append(r.Lines, fill(Line{Name: series[i].Name}, &series[i], series[i].Durations()))
	}
	r.Checks = []Check{
		atMost("seglog Open / directory listing", 3, ratio(r.Lines[0], r.Lines[1])),
		atMost("files of sealed segments opened", 0, float64(sealedOpened)),
	}
	return r, nil
}

// opensDuring counts, by inotify, which files in dir are opened while f runs: those of sealed segments, and the names of
// the others. The last segment is the active one.
func opensDuring(dir string, f func() error) (sealed int, others []string, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return 0, nil, err
	}
	active := strings.TrimSuffix(filepath.Base(logs[len(logs)-1]), ".log") // Glob sorts
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return 0, nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN); err != nil {
		return 0, nil, err
	}
	if err := f(); err != nil {
		return 0, nil, err
	}
	seen := map[string]bool{}
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return 0, nil, err
		}
		for b := buf[:n]; len(b) > 0; {
			nameLen := int(binary.NativeEndian.Uint32(b[12:]))
			name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+nameLen], "\x00"))
			b = b[unix.SizeofInotifyEvent+nameLen:]
			if name == "" || seen[name] {
				continue
			}
			seen[name] = true
			base, _, isSegment := strings.Cut(name, ".")
			if isSegment && len(base) == 20 && base != active {
				sealed++
			} else {
				others = append(others, name)
			}
		}
	}
	return sealed, others, nil
}

// activeBytes is what the killed writer leaves in its one segment.
const activeBytes = 128 << 20

func openCrashed(e *Env) (*Result, error) {
	// crashed times f on the directory of a killed writer; what f returns is called behind the clock.
	crashed := func(f func(dir string) (end func() error, err error)) func() (measure.Sample, error) {
		return func() (measure.Sample, error) {
			dir, remove, err := measure.Fresh(e.Dir)
			if err != nil {
				return measure.Sample{}, err
			}
			if err := child.Crash(dir, activeBytes); err != nil {
				return measure.Sample{}, errors.Join(err, remove())
			}
			stop := measure.StartUsage()
			end, err := f(dir)
			s := measure.Sample{Usage: stop(), Ops: 1, Bytes: activeBytes}
			if err == nil {
				err = end()
			}
			return s, errors.Join(err, remove())
		}
	}
	open := func(policy seglog.FlushPolicy) func() (measure.Sample, error) {
		return crashed(func(dir string) (func() error, error) {
			log, err := seglog.Open(dir, &seglog.Options{Flush: policy, SegmentBytes: activeBytes + activeBytes/4})
			if err != nil {
				return nil, err
			}
			return func() error {
				var short error
				if end := log.Offsets().End; end < activeBytes/1024 {
					short = fmt.Errorf("only %d records are back", end)
				}
				return errors.Join(short, log.Close())
			}, nil
		})
	}
	scan := func(rewrite bool) func() (measure.Sample, error) {
		return crashed(func(dir string) (func() error, error) {
			return func() error { return nil }, scanTail(dir, rewrite)
		})
	}
	series := measure.Interleave(e.Rounds, []measure.Subject{
		{Name: "seglog Open, FlushNone as the killed one", Round: open(seglog.FlushNone)},
		{Name: "seglog Open, FlushSync", Round: open(seglog.FlushSync)},
		{Name: "raw scan with CRC", Round: scan(false)},
		{Name: "raw scan with CRC, rewrite and fdatasync", Round: scan(true)},
	})
	r := &Result{
		Guarantee: "what the killed process appended is there and checked; under FlushSync it is on stable storage before the log opens",
		Unit:      "s", CPUUnit: "ns/open",
		Notes: []string{"the killed writer had FlushNone, so all is above the recovery point; a log that becomes a FlushSync one writes that again and flushes it, as the last line does"},
	}
	for i := range series {
		r.Lines = append(r.Lines, fill(Line{Name: series[i].Name}, &series[i], series[i].Durations()))
	}
	r.Checks = []Check{
		atMost("seglog Open, FlushNone / raw scan with CRC", 1.3, ratio(r.Lines[0], r.Lines[2])),
		atMost("seglog Open, FlushSync / raw scan with CRC", 1.3, ratio(r.Lines[1], r.Lines[2])),
		atMost("seglog Open, FlushSync / raw scan with CRC, rewrite and fdatasync", 1.3, ratio(r.Lines[1], r.Lines[3])),
	}
	return r, nil
}

// scanTail checks the bytes of the one segment in dir and, if told to, writes them again and flushes them.
func scanTail(dir string, rewrite bool) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	file, err := os.OpenFile(names[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	n, err := raw.ScanFile(file, info.Size())
	if err != nil {
		return err
	}
	if n < activeBytes {
		return fmt.Errorf("only %d bytes are there", n)
	}
	if !rewrite {
		return nil
	}
	buf := make([]byte, 1<<20)
	for pos := int64(0); pos < n; pos += int64(len(buf)) {
		piece := buf[:min(int64(len(buf)), n-pos)]
		if _, err := file.ReadAt(piece, pos); err != nil {
			return err
		}
		if _, err := file.WriteAt(piece, pos); err != nil {
			return err
		}
	}
	return unix.Fdatasync(int(file.Fd()))
}
