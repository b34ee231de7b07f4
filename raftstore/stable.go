package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/seglog/seglog"
)

// The stable file has four slots of the same size, at least stableBlock. State number n, which is all keys and values, is
// written twice, into the slots n%2 and n%2+2, and flushed; the other two hold number n-1 meanwhile. So a write that is torn
// leaves the state before it, and blocks that go bad later, neighbours too, leave a good copy of the state that was
// acknowledged.
// A slot:
//
//	magic    8 bytes, stableMagic; its last byte is the version
//	number   8 bytes, of the state
//	length   4 bytes, of count and pairs
//	count    uvarint
//	pairs    count times: length of the key, key, length of the value, value; lengths are uvarints
//	CRC      4 bytes: CRC-32C of everything before it
//
// Integers are big-endian. A state that is larger than the slots gets a new file, by rename.
const (
	stableMagic    = "seglogs\x01"
	stableHead     = len(stableMagic) + 8 + 4
	stableOverhead = stableHead + 4
	stableBlock    = 4096
	maxStableSlot  = 16 << 20 // more than any sound use; a bound for what a damaged file can cost
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stable is a small map that is on stable storage whenever a call of set returned.
type stable struct {
	path string

	mu     sync.RWMutex
	f      *os.File
	slot   int64 // size of one
	number uint64
	values map[string][]byte
	failed error // of a write after which it is not known what the disk has
}

// openStable reads the file, or makes one for a new store. What it read is flushed before it returns.
func openStable(path string, isNew bool) (*stable, error) {
	s := &stable{path: path, values: make(map[string][]byte)}
	if err := os.Remove(path + tmpSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if !isNew {
			return nil, s.corrupt("the file is missing beside a log, and the server's term and vote with it")
		}
		return s, s.replace(s.values)
	}
	if err != nil {
		return nil, err
	}
	s.f = f
	if err = s.load(); err == nil {
		// An earlier process may have seen its flush fail, and the page cache claim what the disk lacks; and one of the copies
		// may be bad. The state before stays as it is meanwhile.
		err = s.write(encodeStable(s.number, s.values))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *stable) corrupt(format string, args ...any) error {
	return fmt.Errorf("raftstore: %w: %s: %s", seglog.ErrCorrupt, s.path, fmt.Sprintf(format, args...))
}

// load finds the slot with the greatest number.
func (s *stable) load() error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	s.slot = info.Size() / 4
	if info.Size()%4 != 0 || s.slot < stableBlock || s.slot&(s.slot-1) != 0 || s.slot > maxStableSlot {
		return s.corrupt("%d bytes, not four times a power of two from %d to %d", info.Size(), stableBlock, maxStableSlot)
	}
	var why [4]error
	found := false
	for i := range int64(4) {
		var b []byte
		if b, why[i] = s.read(i); why[i] != nil {
			continue
		}
		var number uint64
		var values map[string][]byte
		if number, values, why[i] = decodeStable(b); why[i] != nil {
			continue
		}
		if number%2 != uint64(i%2) {
			why[i] = fmt.Errorf("state %d is not at its place", number)
			continue
		}
		if !found || number > s.number {
			found, s.number, s.values = true, number, values
		}
	}
	if !found {
		return s.corrupt("no slot is good: %v; %v; %v; %v", why[0], why[1], why[2], why[3])
	}
	return nil
}

// read gets the part of a slot that is used.
func (s *stable) read(i int64) ([]byte, error) {
	head := make([]byte, stableHead)
	if _, err := s.f.ReadAt(head, i*s.slot); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[stableHead-4:])) + int64(stableOverhead)
	if size > s.slot {
		return nil, fmt.Errorf("a length of %d bytes", size)
	}
	b := make([]byte, size)
	_, err := s.f.ReadAt(b, i*s.slot)
	return b, err
}

func encodeStable(number uint64, values map[string][]byte) []byte {
	b := append([]byte(nil), stableMagic...)
	b = binary.BigEndian.AppendUint64(b, number)
	b = append(b, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
		b = binary.AppendUvarint(b, uint64(len(values[key])))
		b = append(b, values[key]...)
	}
	return seal(b)
}

// seal sets the length and appends the CRC.
func seal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[stableHead-4:], uint32(len(b)-stableHead))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeStable(b []byte) (number uint64, values map[string][]byte, err error) {
	if len(b) < stableOverhead || string(b[:len(stableMagic)-1]) != stableMagic[:len(stableMagic)-1] {
		return 0, nil, fmt.Errorf("%d bytes that are no state", len(b))
	}
	if version := b[len(stableMagic)-1]; version != stableMagic[len(stableMagic)-1] {
		return 0, nil, fmt.Errorf("version %d, this package knows %d", version, stableMagic[len(stableMagic)-1])
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return 0, nil, fmt.Errorf("CRC %08x does not match %08x", got, sum)
	}
	number = binary.BigEndian.Uint64(b[len(stableMagic):])
	k := keyReader{b: body[stableHead:]}
	count := k.uvarint()
	values = make(map[string][]byte)
	for range count {
		key, value := k.bytes(), k.bytes()
		if k.bad {
			break
		}
		values[string(key)] = bytes.Clone(value)
	}
	if k.bad || len(k.b) > 0 || uint64(len(values)) != count {
		return 0, nil, errors.New("its keys and values are malformed")
	}
	return number, values, nil
}

// bytes takes bytes with their length before them.
func (k *keyReader) bytes() []byte {
	n := k.uvarint()
	if n > uint64(len(k.b)) {
		k.bad = true
		return nil
	}
	b := k.b[:n:n]
	k.b = k.b[n:]
	return b
}

func (s *stable) get(key []byte) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return bytes.Clone(s.values[string(key)])
}

func (s *stable) set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return fmt.Errorf("raftstore: %w: %w", seglog.ErrFailed, s.failed)
	}
	next := maps.Clone(s.values)
	next[string(key)] = append([]byte{}, value...)
	b := encodeStable(s.number+1, next)
	if int64(len(b)) > s.slot {
		return s.replace(next)
	}
	s.number++
	if s.failed = s.write(b); s.failed != nil {
		return s.failed
	}
	s.values = next
	return nil
}

// write puts a state, of s.number, into its two slots.
func (s *stable) write(b []byte) error {
	at := int64(s.number%2) * s.slot
	for range 2 {
		if _, err := s.f.WriteAt(b, at); err != nil {
			return err
		}
		at += 2 * s.slot
	}
	return flush(s.f)
}

// replace makes a new file for a state that is too large for the slots of the old one, or the first.
func (s *stable) replace(values map[string][]byte) error {
	b := encodeStable(s.number+1, values)
	next := &stable{path: s.path, slot: stableBlock, number: s.number + 1}
	for next.slot < int64(len(b)) {
		next.slot *= 2
	}
	if next.slot > maxStableSlot {
		return fmt.Errorf("raftstore: %w: %s would have a state of %d bytes, at most %d are kept", seglog.ErrTooLarge, s.path, len(b), maxStableSlot)
	}
	tmp := s.path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	next.f = f
	if _, err = f.Write(make([]byte, 4*next.slot)); err == nil { // so that no later write needs a block
		err = next.write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(tmp))
	}
	if err = os.Rename(tmp, s.path); err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil { // either file may be the one after a power cut
		s.failed = err
		return errors.Join(err, f.Close())
	}
	if s.f != nil {
		err = s.f.Close()
	}
	s.f, s.slot, s.number, s.values = f, next.slot, next.number, values
	return err
}

func (s *stable) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = seglog.ErrClosed
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes names in a directory durable. Windows has no such call, and needs none.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Set stores a value and returns once it is on stable storage; the old one is there until then. All keys and values
// together may take almost 16 MiB. Errors: seglog.ErrTooLarge; the operating system's, and after that ErrFailed.
func (s *Store) Set(key, value []byte) error {
	if err := s.open(); err != nil {
		return err
	}
	defer measureSet(time.Now())
	return s.stable.set(key, value)
}

// Get returns the value of a key, nil if it has none.
func (s *Store) Get(key []byte) ([]byte, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	return s.stable.get(key), nil
}

// SetUint64 is Set of the number's 8 bytes, big-endian.
func (s *Store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 returns the number that SetUint64 stored, 0 if there is none.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("raftstore: %w: the value of %.40q has %d bytes and is no number", seglog.ErrInvalid, key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
