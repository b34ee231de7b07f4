package seglog

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/seglog/seglog/internal/sim"
	"github.com/seglog/seglog/internal/vfs"
)

// These constants bound the cost of hostile input. Memory is the number of bytes allocated, including garbage; work is the
// number of bytes read from files. Each may be a constant plus a multiple of the input size, whatever lengths and counts the
// input claims.
const (
	// A header of two bytes takes 40 in memory; buffers double up to twice the input, and a batch is copied once.
	memoryOfBytes = 32
	// The scanner, the pools and the codecs allocate buffers before the first byte.
	memoryOfNothing = 1 << 20
	// inflatedLimit is Options.MaxInflatedBytes in these tests. The buffer doubles up to it, and headers may take as much again.
	inflatedLimit  = 1 << 20
	memoryInflated = 4 * inflatedLimit

	// The look-up for a batch reads an index interval or a window, and the smallest batch has 61 bytes.
	workOfBytes   = 2 * (defaultIndexBytes + windowChunk) / headerLen
	workOfNothing = 1 << 20
)

// costFS counts the bytes read through it. It does not map files, so that all reads go through it.
type costFS struct {
	vfs.FS
	read atomic.Int64
}

type costFile struct {
	vfs.File
	fs *costFS
}

func (c *costFS) Open(path string, mode vfs.OpenMode) (vfs.File, error) {
	f, err := c.FS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return costFile{f, c}, nil
}

func (f costFile) ReadAt(p []byte, pos int64) (int, error) {
	n, err := f.File.ReadAt(p, pos)
	f.fs.read.Add(int64(n) + 1) // a call that reads nothing costs, too
	return n, err
}

func newCostFS(w *sim.World) *costFS { return &costFS{FS: sim.NewFS(w, false)} }

// bounded runs f and checks its cost for n bytes of input.
func bounded(t *testing.T, what string, n int, c *costFS, f func()) {
	t.Helper()
	var read int64
	if c != nil {
		read = c.read.Load()
	}
	before := allocated()
	f()
	if spent, most := allocated()-before, uint64(memoryOfNothing+memoryInflated+memoryOfBytes*n); spent > most {
		t.Fatalf("%s allocated %d bytes for %d bytes of input, want at most %d", what, spent, n, most)
	}
	if c != nil {
		if work, most := c.read.Load()-read, int64(workOfNothing+workOfBytes*n); work > most {
			t.Fatalf("%s read %d bytes for %d bytes of input, want at most %d", what, work, n, most)
		}
	}
}

// sealedBatch corrects the length and the CRC of a batch, so that the fuzzer gets past their checks.
func sealedBatch(b []byte) []byte {
	if len(b) < headerLen {
		return b
	}
	binary.BigEndian.PutUint32(b[atBatchLength:], uint32(len(b)-lengthOverhead))
	binary.BigEndian.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
	return b
}

func hostileBatch(base int64, codec Codec, count, lastDelta uint32, body []byte) []byte {
	b := make([]byte, headerLen, headerLen+len(body))
	putHeader(b, base, 0, 1, 1_700_000_000_000, 1_700_000_000_000)
	if codec == CodecGzip {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		w.Write(body)
		w.Close()
		body = out.Bytes()
	}
	binary.BigEndian.PutUint16(b[atAttributes:], uint16(codec))
	binary.BigEndian.PutUint32(b[atRecordsCount:], count)
	binary.BigEndian.PutUint32(b[atLastOffsetDelta:], lastDelta)
	return sealedBatch(append(b, body...))
}

// hostileBatches returns one input of each kind that once cost too much.
func hostileBatches() (all [][]byte) {
	headers := func(n int) []byte {
		body := append([]byte{0, 0, 0, 1, 1}, binary.AppendVarint(nil, int64(n))...)
		body = append(body, bytes.Repeat([]byte{0, 1}, n)...)
		return append(binary.AppendVarint(nil, int64(len(body))), body...)
	}
	plain := encoded([]Record{{Time: time.UnixMilli(5), Key: []byte("k"), Value: []byte("value")}}, 0)
	small := plain[headerLen:]
	claims := append(append(binary.AppendVarint(nil, 40_009), 0, 0, 0, 1, 1), append(binary.AppendVarint(nil, 10_000), make([]byte, 40_000)...)...)
	holds := encoded([]Record{{Time: time.UnixMilli(5), Value: bytes.Repeat(plain, 30)}}, 0)
	var many, gaps, zeros []byte
	for i := range int64(300) {
		many = append(many, hostileBatch(i, 0, 0, 0, nil)...)
		gaps = append(gaps, hostileBatch(10*i, 0, 1, 0, small)...)
	}
	zeros = append(append(zeros, plain...), make([]byte, 30_000)...)
	torn := bytes.Clone(plain)
	binary.BigEndian.PutUint32(torn[atBatchLength:], math.MaxInt32-lengthOverhead)
	spoilt := bytes.Clone(holds)
	spoilt[atCRC] ^= 1
	return [][]byte{
		plain, many, gaps, zeros, torn, holds, spoilt,
		hostileBatch(0, CodecGzip, 1, 0, small),
		hostileBatch(0, CodecGzip, 1, 0, headers(1<<19)),
		hostileBatch(0, CodecNone, 1, 0, headers(20_000)),
		hostileBatch(0, CodecNone, 1, 0, claims),
		hostileBatch(0, CodecGzip, math.MaxInt32, math.MaxInt32-1, nil),
		hostileBatch(0, CodecSnappy, math.MaxInt32, math.MaxInt32-1, []byte("x")),
		hostileBatch(0, CodecGzip, 1, 0, make([]byte, 3<<20)),
		hostileBatch(math.MaxInt64-math.MaxInt32, CodecNone, 1, 0, small),
		hostileBatch(0, CodecNone, 0, math.MaxInt32, nil),
	}
}

// classified checks that an error matches one of the kinds that hostile input may cause.
func classified(t *testing.T, err error) {
	t.Helper()
	for _, kind := range []error{nil, ErrCorrupt, ErrCodec, ErrInflated, ErrInvalid, ErrTooLarge, ErrNotJoined, ErrOutOfRange, ErrLocked, io.ErrUnexpectedEOF} {
		if errors.Is(err, kind) {
			return
		}
	}
	t.Fatalf("unclassified: %v", err)
}

// FuzzDecode decodes arbitrary streams.
func FuzzDecode(f *testing.F) {
	for _, b := range hostileBatches() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealedBatch(bytes.Clone(b))} {
			bounded(t, "Decode", len(b), nil, func() {
				last, records := int64(-1), 0
				for r, err := range decode(bytes.NewReader(b), inflatedLimit) {
					if err != nil {
						classified(t, err)
						break
					}
					if r.Offset <= last {
						t.Fatalf("record %d after %d", r.Offset, last)
					}
					last = r.Offset
					records++
				}
				if most := 1033 * len(b) / minRecord; records > most {
					t.Fatalf("%d records in %d bytes", records, len(b))
				}
			})
		}
	})
}

func costOptions() *Options {
	return &Options{Flush: FlushNone, SegmentBytes: 1 << 20, MaxInflatedBytes: inflatedLimit}
}

// FuzzTransferFrom sends arbitrary bytes to a follower, in one piece or byte by byte. It sends them twice: the second time the
// follower compares each batch with its own.
func FuzzTransferFrom(f *testing.F) {
	for _, b := range hostileBatches() {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, slowly bool) {
		c := newCostFS(sim.NewWorld())
		l, err := openFS(c, sim.Dir, costOptions())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}()
		for range 2 {
			var in io.Reader = bytes.NewReader(b)
			if slowly {
				in = iotest.OneByteReader(in)
			}
			before := l.Offsets()
			bounded(t, "TransferFrom", len(b), c, func() {
				read, err := l.TransferFrom(in, -1)
				classified(t, err)
				if read > int64(len(b)) {
					t.Fatalf("took %d of %d bytes", read, len(b))
				}
				if after := l.Offsets(); after.End < before.End || after.Start < before.Start || read == 0 && after != before {
					t.Fatalf("%d bytes taken, %+v became %+v", read, before, after)
				}
			})
		}
		bounded(t, "Records", len(b), c, func() {
			for _, err := range l.Records(l.Offsets().Start) {
				classified(t, err)
			}
		})
		bounded(t, "OffsetForTime", len(b), c, func() {
			_, err := l.OffsetForTime(time.UnixMilli(1_600_000_000_000))
			classified(t, err)
		})
	})
}

// FuzzAppendBatch appends arbitrary bytes, as from a producer. Every record of an accepted batch must be readable.
func FuzzAppendBatch(f *testing.F) {
	for _, b := range hostileBatches() {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix {
			b = sealedBatch(bytes.Clone(b))
		}
		l, err := openFS(newCostFS(sim.NewWorld()), sim.Dir, costOptions())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}()
		bounded(t, "AppendBatch", len(b), nil, func() { _, err = l.AppendBatch(b) })
		classified(t, err)
		end := l.Offsets().End
		if err != nil {
			if end != 0 {
				t.Fatalf("refused (%v), but the log ends at %d", err, end)
			}
			return
		}
		records, greatest := int64(0), int64(noTimestamp)
		for r, err := range l.Records(0) {
			if errors.Is(err, ErrCodec) {
				return
			}
			if err != nil {
				t.Fatalf("accepted, but not readable: %v", err)
			}
			records++
			if !r.Time.IsZero() {
				greatest = max(greatest, r.Time.UnixMilli())
			}
		}
		for info, err := range l.Batches(0) {
			if err != nil {
				t.Fatal(err)
			}
			if info.Control {
				return
			}
			if records != info.Records || records != end {
				t.Fatalf("%d records, the header says %d, the log ends at %d", records, info.Records, end)
			}
			if !info.LogAppendTime && greatest != max(noTimestamp, batchTime(info.MaxTime)) {
				t.Fatalf("greatest time is %d, the header says %v", greatest, info.MaxTime)
			}
		}
	})
}

func batchTime(at time.Time) int64 {
	if at.IsZero() {
		return noTimestamp
	}
	return at.UnixMilli()
}

// foreign returns a directory made of the fuzzer's bytes: files as in fuzzWorld, or all bytes as one segment.
func foreign(b []byte, whole bool) *sim.World {
	if !whole {
		return fuzzWorld(b)
	}
	w := sim.NewWorld()
	w.Put(fileName(0, logSuffix), bytes.Clone(b))
	return w
}

func foreignSeeds(f *testing.F) {
	for _, b := range hostileBatches() {
		f.Add(b, true)
		if len(b) < 1<<16 {
			f.Add(append(binary.BigEndian.AppendUint16([]byte{byte(len(fuzzNames))}, uint16(len(b))), b...), false)
		}
	}
}

// FuzzOpenForeign opens arbitrary directories, for writing and read-only, and then reads all records and looks up a time.
func FuzzOpenForeign(f *testing.F) {
	foreignSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		for _, readOnly := range []bool{true, false} {
			c := newCostFS(foreign(b, whole))
			o := costOptions()
			if o.ReadOnly = readOnly; readOnly {
				o.Flush = FlushSync
			}
			var l *Log
			var err error
			bounded(t, "Open", len(b), c, func() { l, err = openFS(c, sim.Dir, o) })
			if err != nil {
				continue
			}
			bounded(t, "Records", len(b), c, func() {
				for _, err := range l.Records(l.Offsets().Start) {
					classified(t, err)
				}
			})
			bounded(t, "OffsetForTime", len(b), c, func() {
				_, err := l.OffsetForTime(time.UnixMilli(1_600_000_000_000))
				classified(t, err)
			})
			ignore(l.Close())
		}
	})
}

// FuzzVerify verifies arbitrary directories; the cost must be bounded by the size of the files.
func FuzzVerify(f *testing.F) {
	foreignSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		c := newCostFS(foreign(b, whole))
		bounded(t, "Verify", len(b), c, func() {
			if _, err := verifyFS(c, sim.Dir, &VerifyOptions{MaxInflatedBytes: inflatedLimit}); err != nil && !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
		})
	})
}

// FuzzRepair repairs arbitrary directories, with and without KeepAfter; afterwards there must be nothing left to repair.
func FuzzRepair(f *testing.F) {
	foreignSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		for _, keep := range []bool{false, true} {
			c := newCostFS(foreign(b, whole))
			var err error
			bounded(t, "Repair", len(b), c, func() {
				_, err = repairFS(c, sim.Dir, &RepairOptions{Apply: true, KeepAfter: keep, MaxInflatedBytes: inflatedLimit})
			})
			if err != nil {
				classified(t, err)
				continue
			}
			again, err := repairFS(c, sim.Dir, &RepairOptions{KeepAfter: keep, MaxInflatedBytes: inflatedLimit})
			if err != nil {
				t.Fatalf("again: %v", err)
			}
			if !again.Sound() {
				t.Fatalf("again: %+v", again)
			}
		}
	})
}
