//go:build linux

package disk

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

var all = flag.Bool("all", false, "run each variant at every point, not a sample")

// machine is a disk with a file system on it.
type machine struct {
	t     *testing.T
	fs    FileSystem
	disk  *Disk
	mnt   string
	empty Image // the new file system
	up    bool  // it is mounted
}

func newMachine(t *testing.T, f FileSystem) *machine {
	if err := Available(); err != nil {
		t.Skip("simulated disks are not available here:", err)
	}
	dir := t.TempDir()
	m := &machine{t: t, fs: f, mnt: filepath.Join(dir, "mnt")}
	require.NoError(t, os.Mkdir(m.mnt, 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dev"), 0o700))
	var err error
	if m.disk, err = New(filepath.Join(dir, "dev"), f.Size); err != nil {
		t.Skip("FUSE is not available here:", err)
	}
	t.Cleanup(func() { require.NoError(t, m.disk.Close()) })
	t.Cleanup(m.unmount)
	if err := f.Make(m.disk); err != nil {
		t.Skip("this file system is not available here:", err)
	}
	m.disk.flush()
	m.empty = m.disk.PowerCut(nil)
	if err := f.Mount(m.disk, m.mnt); err != nil {
		t.Skip("no file system of this kind here:", err)
	}
	m.up = true
	return m
}

func (m *machine) unmount() {
	if m.up {
		require.NoError(m.t, Unmount(m.mnt))
		m.up = false
	}
}

// boot loads the image into the disk and mounts it. No process may use the previous file system any more.
func (m *machine) boot(t *testing.T, img Image) {
	m.unmount()
	m.disk.FailWrites(nil)
	m.disk.Load(img)
	require.NoError(t, m.fs.Mount(m.disk, m.mnt))
	m.up = true
}

// scenario is the life of a log whose disk fails for a moment.
type scenario struct {
	m       *machine
	t       *testing.T
	c       *child
	policy  seglog.FlushPolicy
	dir     string
	expire  bool
	seq     int
	stored  map[int64]int // by offset, the records acknowledged since the last flush
	durable map[int64]int // by offset, the records that must survive a power cut
}

func (s *scenario) open(c *child) reply {
	return c.do(request{Op: "open", Dir: s.dir, Policy: s.policy, Segment: 256 << 10, Expire: s.expire})
}

// append appends n records, and notes those that were acknowledged.
func (s *scenario) append(n, size int) reply {
	a := s.c.do(request{Op: "append", Seq: s.seq, N: n, Size: size})
	for i, offset := range a.Offsets {
		s.stored[offset] = s.seq + i
	}
	s.seq += n
	if s.policy == seglog.FlushSync {
		s.promise()
	}
	return a
}

func (s *scenario) sync() reply {
	a := s.c.do(request{Op: "sync"})
	if a.Err == "" {
		s.promise()
	}
	return a
}

func (s *scenario) promise() {
	for offset, seq := range s.stored {
		s.durable[offset] = seq
	}
	clear(s.stored)
}

// reopen opens the log in the same boot, and appends and flushes until that succeeds. By then, all records that the log shows
// must be durable: a reader may have acted on them. A write error that no process was told of yet may be reported now and make
// the log fail again.
func (s *scenario) reopen() {
	for range 3 {
		clear(s.stored)
		if a := s.open(s.c); a.Err != "" {
			s.t.Log("open:", a.Err)
			continue
		}
		shown := s.c.must(request{Op: "read"})
		for offset, seq := range s.durable {
			require.Contains(s.t, shown.Offsets, offset, "record %d is lost even before the power cut", seq)
		}
		for i, offset := range shown.Offsets {
			s.stored[offset] = shown.Seqs[i]
		}
		a := s.append(5, 3000)
		if a.Err == "" {
			a = s.sync()
		}
		if a.Err == "" {
			return
		}
		require.True(s.t, a.Latched, a.Err)
		s.t.Log("again:", a.Err)
		s.c.do(request{Op: "close"})
	}
	s.t.Fatal("the disk works again, but the log does not")
}

// cut cuts the power and checks for all durable records: once if no unflushed write survives, and once if some do.
func (s *scenario) cut() {
	rng := rand.New(rand.NewPCG(uint64(s.seq), 1))
	images := []Image{s.m.disk.PowerCut(nil), s.m.disk.PowerCut(func() bool { return rng.IntN(2) == 0 })}
	s.c.kill()
	seq, durable := s.seq, maps.Clone(s.durable)
	for _, img := range images {
		s.seq, s.durable, s.stored = seq, maps.Clone(durable), map[int64]int{}
		s.check(img)
	}
}

func (s *scenario) check(img Image) {
	s.m.boot(s.t, img)
	s.c = start(s.t)
	a := s.open(s.c)
	require.Empty(s.t, a.Err, "open after the power cut, with %d durable records", len(s.durable))
	found := map[int64]int{}
	a = s.c.must(request{Op: "read"})
	for i, offset := range a.Offsets {
		require.Equal(s.t, int64(i), offset, "a missing record")
		found[offset] = a.Seqs[i]
	}
	for offset, seq := range s.durable {
		got, ok := found[offset]
		require.True(s.t, ok, "offset %d was acknowledged as durable, but is lost: found %d of %d", offset, len(found), len(s.durable))
		require.Equal(s.t, seq, got, "another record at offset %d", offset)
	}
	a = s.append(3, 3000)
	require.Empty(s.t, a.Err)
	s.c.must(request{Op: "sync"})
	s.c.must(request{Op: "verify", Dir: s.dir})
	s.c.must(request{Op: "close"})
	s.c.must(request{Op: "verify", Dir: s.dir})
	s.c.kill()
}

// variants are the ways in which the failure hits the log. Each ends with a log that works again in the same boot.
var variants = []struct {
	name string
	// the flush policies under which such a failure is possible
	policies []seglog.FlushPolicy
	run      func(s *scenario)
}{
	// A flush that the log asked for fails.
	{"flush", []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone}, func(s *scenario) {
		s.failFlush()
		s.c.do(request{Op: "close"})
		s.reopen()
	}},
	// The same, and the process is killed as soon as it has reported the failure.
	{"flush, kill", []seglog.FlushPolicy{seglog.FlushSync, seglog.FlushAsync, seglog.FlushNone}, func(s *scenario) {
		s.failFlush()
		s.c.kill()
		s.c = start(s.t)
		s.reopen()
	}},
	// A write-back by the kernel fails. The next flush of the log has nothing to write, and must fail all the same.
	{"write-back", []seglog.FlushPolicy{seglog.FlushAsync, seglog.FlushNone}, func(s *scenario) {
		s.failWriteBack()
		if a := s.sync(); a.Err == "" {
			s.t.Error("Sync returned nil after a failed write-back")
		} else {
			require.True(s.t, a.Latched, a.Err)
		}
		s.c.do(request{Op: "close"})
		s.reopen()
	}},
	// After the failed write-back, enough is appended for a roll, for blocks to be reserved and zeroed, and for a seal.
	{"write-back, more", []seglog.FlushPolicy{seglog.FlushAsync, seglog.FlushNone}, func(s *scenario) {
		s.failWriteBack()
		a := s.append(120, 3000)
		if a.Err == "" {
			a = s.sync()
		}
		if a.Err == "" {
			s.t.Error("Sync returned nil after a failed write-back")
		} else {
			require.True(s.t, a.Latched, a.Err)
		}
		s.c.do(request{Op: "close"})
		s.reopen()
	}},
	// The process is killed before it learns of the failed write-back.
	{"write-back, kill", []seglog.FlushPolicy{seglog.FlushAsync, seglog.FlushNone}, func(s *scenario) {
		s.failWriteBack()
		s.c.kill()
		s.c = start(s.t)
		s.reopen()
	}},
}

// failFlush appends and flushes while the disk fails, and checks that the log has failed.
func (s *scenario) failFlush() {
	before := s.m.disk.Failed()
	s.m.disk.FailWrites(mark)
	a := s.append(5, 3000)
	if a.Err == "" {
		a = s.sync()
	}
	s.m.disk.FailWrites(nil)
	require.Greater(s.t, s.m.disk.Failed(), before, "the disk did not fail")
	require.NotEmpty(s.t, a.Err, "the disk failed, but the log acknowledged the records")
	a = s.append(1, 3000)
	require.True(s.t, a.Latched, "the log continues after a failed flush: %s", a.Err)
}

// failWriteBack appends records, and makes the kernel write them back while the disk fails.
func (s *scenario) failWriteBack() {
	before := s.m.disk.Failed()
	a := s.append(5, 3000)
	require.Empty(s.t, a.Err)
	s.m.disk.FailWrites(mark)
	s.c.must(request{Op: "write back", Dir: s.dir})
	s.m.disk.FailWrites(nil)
	require.Greater(s.t, s.m.disk.Failed(), before, "the disk did not fail")
}

// If a write fails and the log is opened again in the same boot, all records that it then acknowledges as durable must survive
// a power cut, whatever the file system does with pages whose write has failed.
func TestReopenAfterFailedWrites(t *testing.T) {
	for _, f := range FileSystems {
		t.Run(f.Name, func(t *testing.T) {
			m := newMachine(t, f)
			points := []int{0, 7, 100} // with the first records of a log, after a few records, and after a roll
			for i, v := range variants {
				for j, policy := range v.policies {
					for k, before := range points {
						if !*all && k != (i+j)%len(points) {
							continue
						}
						t.Run(fmt.Sprintf("%s, %v, at %d", v.name, policy, before), func(t *testing.T) {
							m.boot(t, m.empty)
							s := &scenario{m: m, t: t, policy: policy, dir: filepath.Join(m.mnt, "log"), stored: map[int64]int{}, durable: map[int64]int{}, c: start(t)}
							defer func() { s.c.kill() }() // before the next boot
							require.Empty(t, s.open(s.c).Err)
							require.Empty(t, s.append(before, 3000).Err)
							require.Empty(t, s.sync().Err)
							v.run(s)
							s.cut()
						})
					}
				}
			}
		})
	}
}
