package raw

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seglog/seglog/bench/peers"
)

// RecycledBytes is the size of the files that durable appends go round in.
const RecycledBytes = 64 << 20

// recycledFiles are enough that a file was flushed long before it is written to again.
const recycledFiles = 3

// Recycling is how the files of removed segments are written to again. Their blocks were written before, so nothing but data has
// to go out; but they are full of frames that must never be taken for those of the new segment.
type Recycling int

const (
	Recycled     Recycling = iota // nothing is done about what lies behind the last frame
	Fenced                        // a header of zeros goes behind the last frame, by the same pwrite
	FencedFilled                  // the same, but the pages are not in the cache: zeros up to the end of the page, lest the kernel read the rest of it
	FencedCold                    // not in the cache either, and nothing done about it
)

// Recyclings are all of them.
var Recyclings = []Recycling{Recycled, Fenced, FencedFilled, FencedCold}

func (r Recycling) String() string {
	return [...]string{"recycled", "recycled, fenced", "recycled and not cached, zeros to the end of the page", "recycled and not cached, fenced"}[r]
}

func (r Recycling) cold() bool { return r == FencedFilled || r == FencedCold }

// fence is how many zeros follow n bytes at pos.
func (r Recycling) fence(pos int64, n int) int {
	switch r {
	case Recycled:
		return 0
	case FencedFilled:
		page := int64(os.Getpagesize())
		end := pos + int64(n) + FrameHeader
		return int((end+page-1)/page*page-pos) - n
	}
	return FrameHeader
}

// DurableRecycled appends as Durable does, into the files of removed segments. It begins in the middle of the first; when half of a
// file is used up, the next one is given its name in the background.
func DurableRecycled(dir string, how Recycling) (peers.Log, error) {
	r := &recycled{dir: dir, how: how, ready: make(chan madeReady, 1)}
	var err error
	if r.spares, err = fillSpares(dir, recycledFiles, RecycledBytes); err != nil {
		return nil, err
	}
	if err := r.roll(); err != nil {
		return nil, err
	}
	r.pos = RecycledBytes/2 - RecycledBytes/64
	return r, nil
}

// fillSpares makes files of frames, flushed, as removed segments are.
func fillSpares(dir string, n int, size int64) (spares []string, err error) {
	var frames []byte
	for offset := int64(0); len(frames) < 1<<20; offset++ {
		frames = AppendFrame(frames, offset, make([]byte, 1<<10))
	}
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("spare%d.raw", i))
		file, err := os.Create(name)
		if err != nil {
			return nil, err
		}
		for pos := int64(0); pos < size && err == nil; pos += int64(len(frames)) {
			_, err = file.WriteAt(frames[:min(int64(len(frames)), size-pos)], pos)
		}
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return nil, err
		}
		spares = append(spares, name)
	}
	return spares, nil
}

// recycled is for one caller.
type recycled struct {
	dir    string
	how    Recycling
	file   *os.File
	pos    int64
	files  int
	spares []string // longest unused first
	asked  bool
	ready  chan madeReady
}

type madeReady struct {
	file *os.File
	err  error
}

// makeReady gives the next file its name, durably.
func (r *recycled) makeReady() {
	spare := r.spares[0]
	r.spares = r.spares[1:]
	name := filepath.Join(r.dir, fmt.Sprintf("%06d.raw", r.files))
	r.files++
	r.asked = true
	go func() {
		file, err := reuse(spare, name)
		if err == nil && r.how.cold() {
			err = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
		r.ready <- madeReady{file, err}
	}()
}

func reuse(spare, name string) (*os.File, error) {
	if err := os.Rename(spare, name); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

func (r *recycled) roll() error {
	if !r.asked {
		r.makeReady()
	}
	next := <-r.ready
	if next.err != nil {
		return next.err
	}
	r.asked = false
	if r.file != nil {
		if err := r.file.Close(); err != nil {
			return err
		}
		r.spares = append(r.spares, r.file.Name())
	}
	r.file, r.pos = next.file, 0
	return nil
}

func (r *recycled) Appender() peers.Append {
	var buf []byte
	var offset int64
	return func(values [][]byte) error {
		buf = appendFrames(buf[:0], &offset, values)
		n := len(buf)
		fence := r.how.fence(r.pos, n)
		if r.pos+int64(n+fence) > RecycledBytes {
			if err := r.roll(); err != nil {
				return err
			}
			fence = r.how.fence(r.pos, n)
		}
		buf = append(buf, zeroPiece[:fence]...)
		if _, err := r.file.WriteAt(buf, r.pos); err != nil {
			return err
		}
		r.pos += int64(n)
		if !r.asked && r.pos > RecycledBytes/2 {
			r.makeReady()
		}
		return unix.Fdatasync(int(r.file.Fd()))
	}
}

func (r *recycled) Close() (err error) {
	if r.asked {
		next := <-r.ready
		err = next.err
		if err == nil {
			err = next.file.Close()
		}
	}
	return errors.Join(err, r.file.Close())
}

// Mapping is where the pages come from that appends are stored into without a flush, roll after roll.
type Mapping int

const (
	MapFresh             Mapping = iota // a reserved file, whose pages come as they are touched
	MapZeroed                           // a reserved file, with zeros written ahead of the stores, 1 MiB at a time, which makes large folios
	MapRecycled                         // the file of a removed segment, flushed and in the cache
	MapRecycledKept                     // the same, and its mapping was never undone
	MapRecycledPopulated                // mapped anew, and made writable ahead of the stores by MADV_POPULATE_WRITE
)

// Mappings are all of them.
var Mappings = []Mapping{MapFresh, MapZeroed, MapRecycled, MapRecycledKept, MapRecycledPopulated}

func (m Mapping) String() string {
	return [...]string{"fresh", "fresh, zeros written ahead", "recycled", "recycled, mapping kept", "recycled, populated ahead"}[m]
}

// mappedFiles are the removed segments. They are enough for a round: what comes round in one is not written back yet, and cheaper
// than it should be.
const mappedFiles = 5

// mapStretch is prepared at once, ahead of the stores.
const mapStretch = 4 << 20

// MappedOver is Mapped, with these pages.
func MappedOver(dir string, how Mapping) (peers.Log, error) {
	m := &mappedOver{dir: dir, how: how}
	if how >= MapRecycled {
		var err error
		if m.spares, err = fillSpares(dir, mappedFiles, segmentBytes); err != nil {
			return nil, err
		}
	}
	if how == MapRecycledKept {
		m.kept = map[string][]byte{}
		for _, name := range m.spares {
			file, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			m.kept[name], err = unix.Mmap(int(file.Fd()), 0, segmentBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
			if err := errors.Join(err, file.Close()); err != nil {
				return nil, errors.Join(err, m.Close())
			}
		}
	}
	if err := m.roll(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// mappedOver is for one caller.
type mappedOver struct {
	dir    string
	how    Mapping
	file   *os.File
	data   []byte
	pos    int
	files  int
	ahead  *ahead   // of this file, if its pages are prepared
	spares []string // longest unused first
	kept   map[string][]byte
}

func (m *mappedOver) roll() (err error) {
	if err := m.leave(); err != nil {
		return err
	}
	name := filepath.Join(m.dir, fmt.Sprintf("%06d.raw", m.files))
	m.files++
	if m.how < MapRecycled {
		if m.file, err = os.Create(name); err != nil {
			return err
		}
		if err := unix.Fallocate(int(m.file.Fd()), 0, 0, segmentBytes); err != nil {
			return err
		}
	} else {
		spare := m.spares[0]
		m.spares = m.spares[1:]
		if err := os.Rename(spare, name); err != nil {
			return err
		}
		if m.file, err = os.OpenFile(name, os.O_RDWR, 0); err != nil {
			return err
		}
		if m.kept != nil {
			m.data, m.kept[name] = m.kept[spare], m.kept[spare]
			delete(m.kept, spare)
		}
	}
	if m.data == nil {
		m.data, err = unix.Mmap(int(m.file.Fd()), 0, segmentBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
	}
	m.pos = 0
	data, file := m.data, m.file
	switch m.how {
	case MapZeroed:
		m.ahead, err = newAhead(mapStretch, func(pos int64) (err error) {
			for end := min(pos+mapStretch, segmentBytes); pos < end && err == nil; pos += int64(len(zeroPiece)) {
				_, err = file.WriteAt(zeroPiece, pos)
			}
			return err
		})
	case MapRecycledPopulated:
		m.ahead, err = newAhead(mapStretch, func(pos int64) error {
			if pos >= segmentBytes {
				return nil
			}
			return unix.Madvise(data[pos:pos+mapStretch], unix.MADV_POPULATE_WRITE)
		})
	}
	return err
}

// leave lets go of the file that is full. The oldest of the files is the next one to be removed.
func (m *mappedOver) leave() (err error) {
	if m.ahead != nil {
		m.ahead.close()
		m.ahead = nil
	}
	if m.data != nil && m.kept == nil {
		err = unix.Munmap(m.data)
	}
	m.data = nil
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
		if m.how >= MapRecycled {
			m.spares = append(m.spares, m.file.Name())
		}
		m.file = nil
	}
	return err
}

func (m *mappedOver) Appender() peers.Append {
	var offset int64
	return func(values [][]byte) error {
		for _, v := range values {
			need := len(v) + 2*FrameHeader + 32
			if m.pos+need > len(m.data) {
				if err := m.roll(); err != nil {
					return err
				}
			}
			if m.ahead != nil {
				if err := m.ahead.want(int64(m.pos + need)); err != nil {
					return err
				}
			}
			out := AppendFrame(m.data[m.pos:m.pos], offset, v)
			m.pos += len(out)
			offset++
			if m.how >= MapRecycled {
				clear(m.data[m.pos : m.pos+FrameHeader]) // the fence
			}
		}
		return nil
	}
}

func (m *mappedOver) Close() error {
	err := m.leave()
	for _, data := range m.kept {
		err = errors.Join(err, unix.Munmap(data))
	}
	return err
}
