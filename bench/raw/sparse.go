package raw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	sparseSegment = 1 << 30
	sparseBatch   = 8 << 20
)

// SparseLog lays a log of about the given size into dir, in segments of 1 GiB, without its bytes taking room on the disk: each batch
// is one record of zeros whose CRC holds, and what is zero is a hole. The last segment is a small one, since a log that is taken over
// writes its active segment again, and holes would not stay holes. It returns the offset that comes next.
func SparseLog(dir string, size int64) (next int64, err error) {
	frame := AppendFrame(nil, 0, make([]byte, sparseBatch))
	head := len(frame) - sparseBatch - 1 // the value, and the count of headers behind it, are zeros
	perSegment := int64(sparseSegment / len(frame))
	for ; size > 0; size -= perSegment * int64(len(frame)) {
		name := filepath.Join(dir, fmt.Sprintf("%020d.log", next))
		if err := sparseFile(name, frame[:head], int64(len(frame)), next, perSegment); err != nil {
			return next, err
		}
		next += perSegment
	}
	small := AppendFrame(nil, next, make([]byte, 128))
	return next + 1, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d.log", next)), small, 0o644)
}

func sparseFile(name string, head []byte, frameLen, first, count int64) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	for i := range count {
		binary.BigEndian.PutUint64(head, uint64(first+i)) // outside the CRC
		if _, err := file.WriteAt(head, i*frameLen); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return errors.Join(file.Truncate(count*frameLen), file.Close())
}

// SmallSegments lays a log of n segments with two small batches each into dir, as another writer of the format would have left it
// with its indexes, and returns the offset that comes next.
func SmallSegments(dir string, n int, value []byte) (next int64, err error) {
	var content []byte
	// Two batches below the index interval: no entry by position, and the one by time that a sealed segment ends with.
	timeIndex := binary.BigEndian.AppendUint64(nil, frameTime)
	timeIndex = binary.BigEndian.AppendUint32(timeIndex, 0)
	for range n {
		content = AppendFrame(content[:0], next, value)
		content = AppendFrame(content, next+1, value)
		for suffix, b := range map[string][]byte{".log": content, ".index": nil, ".timeindex": timeIndex} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d%s", next, suffix)), b, 0o644); err != nil {
				return next, err
			}
		}
		next += 2
	}
	return next, nil
}
