//go:build linux

package disk

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/seglog/seglog"
)

// fullDisks returns the file systems to fill, with 16 MiB where mkfs accepts that. btrfs takes long, and is included only with
// -all.
func fullDisks() (small []FileSystem) {
	for _, f := range FileSystems {
		if f.Name == "ext4 ordered" {
			f.Size = 16 << 20
		}
		if f.Name != "ext4 writeback" && (f.Type != "btrfs" || *all) {
			small = append(small, f)
		}
	}
	return small
}

// On a full disk, each call must succeed, or fail with ENOSPC and change nothing. The log must not fail, must be readable and
// open again, and the same call must succeed once there is room.
func TestFullDisk(t *testing.T) {
	ops := []struct {
		name string
		op   request
	}{
		{"append", request{Op: "append", N: 200, Size: 3000}}, // with rolls
		{"truncate", request{Op: "truncate", Seq: 150}},
		{"truncate over segments", request{Op: "truncate", Seq: 60}},
		{"reset", request{Op: "reset", Seq: 1000}},
		{"delete", request{Op: "delete", Seq: 130}},
		{"retain", request{Op: "retain"}},
		{"snapshot", request{Op: "snapshot"}},
		{"readonly", request{Op: "readonly"}},
		{"sync", request{Op: "sync"}},
		{"reopen", request{}},
	}
	for _, f := range fullDisks() {
		t.Run(f.Name, func(t *testing.T) {
			m := newMachine(t, f)
			for i, o := range ops {
				for policy := seglog.FlushSync; policy <= seglog.FlushNone; policy++ {
					if !*all && int(policy) != i%3 {
						continue
					}
					t.Run(fmt.Sprintf("%s, %v", o.name, policy), func(t *testing.T) {
						m.boot(t, m.empty)
						f := &fullDisk{scenario: scenario{m: m, t: t, policy: policy, dir: filepath.Join(m.mnt, "log"), stored: map[int64]int{}, durable: map[int64]int{}, c: start(t)}}
						defer func() { f.c.kill() }()
						f.run(o.op)
					})
				}
			}
		})
	}
}

type fullDisk struct {
	scenario
	filler string
}

func (f *fullDisk) run(op request) {
	t := f.t
	f.filler = filepath.Join(f.m.mnt, "filler")
	f.expire = op.Op == "retain"
	require.Empty(t, f.open(f.c).Err)
	require.Empty(t, f.append(200, 3000).Err)
	require.Empty(t, f.sync().Err)
	f.fill()
	f.try(op)
	f.again("", f.read())
	if op.Op != "reset" && op.Op != "truncate" {
		f.present()
	}
	// Open the log on a full disk.
	closed := f.c.do(request{Op: "close"})
	f.passes("close", closed)
	f.fill()
	f.openFull()
	f.again("", f.read())
	f.passes("append", f.append(1, 3000))

	// DeleteBefore frees room for the log, except on a file system that writes nothing in place, where another file must go.
	bounds := f.c.must(request{Op: "read"}).Offsets
	if len(bounds) > 100 {
		a := f.c.do(request{Op: "delete", Seq: int(bounds[100])})
		f.passes("delete", a)
		if a.Err == "" {
			f.forget(bounds[100])
			if !f.copies() {
				f.again("append to the room that DeleteBefore has freed", f.appended(func() reply { return f.append(1, 3000) }))
			}
		}
	}
	if err := os.Remove(f.filler); err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	syncDir(t, f.m.mnt)
	f.again("append once there is room", f.appended(func() reply { return f.append(20, 3000) }))
	f.again("sync", f.sync())
	if op.Op != "" && op.Op != "append" {
		if op.Op == "truncate" || op.Op == "delete" {
			now := f.c.must(request{Op: "read"}).Offsets
			op.Seq = int(now[len(now)/2])
		}
		require.Empty(t, f.call(op).Err, "%s once there is room", op.Op)
	}
	f.c.must(request{Op: "read"})
	f.c.must(request{Op: "close"})
	f.c.must(request{Op: "verify", Dir: f.dir})
}

// fill uses up all free space.
func (f *fullDisk) fill() {
	file, err := os.OpenFile(f.filler, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(f.t, err)
	defer file.Close()
	at, err := file.Seek(0, io.SeekEnd)
	require.NoError(f.t, err)
	for size := int64(64 << 20); size >= blockSize; {
		if err = unix.Fallocate(int(file.Fd()), 0, at, size); err == nil {
			at += size
			continue
		}
		require.ErrorIs(f.t, err, syscall.ENOSPC)
		size /= 2
	}
	require.NoError(f.t, file.Sync())
}

// openFull checks that the log opens on a full disk. On a file system that writes nothing in place, not even the state file
// can be written; there another file must go first.
func (f *fullDisk) openFull() {
	a := f.open(f.c)
	if a.Err != "" && f.copies() {
		f.passes("open", a)
		require.Empty(f.t, f.c.do(request{Op: "readonly", Dir: f.dir}).Err)
		require.NoError(f.t, os.Remove(f.filler))
		syncDir(f.t, f.m.mnt)
		a = f.open(f.c)
	}
	require.Empty(f.t, a.Err, "open on a full disk")
}

// copies reports whether a write in place needs room on the file system.
func (f *fullDisk) copies() bool { return f.m.fs.Type == "btrfs" }

func (f *fullDisk) call(op request) reply {
	switch op.Op {
	case "":
		f.passes("close", f.c.do(request{Op: "close"}))
		return f.open(f.c)
	case "append":
		return f.append(op.N, op.Size)
	case "snapshot":
		f.seq++
		op.Dir = filepath.Join(f.m.mnt, fmt.Sprint("snapshot", f.seq))
	case "readonly":
		op.Dir = f.dir
	}
	return f.c.do(op)
}

// try does op on the full disk.
func (f *fullDisk) try(op request) {
	a := f.call(op)
	f.passes(op.Op, a)
	if a.Err != "" {
		f.t.Log(a.Err)
	}
	switch op.Op {
	case "":
		if a.Err != "" {
			f.openFull()
		}
	case "readonly":
		require.Empty(f.t, a.Err)
	}
	if a.Err == "" && op.Op == "delete" {
		f.forget(int64(op.Seq))
	}
	if op.Op == "retain" {
		start := f.read().Start
		require.True(f.t, start > 0 || f.copies(), "retention deleted nothing: %s", a.Err)
		f.forget(start)
	}
}

// passes checks that a call succeeded, or failed with ENOSPC without latching the log. On btrfs a flush may meet a full disk too, and then
// the log must fail.
func (f *fullDisk) passes(what string, a reply) {
	f.t.Helper()
	if a.Latched && f.copies() && strings.Contains(a.Err, ": fdatasync ") {
		f.t.Log(a.Err)
		f.c.do(request{Op: "close"})
		f.openFull()
		return
	}
	require.False(f.t, a.Latched, "%s: the log has failed: %s", what, a.Err)
	if a.Err != "" {
		require.Equal(f.t, syscall.ENOSPC, a.Errno, "%s: %s", what, a.Err)
	}
}

func (f *fullDisk) again(what string, a reply) {
	f.t.Helper()
	require.Empty(f.t, a.Err, what)
}

func (f *fullDisk) read() reply { return f.c.do(request{Op: "read"}) }

// appended calls do repeatedly until it succeeds: file systems free blocks when they write their journal, and the log deletes
// a segment that waits for its seal in the background.
func (f *fullDisk) appended(do func() reply) (a reply) {
	for began := time.Now(); time.Since(began) < 30*time.Second; {
		if a = do(); a.Err == "" {
			return a
		}
		f.passes("append", a)
		syncDir(f.t, f.m.mnt)
		f.c.must(request{Op: "write back", Dir: f.m.mnt})
	}
	return a
}

func (f *fullDisk) forget(below int64) {
	for offset := range f.durable {
		if offset < below {
			delete(f.durable, offset)
		}
	}
}

// present checks that the log holds all acknowledged records.
func (f *fullDisk) present() {
	f.t.Helper()
	a := f.c.must(request{Op: "read"})
	found := map[int64]int{}
	for i, offset := range a.Offsets {
		found[offset] = a.Seqs[i]
	}
	for _, acknowledged := range []map[int64]int{f.durable, f.stored} {
		for offset, seq := range acknowledged {
			got, ok := found[offset]
			require.True(f.t, ok && got == seq, "offset %d was acknowledged and is lost", offset)
		}
	}
}
