package seglog_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// sized returns a record whose batch has exactly size bytes.
func sized(t testing.TB, size int) seglog.Record {
	t.Helper()
	at := time.UnixMilli(1700000000000)
	for n := max(0, size-80); n <= size; n++ {
		if len(rawBatch{count: 1, body: rawRecord(0, 0, make([]byte, n))}.bytes()) == size {
			return seglog.Record{Time: at, Value: make([]byte, n)}
		}
	}
	require.FailNow(t, "no record makes a batch of that size", size)
	return seglog.Record{}
}

func sizedBatch(t testing.TB, base int64, size int) []byte {
	t.Helper()
	return rawBatch{base: base, count: 1, body: rawRecord(0, 0, sized(t, size).Value)}.bytes()
}

// Empty inputs must be refused or have no effect, and empty records be stored.
func TestEmptyInputs(t *testing.T) {
	for _, p := range policies {
		l := open(t, t.TempDir(), &seglog.Options{Flush: p})
		_, err := l.Append()
		require.ErrorIs(t, err, seglog.ErrInvalid)
		for _, b := range [][]byte{nil, {}, make([]byte, 60), make([]byte, 61), make([]byte, 100)} {
			_, err := l.AppendBatch(b)
			require.ErrorIs(t, err, seglog.ErrInvalid)
		}
		n, err := l.TransferFrom(bytes.NewReader(nil), -1)
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = l.TransferFrom(bytes.NewReader(plainBatch(0, "x")), 0)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, seglog.Offsets{}, l.Offsets())
		base, err := l.Append(seglog.Record{}, seglog.Record{Key: []byte{}, Value: []byte{}})
		require.NoError(t, err)
		require.Zero(t, base)
		r, err := l.Read(0)
		require.NoError(t, err)
		require.True(t, r.Key == nil && r.Value == nil && r.Headers == nil)
		r, err = l.Read(1)
		require.NoError(t, err)
		require.True(t, r.Key != nil && r.Value != nil && len(r.Key)+len(r.Value) == 0)
		s, err := l.Section(0, 0)
		require.NoError(t, err)
		require.Positive(t, s.Len(), "at least one batch")
		require.NoError(t, s.Close())
		for range l.Records(2) {
			require.Fail(t, "there are no records")
		}
	}
}

// Append, AppendBatch and TransferFrom must accept a batch of exactly MaxBatchBytes, and refuse a batch that is one byte larger
// without a trace.
func TestMaxBatchBytes(t *testing.T) {
	for _, most := range []int{200, 4096, 100_000} {
		l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, MaxBatchBytes: most, SegmentBytes: 200_000})
		_, err := l.Append(sized(t, most+1))
		require.ErrorIs(t, err, seglog.ErrTooLarge)
		_, err = l.AppendBatch(sizedBatch(t, 0, most+1))
		require.ErrorIs(t, err, seglog.ErrTooLarge)
		n, err := l.TransferFrom(bytes.NewReader(sizedBatch(t, 0, most+1)), -1)
		require.ErrorIs(t, err, seglog.ErrTooLarge)
		require.Zero(t, n)
		require.Equal(t, seglog.Offsets{}, l.Offsets())
		require.Zero(t, l.Stats().Bytes)
		base, err := l.Append(sized(t, most))
		require.NoError(t, err)
		require.EqualValues(t, 0, base)
		base, err = l.AppendBatch(sizedBatch(t, 99, most))
		require.NoError(t, err)
		require.EqualValues(t, 1, base)
		n, err = l.TransferFrom(bytes.NewReader(sizedBatch(t, 2, most)), -1)
		require.NoError(t, err)
		require.EqualValues(t, most, n)
		require.EqualValues(t, 3*most, l.Stats().Bytes)
		count := 0
		for r, err := range l.Records(0) {
			require.NoError(t, err)
			require.Len(t, r.Value, len(sized(t, most).Value))
			count++
		}
		require.Equal(t, 3, count)
	}
}

// A segment must be filled to its last byte, and rolled if a batch needs one more.
func TestSegmentBytes(t *testing.T) {
	const size = 8192
	for _, last := range []int{0, 1} {
		dir := t.TempDir()
		o := &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: size}
		l := open(t, dir, o)
		first := size - 1000 - last
		for _, n := range []int{first, 1000 + 2*last} { // exactly full, or one byte too many
			_, err := l.Append(sized(t, n))
			require.NoError(t, err)
		}
		require.EqualValues(t, 1+last, l.Stats().Segments)
		_, err := l.Append(sized(t, size)) // one batch that fills a segment
		require.NoError(t, err)
		require.EqualValues(t, 2+last, l.Stats().Segments)
		_, err = l.Append(sized(t, 80))
		require.NoError(t, err)
		require.EqualValues(t, 3+last, l.Stats().Segments)
		require.NoError(t, l.Close())
		st, err := os.Stat(filepath.Join(dir, "00000000000000000000.log"))
		require.NoError(t, err)
		require.EqualValues(t, []int{size, first}[last], st.Size())
		l = open(t, dir, o)
		require.EqualValues(t, 4, l.Offsets().End)
		for i := range int64(4) {
			_, err := l.Read(i)
			require.NoError(t, err)
		}
	}
}

// The offsets in a segment may exceed its base by at most 2^31 - 1; a batch with a higher offset must go into the next segment.
func TestRelativeOffset(t *testing.T) {
	const most = math.MaxInt32
	one := func(base, last int64) []byte {
		return rawBatch{base: base, lastDelta: int(last - base), count: 1, body: rawRecord(0, 0, []byte("v"))}.bytes()
	}
	cases := map[string]struct {
		batches  [][]byte
		segments []string
		offsets  []int64
	}{
		"up to the limit": {
			[][]byte{one(5, 5), one(6, 5+most)},
			[]string{"00000000000000000005.log"},
			[]int64{5, 6},
		},
		"one past the limit": {
			[][]byte{one(5, 5), one(6, 5+most+1)},
			[]string{"00000000000000000005.log", "00000000000000000006.log"},
			[]int64{5, 6},
		},
		"after a gap, up to the limit": {
			[][]byte{one(5, 5), one(5+most, 5+most), one(5+most+1, 5+most+1)},
			[]string{"00000000000000000005.log", "00000000002147483653.log"},
			[]int64{5, 5 + most, 5 + most + 1},
		},
		"a batch that spans all offsets": {
			[][]byte{one(5, 5+most), one(5+most+1, 5+most+1)},
			[]string{"00000000000000000005.log", "00000000002147483653.log"},
			[]int64{5, 5 + most + 1},
		},
	}
	for name, c := range cases {
		for _, p := range policies {
			t.Run(name+"/"+p.String(), func(t *testing.T) {
				dir := t.TempDir()
				l := open(t, dir, &seglog.Options{Flush: p, IndexBytes: 1})
				_, err := l.TransferFrom(bytes.NewReader(bytes.Join(c.batches, nil)), -1)
				require.NoError(t, err)
				check := func(l *seglog.Log) {
					t.Helper()
					for i, offset := range c.offsets {
						r, err := l.Read(offset)
						require.NoError(t, err)
						require.Equal(t, offset, r.Offset)
						s, err := l.Section(offset, 1)
						require.NoError(t, err)
						var b bytes.Buffer
						_, err = s.WriteTo(&b)
						require.NoError(t, err)
						require.True(t, bytes.Equal(c.batches[i], b.Bytes()))
						require.NoError(t, s.Close())
					}
					n := 0
					for r, err := range l.Records(5) {
						require.NoError(t, err)
						require.Equal(t, c.offsets[n], r.Offset)
						n++
					}
					require.Len(t, c.offsets, n)
				}
				check(l)
				killed := copyDir(t, dir)
				require.NoError(t, l.Close())
				var names []string
				for _, f := range files(t, dir, "*.log") {
					names = append(names, filepath.Base(f))
				}
				require.Equal(t, c.segments, names)
				check(open(t, dir, nil))
				l = open(t, killed, nil)
				check(l)
				end := l.Offsets().End
				base, err := l.Append(seglog.Record{Value: []byte("next")})
				require.NoError(t, err)
				require.Equal(t, end, base)
			})
		}
	}
}

// Near the greatest offset, the log must refuse batches before offsets overflow.
func TestLastOffsets(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	require.ErrorIs(t, l.Reset(-1), seglog.ErrInvalid)
	require.NoError(t, l.Reset(math.MaxInt64-math.MaxInt32-2))
	base, err := l.Append(seglog.Record{})
	require.NoError(t, err)
	require.Equal(t, int64(math.MaxInt64-math.MaxInt32-2), base)
	_, err = l.Append(seglog.Record{}, seglog.Record{})
	require.ErrorIs(t, err, seglog.ErrTooLarge)
	_, err = l.Read(base)
	require.NoError(t, err)
	_, err = l.Read(math.MaxInt64)
	require.ErrorIs(t, err, seglog.ErrOutOfRange)
	_, err = l.TransferFrom(bytes.NewReader(plainBatch(math.MaxInt64-5, "x")), -1)
	require.Error(t, err)
	require.ErrorIs(t, l.Reset(math.MaxInt64-math.MaxInt32), seglog.ErrTooLarge, "nothing could be appended then")
	require.ErrorIs(t, l.Reset(math.MaxInt64), seglog.ErrTooLarge)
	_, err = l.Read(base)
	require.NoError(t, err)
}

// Times from 1970 on are stored with a precision of a millisecond; earlier times are refused, as are headers that are not UTF-8.
func TestTimes(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	for _, ms := range []int64{0, 1, 1700000000123, 253402300799999} {
		base, err := l.Append(seglog.Record{Time: time.UnixMilli(ms).Add(999 * time.Microsecond)})
		require.NoError(t, err)
		r, err := l.Read(base)
		require.NoError(t, err)
		require.Equal(t, time.UnixMilli(ms).UTC(), r.Time)
	}
	for _, at := range []time.Time{time.UnixMilli(-1), time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)} {
		_, err := l.Append(seglog.Record{Time: at})
		require.ErrorIs(t, err, seglog.ErrInvalid)
	}
	_, err := l.Append(seglog.Record{Headers: []seglog.Header{{Key: "\xff"}}})
	require.ErrorIs(t, err, seglog.ErrInvalid)
	require.EqualValues(t, 4, l.Offsets().End)
}
