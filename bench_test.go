package seglog_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

// BenchmarkAppend measures a call of Append. Retention deletes old segments, so that a long run fits on the disk.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{16, 128, 1 << 10, 16 << 10} {
		for _, records := range []int{1, 100} {
			for _, p := range policies {
				for _, callers := range []int{1, 16, 256} {
					b.Run(fmt.Sprintf("size=%d/records=%d/flush=%v/callers=%d", size, records, p, callers), func(b *testing.B) {
						benchmarkAppend(b, size, records, p, callers)
					})
				}
			}
		}
	}
}

func benchmarkAppend(b *testing.B, size, records int, p seglog.FlushPolicy, callers int) {
	l := open(b, b.TempDir(), &seglog.Options{Flush: p, RetentionBytes: 1 << 30})
	batch := make([]seglog.Record, records)
	for i := range batch {
		batch[i].Value = bytes.Repeat([]byte{'v'}, size)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.SetBytes(int64(size * records))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for left.Add(-1) >= 0 {
				if _, err := l.Append(batch...); err != nil {
					panic(err)
				}
			}
		}()
	}
	wg.Wait()
	b.StopTimer()
	s := l.Stats()
	b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
	if s.Flushes > 0 && p == seglog.FlushSync {
		b.ReportMetric(float64(s.Appends)/float64(s.Flushes), "batches/flush")
	}
}

// filled returns a log of total bytes of values, in batches of one record with a value of the given size.
func filled(b *testing.B, size, total int) (l *seglog.Log, records int64) {
	b.Helper()
	l = open(b, b.TempDir(), &seglog.Options{Flush: seglog.FlushNone})
	v := bytes.Repeat([]byte{'v'}, size)
	for range total / size {
		_, err := l.Append(seglog.Record{Value: v})
		require.NoError(b, err)
	}
	require.NoError(b, l.Sync())
	return l, l.Offsets().End
}

// BenchmarkRead measures a Read of a record at a random offset.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{128, 1 << 10, 16 << 10} {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("size=%d/callers=%d", size, callers), func(b *testing.B) {
				l, records := filled(b, size, 64<<20)
				var left atomic.Int64
				left.Store(int64(b.N))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range callers {
					wg.Add(1)
					go func() {
						defer wg.Done()
						rng := rand.New(rand.NewPCG(uint64(i), 1))
						for left.Add(-1) >= 0 {
							if _, err := l.Read(rng.Int64N(records)); err != nil {
								panic(err)
							}
						}
					}()
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkRecords measures a step of an iteration over records, including its share of checking CRCs and decoding.
func BenchmarkRecords(b *testing.B) {
	for _, size := range []int{128, 1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			l, _ := filled(b, size, 64<<20)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				for r, err := range l.Records(0) {
					if err != nil || len(r.Value) != size {
						b.Fatal(err)
					}
					if n++; n == b.N {
						break
					}
				}
			}
		})
	}
}

// BenchmarkTransferTo measures a transfer to a reader in the same process.
func BenchmarkTransferTo(b *testing.B) {
	for _, bytes := range []int64{4 << 10, 64 << 10, 1 << 20, 32 << 20} {
		for _, path := range []string{"sendfile", "copy"} {
			b.Run(fmt.Sprintf("bytes=%d/path=%s", bytes, path), func(b *testing.B) {
				l, records := filled(b, 1<<10, 128<<20)
				here, there := connected(b, "tcp")
				go io.Copy(io.Discard, there)
				if path == "copy" {
					here = &countingConn{TCPConn: here.(*net.TCPConn)}
				}
				rng := rand.New(rand.NewPCG(1, 1))
				var sent int64
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					n, err := l.TransferTo(rng.Int64N(records-bytes>>10), bytes, here)
					if err != nil {
						b.Fatal(err)
					}
					sent += n
				}
				b.SetBytes(sent / int64(b.N))
			})
		}
	}
}
