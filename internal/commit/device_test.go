//go:build go1.25

package commit

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// disk is what the files of these tests are on. A flush of any file makes durable what all of them have sent.
type disk struct {
	mu      sync.Mutex
	files   []*diskFile
	flushes int
}

type diskFile struct {
	disk                   *disk
	written, sent, durable int64
	sendErr, flushErr      error
}

func (d *disk) add() *diskFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &diskFile{disk: d}
	d.files = append(d.files, f)
	return f
}

func (f *diskFile) StartWriteBack(int64, int64) {}

func (f *diskFile) WriteBack(pos, n int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.sendErr == nil {
		f.sent = max(f.sent, pos+n)
	}
	return f.sendErr
}

func (f *diskFile) Flush() error {
	f.disk.mu.Lock()
	f.disk.flushes++
	if err := f.flushErr; err != nil {
		f.disk.mu.Unlock()
		return err
	}
	f.sent = f.written
	sent := make([]int64, len(f.disk.files))
	for i, g := range f.disk.files {
		sent[i] = g.sent
	}
	f.disk.mu.Unlock()
	time.Sleep(time.Millisecond)
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	for i, n := range sent { // files may have been added meanwhile
		f.disk.files[i].durable = max(f.disk.files[i].durable, n)
	}
	return nil
}

// append writes a byte and makes it durable.
func (f *diskFile) append(d *Device) error {
	f.disk.mu.Lock()
	pos := f.written
	f.written++
	f.disk.mu.Unlock()
	err := d.Flush(f, nil, pos, 1)
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err == nil && f.durable <= pos {
		return errNotDurable
	}
	return err
}

var errNotDurable = errors.New("a flush returned before the data was durable")

// appendEach lets each of the files append n bytes, side by side, and returns the first error of each.
func appendEach(d *Device, files []*diskFile, n int) []error {
	errs := make([]error, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		wg.Go(func() {
			time.Sleep(time.Duration(i*37%1000) * time.Microsecond)
			for range n {
				if errs[i] = f.append(d); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errs
}

func TestDeviceSharesFlushes(t *testing.T) {
	for _, files := range []int{1, mostAlone, 8, 100} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk, d := new(disk), NewDevice()
				for range files {
					disk.add()
				}
				const each = 20
				for _, err := range appendEach(d, disk.files, each) {
					require.NoError(t, err)
				}
				most := each * files
				if files > mostAlone {
					most = 2*each + mostAlone + 1 // the round that runs when a byte is written, and its own; some are alone at first
				}
				require.LessOrEqual(t, disk.flushes, most)
				require.Zero(t, d.queued)
				require.Zero(t, d.alone)
				require.Empty(t, d.waiting)
			})
		})
	}
}

// A file that can't be written or flushed must not keep the others from being flushed, nor give them its error.
func TestDeviceErrorsAreOfOneFile(t *testing.T) {
	failed := errors.New("failed")
	for name, set := range map[string]func(f *diskFile){
		"write-back": func(f *diskFile) { f.sendErr, f.flushErr = failed, failed },
		"flush":      func(f *diskFile) { f.flushErr = failed },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk, d := new(disk), NewDevice()
				for range 9 {
					disk.add()
				}
				set(disk.files[0]) // the first in a round flushes for all
				set(disk.files[5])
				var asking sync.WaitGroup
				for range mostAlone + 1 { // while these flush, the others gather
					begun := disk.add()
					begun.written = 1
					asking.Add(1)
					go func() {
						defer asking.Done()
						_ = begun.append(d)
					}()
				}
				synctest.Wait()
				for i, err := range appendEach(d, disk.files[:9], 1) {
					if i == 0 || i == 5 && name == "write-back" {
						require.ErrorIs(t, err, failed, i)
					} else if i != 5 { // it need not be flushed if another one was
						require.NoError(t, err, i)
					}
				}
				asking.Wait()
			})
		})
	}
}

// flusher counts its flushes, each of which is one of the device.
type flusher struct {
	*diskFile
	flushes int
	before  func()
}

func (f *flusher) Flush() error {
	f.before()
	f.flushes++
	return f.diskFile.Flush()
}

// A lone file that names another one to be flushed must be written back before that one is flushed, and not be flushed itself.
func TestDeviceFlushesInThePlaceOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, d := new(disk), NewDevice()
		f, other := disk.add(), &flusher{diskFile: disk.add()}
		other.before = func() { require.EqualValues(t, 1, f.sent) }
		f.written = 1
		require.NoError(t, d.Flush(f, other, 0, 1))
		require.Equal(t, 1, other.flushes)
		require.Equal(t, 1, disk.flushes)
		require.EqualValues(t, 1, f.durable)

		other.flushErr = errors.New("failed")
		require.ErrorIs(t, d.Flush(f, other, 0, 1), other.flushErr)
		f.sendErr = fmt.Errorf("sync_file_range: %w", errors.ErrUnsupported) // it is flushed by itself then
		f.written = 2
		require.NoError(t, d.Flush(f, other, 0, 2))
		require.Equal(t, 2, other.flushes)
		require.EqualValues(t, 2, f.durable)
		f.sendErr = errors.New("not written back")
		require.ErrorIs(t, d.Flush(f, other, 0, 2), f.sendErr)
		require.Equal(t, 2, other.flushes)
	})
}

// A round may find that the one before has served whoever waited for it.
func TestDeviceRoundOfNobody(t *testing.T) {
	require.NoError(t, NewDevice().round())
}

// A file that can't be written back is flushed by itself.
func TestDeviceWithoutWriteBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, d := new(disk), NewDevice()
		for i := range 6 {
			f := disk.add()
			if i%2 == 0 {
				f.sendErr = fmt.Errorf("sync_file_range: %w", errors.ErrUnsupported)
			}
		}
		for i, err := range appendEach(d, disk.files, 20) {
			require.NoError(t, err, i)
		}
	})
}
