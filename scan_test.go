package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// scanSeed returns four batches: with 3 records, with 1 record, with none, and with 1 record after a gap.
func scanSeed() []byte {
	var stream []byte
	add := func(base int64, lastDelta, count int, body []byte) {
		be := binary.BigEndian
		b := be.AppendUint64(nil, uint64(base))
		b = be.AppendUint32(b, uint32(headerLen-lengthOverhead+len(body)))
		b = append(b, 0, 0, 0, 0, magicV2, 0, 0, 0, 0, 0, 0)
		b = be.AppendUint32(b, uint32(lastDelta))
		b = append(b, make([]byte, 30)...)
		b = be.AppendUint32(b, uint32(count))
		b = append(b, body...)
		be.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
		stream = append(stream, b...)
	}
	record := func(delta byte, value string) []byte {
		b := append([]byte{0, 0, delta << 1, 1, byte(len(value) << 1)}, value...)
		b = append(b, 0)
		return append([]byte{byte(len(b) << 1)}, b...)
	}
	add(5, 2, 3, bytes.Join([][]byte{record(0, "a"), record(1, ""), record(2, "ccc")}, nil))
	add(8, 0, 1, record(0, "d"))
	add(9, 9, 0, nil)
	add(100, 0, 1, record(0, "e"))
	return stream
}

// scanned returns the batches of a scan, the position after them, and the error that ends it.
func scanned(src io.Reader, next, end int64, most int, gaps bool) (batches [][]byte, pos int64, err error) {
	var s scanner
	s.init(src, "", 0, next, end)
	s.gaps = gaps
	if most > 0 {
		s.most = most
	}
	for {
		b, err := s.scan()
		if err != nil {
			return batches, s.pos, err
		}
		batches = append(batches, bytes.Clone(b))
	}
}

func TestScan(t *testing.T) {
	stream := scanSeed()
	all, pos, err := scanned(bytes.NewReader(stream), -1, -1, 0, true)
	require.Equal(t, io.EOF, err)
	require.Len(t, all, 4)
	require.EqualValues(t, len(stream), pos)
	require.Equal(t, stream, bytes.Join(all, nil))
	sizes := []int{len(all[0]), len(all[1]), len(all[2]), len(all[3])}
	cases := map[string]struct {
		next, end int64
		most      int
		gaps      bool
		batches   int
		reason    string // "" for the end
	}{
		"unchanged":             {5, 101, 0, true, 4, ""},
		"no gap allowed":        {5, -1, 0, false, 3, "offsets are missing"},
		"a gap at the start":    {4, -1, 0, false, 0, "offsets are missing"},
		"an allowed gap":        {4, -1, 0, true, 4, ""},
		"offsets that go back":  {6, -1, 0, true, 0, "offsets go back"},
		"into the next segment": {5, 100, 0, true, 3, "overlap those that begin at"},
		"into it by one batch":  {5, 7, 0, true, 0, "overlap those that begin at"},
		"largest allowed":       {5, -1, sizes[0], true, 4, ""},
		"one byte too large":    {5, -1, sizes[0] - 1, true, 0, "at most"},
	}
	for name, c := range cases {
		got, pos, err := scanned(bytes.NewReader(stream), c.next, c.end, c.most, c.gaps)
		require.Len(t, got, c.batches, name)
		at := 0
		for _, b := range got {
			at += len(b)
		}
		require.EqualValues(t, at, pos, name)
		if c.reason == "" {
			require.Equal(t, io.EOF, err, name)
			continue
		}
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt, name)
		require.Contains(t, corrupt.Reason, c.reason, name)
		require.EqualValues(t, at, corrupt.Pos, name)
	}
}

// If a flipped bit raises a base offset, which looks like a gap, the offsets of the next batch must expose it.
func TestScanConfirmsGaps(t *testing.T) {
	stream := scanSeed()
	binary.BigEndian.PutUint64(stream, 7) // 7 to 9, and 8 follows
	got, _, err := scanned(bytes.NewReader(stream), 5, -1, 0, true)
	require.Empty(t, got)
	require.ErrorIs(t, err, ErrCorrupt)
	require.Contains(t, err.Error(), "collides")
}

// The result of a scan must not depend on the sizes of reads.
func TestScanOfSlowReaders(t *testing.T) {
	stream := bytes.Repeat(scanSeed(), 1)
	want, _, _ := scanned(bytes.NewReader(stream), -1, -1, 0, true)
	for name, src := range map[string]io.Reader{
		"one byte":       iotest.OneByteReader(bytes.NewReader(stream)),
		"halves":         iotest.HalfReader(bytes.NewReader(stream)),
		"data with EOF":  iotest.DataErrReader(bytes.NewReader(stream)),
		"empty reads":    &hesitant{r: bytes.NewReader(stream)},
		"file at a time": &fileRange{f: bytes.NewReader(stream), end: int64(len(stream))},
	} {
		got, pos, err := scanned(src, -1, -1, 0, true)
		require.Equal(t, io.EOF, err, name)
		require.Equal(t, want, got, name)
		require.EqualValues(t, len(stream), pos, name)
	}
	broken := errors.New("broken")
	got, _, err := scanned(io.MultiReader(bytes.NewReader(stream[:len(want[0])+20]), iotest.ErrReader(broken)), -1, -1, 0, true)
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, ErrCorrupt)
	require.Len(t, got, 1)
}

// hesitant returns no bytes from every other Read, which io.Reader allows.
type hesitant struct {
	r   io.Reader
	odd bool
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.odd = !h.odd; h.odd {
		return 0, nil
	}
	return h.r.Read(p[:min(len(p), 7)])
}

// The buffer must grow with the bytes that arrive, not by the length field of a batch.
func TestScanAllocatesForArrivedBytesOnly(t *testing.T) {
	stream := scanSeed()
	binary.BigEndian.PutUint32(stream[atBatchLength:], math.MaxInt32-lengthOverhead)
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := allocated()
	_, _, err := scanned(bytes.NewReader(stream), -1, -1, 0, true)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Less(t, allocated()-before, uint64(1<<20))
}

// No input may make the scanner panic or loop. It must accept only whole batches, in order and with valid CRCs, and the same
// ones in whatever pieces they arrive. There is one exception: a batch after a gap that only the next batch proves wrong is
// accepted if the two arrive separately.
func FuzzScan(f *testing.F) {
	stream := scanSeed()
	f.Add(stream, int64(-1), int64(-1), true, uint16(0))
	f.Add(stream, int64(5), int64(101), true, uint16(1000))
	f.Add(stream[:len(stream)-1], int64(5), int64(-1), false, uint16(100))
	f.Add(append(bytes.Clone(stream), make([]byte, 200)...), int64(5), int64(-1), true, uint16(0))
	f.Add([]byte{}, int64(0), int64(0), false, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, next, end int64, gaps bool, most uint16) {
		got, pos, err := scanned(bytes.NewReader(b), next, end, int(most), gaps)
		if err == nil {
			t.Fatal("a scan ends with an error")
		}
		again, againPos, againErr := scanned(&hesitant{r: bytes.NewReader(b)}, next, end, int(most), gaps)
		late := len(again) == len(got)+1 && strings.Contains(err.Error(), "collides") && errors.Is(againErr, ErrCorrupt)
		if !late && (againPos != pos || len(again) != len(got) || againErr.Error() != err.Error()) {
			t.Fatalf("in pieces: %d batches to %d, %v; whole: %d batches to %d, %v", len(again), againPos, againErr, len(got), pos, err)
		}
		at := int64(0)
		for _, raw := range got {
			if !bytes.Equal(raw, b[at:at+int64(len(raw))]) {
				t.Fatalf("the batch at %d differs from the input", at)
			}
			h := batch(raw)
			at += int64(len(raw))
			switch {
			case h.size() != int64(len(raw)), h.checkCRC() != "":
				t.Fatal("not a whole batch")
			case most > 0 && len(raw) > int(most):
				t.Fatal("larger than allowed")
			case next >= 0 && (h.base() < next || h.base() > next && !gaps):
				t.Fatalf("offset %d, want %d next", h.base(), next)
			case end >= 0 && h.last() >= end:
				t.Fatalf("offset %d, but the end is %d", h.last(), end)
			}
			next = h.last() + 1
		}
		if at != pos || err == io.EOF && pos != int64(len(b)) {
			t.Fatalf("ends at %d of %d after batches of %d bytes: %v", pos, len(b), at, err)
		}
	})
}

func TestIsZero(t *testing.T) {
	for n := range 100 {
		b := make([]byte, n)
		require.True(t, isZero(b))
		for i := range b {
			b[i] = 1 << (i % 8)
			require.False(t, isZero(b), "%d of %d", i, n)
			b[i] = 0
		}
	}
	require.False(t, isZero(bytes.Repeat([]byte{7}, 64)))
}

// The header that follows a batch after a gap proves that batch wrong only if the header itself can be right.
func TestCollides(t *testing.T) {
	behind := func(base int64) batch {
		b := make(batch, headerLen)
		copy(b, encoded([]Record{{Value: []byte("v")}}, base))
		return b
	}
	// A batch claims the offsets 20 and 21; without damage it would have offset 10 or more.
	for base, wrong := range map[int64]bool{0: false, 9: false, 11: false, 12: true, 20: true, 21: true, 22: false, 1000: false} {
		why := behind(base).collides(10, 20, 21)
		require.Equal(t, wrong, why != "", "base %d: %s", base, why)
	}
}
