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
// is one record of zeros whose CRC holds, and what is zero is a hole. It returns the offset that comes next.
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
	return next, nil
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
