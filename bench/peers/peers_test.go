package peers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/stretchr/testify/require"
)

// value returns 128 bytes that begin with the number i.
func value(i int) []byte {
	v := bytes.Repeat([]byte{byte(i)}, 128)
	binary.BigEndian.PutUint64(v, uint64(i))
	return v
}

func TestEveryPeerKeepsItsRecords(t *testing.T) {
	for _, p := range append(All(), PebbleRecycled) {
		if p.Absent != "" {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			require.NotEmpty(t, p.Kill)
			require.NotEmpty(t, p.Power)
			require.NotEmpty(t, p.CRC)
			for _, durable := range []bool{false, true} {
				if durable && !p.Durable || !durable && !p.NonDurable {
					continue
				}
				log, err := p.Open(t.TempDir(), Setup{Durable: durable, Callers: 1})
				require.NoError(t, err)
				write := log.Appender()
				require.NoError(t, write([][]byte{value(0)}))
				for i := 1; i < 100; i += 3 {
					require.NoError(t, write([][]byte{value(i), value(i + 1), value(i + 2)}))
				}
				if r, ok := log.(Reader); ok {
					for _, i := range []int{0, 1, 50, 99} {
						got, err := r.Read(int64(i))
						require.NoError(t, err)
						require.Equal(t, value(i), got)
					}
				}
				if s, ok := log.(Scanner); ok {
					n := 0
					require.NoError(t, s.Scan(func(got []byte) error {
						require.Equal(t, value(n), got)
						n++
						return nil
					}))
					require.Equal(t, 100, n)
				}
				require.NoError(t, log.Close())
			}
		})
	}
}

// TestPeersTakeBackTheirLastRecords cuts off the last records, appends others in their place, and opens the log again.
func TestPeersTakeBackTheirLastRecords(t *testing.T) {
	cutters := 0
	for _, p := range append(All(), Seglog) {
		if p.Absent != "" || !p.Durable {
			continue
		}
		dir, setup := t.TempDir(), Setup{Durable: true, Callers: 1}
		log, err := p.Open(dir, setup)
		require.NoError(t, err, p.Name)
		cutter, ok := log.(Truncater)
		if !ok {
			require.NoError(t, log.Close())
			continue
		}
		cutters++
		t.Run(p.Name, func(t *testing.T) {
			write := log.Appender()
			for i := range 20 {
				require.NoError(t, write([][]byte{value(i)}))
			}
			for round := range 3 {
				require.NoError(t, cutter.Truncate(15))
				_, err := log.(Reader).Read(15)
				require.Error(t, err)
				for i := range 5 {
					require.NoError(t, write([][]byte{value(1000*round + i)}))
				}
			}
			if p.Name != raftWAL.Name { // raft-wal can't be opened again after a cut
				require.NoError(t, log.Close())
				log, err = p.Open(dir, setup)
				require.NoError(t, err)
				write = log.Appender()
			}
			require.NoError(t, write([][]byte{value(20)}))
			for i, want := range map[int]int{0: 0, 14: 14, 15: 2000, 19: 2004, 20: 20} {
				got, err := log.(Reader).Read(int64(i))
				require.NoError(t, err)
				require.Equal(t, value(want), got)
			}
			require.NoError(t, log.Close())
		})
	}
	require.Equal(t, 4, cutters, "seglog, raft-wal, tidwall/wal and bbolt")
}

func TestEveryPeerTakesManyCallers(t *testing.T) {
	for _, p := range append(All(), PebbleRecycled) {
		if p.Absent != "" || !p.Durable {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			log, err := p.Open(t.TempDir(), Setup{Durable: true, Callers: 8})
			require.NoError(t, err)
			appendFromAll(t, log, 8, 5)
			if r, ok := log.(Reader); ok {
				seen := map[uint64]bool{}
				for i := range 40 {
					got, err := r.Read(int64(i))
					require.NoError(t, err)
					seen[binary.BigEndian.Uint64(got)] = true
				}
				require.Len(t, seen, 40)
			}
			require.NoError(t, log.Close())
		})
	}
}

func appendFromAll(t *testing.T, log Log, callers, each int) {
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for c := range callers {
		write := log.Appender()
		wg.Go(func() {
			for i := range each {
				if err := write([][]byte{value(c*each + i)}); err != nil {
					errs[c] = err
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// slowLog lets appends gather: each call waits for an error, or nil, from gate.
type slowLog struct {
	mu     sync.Mutex
	calls  [][]string
	gate   chan error
	closed bool
}

func (l *slowLog) Appender() Append {
	return func(values [][]byte) error {
		var call []string
		for _, v := range values {
			call = append(call, string(v))
		}
		l.mu.Lock()
		l.calls = append(l.calls, call)
		l.mu.Unlock()
		return <-l.gate
	}
}

func (l *slowLog) Close() error { l.closed = true; return nil }

func TestGroupAppendsGatheredCallsTogether(t *testing.T) {
	inner := &slowLog{gate: make(chan error)}
	g := Group(inner)
	const callers = 10
	var wg sync.WaitGroup
	results := make([]error, callers)
	start := func(i int) {
		write := g.Appender()
		wg.Go(func() { results[i] = write([][]byte{fmt.Append(nil, i)}) })
	}
	start(0)
	require.Eventually(t, func() bool { inner.mu.Lock(); defer inner.mu.Unlock(); return len(inner.calls) == 1 }, timeout, tick)
	for i := 1; i < callers; i++ {
		start(i)
	}
	grp := g.(*group)
	require.Eventually(t, func() bool { grp.mu.Lock(); defer grp.mu.Unlock(); return len(grp.next.values) == callers-1 }, timeout, tick)

	boom := errors.New("boom")
	inner.gate <- nil
	inner.gate <- boom
	wg.Wait()
	require.Len(t, inner.calls, 2)
	require.Equal(t, []string{"0"}, inner.calls[0])
	require.Len(t, inner.calls[1], callers-1)
	require.NoError(t, results[0])
	for i := 1; i < callers; i++ {
		require.ErrorIs(t, results[i], boom, "all callers of a failed append must get its error")
	}
	require.NoError(t, g.Close())
	require.True(t, inner.closed)
}

func TestGroupLosesNothingUnderLoad(t *testing.T) {
	log, err := openTidwall(t.TempDir(), Setup{})
	require.NoError(t, err)
	g := Group(log)
	appendFromAll(t, g, 16, 200)
	seen := map[uint64]bool{}
	for i := range 16 * 200 {
		got, err := log.(Reader).Read(int64(i))
		require.NoError(t, err)
		seen[binary.BigEndian.Uint64(got)] = true
	}
	require.Len(t, seen, 16*200)
	require.NoError(t, g.Close())
}

const (
	timeout = 5 * time.Second
	tick    = time.Millisecond
)

// TestPebbleRollsOverItsOldLogs reads a log that the file of an older one was taken for: it ends where the older records begin.
func TestPebbleRollsOverItsOldLogs(t *testing.T) {
	log, err := PebbleRecycled.Open(t.TempDir(), Setup{Durable: true, Callers: 1})
	require.NoError(t, err)
	write := log.Appender()
	values := make([][]byte, 1000)
	for i := range values {
		values[i] = make([]byte, 10<<10)
	}
	recycle := log.(*pebbleLog).recycle
	first, num, since := recycle.num, recycle.num, 0
	for since < 3 || num < first+pebbleSpares {
		require.NoError(t, write(values))
		if recycle.num != num {
			num, since = recycle.num, 0
		}
		since++
	}
	require.NoError(t, log.Close())
	file, err := os.Open(recycle.name)
	require.NoError(t, err)
	defer file.Close()
	records, n := readPebble(record.NewReader, file, num), 0
	for ; ; n++ {
		r, err := records.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, r)
		require.NoError(t, err)
	}
	require.Equal(t, 1000*since, n)
}

// readPebble opens a reader with a number of a type that is internal to Pebble.
func readPebble[N ~uint64](open func(io.Reader, N) *record.Reader, r io.Reader, num uint64) *record.Reader {
	return open(r, N(num))
}
