//go:build go1.25

package seglog

import (
	"os"

	"github.com/seglog/seglog/internal/vfs"
)

// schedFS is a simFS whose calls are points of the schedule, at which goroutines park.
type schedFS struct {
	*simFS
	s     *scheduler
	plant schedPlant
	// started, if not nil, is called with the start offset of the log before each write of the state file.
	started func(offset int64)
}

// schedPlant is a bug planted between the engine and the file system, which TestScheduleFindsPlantedBugs must find.
type schedPlant int

const (
	plantNothing     schedPlant = iota
	plantNoFlush                // a flush does nothing
	plantNoSyncDir              // names are never made durable
	plantNoTruncate             // a file is never truncated
	plantWrongRead              // one bit that a read returns is wrong
	plantLeak                   // a descriptor opened for reading stays open
	plantLateReserve            // zeros are written after the end of a trimmed segment
	plants
)

func (f *schedFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	kind := simOpen
	if mode == vfs.OpenCreate {
		kind = simCreate
	}
	f.s.call(kind, path)
	g, err := f.simFS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return &schedFile{g.(*simFile), f}, nil
}

func (f *schedFS) Stat(path string) (vfs.FileInfo, error) {
	f.s.call(simStat, path)
	return f.simFS.Stat(path)
}

func (f *schedFS) List(dir string) ([]string, error) {
	f.s.call(simList, dir)
	return f.simFS.List(dir)
}

func (f *schedFS) MkdirAll(dir string) error {
	f.s.call(simMkdir, dir)
	return f.simFS.MkdirAll(dir)
}

func (f *schedFS) Remove(path string) error {
	f.s.call(simRemove, path)
	return f.simFS.Remove(path)
}

func (f *schedFS) Rename(from, to string) error {
	f.s.call(simRename, from)
	return f.simFS.Rename(from, to)
}

func (f *schedFS) Link(from, to string) error {
	f.s.call(simLink, from)
	return f.simFS.Link(from, to)
}

func (f *schedFS) SyncDir(dir string) error {
	f.s.call(simSyncDir, dir)
	if f.plant == plantNoSyncDir {
		return nil
	}
	return f.simFS.SyncDir(dir)
}

func (f *schedFS) OpenDir(dir string) (vfs.Directory, error) {
	f.s.call(simOpen, dir)
	if _, err := f.simFS.OpenDir(dir); err != nil {
		return nil, err
	}
	return simDirectory{f, dir}, nil
}

func (f *schedFS) Lock(path string) (vfs.DirectoryLock, error) {
	f.s.call(simLock, path)
	return f.simFS.Lock(path)
}

type schedFile struct {
	*simFile
	fs *schedFS
}

// at parks the goroutine before a call on the file.
func (f *schedFile) at(kind simKind) { f.fs.s.call(kind, f.path) }

func (f *schedFile) ReadAt(p []byte, pos int64) (int, error) {
	f.at(simRead)
	n, err := f.simFile.ReadAt(p, pos)
	if f.fs.plant == plantWrongRead && n > 100 && isLog(f.name) {
		p[n-1] ^= 1
	}
	return n, err
}

func (f *schedFile) WriteAt(p []byte, pos int64) (int, error) {
	f.at(simWrite)
	var st state
	if f.fs.started != nil && f.name == stateName && st.decode(p) {
		f.fs.started(st.start)
	}
	return f.simFile.WriteAt(p, pos)
}

func (f *schedFile) Size() (int64, error) {
	f.at(simStat)
	return f.simFile.Size()
}

func (f *schedFile) Truncate(size int64) error {
	f.at(simTruncate)
	if size > 0 {
		switch f.fs.plant {
		case plantNoTruncate:
			return nil
		case plantLateReserve:
			if err := f.simFile.Truncate(size); err != nil {
				return err
			}
			return f.simFile.Zero(size, 100)
		}
	}
	return f.simFile.Truncate(size)
}

func (f *schedFile) Reserve(pos, n int64) error {
	f.at(simReserve)
	return f.simFile.Reserve(pos, n)
}

func (f *schedFile) Zero(pos, n int64) error {
	f.at(simZero)
	return f.simFile.Zero(pos, n)
}

func (f *schedFile) WriteBack(pos, n int64) error {
	f.at(simWrite)
	return f.simFile.WriteBack(pos, n)
}

func (f *schedFile) Flush() error {
	f.at(simFlush)
	if f.fs.plant == plantNoFlush {
		return nil
	}
	return f.simFile.Flush()
}

func (f *schedFile) Mmap(n int64, writable bool) (*vfs.Mapping, error) {
	f.at(simMap)
	m, err := f.simFile.Mmap(n, writable)
	if err == nil && m.Stored != nil {
		path, stored := f.path, m.Stored
		m.Stored = func(pos, n int64) error {
			f.fs.s.call(simStore, path)
			return stored(pos, n)
		}
	}
	return m, err
}

func (f *schedFile) Close() error {
	if f.fs.plant == plantLeak && f.mode == vfs.OpenRead {
		return nil
	}
	return f.simFile.Close()
}

func (f *schedFile) OSFile() *os.File { return nil }
