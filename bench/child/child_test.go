package child

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seglog/seglog"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestReceiverTakesExactlyWhatWasAnnounced(t *testing.T) {
	r, err := StartReceiver()
	require.NoError(t, err)
	for _, n := range []int64{1, 5 << 20, 17} {
		require.NoError(t, r.Expect(n))
		_, err := r.Conn.Write(make([]byte, n))
		require.NoError(t, err)
		require.NoError(t, r.Conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		require.NoError(t, r.Arrived())
	}
	require.NoError(t, r.Close())
}

// replyWith starts a server that answers every request with a body of n bytes that begins with the offset base(asked).
func replyWith(t *testing.T, n int, base func(asked uint64) uint64) string {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var request [RequestBytes]byte
				reply := make([]byte, HeaderBytes+n)
				for {
					if _, err := io.ReadFull(conn, request[:]); err != nil {
						return
					}
					binary.BigEndian.PutUint64(reply, uint64(n))
					binary.BigEndian.PutUint64(reply[HeaderBytes:], base(binary.BigEndian.Uint64(request[:])))
					if _, err := conn.Write(reply); err != nil {
						return
					}
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func TestFetcherCountsRoundTrips(t *testing.T) {
	c, err := StartFetcher()
	require.NoError(t, err)
	defer c.Close()
	right := replyWith(t, 1000, func(asked uint64) uint64 { return asked })
	for _, conns := range []int{1, 4} {
		got, err := c.Run(Fetches{Addr: right, Conns: conns, Bytes: 1000, Offsets: 100, Step: 7, Duration: 50 * time.Millisecond})
		require.NoError(t, err)
		require.GreaterOrEqual(t, got.Ops, int64(conns))
		require.Equal(t, got.Ops*1000, got.Bytes)
		require.Equal(t, uint64(got.Ops), got.Latency.Count)
		require.GreaterOrEqual(t, got.Elapsed, 50*time.Millisecond)
	}
	beyond := replyWith(t, 1000, func(asked uint64) uint64 { return asked + 1 })
	_, err = c.Run(Fetches{Addr: beyond, Conns: 1, Bytes: 1000, Offsets: 100, Step: 7, Duration: time.Second})
	require.ErrorContains(t, err, "the reply begins at")
	tooLong := replyWith(t, 1<<20, func(asked uint64) uint64 { return asked })
	_, err = c.Run(Fetches{Addr: tooLong, Conns: 1, Bytes: 1000, Offsets: 100, Step: 7, Duration: time.Second})
	require.ErrorContains(t, err, "a reply of")
}

func TestCrashKeepsAppendedRecords(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, Crash(dir, 4<<20))
	log, err := seglog.Open(dir, nil)
	require.NoError(t, err)
	require.GreaterOrEqual(t, log.Offsets().End, int64(4<<10))
	require.NoError(t, log.Close())
}
