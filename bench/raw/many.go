package raw

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Many is a process with as many files as it has logs, whose blocks were written before: what many logs are held against.
type Many struct {
	files []manyFile

	mu      sync.Mutex
	waiting []manyWait
	kick    chan struct{}
	flusher sync.WaitGroup
}

type manyFile struct {
	mu     sync.Mutex
	file   *os.File
	limit  int64
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

// OpenMany makes files of zeros, of limits bytes each. A file that is full is written from its front again.
func OpenMany(dir string, limits []int64) (*Many, error) {
	m := &Many{files: make([]manyFile, len(limits)), kick: make(chan struct{}, 1)}
	zeros := make([]byte, slices.Max(limits))
	for i := range m.files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%06d.raw", i)))
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.files[i].file, m.files[i].limit = f, limits[i]
		if _, err := f.WriteAt(zeros[:limits[i]], 0); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	for i := range m.files {
		if err := m.files[i].file.Sync(); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	m.flusher.Go(m.flush)
	return m, nil
}

// Append writes value into file i, and flushes that file.
func (m *Many) Append(i int, value []byte) error {
	w, err := m.write(i, value)
	if err != nil {
		return err
	}
	return unix.Fdatasync(int(w.file.Fd()))
}

// AppendShared writes value into file i, and shares a flush of the disk with the callers that wait at the same time: the bytes
// of each are sent to it, and one fdatasync makes it empty its cache. That suffices only because no block is allocated and no
// size changes.
func (m *Many) AppendShared(i int, value []byte) error {
	w, err := m.write(i, value)
	if err != nil {
		return err
	}
	w.done = make(chan error, 1)
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
	return <-w.done
}

func (m *Many) write(i int, value []byte) (manyWait, error) {
	f := &m.files[i]
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = AppendFrame(f.buf[:0], f.offset, value)
	if f.pos+int64(len(f.buf)) > f.limit {
		f.pos = 0
	}
	from := f.pos
	if _, err := f.file.WriteAt(f.buf, from); err != nil {
		return manyWait{}, err
	}
	f.pos += int64(len(f.buf))
	f.offset++
	return manyWait{file: f.file, from: from, to: f.pos}, nil
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
