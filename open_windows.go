package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/seglog/seglog/internal/vfs"
)

// Lock takes a LockFileEx lock on the file at path. The system releases it when the process ends.
func (osFS) Lock(path string) (vfs.DirectoryLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err = windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped))
	if err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, path)
		}
		return nil, pathError("LockFileEx", path, err)
	}
	return fileLock{counted(f)}, nil
}

type fileLock struct{ f *os.File }

func (l fileLock) Close() error { return closeFile(l.f) }
func (l fileLock) Held() error  { return sameFile(l.f) }

// Lock does nothing: LockFileEx would keep readers in other processes out, and nobody can remove the file LOCK while it is
// open here.
func (f osFile) Lock() error { return nil }

func (f osFile) Unlock() error { return nil }

// isShortage reports whether err is a shortage of the system that may pass: of disk space, handles or memory. The call that
// failed has done nothing, and may be made again.
func isShortage(err error) bool {
	for _, errno := range []syscall.Errno{windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED,
		windows.ERROR_TOO_MANY_OPEN_FILES, windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_OUTOFMEMORY, windows.ERROR_NO_SYSTEM_RESOURCES} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Open opens a file so that it can be renamed and deleted meanwhile, which the engine does on every system, and which
// os.OpenFile does not allow. https://learn.microsoft.com/windows/win32/api/fileapi/nf-fileapi-createfilew
func (osFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	access, disposition := uint32(windows.GENERIC_READ), uint32(windows.OPEN_EXISTING)
	switch mode {
	case vfs.OpenWrite:
		access |= windows.GENERIC_WRITE
	case vfs.OpenCreate:
		access, disposition = access|windows.GENERIC_WRITE, windows.CREATE_ALWAYS
	}
	const share = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	h, err := windows.CreateFile(name, access, share, nil, disposition, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return regularFile(os.NewFile(uintptr(h), path))
}

// Rename also replaces a file that is open, which os.Rename does not: whoever has it open keeps the old file. It needs
// NTFS on Windows 10 (version 1607) or later.
// https://learn.microsoft.com/windows-hardware/drivers/ddi/ntifs/ns-ntifs-_file_rename_information
func (osFS) Rename(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, windows.ERROR_ACCESS_DENIED) && !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
		return err
	}
	if e := renameOverOpen(from, to); e != nil {
		return errors.Join(err, e)
	}
	return nil
}

func renameOverOpen(from, to string) error {
	path, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	name, err := windows.UTF16FromString(ntPath(path))
	if err != nil {
		return pathError("rename", to, err)
	}
	source, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return pathError("rename", from, err)
	}
	const share = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	h, err := windows.CreateFile(source, windows.DELETE|windows.SYNCHRONIZE, share, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return pathError("open", from, err)
	}
	defer windows.CloseHandle(h)
	// FILE_RENAME_INFORMATION: flags, the handle of a directory, which is none, and the name behind its length in bytes.
	word := int(unsafe.Sizeof(uintptr(0)))
	info := make([]byte, 2*word+4+2*len(name))
	le := binary.LittleEndian
	le.PutUint32(info, windows.FILE_RENAME_REPLACE_IF_EXISTS|windows.FILE_RENAME_POSIX_SEMANTICS)
	le.PutUint32(info[2*word:], uint32(2*(len(name)-1)))
	for i, c := range name {
		le.PutUint16(info[2*word+4+2*i:], c)
	}
	const fileRenameInformationEx = 65 // FILE_INFORMATION_CLASS
	var status windows.IO_STATUS_BLOCK
	err = windows.NtSetInformationFile(h, &status, &info[0], uint32(len(info)), fileRenameInformationEx)
	return pathError("rename", to, err)
}

// ntPath returns an absolute path in the form that the kernel uses.
func ntPath(path string) string {
	if rest, ok := strings.CutPrefix(path, `\\?\`); ok {
		return `\??\` + rest
	}
	if share, ok := strings.CutPrefix(path, `\\`); ok {
		return `\??\UNC\` + share
	}
	return `\??\` + path
}

func mappingsHeld() int64 { return 0 }

func (f osFile) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	return nil, pathError("mmap", f.Name(), errors.ErrUnsupported)
}
