package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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

// The stable file holds all keys and values, in the order of the keys, and is replaced as a whole:
//
//	magic    8 bytes, stableMagic; its last byte is the version
//	count    uvarint
//	pairs    count times: length of the key, key, length of the value, value; lengths are uvarints
//	CRC      4 bytes, big-endian: CRC-32C of everything before it
const (
	stableMagic   = "seglogs\x01"
	maxStableSize = 16 << 20 // more than any sound use; a bound for what a damaged file can cost
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stable is a small map that is on stable storage whenever a call of set returned.
type stable struct {
	path string

	mu     sync.RWMutex
	values map[string][]byte
	failed error // of a replacement after which it is not known which file a power cut leaves
}

// openStable reads the file, or makes an empty one for a new store.
func openStable(path string, isNew bool) (*stable, error) {
	s := &stable{path: path, values: make(map[string][]byte)}
	if err := os.Remove(path + tmpSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b, err := readStable(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !isNew {
			return nil, fmt.Errorf("raftstore: %w: %s: the file is missing beside a log, and the server's term and vote with it", seglog.ErrCorrupt, path)
		}
		return s, s.replace(s.values)
	}
	if err != nil {
		return nil, err
	}
	if s.values, err = decodeStable(b); err != nil {
		return nil, fmt.Errorf("raftstore: %w: %s: %v", seglog.ErrCorrupt, path, err)
	}
	return s, nil
}

func readStable(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStableSize+1))
	if err == nil && len(b) > maxStableSize {
		err = fmt.Errorf("raftstore: %w: %s: larger than %d bytes", seglog.ErrCorrupt, path, maxStableSize)
	}
	return b, err
}

func encodeStable(values map[string][]byte) []byte {
	b := append([]byte(nil), stableMagic...)
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
		b = binary.AppendUvarint(b, uint64(len(values[key])))
		b = append(b, values[key]...)
	}
	return seal(b)
}

// seal appends the CRC.
func seal(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

func decodeStable(b []byte) (map[string][]byte, error) {
	if len(b) < len(stableMagic)+4 || string(b[:len(stableMagic)-1]) != stableMagic[:len(stableMagic)-1] {
		return nil, fmt.Errorf("%d bytes that are no stable file", len(b))
	}
	if b[len(stableMagic)-1] != stableMagic[len(stableMagic)-1] {
		return nil, fmt.Errorf("version %d, this package knows %d", b[len(stableMagic)-1], stableMagic[len(stableMagic)-1])
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("CRC %08x does not match %08x", got, sum)
	}
	k := keyReader{b: body[len(stableMagic):]}
	count := k.uvarint()
	values := make(map[string][]byte)
	for range count {
		key, value := k.bytes(), k.bytes()
		if k.bad {
			break
		}
		values[string(key)] = bytes.Clone(value)
	}
	if k.bad || len(k.b) > 0 || uint64(len(values)) != count {
		return nil, errors.New("its keys and values are malformed")
	}
	return values, nil
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
	if err := s.replace(next); err != nil {
		return err
	}
	s.values = next
	return nil
}

// replace writes a new file beside the old one, flushes it, gives it the old one's name, and flushes the directory.
func (s *stable) replace(values map[string][]byte) error {
	b := encodeStable(values)
	if len(b) > maxStableSize {
		return fmt.Errorf("raftstore: %w: %s would have %d bytes, at most %d are kept", seglog.ErrTooLarge, s.path, len(b), maxStableSize)
	}
	tmp := s.path + tmpSuffix
	if err := writeFile(tmp, b); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	err := os.Rename(tmp, s.path)
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	s.failed = err
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

// Set stores a value and returns once it is on stable storage; the old one is there until then. All values together may
// take 16 MiB.
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
