package raw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// indexBytes is the distance of two index entries, the default of the log held against this.
const indexBytes = 4096

var errDamaged = errors.New("a frame fails its CRC")

// Store is one file of frames with a sparse index in memory, for the limits of reading.
type Store struct {
	file  *os.File
	size  int64
	data  []byte // the whole file, mapped
	index []entry
	buf   []byte
}

type entry struct {
	offset int64 // the first of the frame at pos
	pos    int64
}

// BuildStore writes n records of at most size bytes, of the given number per frame; fill puts the content of record i into
// value, and returns it.
func BuildStore(dir string, n int64, perFrame, size int, fill func(i int64, value []byte) []byte) (*Store, error) {
	file, err := os.Create(filepath.Join(dir, "frames.raw"))
	if err != nil {
		return nil, err
	}
	s := &Store{file: file}
	var out []byte
	value := make([]byte, size)
	flush := func() error {
		_, err := file.WriteAt(out, s.size)
		s.size += int64(len(out))
		out = out[:0]
		return err
	}
	lastEntry := int64(-indexBytes)
	for i := int64(0); i < n; i += int64(perFrame) {
		if pos := s.size + int64(len(out)); pos-lastEntry >= indexBytes {
			s.index = append(s.index, entry{i, pos})
			lastEntry = pos
		}
		start := len(out)
		out = append(out, make([]byte, FrameHeader)...)
		count := min(int64(perFrame), n-i)
		for j := range count {
			out = appendRecord(out, j, fill(i+j, value))
		}
		finishFrame(out[start:], i, int(count))
		if len(out) >= 1<<20 {
			if err := flush(); err != nil {
				return nil, errors.Join(err, file.Close())
			}
		}
	}
	if err := flush(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	s.data, err = unix.Mmap(int(file.Fd()), 0, int(s.size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	s.buf = make([]byte, 2*indexBytes)
	return s, nil
}

// Size is the bytes of all frames.
func (s *Store) Size() int64 { return s.size }

// ReadPread finds a record of a store with one record per frame: the index, one pread of an interval, the walk, the CRC, a copy.
func (s *Store) ReadPread(offset int64) ([]byte, error) {
	from, to := s.interval(offset)
	n, err := s.file.ReadAt(s.buf[:to-from], from)
	if err != nil {
		return nil, err
	}
	return walk(s.buf[:n], offset)
}

// ReadMapped is ReadPread over the mapping.
func (s *Store) ReadMapped(offset int64) ([]byte, error) {
	from, to := s.interval(offset)
	return walk(s.data[from:to], offset)
}

// interval is where the frame that holds offset must lie.
func (s *Store) interval(offset int64) (from, to int64) {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].offset > offset }) - 1
	to = s.size
	if i+1 < len(s.index) {
		to = s.index[i+1].pos
	}
	return s.index[i].pos, to
}

func walk(b []byte, offset int64) ([]byte, error) {
	frame, err := frameOf(b, offset)
	if err != nil {
		return nil, err
	}
	if !frameIntact(frame) {
		return nil, errDamaged
	}
	return append([]byte(nil), valueOf(frame)...), nil
}

// frameOf is the frame among those in b that holds offset.
func frameOf(b []byte, offset int64) ([]byte, error) {
	for len(b) > FrameHeader {
		size := frameSize(b)
		if size > len(b) {
			return nil, errDamaged
		}
		if lastOffset(b) >= offset {
			return b[:size], nil
		}
		b = b[size:]
	}
	return nil, fmt.Errorf("no frame holds offset %d", offset)
}

// ScanPread reads the file in pieces of 1 MiB and checks the CRC of every frame; it looks at no record.
func (s *Store) ScanPread() (bytes int64, err error) {
	return ScanFile(s.file, s.size)
}

// ScanRecords is ScanPread that also takes every record apart, down to its value: the least that yielding records costs.
// It returns how many there are and the bytes of their values.
func (s *Store) ScanRecords() (records, values int64, err error) {
	_, err = scanFile(s.file, s.size, func(frame []byte) {
		for b := frame[FrameHeader:]; len(b) > 0; records++ {
			length, n := binary.Varint(b)
			record := b[n : n+int(length)]
			b = b[n+int(length):]
			at := 1       // attributes
			for range 3 { // time delta, offset delta, length of no key
				_, n := binary.Varint(record[at:])
				at += n
			}
			size, n := binary.Varint(record[at:])
			values += int64(len(record[at+n : at+n+int(size)]))
		}
	})
	return records, values, err
}

// ScanMapped is ScanPread over the mapping.
func (s *Store) ScanMapped() (bytes int64, err error) {
	for b := s.data; len(b) > 0; {
		size := frameSize(b)
		if size > len(b) || !frameIntact(b[:size]) {
			return bytes, errDamaged
		}
		b = b[size:]
		bytes += int64(size)
	}
	return bytes, nil
}

// ScanFile checks the frames in the first size bytes of a file, in pieces of 1 MiB. A frame that a piece ends in is read again
// with the next. It ends early at a length of zero, which is where a reserved tail begins.
func ScanFile(file *os.File, size int64) (scanned int64, err error) {
	return scanFile(file, size, func([]byte) {})
}

func scanFile(file *os.File, size int64, each func(frame []byte)) (scanned int64, err error) {
	buf := make([]byte, 1<<20)
	for scanned < size {
		n, err := file.ReadAt(buf[:min(int64(len(buf)), size-scanned)], scanned)
		if err != nil {
			return scanned, err
		}
		done := 0
		for n-done >= FrameHeader {
			frame := frameSize(buf[done:])
			if frame == lengthBase {
				return scanned + int64(done), nil
			}
			if frame > n-done {
				break
			}
			if !frameIntact(buf[done : done+frame]) {
				return scanned + int64(done), errDamaged
			}
			each(buf[done : done+frame])
			done += frame
		}
		if done == 0 {
			return scanned, fmt.Errorf("no whole frame in the %d bytes at %d", n, scanned)
		}
		scanned += int64(done)
	}
	return scanned, nil
}

// Close unmaps and closes.
func (s *Store) Close() error { return errors.Join(unix.Munmap(s.data), s.file.Close()) }

// Copy moves b once within memory: the speed of light for anything that touches every byte.
func Copy(dst, b []byte) int { return copy(dst, b) }

// CRC checks b once: the speed of light for anything that checks every byte.
func CRC(b []byte) uint32 { return crcOf(b) }
