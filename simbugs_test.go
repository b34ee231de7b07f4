package seglog

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// liar is a simulated file system with a bug planted between it and the engine: each function that is not nil replaces a method.
type liar struct {
	*sim.FS
	flushFile    func(f *sim.File) error
	syncNames    func() error
	truncateFile func(f *sim.File, size int64) error
	crowded      bool // every file appears to be in use by others, so that cuts copy it
	writeFile    func(f *sim.File, p []byte, pos int64) (int, error)
	readFile     func(f *sim.File, p []byte, pos int64) (int, error)
	moveFile     func(from, to string) error
}

type liarFile struct {
	*sim.File
	l *liar
}

func (l *liar) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := l.FS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return &liarFile{f.(*sim.File), l}, nil
}

func (l *liar) SyncDir(dir string) error {
	if l.syncNames != nil {
		return l.syncNames()
	}
	return l.FS.SyncDir(dir)
}

func (l *liar) OpenDir(dir string) (vfs.Directory, error) {
	if _, err := l.FS.OpenDir(dir); err != nil {
		return nil, err
	}
	return sim.NewDirectory(l, dir), nil
}

func (l *liar) Rename(from, to string) error {
	if l.moveFile != nil {
		return l.moveFile(from, to)
	}
	return l.FS.Rename(from, to)
}

func (f *liarFile) Alone() (bool, error) {
	alone, err := f.File.Alone()
	return alone && !f.l.crowded, err
}

func (f *liarFile) Flush() error {
	if f.l.flushFile != nil {
		return f.l.flushFile(f.File)
	}
	return f.File.Flush()
}

func (f *liarFile) Truncate(size int64) error {
	if f.l.truncateFile != nil {
		return f.l.truncateFile(f.File, size)
	}
	return f.File.Truncate(size)
}

func (f *liarFile) WriteAt(p []byte, pos int64) (int, error) {
	if f.l.writeFile != nil {
		return f.l.writeFile(f.File, p, pos)
	}
	return f.File.WriteAt(p, pos)
}

func (f *liarFile) ReadAt(p []byte, pos int64) (int, error) {
	if f.l.readFile != nil {
		return f.l.readFile(f.File, p, pos)
	}
	return f.File.ReadAt(p, pos)
}

func isLog(name string) bool {
	return strings.HasSuffix(name, logSuffix) || name == nextName || name == rollName
}

// lazyFlush acknowledges each flush, but carries it out only at the next flush.
func lazyFlush(s *sim.FS) vfs.FS {
	var mu sync.Mutex
	var due *sim.File
	return &liar{FS: s, flushFile: func(f *sim.File) error {
		mu.Lock()
		defer mu.Unlock()
		if due != nil && !due.Closed {
			if err := due.Flush(); err != nil {
				return err
			}
		}
		due = f
		return nil
	}}
}

// unlessCut skips the first flush of a file after each truncation, which then may not reach the disk.
func unlessCut(s *sim.FS) vfs.FS {
	var mu sync.Mutex
	cut := map[int]bool{}
	return &liar{FS: s,
		truncateFile: func(f *sim.File, size int64) error {
			mu.Lock()
			defer mu.Unlock()
			cut[f.Node] = true
			return f.Truncate(size)
		},
		flushFile: func(f *sim.File) error {
			mu.Lock()
			defer mu.Unlock()
			if cut[f.Node] {
				delete(cut, f.Node)
				return nil
			}
			return f.Flush()
		}}
}

// tamper changes batches as they are read, and corrects their CRCs. To the engine this looks as damage would if it did not check
// CRCs.
func tamper(change func(b batch)) func(s *sim.FS) vfs.FS {
	return func(s *sim.FS) vfs.FS {
		l := &liar{FS: s}
		l.readFile = func(f *sim.File, p []byte, pos int64) (int, error) {
			n, err := f.ReadAt(p, pos)
			if !isLog(f.Name) {
				return n, err
			}
			s.Mu.Lock()
			whole := append([]byte(nil), f.Content()...)
			s.Mu.Unlock()
			for at := 0; at+headerLen <= len(whole); {
				b := batch(whole[at:])
				if parseHeader(b) != "" || b.size() > int64(len(b)) || b[:b.size()].checkCRC() != "" {
					break
				}
				b = b[:b.size()]
				change(b)
				b.seal()
				at += len(b)
			}
			copy(p[:n], whole[pos:])
			return n, err
		}
		return l
	}
}

// plantedBugs are bugs that the crash simulation must find. Each was a bug of some real log, as far as it can be planted below
// the engine.
var plantedBugs = []struct {
	name  string
	plant func(s *sim.FS) vfs.FS
	tune  func(c *simConfig)
	want  string // if not empty, a part of the error
}{
	{name: "no flush", plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, flushFile: func(*sim.File) error { return nil }}
	}},
	{name: "acknowledged before the flush", plant: lazyFlush},
	{name: "no flush of the segments, only of the state", plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, flushFile: func(f *sim.File) error {
			if isLog(f.Name) {
				return nil
			}
			return f.Flush()
		}}
	}},
	{name: "no flush of the state", plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, flushFile: func(f *sim.File) error {
			if f.Name == stateName {
				return nil
			}
			return f.Flush()
		}}
	}},
	{name: "no directory sync", plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, syncNames: func() error { return nil }}
	}},
	{name: "a failed flush is tried again", tune: func(c *simConfig) { c.failFlush = 3 + int(c.seed%20) },
		plant: func(s *sim.FS) vfs.FS {
			return &liar{FS: s, flushFile: func(f *sim.File) error {
				if f.Flush() != nil {
					return f.Flush()
				}
				return nil
			}}
		}},
	{name: "a cut without a flush", plant: unlessCut},
	{name: "a rename in two steps", plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, crowded: true, moveFile: func(from, to string) error {
			ignore(s.Remove(to))
			ignore(s.SyncDir(""))
			return s.Rename(from, to)
		}}
	}},
	{name: "a lost write", tune: func(c *simConfig) { c.mapped = false }, plant: func(s *sim.FS) vfs.FS {
		return &liar{FS: s, writeFile: func(f *sim.File, p []byte, pos int64) (int, error) {
			if isLog(f.Name) && pos > 3000 {
				return len(p), nil
			}
			return f.WriteAt(p, pos)
		}}
	}},
	{name: "no CRC", tune: func(c *simConfig) { c.mapped = false }, want: "wrong bytes",
		plant: tamper(func(b batch) { b[len(b)-2] ^= 1 })},
	{name: "a CRC that is not bound to its place", tune: func(c *simConfig) { c.mapped = false }, want: "wrong bytes",
		plant: func() func(s *sim.FS) vfs.FS {
			twin := []Record{{Time: time.UnixMilli(1), Value: []byte("the same batch everywhere")}}
			return tamper(func(b batch) {
				if same := encoded(twin, b.base()); b.lastDelta() == 0 && len(b) == len(same) {
					copy(b, same)
				} else if len(b) > headerLen+8 {
					b[headerLen+2] ^= 2 // the time of the record
				}
			})
		}()},
}

// TestCrashFindsPlantedBugs checks the checker: if the crash simulation missed one of these bugs, its success would mean little.
func TestCrashFindsPlantedBugs(t *testing.T) {
	for _, bug := range plantedBugs {
		t.Run(bug.name, func(t *testing.T) {
			var err error
			workloads := uint64(0)
			for ; err == nil && workloads < 40; workloads++ {
				c := newSimConfig(1000 + workloads)
				c.opts.Flush = FlushPolicy(workloads % 2) // FlushNone promises next to nothing
				if c.opts.Flush == FlushSync {
					c.opts.FlushInterval, c.opts.FlushBytes = 0, 0
				}
				c.failFlush = 0
				if bug.tune != nil {
					bug.tune(&c)
				}
				_, err = c.crash(bug.plant, func(x *crasher) { x.every, x.singles, x.randoms, x.inner, x.depth = 3, 3, 2, 1, 1 })
			}
			require.Error(t, err, "not found")
			require.Contains(t, err.Error(), bug.want)
			t.Logf("found in workload %d: %.200s", workloads, fmt.Sprint(err))
		})
	}
}
