package seglog

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/vfs"
)

// liar is a simulated file system with a bug planted between it and the engine: each function that is not nil replaces a method.
type liar struct {
	*simFS
	flushFile    func(f *simFile) error
	syncNames    func() error
	truncateFile func(f *simFile, size int64) error
	crowded      bool // every file appears to be in use by others, so that cuts copy it
	writeFile    func(f *simFile, p []byte, pos int64) (int, error)
	readFile     func(f *simFile, p []byte, pos int64) (int, error)
	moveFile     func(from, to string) error
}

type liarFile struct {
	*simFile
	l *liar
}

func (l *liar) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := l.simFS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return &liarFile{f.(*simFile), l}, nil
}

func (l *liar) SyncDir(dir string) error {
	if l.syncNames != nil {
		return l.syncNames()
	}
	return l.simFS.SyncDir(dir)
}

func (l *liar) OpenDir(dir string) (vfs.Directory, error) {
	if _, err := l.simFS.OpenDir(dir); err != nil {
		return nil, err
	}
	return simDirectory{l, dir}, nil
}

func (l *liar) Rename(from, to string) error {
	if l.moveFile != nil {
		return l.moveFile(from, to)
	}
	return l.simFS.Rename(from, to)
}

func (f *liarFile) Alone() (bool, error) {
	alone, err := f.simFile.Alone()
	return alone && !f.l.crowded, err
}

func (f *liarFile) Flush() error {
	if f.l.flushFile != nil {
		return f.l.flushFile(f.simFile)
	}
	return f.simFile.Flush()
}

func (f *liarFile) Truncate(size int64) error {
	if f.l.truncateFile != nil {
		return f.l.truncateFile(f.simFile, size)
	}
	return f.simFile.Truncate(size)
}

func (f *liarFile) WriteAt(p []byte, pos int64) (int, error) {
	if f.l.writeFile != nil {
		return f.l.writeFile(f.simFile, p, pos)
	}
	return f.simFile.WriteAt(p, pos)
}

func (f *liarFile) ReadAt(p []byte, pos int64) (int, error) {
	if f.l.readFile != nil {
		return f.l.readFile(f.simFile, p, pos)
	}
	return f.simFile.ReadAt(p, pos)
}

func isLog(name string) bool {
	return strings.HasSuffix(name, logSuffix) || name == nextName || name == rollName
}

// lazyFlush acknowledges each flush, but carries it out only at the next flush.
func lazyFlush(s *simFS) vfs.FS {
	var mu sync.Mutex
	var due *simFile
	return &liar{simFS: s, flushFile: func(f *simFile) error {
		mu.Lock()
		defer mu.Unlock()
		if due != nil && !due.closed {
			if err := due.Flush(); err != nil {
				return err
			}
		}
		due = f
		return nil
	}}
}

// unlessCut skips the first flush of a file after each truncation, which then may not reach the disk.
func unlessCut(s *simFS) vfs.FS {
	var mu sync.Mutex
	cut := map[int]bool{}
	return &liar{simFS: s,
		truncateFile: func(f *simFile, size int64) error {
			mu.Lock()
			defer mu.Unlock()
			cut[f.node] = true
			return f.Truncate(size)
		},
		flushFile: func(f *simFile) error {
			mu.Lock()
			defer mu.Unlock()
			if cut[f.node] {
				delete(cut, f.node)
				return nil
			}
			return f.Flush()
		}}
}

// tamper changes batches as they are read, and corrects their CRCs. To the engine this looks as damage would if it did not check
// CRCs.
func tamper(change func(b batch)) func(s *simFS) vfs.FS {
	return func(s *simFS) vfs.FS {
		l := &liar{simFS: s}
		l.readFile = func(f *simFile, p []byte, pos int64) (int, error) {
			n, err := f.ReadAt(p, pos)
			if !isLog(f.name) {
				return n, err
			}
			s.mu.Lock()
			whole := append([]byte(nil), f.content()...)
			s.mu.Unlock()
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
	plant func(s *simFS) vfs.FS
	tune  func(c *simConfig)
	want  string // if not empty, a part of the error
}{
	{name: "no flush", plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, flushFile: func(*simFile) error { return nil }}
	}},
	{name: "acknowledged before the flush", plant: lazyFlush},
	{name: "no flush of the segments, only of the state", plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, flushFile: func(f *simFile) error {
			if isLog(f.name) {
				return nil
			}
			return f.Flush()
		}}
	}},
	{name: "no flush of the state", plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, flushFile: func(f *simFile) error {
			if f.name == stateName {
				return nil
			}
			return f.Flush()
		}}
	}},
	{name: "no directory sync", plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, syncNames: func() error { return nil }}
	}},
	{name: "a failed flush is tried again", tune: func(c *simConfig) { c.failFlush = 3 + int(c.seed%20) },
		plant: func(s *simFS) vfs.FS {
			return &liar{simFS: s, flushFile: func(f *simFile) error {
				if f.Flush() != nil {
					return f.Flush()
				}
				return nil
			}}
		}},
	{name: "a cut without a flush", plant: unlessCut},
	{name: "a rename in two steps", plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, crowded: true, moveFile: func(from, to string) error {
			ignore(s.Remove(to))
			ignore(s.SyncDir(""))
			return s.Rename(from, to)
		}}
	}},
	{name: "a lost write", tune: func(c *simConfig) { c.mapped = false }, plant: func(s *simFS) vfs.FS {
		return &liar{simFS: s, writeFile: func(f *simFile, p []byte, pos int64) (int, error) {
			if isLog(f.name) && pos > 3000 {
				return len(p), nil
			}
			return f.WriteAt(p, pos)
		}}
	}},
	{name: "no CRC", tune: func(c *simConfig) { c.mapped = false }, want: "wrong bytes",
		plant: tamper(func(b batch) { b[len(b)-2] ^= 1 })},
	{name: "a CRC that is not bound to its place", tune: func(c *simConfig) { c.mapped = false }, want: "wrong bytes",
		plant: func() func(s *simFS) vfs.FS {
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
