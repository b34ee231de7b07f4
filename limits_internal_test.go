package seglog

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
)

func batchSize(t *testing.T, r Record) int64 {
	t.Helper()
	size, _, err := encodedSize([]Record{r}, 0)
	require.NoError(t, err)
	return size
}

// hugeSegment writes the files of a closed log with a single segment that ends at position end. The batches consist mostly of
// zeros, which take no blocks on the disk.
func hugeSegment(t *testing.T, dir string, end int64) (records int64) {
	t.Helper()
	e := env{fs: osFS{}, dir: dir, o: Options{IndexBytes: defaultIndexBytes}}
	f, err := os.Create(e.path(0, logSuffix))
	require.NoError(t, err)
	x := newIndexBuilder(defaultIndexBytes)
	zeros := make([]byte, 64<<20)
	ms := int64(1700000000000)
	for pos := int64(0); pos < end; records++ {
		size := min(64<<20, end-pos)
		if rest := end - pos - size; rest > 0 && rest < 100 {
			size -= 100 // room for a last batch
		}
		head := zeroBatch(t, records, size, ms+records, zeros)
		_, err := f.WriteAt(head, pos)
		require.NoError(t, err)
		x.add(pos, uint32(records), ms+records)
		pos += size
	}
	require.NoError(t, f.Truncate(end))
	require.NoError(t, f.Close())
	require.NoError(t, writeIndexes(&e, 0, x, true))
	s, err := openState(osFS{}, filepath.Join(dir, stateName), state{cut: -1})
	require.NoError(t, err)
	require.NoError(t, s.commit(func(s *state) {
		s.clean, s.end, s.endPos, s.recoveryPoint = true, records, end, records
		s.scanPos, s.scanOffset, s.segments, s.lastCut = end, records, 1, -1
	}))
	require.NoError(t, s.f.Close())
	return records
}

// zeroBatch returns the beginning of a batch of one record whose value is all zeros. The rest of the batch, the value and the
// count of headers, is zeros.
func zeroBatch(t *testing.T, base, size, ms int64, zeros []byte) []byte {
	t.Helper()
	r := Record{Time: time.UnixMilli(ms)}
	n := size - headerLen
	for ; ; n-- {
		r.Value = zeros[:n]
		if batchSize(t, r) == size {
			break
		}
		require.Greater(t, n, size-headerLen-40)
	}
	b := make(batch, headerLen, headerLen+32)
	putHeader(b, base, 0, 1, ms, ms)
	body := binary.AppendVarint(nil, int64(r.bodyLen(0, 0)))
	body = append(body, 0, 0, 0, 1) // attributes, deltas, no key
	body = binary.AppendVarint(body, n)
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[atBatchLength:], uint32(size-lengthOverhead))
	crc := crc32.Update(crc32.Checksum(b[atAttributes:], castagnoli), castagnoli, zeros[:size-int64(len(b))])
	binary.BigEndian.PutUint32(b[atCRC:], crc)
	return b
}

// Positions lie below 2 GiB. A segment must be filled to its last position, 2^31 - 2, and the next batch go into a new segment.
func TestPositionAt2GiB(t *testing.T) {
	if testing.Short() {
		t.Skip("maps 2 GiB")
	}
	const room = 300
	dir := t.TempDir()
	n := hugeSegment(t, dir, maxSegmentBytes-room)
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: maxSegmentBytes, MaxBatchBytes: 128 << 20})
	require.NoError(t, err)
	defer l.Close()
	require.Equal(t, Offsets{RecoveryPoint: n, HighWatermark: n, End: n}, l.Offsets())
	exact := Record{Time: time.UnixMilli(1700000100000)}
	for size := int64(0); size != room; {
		exact.Value = append(exact.Value, 'x')
		size = batchSize(t, exact)
	}
	over := exact
	over.Value = append([]byte("y"), exact.Value...)
	base, err := l.Append(exact)
	require.NoError(t, err)
	require.Equal(t, n, base)
	require.Equal(t, 1, l.Stats().Segments)
	require.EqualValues(t, maxSegmentBytes, l.Stats().Bytes)
	base, err = l.Append(over)
	require.NoError(t, err)
	require.Equal(t, 2, l.Stats().Segments)
	check := func() {
		t.Helper()
		r, err := l.Read(n)
		require.NoError(t, err)
		require.Equal(t, exact.Value, r.Value)
		r, err = l.Read(n - 1)
		require.NoError(t, err)
		require.NotEmpty(t, r.Value)
		r, err = l.Read(base)
		require.NoError(t, err)
		require.Equal(t, over.Value, r.Value)
		s, err := l.Section(n, 1)
		require.NoError(t, err)
		require.EqualValues(t, room, s.Len())
		require.NoError(t, s.Close())
		at, err := l.OffsetForTime(exact.Time)
		require.NoError(t, err)
		require.Equal(t, n, at)
	}
	check()
	require.NoError(t, l.Close())
	l, err = Open(dir, &Options{Flush: FlushNone, SegmentBytes: maxSegmentBytes, MaxBatchBytes: 128 << 20})
	require.NoError(t, err)
	defer l.Close()
	check()
}

// A batch that would end one byte past the last position must go into a new segment, and a larger file must be refused.
func TestPositionPast2GiB(t *testing.T) {
	if testing.Short() {
		t.Skip("maps 2 GiB")
	}
	const shortRoom = 200
	dir := t.TempDir()
	n := hugeSegment(t, dir, maxSegmentBytes-shortRoom)
	l, err := Open(dir, &Options{Flush: FlushNone, SegmentBytes: maxSegmentBytes, MaxBatchBytes: 128 << 20})
	require.NoError(t, err)
	defer l.Close()
	over := Record{Time: time.UnixMilli(1700000100000)}
	for size := int64(0); size != shortRoom+1; {
		over.Value = append(over.Value, 'x')
		size = batchSize(t, over)
	}
	base, err := l.Append(over)
	require.NoError(t, err)
	require.Equal(t, n, base)
	require.Equal(t, 2, l.Stats().Segments)
	require.NoError(t, l.Close())
	st, err := os.Stat(l.path(0, logSuffix))
	require.NoError(t, err)
	require.EqualValues(t, maxSegmentBytes-shortRoom, st.Size())
	// Neither seglog nor Kafka writes a file of 2 GiB.
	require.NoError(t, os.Truncate(l.path(0, logSuffix), maxSegmentBytes+1))
	l, err = Open(dir, nil)
	require.NoError(t, err, "Open does not check sealed segments")
	defer l.Close()
	_, err = l.Read(0)
	require.ErrorIs(t, err, ErrCorrupt)
}

// All buffers for a batch that inflates to more than the limit must take no more than twice the limit, freed ones included: the garbage
// collector may not have come by.
func TestInflateTakesTwiceTheLimit(t *testing.T) {
	if race.On {
		t.Skip("the race detector allocates, too")
	}
	const limit = 16 << 20
	body, ok, err := deflate(CodecGzip, make([]byte, 2*limit))
	require.NoError(t, err)
	require.True(t, ok)
	b := append(make(batch, headerLen), body...)
	binary.BigEndian.PutUint16(b[atAttributes:], uint16(CodecGzip))
	binary.BigEndian.PutUint32(b[atRecordsCount:], 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err = b.inflate(nil, limit)
	runtime.ReadMemStats(&after)
	require.ErrorIs(t, err, ErrInflated)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2*limit+1<<20))
}
