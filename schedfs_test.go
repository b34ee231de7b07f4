//go:build go1.25

package seglog

import (
	"io"
	"os"
)

// schedFS is a simFS whose calls are points of the schedule.
type schedFS struct {
	*simFS
	s *sched
}

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
	return &schedFile{g.(*simFile), f.s}, nil
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
	return f.simFS.syncDir(dir)
}

func (f *schedFS) lock(path string) (io.Closer, error) {
	f.s.call(simLock, path)
	return f.simFS.lock(path)
}

type schedFile struct {
	*simFile
	s *sched
}

func (f *schedFile) ReadAt(p []byte, pos int64) (int, error) {
	f.s.call(simRead, f.path)
	return f.simFile.ReadAt(p, pos)
}

func (f *schedFile) WriteAt(p []byte, pos int64) (int, error) {
	f.s.call(simWrite, f.path)
	return f.simFile.WriteAt(p, pos)
}

func (f *schedFile) size() (int64, error) {
	f.s.call(simStat, f.path)
	return f.simFile.size()
}

func (f *schedFile) truncate(size int64) error {
	f.s.call(simTruncate, f.path)
	return f.simFile.truncate(size)
}

func (f *schedFile) reserve(pos, n int64) error {
	f.s.call(simReserve, f.path)
	return f.simFile.reserve(pos, n)
}

func (f *schedFile) zero(pos, n int64) error {
	f.s.call(simZero, f.path)
	return f.simFile.zero(pos, n)
}

func (f *schedFile) writeBack(pos, n int64) {
	f.s.call(simWrite, f.path)
	f.simFile.writeBack(pos, n)
}

func (f *schedFile) flush() error {
	f.s.call(simFlush, f.path)
	return f.simFile.flush()
}

func (f *schedFile) mmap(n int64, writable bool) (*mapping, error) {
	f.s.call(simMap, f.path)
	m, err := f.simFile.mmap(n, writable)
	if err == nil && m.stored != nil {
		path, stored := f.path, m.stored
		m.stored = func(pos, n int64) error {
			f.s.call(simStore, path)
			return stored(pos, n)
		}
	}
	return m, err
}

func (f *schedFile) osFile() *os.File { return nil }
