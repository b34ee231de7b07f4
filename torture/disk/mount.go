//go:build linux

package disk

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

var errNotRoot = errors.New("needs root")

// FileSystem is a kind of file system and how a test makes and mounts it.
type FileSystem struct {
	Name    string
	Type    string
	Size    int64 // of the disk
	Mkfs    []string
	Options string // of mount
}

// FileSystems are those that the tests run on. Small ones are quick to make; XFS has a least size of its own.
var FileSystems = []FileSystem{
	{"ext4 ordered", "ext4", 64 << 20, []string{"-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "data=ordered"},
	{"ext4 writeback", "ext4", 64 << 20, []string{"-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "data=writeback"},
	{"xfs", "xfs", 300 << 20, []string{"-q", "-K"}, "nouuid"},
	// Without inline extents, which would carry a mark into metadata.
	{"btrfs", "btrfs", 120 << 20, []string{"-q", "-K", "-M"}, "max_inline=0"},
}

// Make makes an empty file system on d. It wraps exec.ErrNotFound if there is no program for it.
func (f FileSystem) Make(d *Disk) error {
	return command("mkfs."+f.Type, append(f.Mkfs[:len(f.Mkfs):len(f.Mkfs)], d.Path())...)
}

// Mount mounts d at dir by a loop device that goes away with the mount.
func (f FileSystem) Mount(d *Disk, dir string) error {
	return command("mount", "-t", f.Type, "-o", "loop,"+f.Options, d.Path(), dir)
}

// Unmount returns once nothing uses the disk any more.
func Unmount(dir string) error { return unix.Unmount(dir, 0) }

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
