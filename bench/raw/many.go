package raw

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Many is a process with as many files as it has logs, whose blocks were written before: what many logs are held against.
type Many struct {
	files  []manyFile
	limit  int64
	shared bool

	mu      sync.Mutex
	waiting []manyWait
	kick    chan struct{}
	flusher sync.WaitGroup
}

type manyFile struct {
	mu     sync.Mutex
	file   *os.File
	pos    int64
	offset int64
	buf    []byte
}

// manyWait is a caller whose bytes are written and not on the disk.
type manyWait struct {
	file     *os.File
	from, to int64
	done     chan error
}

// OpenMany makes n files of limit bytes of zeros. If shared, the callers that wait at the same time share one flush of the
// disk: the bytes of each are sent to it, and one fdatasync makes it empty its cache. That suffices only because no block
// is allocated and no size changes. Otherwise each append has an fdatasync of its own.
func OpenMany(dir string, n int, limit int64, shared bool) (*Many, error) {
	m := &Many{files: make([]manyFile, n), limit: limit, shared: shared, kick: make(chan struct{}, 1)}
	zeros := make([]byte, limit)
	for i := range m.files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%06d.raw", i)))
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.files[i].file = f
		if _, err := f.WriteAt(zeros, 0); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	for i := range m.files {
		if err := m.files[i].file.Sync(); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	if shared {
		m.flusher.Go(m.flush)
	}
	return m, nil
}

// Append writes value into file i, and returns when it is on the disk.
func (m *Many) Append(i int, value []byte) error {
	f := &m.files[i]
	f.mu.Lock()
	f.buf = AppendFrame(f.buf[:0], f.offset, value)
	if f.pos+int64(len(f.buf)) > m.limit {
		f.pos = 0
	}
	from := f.pos
	_, err := f.file.WriteAt(f.buf, from)
	f.pos += int64(len(f.buf))
	f.offset++
	to := f.pos
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if !m.shared {
		return unix.Fdatasync(int(f.file.Fd()))
	}
	w := manyWait{f.file, from, to, make(chan error, 1)}
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
	return <-w.done
}

// flush serves all that wait, round after round.
func (m *Many) flush() {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for range m.kick {
		m.mu.Lock()
		round := m.waiting
		m.waiting = nil
		m.mu.Unlock()
		if len(round) == 0 {
			continue
		}
		var err error
		for _, flags := range []int{unix.SYNC_FILE_RANGE_WRITE, all} {
			for _, w := range round {
				err = errors.Join(err, unix.SyncFileRange(int(w.file.Fd()), w.from, w.to-w.from, flags))
			}
		}
		err = errors.Join(err, unix.Fdatasync(int(round[0].file.Fd())))
		for _, w := range round {
			w.done <- err
		}
	}
}

// Close closes the files.
func (m *Many) Close() error {
	close(m.kick)
	m.flusher.Wait()
	var err error
	for i := range m.files {
		if f := m.files[i].file; f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
