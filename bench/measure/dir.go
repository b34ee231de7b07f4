package measure

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Fresh makes an empty directory below base and returns its removal. Removal drops the dirty pages of the round with its
// files and then waits for the file system to be quiet, so that no subject's writeback falls into the next one's round.
func Fresh(base string) (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp(base, "round-")
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), Settle(base)) }, nil
}

// Settle waits until the file system of dir has written what it owes.
func Settle(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// Disk names the file system of dir and refuses those that live in memory: nothing durable can be measured on them.
func Disk(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", err
	}
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return "", fmt.Errorf("%s lies in memory; choose a directory on a disk by -dir", dir)
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs", nil
	}
	return fmt.Sprintf("file system %#x", st.Type), nil
}
