package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/internal/commit"
	"github.com/seglog/seglog/internal/vfs"
)

// Reserve allocates blocks with fallocate(2), on the file systems where that keeps a later store from failing. It does not
// on copy-on-write and network file systems (btrfs after a snapshot, NFS, FUSE), so files there are written by pwrite.
// https://man7.org/linux/man-pages/man2/fallocate.2.html
func (f osFile) Reserve(pos, n int64) error {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(f.Fd()), &st) }); err != nil {
		return pathError("fstatfs", f.Name(), err)
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
	default:
		return pathError("fallocate", f.Name(), errors.ErrUnsupported)
	}
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, pos, n) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = errors.ErrUnsupported
	}
	return pathError("fallocate", f.Name(), err)
}

// zeros is written by one call: from 1 MiB on, ext4 and XFS use large folios, of which one page fault maps many pages.
var zeros [1 << 20]byte

func (f osFile) Zero(pos, n int64) error {
	for end := pos + n; pos < end; {
		k, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-pos)], pos)
		if err != nil {
			return err
		}
		pos += int64(k)
	}
	return nil
}

// Alone reports whether nobody but f can see the file change. It takes a write lease for a moment, which the kernel grants
// only on a file that nobody else has open. A mapping counts even after its descriptor is closed, a page in a socket does not. https://man7.org/linux/man-pages/man2/F_SETLEASE.2const.html
func (f osFile) Alone() (bool, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return false, pathError("fstat", f.Name(), err)
	}
	if st.Nlink > 1 || wasLent(f.File) {
		return false, nil
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return false, nil // somebody else has it open, or the file system has no leases
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil, pathError("fcntl", f.Name(), err)
}

// fileID is the identity of a file.
type fileID struct{ device, inode uint64 }

// lentFiles are the files of which this process gave pages to a socket, those of logs that were closed since included: what
// waits in a socket is sent when its peer takes it, be that hours later. There are two generations, so that the memory is
// bounded; the file of a log that is still open is known by segment.lent as well.
var lentFiles struct {
	mu         sync.Mutex
	young, old map[fileID]struct{}
	unknown    bool // of a file its identity
}

// maxLentFiles bounds a generation.
const maxLentFiles = 1 << 15

// lend notes that pages of f are about to be given to a socket.
func lend(f *os.File) {
	id, err := identify(f)
	lentFiles.mu.Lock()
	defer lentFiles.mu.Unlock()
	if err != nil {
		lentFiles.unknown = true
		return
	}
	if len(lentFiles.young) >= maxLentFiles {
		lentFiles.old, lentFiles.young = lentFiles.young, nil
	}
	if lentFiles.young == nil {
		lentFiles.young = make(map[fileID]struct{})
	}
	lentFiles.young[id] = struct{}{}
}

// wasLent reports whether a socket may hold pages of f.
func wasLent(f *os.File) bool {
	id, err := identify(f)
	lentFiles.mu.Lock()
	defer lentFiles.mu.Unlock()
	_, young := lentFiles.young[id]
	_, old := lentFiles.old[id]
	return err != nil || young || old || lentFiles.unknown
}

// isNew forgets the file that had the inode of f before f was created.
func isNew(f *os.File) {
	if f == nil {
		return
	}
	if id, err := identify(f); err == nil {
		lentFiles.mu.Lock()
		defer lentFiles.mu.Unlock()
		delete(lentFiles.young, id)
		delete(lentFiles.old, id)
	}
}

// mayCutInPlace is what can be known of osFile.Alone while this process has f open otherwise, too. f is nil if it is no file of
// the system's.
func mayCutInPlace(f *os.File) bool {
	if f == nil {
		return true
	}
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) })
	return err == nil && st.Nlink == 1 && !wasLent(f)
}

func identify(f *os.File) (fileID, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) })
	return fileID{uint64(st.Dev), st.Ino}, err
}

func (f osFile) StartWriteBack(pos, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), pos, n, unix.SYNC_FILE_RANGE_WRITE) // WriteBack reports the error
}

// https://man7.org/linux/man-pages/man2/sync_file_range.2.html
func (f osFile) WriteBack(pos, n int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := retry(func() error { return unix.SyncFileRange(int(f.Fd()), pos, n, all) })
	if err == unix.ENOSYS || err == unix.EINVAL || err == unix.ESPIPE || err == unix.EPERM {
		err = errors.ErrUnsupported // the file system can't, or a sandbox forbids it
	}
	return pathError("sync_file_range", f.Name(), err)
}

// devices holds a *commit.Device for each device on which there is a file system that lets files share flushes.
var devices sync.Map

// Device returns a device for a file on ext4. There, blocks that were written and flushed before stay where they are when they
// are written again, so that nothing but the data itself has to reach the disk, and fdatasync of any file makes the disk empty
// its cache, also if that file has not changed (ext4_sync_file). Neither is so on XFS, where a file that was copied by reference
// gets new blocks, which only a flush of that file makes part of it, nor on btrfs, where all writes do. torture/disk shows it.
func (f osFile) Device() *commit.Device {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(f.Fd()), &st) }); err != nil {
		return nil
	}
	id, err := identify(f.File)
	if err != nil || uint32(st.Type) != unix.EXT4_SUPER_MAGIC || !writesBackAll() || f.journalsData() {
		return nil
	}
	if d, ok := devices.Load(id.device); ok {
		return d.(*commit.Device)
	}
	d, _ := devices.LoadOrStore(id.device, commit.NewDevice())
	return d.(*commit.Device)
}

// journalsData reports whether ext4 writes the data of the file to its journal because the file asks for it (chattr +j), or whether
// that is not known. The flush of another file need not make durable what is in the journal.
func (f osFile) journalsData() bool {
	const journalData = 0x4000 // FS_JOURNAL_DATA_FL in linux/fs.h
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err != nil || flags&journalData != 0
}

func (l fileLock) Disk() uint64 {
	id, _ := identify(l.f)
	return id.device
}

// Quiet returns the lock file if it is on the device of f, a file for which Device returned one, unless ext4 writes all data to its journal there
// (data=journal): it does not end a transaction of the journal in which the flushed file has no part. Otherwise it flushes the device, even if it
// has nothing to write itself (ext4_sync_file, needs_barrier).
func (l fileLock) Quiet(f vfs.File) commit.Flusher {
	its, err := identify(f.OSFile())
	if err != nil {
		return nil
	}
	own, err := identify(l.f)
	if err != nil || own.device != its.device || mountJournalsData(own.device) {
		return nil
	}
	return osFile{l.f}
}

// mountJournalsData reports whether the ext4 file system on the device was mounted with data=journal, or whether that is not known.
func mountJournalsData(device uint64) bool {
	disk, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(device), unix.Minor(device)))
	if err != nil {
		return true
	}
	options, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(disk) + "/options")
	return err != nil || bytes.Contains(options, []byte("data=journal"))
}

// writesBackAll reports whether sync_file_range sends each page of the range to the disk. Before Linux 5.2 it could pass over
// pages, as the write-back by the kernel itself may (commit c553ea4fdf27).
var writesBackAll = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n < 2 {
		return false
	}
	return major > 5 || major == 5 && minor >= 2
})

// The calls that wait for the disk. A test replaces them by calls that take a known time.
var fdatasync, fsync = unix.Fdatasync, unix.Fsync

func (f osFile) Flush() error {
	flushCalls.Enter()
	defer flushCalls.Leave()
	return pathError("fdatasync", f.Name(), retry(func() error { return fdatasync(int(f.Fd())) }))
}

func (d openDirectory) Sync() error {
	flushCalls.Enter()
	defer flushCalls.Leave()
	return pathError("fsync", d.f.Name(), retry(func() error { return fsync(int(d.f.Fd())) }))
}

// uncache drops the clean pages of [pos, pos+n) from the page cache; n = 0 means up to the end.
// https://man7.org/linux/man-pages/man2/posix_fadvise.2.html
func uncache(f *os.File, pos, n int64) { _ = unix.Fadvise(int(f.Fd()), pos, n, unix.FADV_DONTNEED) }

// memoryLimit returns how much memory this process may use, the page cache of its files included: that of the machine, or the
// limit of its control groups. https://docs.kernel.org/admin-guide/cgroup-v2.html
func memoryLimit() int64 {
	limit := int64(math.MaxInt64)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		limit = int64(info.Totalram) * int64(info.Unit)
	}
	groups, _ := os.ReadFile("/proc/self/cgroup") // if it can't be read, the memory of the machine counts
	for line := range strings.Lines(string(groups)) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(line, ":")
		root, file := "/sys/fs/cgroup", "memory.max"
		if controllers != "" {
			if !slices.Contains(strings.Split(controllers, ","), "memory") {
				continue
			}
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes" // version 1
		}
		for ; ; path = filepath.Dir(path) { // the limits of the groups above hold, too
			b, _ := os.ReadFile(filepath.Join(root, path, file))
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
				limit = min(limit, n)
			}
			if path == "/" || path == "." {
				break
			}
		}
	}
	return limit
}

func openFileLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return math.MaxInt
	}
	return int(min(lim.Cur, 1<<30))
}
