//go:build go1.25

package seglog

import (
	"os"
)

// schedFS is a simFS whose calls are points of the schedule, at which goroutines park.
type schedFS struct {
	*simFS
	s     *sched
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

func (f *schedFS) open(path string, mode openMode) (file, error) {
	kind := simOpen
	if mode == openCreate {
		kind = simCreate
	}
	f.s.call(kind, path)
	g, err := f.simFS.open(path, mode)
	if err != nil {
		return nil, err
	}
	return &schedFile{g.(*simFile), f}, nil
}

func (f *schedFS) stat(path string) (fileInfo, error) {
	f.s.call(simStat, path)
	return f.simFS.stat(path)
}

func (f *schedFS) list(dir string) ([]string, error) {
	f.s.call(simList, dir)
	return f.simFS.list(dir)
}

func (f *schedFS) mkdirAll(dir string) error {
	f.s.call(simMkdir, dir)
	return f.simFS.mkdirAll(dir)
}

func (f *schedFS) remove(path string) error {
	f.s.call(simRemove, path)
	return f.simFS.remove(path)
}

func (f *schedFS) rename(from, to string) error {
	f.s.call(simRename, from)
	return f.simFS.rename(from, to)
}

func (f *schedFS) link(from, to string) error {
	f.s.call(simLink, from)
	return f.simFS.link(from, to)
}

func (f *schedFS) syncDir(dir string) error {
	f.s.call(simSyncDir, dir)
	if f.plant == plantNoSyncDir {
		return nil
	}
	return f.simFS.syncDir(dir)
}

func (f *schedFS) openDir(dir string) (directoryHandle, error) {
	f.s.call(simOpen, dir)
	if _, err := f.simFS.openDir(dir); err != nil {
		return nil, err
	}
	return simDirectory{f, dir}, nil
}

func (f *schedFS) lock(path string) (directoryLock, error) {
	f.s.call(simLock, path)
	return f.simFS.lock(path)
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

func (f *schedFile) size() (int64, error) {
	f.at(simStat)
	return f.simFile.size()
}

func (f *schedFile) truncate(size int64) error {
	f.at(simTruncate)
	if size > 0 {
		switch f.fs.plant {
		case plantNoTruncate:
			return nil
		case plantLateReserve:
			if err := f.simFile.truncate(size); err != nil {
				return err
			}
			return f.simFile.zero(size, 100)
		}
	}
	return f.simFile.truncate(size)
}

func (f *schedFile) reserve(pos, n int64) error {
	f.at(simReserve)
	return f.simFile.reserve(pos, n)
}

func (f *schedFile) zero(pos, n int64) error {
	f.at(simZero)
	return f.simFile.zero(pos, n)
}

func (f *schedFile) writeBack(pos, n int64) error {
	f.at(simWrite)
	return f.simFile.writeBack(pos, n)
}

func (f *schedFile) flush() error {
	f.at(simFlush)
	if f.fs.plant == plantNoFlush {
		return nil
	}
	return f.simFile.flush()
}

func (f *schedFile) mmap(n int64, writable bool) (*mapping, error) {
	f.at(simMap)
	m, err := f.simFile.mmap(n, writable)
	if err == nil && m.stored != nil {
		path, stored := f.path, m.stored
		m.stored = func(pos, n int64) error {
			f.fs.s.call(simStore, path)
			return stored(pos, n)
		}
	}
	return m, err
}

func (f *schedFile) Close() error {
	if f.fs.plant == plantLeak && f.mode == openRead {
		return nil
	}
	return f.simFile.Close()
}

func (f *schedFile) osFile() *os.File { return nil }
