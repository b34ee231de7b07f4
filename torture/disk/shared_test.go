//go:build linux

package disk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ext4 in all modes of its journal, and without one.
func ext4s() []FileSystem {
	journal, without := FileSystems[0], FileSystems[0]
	journal.Name, journal.Options = "ext4 journal", "data=journal"
	without.Name, without.Options = "ext4 without a journal", "norecovery"
	without.Mkfs = append([]string{"-O", "^has_journal"}, without.Mkfs...)
	return []FileSystem{FileSystems[0], FileSystems[1], journal, without}
}

// layouts are what a file holds, durably, before the data is written.
var layouts = []struct {
	name string
	make func(t *testing.T, f *os.File, size int64)
}{
	{"zeros", writeZeros},
	{"reserved", func(t *testing.T, f *os.File, size int64) {
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, size))
	}},
	{"nothing", func(*testing.T, *os.File, int64) {}},
	{"zeros that are copied by reference", func(t *testing.T, f *os.File, size int64) {
		writeZeros(t, f, size)
		require.NoError(t, f.Sync())
		if out, err := exec.Command("cp", "--reflink=always", f.Name(), f.Name()+".copy").CombinedOutput(); err != nil {
			t.Skipf("no copies by reference here: %s", bytes.TrimSpace(out))
		}
	}},
}

func writeZeros(t *testing.T, f *os.File, size int64) {
	_, err := f.WriteAt(make([]byte, size), 0)
	require.NoError(t, err)
}

// Data is written to files, sync_file_range sends it to the disk, and one fdatasync makes the disk empty its cache: then the
// power is cut. The engine relies on what this shows of zeros on ext4, whichever file the fdatasync is of. The other lines say
// why it relies on nothing else: they are told and not asserted, since other kernels may do better or worse.
func TestOneFlushForManyFiles(t *testing.T) {
	const files, size, pos = 8, 64 << 10, 3000
	data := bytes.Repeat(mark, 5000/len(mark))
	for _, f := range append(ext4s(), FileSystems[2:]...) {
		t.Run(f.Name, func(t *testing.T) {
			m := newMachine(t, f)
			for _, layout := range layouts {
				for _, by := range []string{"one of them", "another file"} {
					t.Run(layout.name+", "+by, func(t *testing.T) {
						m.boot(t, m.empty)
						open := make([]*os.File, files+1) // the last is the other file
						path := func(i int) string { return filepath.Join(m.mnt, fmt.Sprint(i)) }
						closeAll := func() {
							for _, f := range open {
								f.Close()
							}
						}
						defer closeAll() // before the next boot
						for i := range open {
							var err error
							open[i], err = os.Create(path(i))
							require.NoError(t, err)
							layout.make(t, open[i], size)
							require.NoError(t, open[i].Sync())
						}
						syncDir(t, m.mnt)
						for _, f := range open[:files] {
							const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
							_, err := f.WriteAt(data, pos)
							require.NoError(t, err)
							require.NoError(t, unix.SyncFileRange(int(f.Fd()), pos, int64(len(data)), all))
						}
						flushed := open[0]
						if by == "another file" {
							flushed = open[files]
						}
						require.NoError(t, unix.Fdatasync(int(flushed.Fd())))
						img := m.disk.PowerCut(nil)
						closeAll()
						m.boot(t, img)
						survived := 0
						for i := range files {
							b, _ := os.ReadFile(path(i))
							if len(b) >= pos+len(data) && bytes.Equal(b[pos:pos+len(data)], data) {
								survived++
							}
						}
						t.Logf("%d of %d files have their data", survived, files)
						if f.Type == "ext4" && layout.name == "zeros" {
							require.Equal(t, files, survived)
						}
					})
				}
			}
		})
	}
}

// A power cut leaves each of many logs, or a single one, with all that its appends have acknowledged, whichever file the disk was
// flushed by. Not on ext4 without a journal, of which a power cut damages directories and inodes.
func TestManyLogsAndAPowerCut(t *testing.T) {
	for _, f := range append(ext4s()[:3], FileSystems[2:]...) {
		for _, logs := range []int{1, 100} {
			t.Run(fmt.Sprintf("%s, %d", f.Name, logs), func(t *testing.T) { cutPowerOfMany(t, f, logs) })
		}
	}
}

func cutPowerOfMany(t *testing.T, f FileSystem, logs int) {
	rounds := 1
	if *all {
		rounds = 15
	}
	m := newMachine(t, f)
	m.boot(t, m.empty)
	c := start(t)
	defer func() { c.kill() }()
	q := request{Dir: filepath.Join(m.mnt, "logs"), Logs: logs, N: 20, Size: 300, Segment: 1 << 20}
	for range rounds {
		q.Op = "append to many"
		m.disk.SlowFlushes(0)
		c.must(q)                            // which makes the segments and lays zeros
		m.disk.SlowFlushes(time.Millisecond) // so that others wait meanwhile
		before := m.disk.Flushes()
		acked := c.must(q).Offsets
		img := m.disk.PowerCut(nil)
		flushes := m.disk.Flushes() - before
		if f.Type == "ext4" && logs > 1 {
			require.Less(t, flushes, logs*q.N/2, "no flush was shared")
		}
		t.Logf("%d flushes of the disk for %d appends", flushes, logs*q.N)
		m.disk.SlowFlushes(0)
		c.kill()
		m.boot(t, img)
		c = start(t)
		q.Op = "read many"
		for i, end := range c.must(q).Offsets {
			require.GreaterOrEqual(t, end, acked[i], "log %d", i)
		}
	}
}
