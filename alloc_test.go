package seglog_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
	"github.com/seglog/seglog/internal/race"
)

// requireAllocs checks the number of allocations of a call in its steady state. Background work may allocate at the same time,
// so the minimum of several runs counts.
func requireAllocs(t *testing.T, what string, want float64, call func()) {
	t.Helper()
	if race.On {
		t.Skip("the race detector allocates")
	}
	require.Equal(t, want, leastAllocs(100, want, call), what)
}

// leastAllocs is testing.AllocsPerRun, measured again if it is above want, up to five times.
func leastAllocs(runs int, want float64, call func()) float64 {
	least := testing.AllocsPerRun(runs, call)
	for try := 0; try < 5 && least > want; try++ {
		least = min(least, testing.AllocsPerRun(3*runs, call))
	}
	return least
}

// Append and AppendBatch must not allocate: at a million records a second, garbage would dominate the cost.
func TestAllocations(t *testing.T) {
	for _, p := range policies {
		l := open(t, t.TempDir(), &seglog.Options{Flush: p, SegmentBytes: 64 << 20})
		value := bytes.Repeat([]byte{'v'}, 100)
		record := seglog.Record{Key: []byte("key"), Value: value, Headers: []seglog.Header{{Key: "h", Value: value}}}
		hundred := make([]seglog.Record, 100)
		for i := range hundred {
			hundred[i] = seglog.Record{Time: time.UnixMilli(int64(i)), Value: value}
		}
		requireAllocs(t, "Append under "+p.String(), 0, func() {
			if _, err := l.Append(record); err != nil {
				panic(err)
			}
		})
		requireAllocs(t, "Append of 100 under "+p.String(), 0, func() {
			if _, err := l.Append(hundred...); err != nil {
				panic(err)
			}
		})
		batch := plainBatch(0, "a", "b", "c")
		requireAllocs(t, "AppendBatch under "+p.String(), 0, func() {
			if _, err := l.AppendBatch(batch); err != nil {
				panic(err)
			}
		})
	}
}

// Read may allocate only the caller's copy, and iterators only a constant number of times.
func TestAllocationsOfReads(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 20})
	plain := seglog.Record{Time: time.UnixMilli(1700000000000), Key: []byte("key"), Value: bytes.Repeat([]byte{'v'}, 100)}
	for range 20000 {
		_, err := l.Append(plain)
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync())
	offset := int64(0)
	requireAllocs(t, "Read: the caller's copy", 1, func() {
		if _, err := l.Read(offset); err != nil {
			panic(err)
		}
		offset = (offset + 7919) % 20000
	})
	walk := func(records int) func() {
		return func() {
			n := 0
			for _, err := range l.Records(100) {
				if err != nil {
					panic(err)
				}
				if n++; n == records {
					return
				}
			}
		}
	}
	if !race.On {
		// The allocations must not grow with the number of records.
		few := leastAllocs(50, 5, walk(10))
		many := leastAllocs(50, few+2, walk(19000))
		require.LessOrEqual(t, many, few+2, "for 18,990 more records")
		require.LessOrEqual(t, few, 5.0)
	}
	var b bytes.Buffer
	s, err := l.Section(0, 1<<20)
	require.NoError(t, err)
	_, err = s.WriteTo(&b)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	decode := func(n int) func() {
		stream := storedPrefix(b.Bytes(), n)
		return func() {
			for _, err := range seglog.Decode(bytes.NewReader(stream)) {
				if err != nil {
					panic(err)
				}
			}
		}
	}
	if !race.On {
		few := leastAllocs(20, 0, decode(3000))
		many := leastAllocs(20, few, decode(5000))
		require.LessOrEqual(t, many, few+1, "Decode of 2,000 more records")
	}
}

// TransferTo must not allocate, neither with zero copy nor through Write.
func TestAllocationsOfTransfers(t *testing.T) {
	l := open(t, t.TempDir(), &seglog.Options{Flush: seglog.FlushNone, SegmentBytes: 1 << 20})
	appendN(t, l, 0, 20000)
	offset := int64(0)
	here, there := connected(t, "tcp")
	go io.Copy(io.Discard, there)
	var conn net.Conn = here
	requireAllocs(t, "TransferTo", 0, func() {
		if _, err := l.TransferTo(offset, 64<<10, conn); err != nil {
			panic(err)
		}
		offset = (offset + 7919) % 20000
	})
	conn = &countingConn{TCPConn: here.(*net.TCPConn)}
	requireAllocs(t, "TransferTo through Write", 0, func() {
		if _, err := l.TransferTo(offset, 64<<10, conn); err != nil {
			panic(err)
		}
	})
}

// storedPrefix returns the first n batches of a stream of batches of equal size.
func storedPrefix(stream []byte, n int) []byte {
	size := 12 + int(stream[8])<<24 + int(stream[9])<<16 + int(stream[10])<<8 + int(stream[11])
	return stream[:n*size]
}
