package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog/internal/race"
	"github.com/seglog/seglog/internal/vfs"
)

// bigBatch returns a batch of n records as another program would write it. Their offsets are step apart, as after a
// compaction, and their values shorter than size.
func bigBatch(rnd *rand.Rand, base int64, n int, step int64, size int, codec Codec) []byte {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = Record{Time: time.UnixMilli(1_700_000_000_000 + rnd.Int64N(100_000)), Value: make([]byte, rnd.IntN(size))}
		copy(recs[i].Value, fmt.Sprintf("value %d of %d", i, base))
		if rnd.IntN(3) == 0 {
			recs[i].Key = fmt.Appendf(nil, "key %d", i)
		}
		if rnd.IntN(9) == 0 {
			recs[i].Headers = []Header{{"name", []byte("v")}, {"other", nil}}
		}
	}
	b := encoded(recs, base)
	body := b[headerLen:]
	if step > 1 {
		var apart []byte
		for at := 0; at < len(body); {
			length, i := varintAt(body, at)
			rec := body[i : i+int(length)]
			at = i + int(length)
			_, behindTime := varintAt(rec, 1)
			delta, rest := varintAt(rec, behindTime)
			out := binary.AppendVarint(append([]byte{}, rec[:behindTime]...), delta*step)
			out = append(out, rec[rest:]...)
			apart = append(binary.AppendVarint(apart, int64(len(out))), out...)
		}
		body = apart
		binary.BigEndian.PutUint32(b[atLastOffsetDelta:], uint32(int64(n)*step-1)) // offsets after the last record are missing, too
	}
	if codec != CodecNone {
		out, ok, err := deflate(codec, body)
		if err != nil || !ok {
			panic(fmt.Sprint(ok, err))
		}
		body = out
	}
	binary.BigEndian.PutUint16(b[atAttributes:], uint16(codec))
	b = append(b[:headerLen:headerLen], body...)
	batch(b).seal()
	return b
}

// withReadCache sets the size of the process's read cache for a test.
func withReadCache(t *testing.T, n int64) {
	SetReadCacheBytes(n)
	t.Cleanup(func() { SetReadCacheBytes(defaultReadCacheBytes) })
}

// mixedLog returns a log of batches of all kinds, and its records by their offsets.
func mixedLog(t *testing.T, fsys vfs.FS, dir string, o *Options) (*Log, map[int64]Record) {
	l, err := openFS(fsys, dir, o)
	require.NoError(t, err)
	rnd := rand.New(rand.NewPCG(14, 14))
	var stream []byte
	next := int64(0)
	for i := range 40 {
		n, step, codec := 1+rnd.IntN(400), int64(1), CodecNone
		if i%3 == 1 {
			step = 1 + rnd.Int64N(5)
		}
		if i%4 == 2 {
			codec = CodecGzip
		}
		b := bigBatch(rnd, next, n, step, 1+rnd.IntN(300), codec)
		next = batch(b).last() + 1
		stream = append(stream, b...)
	}
	_, err = l.TransferFrom(bytes.NewReader(stream), -1)
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	want := map[int64]Record{}
	for r, err := range l.Records(Oldest) {
		require.NoError(t, err)
		want[r.Offset] = r.Clone()
	}
	require.Equal(t, next, l.Offsets().End)
	return l, want
}

// Read must return the same records as Records, from batches of any kind, in any order, in several goroutines, also with a
// cache that is too small or whose size changes; and the cache must stay within its bound.
func TestReadFromLargeBatches(t *testing.T) {
	for _, limit := range []int64{defaultReadCacheBytes, 64 << 10, 4 << 10, 1, 0} {
		for what, fsys := range map[string]vfs.FS{"mapped": osFS{}, "read": newCountingFS()} {
			t.Run(fmt.Sprintf("%d %s", limit, what), func(t *testing.T) {
				withReadCache(t, limit)
				l, want := mixedLog(t, fsys, t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: 256 << 10})
				defer l.Close()
				l.reads = &processReads
				end := l.Offsets().End
				var wg sync.WaitGroup
				var failed atomic.Pointer[string]
				for g := range 3 {
					wg.Add(1)
					go func() {
						defer wg.Done()
						rnd := rand.New(rand.NewPCG(uint64(limit), uint64(g)))
						at := int64(0)
						for i := range 1000 {
							if at++; at >= end || i%16 == 0 {
								at = rnd.Int64N(end)
							}
							got, err := l.Read(at)
							rec, there := want[at]
							switch {
							case !there && !errors.Is(err, ErrOutOfRange) || there && err != nil:
								s := fmt.Sprintf("offset %d, exists %v: %v", at, there, err)
								failed.Store(&s)
							case there && fmt.Sprint(rec) != fmt.Sprint(got):
								s := fmt.Sprintf("offset %d: %v, want %v", at, got, rec)
								failed.Store(&s)
							}
							if limit == 64<<10 && i%500 == 0 {
								SetReadCacheBytes(limit)
							}
						}
					}()
				}
				wg.Wait()
				if s := failed.Load(); s != nil {
					t.Fatal(*s)
				}
				bytes := l.Stats().ReadCacheBytes
				require.LessOrEqual(t, bytes, limit+limit/8+cacheSetBytes)
				require.Equal(t, limit >= 4<<10, bytes > 0, bytes)
				requireCacheAddsUp(t, &processReads)
			})
		}
	}
}

// With a bound larger than the memory, the cache must take only the memory that its batches need, and its table must grow with
// their number.
func TestReadCacheOfAnyBound(t *testing.T) {
	withReadCache(t, math.MaxInt64)
	l, want := mixedLog(t, osFS{}, t.TempDir(), &Options{Flush: FlushNone, SegmentBytes: 256 << 10})
	defer l.Close()
	for offset := range want {
		got, err := l.Read(offset)
		require.NoError(t, err)
		require.Equal(t, want[offset].Value, got.Value)
	}
	require.Positive(t, l.Stats().ReadCacheBytes)
	require.Less(t, l.Stats().ReadCacheBytes, 2*l.Stats().Bytes)
	requireCacheAddsUp(t, &processReads)

	c := &readCache{}
	c.limit.Store(math.MaxInt64)
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := 0; n < 20_000; { // at any number of batches, nearly each must have a place
		batches := make([]*cachedBatch, 1000)
		pos := uint32(0)
		for i := range batches {
			batches[i] = &cachedBatch{handle: 1 + uint64(n/1000), pos: pos, checked: time.Since(processBegan), starts: make([]uint32, 16)}
			pos += 120_000 + rnd.Uint32N(20_000)
			c.put(batches[i])
		}
		n += len(batches)
		require.Greater(t, float64(len(c.ring)), 0.999*float64(n))
	}
	requireCacheAddsUp(t, c)
	for _, b := range c.ring {
		require.Same(t, b, c.get(b.handle, int64(b.pos)))
	}
}

// Batches of one size lie at even distances, in each of many segments. Whatever the size, there is a place for nearly all.
func TestReadCacheOfEvenDistances(t *testing.T) {
	for size := uint32(103_000); size < 104_000; size += 7 {
		c := &readCache{}
		c.limit.Store(defaultReadCacheBytes)
		n := 0
		for handle := range uint64(4) {
			for pos := uint32(0); pos < 64<<20; pos += size {
				c.put(&cachedBatch{handle: 1 + handle, pos: pos, checked: time.Since(processBegan)})
				n++
			}
		}
		require.Greater(t, float64(len(c.ring)), 0.99*float64(n), "batches of %d bytes", size)
	}
}

// Batches that were checked more than a minute ago must go as others come: nobody uses those of closed files any more.
func TestReadCacheExpires(t *testing.T) {
	c := &readCache{}
	c.limit.Store(1 << 20)
	now := time.Since(processBegan)
	for i := range uint32(1000) {
		c.put(&cachedBatch{handle: 1, pos: i * 4096, checked: now - trustedFor - 1, starts: make([]uint32, 4)})
	}
	for i := range uint32(3000) {
		c.put(&cachedBatch{handle: 2, pos: i * 4096, checked: now, starts: make([]uint32, 4)})
	}
	for _, b := range c.ring {
		require.EqualValues(t, 2, b.handle)
	}
	require.Greater(t, len(c.ring), 2500)
	requireCacheAddsUp(t, c)
}

func requireCacheAddsUp(t *testing.T, c *readCache) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, kept := int64(0), 0
	if table := c.table.Load(); table != nil {
		n = int64(len(*table)) * cacheSetBytes
		for i := range *table {
			for k := range (*table)[i] {
				place := &(*table)[i][k]
				if b := place.batch.Load(); b != nil {
					require.Same(t, c.ring[b.slot], b)
					require.Equal(t, b.key(), place.key.Load())
					n += b.bytes()
					kept++
				} else {
					require.Zero(t, place.key.Load())
				}
			}
		}
	}
	require.Len(t, c.ring, kept)
	require.Equal(t, n, c.bytes.Load())
}

// A large batch must be read as a whole only once, and then in part, a few KiB for each record.
func TestLargeBatchesAreReadOnce(t *testing.T) {
	withReadCache(t, defaultReadCacheBytes)
	fsys := newCountingFS()
	dir := t.TempDir()
	l, err := openFS(fsys, dir, &Options{Flush: FlushNone})
	require.NoError(t, err)
	_, err = l.TransferFrom(bytes.NewReader(bigBatch(rand.New(rand.NewPCG(1, 1)), 0, 5000, 1, 500, CodecNone)), -1)
	require.NoError(t, err)
	size := l.Stats().Bytes
	require.NoError(t, l.Close())
	for every, most := range map[bool]int64{false: 2*size + 2000*windowChunk, true: 1000 * size * 2} {
		l, err = openFS(fsys, dir, &Options{ReadOnly: true, CheckEveryRead: every})
		require.NoError(t, err)
		l.reads = &processReads
		took := fsys.took(func() {
			for i := range int64(1000) {
				_, err := l.Read(i * 4999 / 1000)
				require.NoError(t, err)
			}
		})
		t.Logf("read %d bytes of a batch of %d for a thousand records", took, size)
		require.LessOrEqual(t, took, most)
		require.Equal(t, every, took >= 1000*size)
		require.NoError(t, l.Close())
	}
}

// A compressed batch must be inflated once for all of its records, or for each Read if it does not fit in the cache.
func TestCompressedBatchesAreInflatedOnce(t *testing.T) {
	const n = 300
	inflated := 0
	counting := func(r io.Reader) (io.ReadCloser, error) {
		inflated++
		return newGzipReader(r)
	}
	RegisterDecompressor(CodecGzip, counting)
	defer RegisterDecompressor(CodecGzip, newGzipReader)
	for limit, want := range map[int64]int{defaultReadCacheBytes: 1, 64 << 10: n} {
		withReadCache(t, limit)
		l, err := Open(t.TempDir(), &Options{Flush: FlushNone})
		require.NoError(t, err)
		_, err = l.TransferFrom(bytes.NewReader(bigBatch(rand.New(rand.NewPCG(2, 2)), 0, n, 1, 2000, CodecGzip)), -1)
		require.NoError(t, err)
		inflated = 0
		for i := range int64(n) {
			_, err := l.Read(i)
			require.NoError(t, err)
		}
		require.Equal(t, want, inflated)
		require.NoError(t, l.Close())
	}
}

// A bit of a batch flips after the batch was checked. Within the minute for which the check counts, Read must return a record
// of the right offset, possibly with wrong contents, or an error. With CheckEveryRead, or after the minute, Read must notice
// the flip.
func TestFlipsInACheckedBatch(t *testing.T) {
	if race.On {
		t.Skip("the test has one goroutine, so the race detector would only slow it down")
	}
	for _, step := range []int64{1, 3} {
		withReadCache(t, defaultReadCacheBytes)
		dir := t.TempDir()
		l, err := Open(dir, &Options{Flush: FlushNone})
		require.NoError(t, err)
		const n = 24
		b := bigBatch(rand.New(rand.NewPCG(3, uint64(step))), 0, n, step, 350, CodecNone)
		end := batch(b).last() + 1
		_, err = l.TransferFrom(bytes.NewReader(append(bytes.Clone(b), bigBatch(rand.New(rand.NewPCG(3, 4)), end, 3, 1, 50, CodecNone)...)), -1)
		require.NoError(t, err)
		require.Greater(t, len(b), minCachedBatch/2)
		require.NoError(t, l.Close())
		strict, err := Open(dir, &Options{ReadOnly: true, CheckEveryRead: true})
		require.NoError(t, err)
		l, err = Open(dir, &Options{ReadOnly: true})
		require.NoError(t, err)
		l.reads = readCacheOf(nil) // a cache of its own, which keeps batches of any size
		file, err := os.OpenFile(filepath.Join(dir, fileName(0, logSuffix)), os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = l.Read(0)
		require.NoError(t, err)
		require.Len(t, l.reads.ring, 1)
		known := l.reads.ring[0]
		wrong, errs := 0, 0
		for at := 0; at < len(b); at++ {
			if at > 2*headerLen {
				at += 6
			}
			at = min(at, len(b)-1)
			for bit := at % 3; bit < 8; bit += 3 {
				flipped := b[at] ^ 1<<bit
				_, err := file.WriteAt([]byte{flipped}, int64(at))
				require.NoError(t, err)
				for _, offset := range []int64{0, 7 * step, 8 * step, (n - 1) * step} {
					l.reads.setLimit(1 << 14)
					l.reads.put(known)
					rec, err := l.Read(offset)
					switch {
					case err != nil:
						errs++
						require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrOutOfRange) && at < walkLen, "byte %d bit %d offset %d: %v", at, bit, offset, err)
					default:
						wrong++
						require.Equal(t, offset, rec.Offset, "byte %d bit %d", at, bit)
					}
				}
				if at >= atCRC {
					_, err = strict.Read(7 * step)
					require.ErrorIs(t, err, ErrCorrupt, "byte %d bit %d", at, bit)
					l.reads.setLimit(1 << 14)
					old := known
					l.reads.put(&cachedBatch{handle: old.handle, checked: time.Since(processBegan) - trustedFor - 1, pos: old.pos, head: old.head,
						size: old.size, every: old.every, dense: old.dense, starts: old.starts})
					_, err = l.Read(7 * step)
					require.ErrorIs(t, err, ErrCorrupt, "byte %d bit %d", at, bit)
				}
				_, err = file.WriteAt([]byte{b[at]}, int64(at))
				require.NoError(t, err)
			}
		}
		t.Logf("%d reads of a damaged batch gave a record, %d an error", wrong, errs)
		require.Positive(t, wrong)
		require.Positive(t, errs)
		require.NoError(t, file.Close())
		require.NoError(t, l.Close())
		require.NoError(t, strict.Close())
	}
}
