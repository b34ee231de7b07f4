package seglog

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// retry repeats a system call that a signal interrupted: the Go runtime preempts by signals.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// reserve allocates blocks with fallocate(2), on the file systems where that keeps a later store from failing. On
// copy-on-write and network file systems it does not (btrfs after a snapshot, NFS, FUSE), so those are written by
// pwrite. https://man7.org/linux/man-pages/man2/fallocate.2.html
func (f osFile) reserve(pos, n int64) error {
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

// zeros is written at once: from 1 MiB on, ext4 and XFS put them into large folios, which a store faults in whole.
var zeros [1 << 20]byte

func (f osFile) zero(pos, n int64) error {
	for end := pos + n; pos < end; {
		k, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-pos)], pos)
		if err != nil {
			return err
		}
		pos += int64(k)
	}
	return nil
}

func (f osFile) flush() error {
	return pathError("fdatasync", f.Name(), retry(func() error { return unix.Fdatasync(int(f.Fd())) }))
}

func (osFS) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return pathError("fsync", dir, retry(func() error { return unix.Fsync(int(d.Fd())) }))
}

func openFileLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return math.MaxInt
	}
	return int(min(lim.Cur, 1<<30))
}

func isDiskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
