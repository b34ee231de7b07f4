//go:build linux

// Package disk is a disk for tests on real file systems: a file of a FUSE file system in memory, to be the backing file of a
// loop device. It has what a test can't ask of a real one: a volatile cache, of which a power cut leaves only what was
// flushed, and writes that fail for a moment.
package disk

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const blockSize = 4096

// block is never changed once it is in an Image, so that images share blocks.
type block = [blockSize]byte

// Image is the contents of a disk: its blocks that are not zero, by their number.
type Image map[int64]*block

// Disk is a disk of a fixed size. Its methods may be called from any goroutine, but not from a process that maps files
// which lie on it: a page fault would wait for a goroutine that the garbage collector has stopped.
type Disk struct {
	fs.Inode
	dir    string
	size   int64
	server *fuse.Server

	mu      sync.Mutex
	cached  Image          // what a read sees
	flushed Image          // what a power cut leaves
	dirty   map[int64]bool // where they may differ
	doomed  []byte         // writes of blocks that hold this fail
	failed  int            // so many did
	flushes int
	takes   time.Duration // a flush
}

// New makes an empty disk of size bytes, whose file appears in the directory dir, which exists and is empty.
func New(dir string, size int64) (*Disk, error) {
	d := &Disk{dir: dir, size: size, cached: Image{}, flushed: Image{}, dirty: map[int64]bool{}}
	root := &directory{disk: d}
	server, err := fs.Mount(dir, root, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, MaxWrite: 1 << 20, MaxBackground: 64, Name: "disk", DisableXAttrs: true,
	}})
	if err != nil {
		return nil, err
	}
	d.server = server
	return d, nil
}

// Path names the file that a loop device takes.
func (d *Disk) Path() string { return filepath.Join(d.dir, "disk") }

// Close takes the file away. Nothing may use it any more.
func (d *Disk) Close() error { return d.server.Unmount() }

// FailWrites makes writes of blocks that hold mark fail with EIO, until it is called with nil. A mark in the data of a test
// keeps the failure away from the metadata of the file system, which would stop at it.
func (d *Disk) FailWrites(mark []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doomed = mark
}

// Failed is how many writes have failed.
func (d *Disk) Failed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// SlowFlushes makes each flush take d.
func (d *Disk) SlowFlushes(takes time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.takes = takes
}

// Flushes is how often the disk has emptied its cache.
func (d *Disk) Flushes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// PowerCut returns what the disk could hold if the power failed now: what was written before the last flush, and of the
// blocks written since those that keep returns true for. A nil keep is none of them.
func (d *Disk) PowerCut(keep func() bool) Image {
	d.mu.Lock()
	defer d.mu.Unlock()
	img := maps.Clone(d.flushed)
	if keep != nil {
		for _, number := range slices.Sorted(maps.Keys(d.dirty)) {
			if keep() {
				d.put(img, number, d.cached[number])
			}
		}
	}
	return img
}

// Load makes img the contents of the disk, which is not in use.
func (d *Disk) Load(img Image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cached, d.flushed, d.dirty = maps.Clone(img), maps.Clone(img), map[int64]bool{}
}

func (d *Disk) read(dest []byte, pos int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	dest = dest[:max(0, min(int64(len(dest)), d.size-pos))]
	for n := 0; n < len(dest); {
		at := pos + int64(n)
		part := dest[n:min(len(dest), n+blockSize-int(at%blockSize))]
		if b := d.cached[at/blockSize]; b != nil {
			copy(part, b[at%blockSize:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return len(dest)
}

func (d *Disk) write(data []byte, pos int64) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if pos+int64(len(data)) > d.size {
		return syscall.ENOSPC
	}
	if d.doomed != nil && bytes.Contains(data, d.doomed) {
		d.failed++
		return syscall.EIO
	}
	for n := 0; n < len(data); {
		at := pos + int64(n)
		part := data[n:min(len(data), n+blockSize-int(at%blockSize))]
		b := new(block)
		if old := d.cached[at/blockSize]; old != nil {
			*b = *old
		}
		copy(b[at%blockSize:], part)
		d.put(d.cached, at/blockSize, b)
		d.dirty[at/blockSize] = true
		n += len(part)
	}
	return 0
}

func (d *Disk) put(img Image, number int64, b *block) {
	if b == nil || *b == (block{}) {
		delete(img, number)
	} else {
		img[number] = b
	}
}

func (d *Disk) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	for number := range d.dirty {
		d.put(d.flushed, number, d.cached[number])
	}
	clear(d.dirty)
}

// directory is the root of the file system, which holds the one file.
type directory struct {
	fs.Inode
	disk *Disk
}

func (r *directory) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.disk, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

// The operations of the file.
var (
	_ fs.NodeGetattrer = (*Disk)(nil)
	_ fs.NodeSetattrer = (*Disk)(nil)
	_ fs.NodeOpener    = (*Disk)(nil)
	_ fs.NodeReader    = (*Disk)(nil)
	_ fs.NodeWriter    = (*Disk)(nil)
	_ fs.NodeFsyncer   = (*Disk)(nil)
)

// Getattr is part of the FUSE file.
func (d *Disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o600
	out.Size = uint64(d.size)
	out.Blksize = blockSize
	return 0
}

// Setattr is part of the FUSE file, whose attributes do not change.
func (d *Disk) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && int64(size) != d.size {
		return syscall.EPERM
	}
	return d.Getattr(ctx, f, out)
}

// Open is part of the FUSE file. The kernel keeps no cache of it, so that Load is seen at once.
func (d *Disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read is part of the FUSE file.
func (d *Disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, pos int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(dest[:d.read(dest, pos)]), 0
}

// Write is part of the FUSE file.
func (d *Disk) Write(_ context.Context, _ fs.FileHandle, data []byte, pos int64) (uint32, syscall.Errno) {
	if errno := d.write(data, pos); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

// Fsync is part of the FUSE file: what becomes of the FLUSH of a loop device.
func (d *Disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	takes := d.takes
	d.mu.Unlock()
	time.Sleep(takes)
	d.flush()
	return 0
}

// Available says why there can be no such disk here, or nil.
func Available() error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}
